"""What is wrong, or odd, about a data set: data, so that a person can fix many things at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lamella.core.errors import InputError

__all__ = ["Finding", "raise_errors"]

Severity = Literal["error", "warning", "note"]
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        severity: ``error`` prevents training, ``warning`` should be looked at, ``note`` informs.
        code: stable name of the kind, such as ``unmatched_image``.
        message: what was found, in words.
        files: which files it is about, below the root.
        hint: the way out.
    """

    severity: Severity
    code: str
    message: str
    files: tuple[str, ...] = ()
    hint: str = ""

    def as_json(self) -> dict[str, object]:
        """As plain values."""
        return {
            "severity": self.severity,
            "code": self.code,
            "message": self.message,
            "files": list(self.files),
            "hint": self.hint,
        }

    @property
    def sentence(self) -> str:
        """Message, files and hint in one line."""
        return self.message + listed(self.files) + (f"; {self.hint}" if self.hint else "")


def listed(files: Sequence[str]) -> str:
    """Some names behind a colon; nothing where there are none."""
    if not files:
        return ""
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ": " + ", ".join(files[:_SHOWN]) + more


def raise_errors(
    findings: Iterable[Finding], what: str = "the data set cannot be trained on"
) -> None:
    """Raise when a finding prevents training, or what else is meant to be done.

    Args:
        findings: all of them.
        what: cannot be done.

    Raises:
        InputError: with the first ones in words and all of them as details.
    """
    errors = [found for found in findings if found.severity == "error"]
    if not errors:
        return
    shown = "; ".join(found.message + listed(found.files) for found in errors[:3])
    more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    hints = list(dict.fromkeys(found.hint for found in errors if found.hint))
    raise InputError(
        f"{what}: {shown}{more}",
        hint="; ".join(hints[:2]) or "`lamella dataset check` lists everything",
        details={"findings": [found.as_json() for found in errors]},
    )
