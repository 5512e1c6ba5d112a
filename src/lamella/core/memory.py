"""How much memory there is, for refusing work that would not fit before it begins."""

import os
from pathlib import Path

__all__ = ["available_bytes"]


def available_bytes() -> int | None:
    """Memory that can be used without swapping; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
        return next(
            int(line.split()[1]) * 1024
            for line in text.splitlines()
            if line.startswith("MemAvailable:")
        )
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
