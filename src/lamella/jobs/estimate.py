"""When jobs will start and end, from how long their kind took lately.

Examples:
    >>> Durations.of([(10.0, 2.0), (14.0, 2.0), (90.0, None)]).expected_s(cost=4.0)
    24.0
    >>> Durations.of([]).expected_s(cost=4.0) is None
    True
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from lamella.jobs.fairness import fits

__all__ = ["Durations", "Occupied", "Planned", "plan_starts"]


@dataclass(frozen=True, slots=True)
class Durations:
    """How long jobs took: medians, because a few jobs take extremely long."""

    median_s: float | None = None
    median_s_per_cost: float | None = None

    @classmethod
    def of(cls, finished: Iterable[tuple[float, float | None]]) -> "Durations":
        """From (seconds, cost) of finished jobs."""
        pairs = list(finished)
        rates = [seconds / cost for seconds, cost in pairs if cost]
        return cls(
            median([seconds for seconds, _ in pairs]) if pairs else None,
            median(rates) if rates else None,
        )

    def expected_s(self, cost: float | None = None) -> float | None:
        """Seconds that a job will probably take; None = nothing is known."""
        if cost and self.median_s_per_cost is not None:
            return cost * self.median_s_per_cost
        return self.median_s


@dataclass(frozen=True, slots=True)
class Occupied:
    """What a running job holds, and for how many seconds still (None = not known)."""

    resources: Mapping[str, float]
    remaining_s: float | None


@dataclass(frozen=True, slots=True)
class Planned:
    """A queued job and how many seconds it will take (None = not known)."""

    id: str
    resources: Mapping[str, float]
    expected_s: float | None


def plan_starts(
    queue: Sequence[Planned], running: Iterable[Occupied], total: Mapping[str, float]
) -> dict[str, float]:
    """Seconds until each queued job starts, where that can be told.

    Jobs start in the order of ``queue``, each as soon as its resources are free, none before the
    one ahead of it. A job that needs more than ``total`` never starts and holds up nobody.

    Args:
        queue: jobs in the order in which they start.
        running: what is held now.
        total: what there is when nothing runs.
    """
    free = dict(total)
    ends: list[tuple[float, int, Mapping[str, float]]] = []
    n = 0
    for held in running:
        _add(free, held.resources, -1.0)
        ends.append((_or_never(held.remaining_s), n, held.resources))
        n += 1
    heapq.heapify(ends)
    starts: dict[str, float] = {}
    now = 0.0
    for job in queue:
        if not fits(job.resources, total):
            continue
        while not fits(job.resources, free) and ends:
            end, _, resources = heapq.heappop(ends)
            now = max(now, end)
            _add(free, resources, 1.0)
        if now == float("inf"):
            break
        starts[job.id] = now
        _add(free, job.resources, -1.0)
        heapq.heappush(ends, (now + _or_never(job.expected_s), n, job.resources))
        n += 1
    return starts


def _add(free: dict[str, float], resources: Mapping[str, float], sign: float) -> None:
    for name, amount in resources.items():
        free[name] = free.get(name, 0.0) + sign * amount


def _or_never(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds
