"""The command line: thin modules, one a command, each imported only when it is called."""

from lamella.cli.app import main

__all__ = ["main"]
