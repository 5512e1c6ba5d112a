"""``lamella doctor``: what this installation can do, and what it lacks."""

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console
from lamella.cli.failure import EXIT_NO
from lamella.cli.parameters import answer_options, console_of

if TYPE_CHECKING:
    from lamella.workflows.diagnosis import Check

__all__ = ["command"]

_MARKS = {"ok": ("ok", "green"), "absent": ("--", None), "broken": ("!!", "red")}


@click.command()
@answer_options
def command(**words: Any) -> int:
    """Check this installation: formats, engines, models, devices, memory and disk.

    Exit code 0 when everything of the base install works, 3 when something is broken. What an
    extra would add is listed as absent, with the way to install it.
    """
    from lamella.workflows.diagnosis import diagnose

    console = console_of(words)
    checks = diagnose()
    is_sound = all(check.state != "broken" for check in checks)
    document = {
        "is_sound": is_sound,
        "checks": [
            {
                "area": check.area,
                "name": check.name,
                "state": check.state,
                "detail": check.detail,
                "hint": check.hint or None,
            }
            for check in checks
        ],
    }
    console.answer(document, lambda: _text(checks, console))
    return 0 if is_sound else EXIT_NO


def _text(checks: "tuple[Check, ...]", console: Console) -> str:
    lines: list[str] = []
    width = max(len(check.name) for check in checks)
    for area in dict.fromkeys(check.area for check in checks):
        lines.append(console.style(area, bold=True))
        for check in checks:
            if check.area != area:
                continue
            mark, color = _MARKS[check.state]
            lines.append(
                f"  {console.style(mark, fg=color)}  {check.name:<{width}}  {check.detail}".rstrip()
            )
            if check.hint:
                lines.append(f"      {'':<{width}}  {check.hint}")
    broken = [check.name for check in checks if check.state == "broken"]
    lines.append(
        f"\nbroken: {', '.join(broken)}" if broken else "\neverything of the base install works"
    )
    return "\n".join(lines)
