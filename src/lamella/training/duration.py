"""Durations in words.

Examples:
    >>> in_words(12.3), in_words(75), in_words(4000)
    ('12 s', '1 min 15 s', '1 h 06 min')
"""

__all__ = ["in_words"]


def in_words(seconds: float) -> str:
    """A duration for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
