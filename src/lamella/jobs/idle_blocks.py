"""Tasks of a job that itself runs on a Dask worker: here, and on the workers that are idle.

The job keeps its own place and works through its tasks in it; whoever else of the cluster has
nothing to do helps. So nothing waits for anything: a job alone on a busy cluster goes on by itself,
other jobs get a worker as soon as its task is done, and a tag such as a GPU is used by its holder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lamella.jobs.blocks import MAX_LOSSES, TICK_S, Answer, call, dask_answer, lost_worker

__all__ = ["IdleBlocks", "idle_blocks"]

_HERE = "here"


def idle_blocks(resources: Mapping[str, float] | None = None) -> IdleBlocks | None:
    """A runner for the task that runs now; None where that is none of a Dask worker.

    Args:
        resources: tags that a helper must have, such as ``{"gpu": 1}``.
    """
    from distributed import get_client, get_worker

    try:
        address = get_worker().address
    except ValueError:
        return None
    return IdleBlocks(get_client(), address, resources or {})


class IdleBlocks:
    """Runs tasks in this thread's place, and on workers that have nothing to do.

    Args:
        client: of the worker that this runs in.
        address: of that worker.
        resources: tags that helpers must have.
    """

    def __init__(self, client: Any, address: str, resources: Mapping[str, float]) -> None:
        self._client = client
        self._address = address
        self._resources = {
            name.upper(): n for name, n in resources.items() if name.lower() != "cpu" and n > 0
        }

    @property
    def n_workers(self) -> int:
        """This one, and those that could help."""
        return 1 + len(self._helpers())

    def run(
        self, function: str, documents: Mapping[int, Mapping[str, Any]]
    ) -> Iterator[Answer | None]:
        """Answers as they come; None every moment in which there is none."""
        return _Round(self, function, documents).answers()

    def submit(self, function: str, document: Mapping[str, Any], address: str) -> Any:
        """Hand a task to a worker."""
        return self._client.submit(
            call, function, dict(document), pure=False, retries=0, workers=[address],
            resources=self._resources or None,
        )  # fmt: skip

    def take_back(self, futures: list[Any]) -> None:
        """Forget tasks; those that run end by themselves."""
        self._client.cancel(futures, force=True)

    def idle(self) -> list[str]:
        """Addresses of helpers that have nothing to do."""
        busy = {address for address, keys in self._client.processing().items() if keys}
        return [address for address in self._helpers() if address not in busy]

    def is_there(self, address: str) -> bool:
        """Whether a worker is still known to the scheduler."""
        return address in self._workers()

    def _workers(self) -> dict[str, Any]:
        return self._client.scheduler_info(-1)["workers"]

    def _helpers(self) -> list[str]:
        """Workers that have the tags, but for this one."""
        return sorted(
            address
            for address, worker in self._workers().items()
            if address != self._address
            and all(worker["resources"].get(name, 0) >= n for name, n in self._resources.items())
        )


class _Round:
    """One run over documents."""

    def __init__(
        self, runner: IdleBlocks, function: str, documents: Mapping[int, Mapping[str, Any]]
    ) -> None:
        self._runner = runner
        self._function = function
        self._documents = documents
        self._waiting = deque(documents)
        self._away: dict[int, tuple[Any, str]] = {}
        self._losses: dict[int, int] = {}

    def answers(self) -> Iterator[Answer | None]:
        here: tuple[int, Future[Any]] | None = None
        # The document runs in a thread, so that this one can go on to talk.
        with ThreadPoolExecutor(1, thread_name_prefix="block") as pool:
            try:
                while self._waiting or self._away or here is not None:
                    if here is None and self._waiting:
                        number = self._waiting.popleft()
                        here = number, pool.submit(call, self._function, self._documents[number])
                    self._send()
                    is_news = False
                    for answer in self._back():
                        is_news = True
                        yield answer
                    if here is not None and here[1].done():
                        number, done = here
                        here, is_news = None, True
                        yield number, done.exception() or done.result()
                    if not is_news:
                        yield None
                        _rest(here)
            finally:
                self._runner.take_back([future for future, _ in self._away.values()])

    def _send(self) -> None:
        """Give idle workers something, from the end: this one works from the beginning."""
        if not self._waiting:
            return
        for address in self._runner.idle():
            if not self._waiting:
                return
            number = self._waiting.pop()
            future = self._runner.submit(self._function, self._documents[number], address)
            self._away[number] = future, address

    def _back(self) -> Iterator[Answer]:
        """What has come back; what is lost is given out again, a few times."""
        for number, (future, address) in list(self._away.items()):
            if future.done():
                del self._away[number]
                yield number, dask_answer(future)
            elif not self._runner.is_there(address):
                del self._away[number]
                self._runner.take_back([future])
                self._losses[number] = self._losses.get(number, 0) + 1
                if self._losses[number] > MAX_LOSSES:
                    yield number, lost_worker()
                else:
                    self._waiting.append(number)


def _rest(here: tuple[int, Future[Any]] | None) -> None:
    """Wait for a moment, or for what runs here."""
    import time
    from concurrent.futures import wait

    if here is None:
        time.sleep(TICK_S)
    else:
        wait([here[1]], timeout=TICK_S)
