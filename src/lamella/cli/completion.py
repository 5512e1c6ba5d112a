"""``lamella completion``: the script that lets a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]

_SHELLS = ("bash", "fish", "zsh")


_HELP = """Print the completion script of SHELL.

\b
bash   eval "$(lamella completion bash)"    in ~/.bashrc
zsh    eval "$(lamella completion zsh)"     in ~/.zshrc
fish   lamella completion fish | source     in ~/.config/fish/config.fish
"""


@click.command(name="completion", help=_HELP)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script by which a shell completes commands and options."""
    root = ctx.find_root()
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(root.command, {}, "lamella", "_LAMELLA_COMPLETE").source())
