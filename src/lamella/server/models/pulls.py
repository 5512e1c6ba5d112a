"""Pulls in the background: one at a time, with progress that can be asked for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lamella.core.errors import LamellaError, MissingPathError, RunCancelledError
from lamella.core.progress import CancelToken
from lamella.wire.job import ProgressDoc
from lamella.wire.model import PullDoc
from lamella.wire.problem import Problem

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.models.pull import PullResult
    from lamella.workflows.model_store import Wanted

__all__ = ["Pulls"]

logger = logging.getLogger(__name__)

_ACTIVE = ("waiting", "running")
_MAX_KEPT = 200


def _pull(wanted: tuple[Wanted, ...], places: Places, sink: Any, accepts: bool) -> PullResult:
    from lamella.models.pull import PullOptions
    from lamella.workflows.model_store import pull_models

    return pull_models(wanted, places, sink, PullOptions(accepts_licence=accepts))[-1]


@dataclass
class _Pull:
    """One pull; also the sink that its transfer reports to."""

    document: PullDoc
    token: CancelToken = field(default_factory=CancelToken)

    def emit(self, event: Any, /) -> None:
        """Remember how far it is."""
        if getattr(event, "type", "progress") != "progress":
            return
        progress = ProgressDoc(
            stage=event.stage,
            done=event.done,
            total=event.total,
            unit=event.unit,
            eta_s=getattr(event, "eta_s", None),
        )
        self.document = self.document.model_copy(update={"progress": progress})

    def check(self) -> None:
        """Stop where somebody asked for it."""
        self.token.check()

    def change(self, **values: Any) -> None:
        self.document = self.document.model_copy(update=values)


@dataclass
class Pulls:
    """What is being pulled, and what was.

    Args:
        places: where models go.
        pull: does it; raises ``LamellaError`` where it cannot be done.
        clock: Unix time in seconds.
    """

    places: Places
    pull: Callable[[tuple[Wanted, ...], Places, Any, bool], PullResult] = _pull
    clock: Callable[[], float] = time.time
    _pulls: dict[str, _Pull] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: ThreadPoolExecutor | None = None

    def start_pull(
        self, reference: str, user: str, *, accepts_licence: bool
    ) -> tuple[PullDoc, bool]:
        """Start to pull a model, or join the pull that is on its way.

        Args:
            reference: id of a catalogue, or ``ENGINE:NAME``.
            user: who asks.
            accepts_licence: whether the licence is accepted now.

        Returns:
            The pull, and whether it was started by this call.

        Raises:
            UnknownModelError: no such model.
            InputError: an engine that pulls nothing by name.
            LicenceError: its licence has to be accepted first.
        """
        from lamella.models.licence import check_accepted
        from lamella.workflows.model_store import find_wanted, open_terms

        wanted = find_wanted(reference, self.places)
        if not accepts_licence:
            for terms in open_terms(wanted, self.places):
                check_accepted(terms, self.places)
        with self._lock:
            known = self._pulls.get(reference)
            if known is not None and known.document.state in _ACTIVE:
                return known.document, False
            document = PullDoc(model=reference, state="waiting", user=user, started=self._now())
            pull = self._pulls[reference] = _Pull(document)
            self._forget()
            if self._threads is None:
                self._threads = ThreadPoolExecutor(1, thread_name_prefix="lamella-pull")
            self._threads.submit(self._run, pull, wanted, accepts_licence)
        return pull.document, True

    def get(self, reference: str) -> PullDoc:
        """How far a pull is.

        Raises:
            MissingPathError: nobody pulled that since the server started.
        """
        with self._lock:
            known = self._pulls.get(reference)
        if known is None:
            raise MissingPathError(
                f"{reference!r} was not pulled since the server started",
                hint="POST to this address starts it",
            )
        return known.document

    def cancel(self, reference: str) -> PullDoc:
        """Ask a pull to stop; what came is kept for the next one.

        Raises:
            MissingPathError: there is none.
        """
        document = self.get(reference)
        with self._lock:
            self._pulls[reference].token.cancel()
        return document

    def stop(self) -> None:
        """Stop every pull and wait for it; what came is kept."""
        with self._lock:
            threads, self._threads = self._threads, None
            for pull in self._pulls.values():
                pull.token.cancel()
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, pull: _Pull, wanted: tuple[Wanted, ...], accepts: bool) -> None:
        pull.change(state="running")
        try:
            pull.check()
            result = self.pull(wanted, self.places, pull, accepts)
            pull.change(state="finished", was_here=result.was_here)
        except RunCancelledError:
            pull.change(state="cancelled")
        except (LamellaError, OSError) as error:
            pull.change(state="failed", problem=Problem.from_error(error))
        except Exception as error:
            logger.exception("pull of %s failed", pull.document.model)
            pull.change(state="failed", problem=Problem.from_error(error))
        finally:
            pull.change(finished=self._now())

    def _forget(self) -> None:
        done = [name for name, one in self._pulls.items() if one.document.state not in _ACTIVE]
        for name in done[: max(0, len(self._pulls) - _MAX_KEPT)]:
            del self._pulls[name]

    def _now(self) -> str:
        return datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="seconds")
