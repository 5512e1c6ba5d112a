"""``python -m lamella``: the same command line."""

import sys

from lamella.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
