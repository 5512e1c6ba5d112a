"""A clock that tests move."""

__all__ = ["Clock"]


class Clock:
    """Called, it says ``now``, seconds; tests set that."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now
