"""The command line: thin modules, one a command, each imported only when it is called."""

from lamella.cli.app import cli, main

__all__ = ["cli", "main"]
