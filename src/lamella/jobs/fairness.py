"""Who is next: fair share between owners, priority within an owner, then age.

The owner whose running jobs hold least (divided by the owner's weight) is served first; of those
that hold the same, the one who used least lately; then whose oldest job waits longest. Priorities
order the jobs of one owner only: nobody overtakes others by a high number. A job that needs more
than is free lets smaller ones pass, until it has waited ``patience_s``; from then on what becomes
free is kept for it.

Examples:
    >>> free = {"cpu": 1.0}
    >>> waiting = [
    ...     Waiting(owner="ada", resources={"cpu": 1.0}, first_number=1, first_queued=0.0),
    ...     Waiting(owner="bob", resources={"cpu": 1.0}, first_number=9, first_queued=5.0),
    ... ]
    >>> shares = {"ada": Share(held=3.0), "bob": Share(held=1.0)}
    >>> [group.owner for group in choose(waiting, shares, free, {"cpu": 5.0}, now=6.0)]
    ['bob']
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol, TypeVar

__all__ = [
    "PATIENCE_S",
    "Share",
    "Waiting",
    "choose",
    "decayed",
    "fits",
    "in_order",
    "size_of",
]

PATIENCE_S = 600.0
"""How long a large job lets smaller ones pass."""
_HALF_LIFE_S = 24 * 3600.0
# Amounts are sums of floats: 0.1 + 0.2 GPUs fit into 0.3.
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What an owner has and had.

    Args:
        held: amounts of all resources that the owner's running jobs hold, summed.
        usage: amounts times seconds, lately; see :func:`decayed`.
        weight: 2 gets twice as much as 1.
        n_running: running jobs.
        max_running: how many may run at once; None = any number.
    """

    held: float = 0.0
    usage: float = 0.0
    weight: float = 1.0
    n_running: int = 0
    max_running: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether the owner may start no more jobs for now."""
        return self.max_running is not None and self.n_running >= self.max_running

    @property
    def rank(self) -> tuple[float, float]:
        """Least is served first."""
        return self.held / self.weight, self.usage / self.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The queued jobs of one owner that need the same resources."""

    owner: str
    resources: Mapping[str, float]
    first_number: int
    """Of the oldest one."""
    first_queued: float
    """When the one that waits longest was queued."""


class Queued(Protocol):
    """What ordering needs to know of a job."""

    @property
    def owner(self) -> str:
        """The user."""
        ...

    @property
    def priority(self) -> int:
        """Higher runs earlier."""
        ...

    @property
    def number(self) -> int:
        """Order of submission."""
        ...

    @property
    def resources(self) -> Mapping[str, float]:
        """What it will hold."""
        ...


AnyQueued = TypeVar("AnyQueued", bound=Queued)


def size_of(resources: Mapping[str, float]) -> float:
    """How much a job holds: all amounts together."""
    return sum(resources.values())


def fits(resources: Mapping[str, float], free: Mapping[str, float]) -> bool:
    """Whether a job that needs ``resources`` could start with what is free."""
    return all(amount <= free.get(name, 0.0) + _TOLERANCE for name, amount in resources.items())


def decayed(usage: float, age_s: float) -> float:
    """Usage after some seconds: half of it counts after a day."""
    return usage * math.exp2(-max(0.0, age_s) / _HALF_LIFE_S)


def choose(
    waiting: Sequence[Waiting],
    shares: Mapping[str, Share],
    free: Mapping[str, float],
    total: Mapping[str, float],
    *,
    now: float,
    patience_s: float = PATIENCE_S,
) -> list[Waiting]:
    """The groups of one owner from which the next job is to be taken; empty when nothing may start.

    Args:
        waiting: all groups of queued jobs.
        shares: of every owner in ``waiting``.
        free: resources that are free now.
        total: resources that are free when nothing runs.
        now: Unix time, seconds.
        patience_s: after how long resources are kept free for a large job.
    """
    allowed = [group for group in waiting if not shares[group.owner].is_full]
    free = _after_reservation(allowed, free, total, now - patience_s)
    startable = [group for group in allowed if fits(group.resources, free)]
    if not startable:
        return []
    owner = min(startable, key=lambda group: (*shares[group.owner].rank, group.first_number)).owner
    return [group for group in startable if group.owner == owner]


def _after_reservation(
    waiting: Iterable[Waiting],
    free: Mapping[str, float],
    total: Mapping[str, float],
    before: float,
) -> dict[str, float]:
    blocked = [
        group
        for group in waiting
        if group.first_queued < before
        and not fits(group.resources, free)
        and fits(group.resources, total)
    ]
    if not blocked:
        return dict(free)
    large = min(blocked, key=lambda group: (group.first_queued, group.first_number))
    return {
        name: max(0.0, amount - large.resources.get(name, 0.0)) for name, amount in free.items()
    }


def in_order(jobs: Iterable[AnyQueued], shares: Mapping[str, Share]) -> Iterator[AnyQueued]:
    """Queued jobs in the order in which they would start if none of the running ones ended.

    The rule is that of :func:`choose` where everything fits; O(n log n).
    """
    by_owner: defaultdict[str, list[AnyQueued]] = defaultdict(list)
    for job in jobs:
        by_owner[job.owner].append(job)
    heap: list[tuple[float, float, int, str]] = []
    state = dict(shares)
    # Number of the oldest job among the first n of an owner.
    oldest: dict[str, list[int]] = {}
    for owner, own in by_owner.items():
        # Reversed: the next one is taken from the end.
        own.sort(key=lambda job: (job.priority, -job.number))
        oldest[owner] = list(accumulate((job.number for job in own), min))
        share = state.setdefault(owner, Share())
        heap.append((*share.rank, oldest[owner][-1], owner))
    heapq.heapify(heap)
    while heap:
        *_, owner = heapq.heappop(heap)
        own = by_owner[owner]
        job = own.pop()
        yield job
        share = state[owner]
        state[owner] = share = replace(share, held=share.held + size_of(job.resources))
        if own:
            heapq.heappush(heap, (*share.rank, oldest[owner][len(own) - 1], owner))
