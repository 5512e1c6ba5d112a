"""Carries out the instructions of flows, with threads where several run together."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from lamella.client.flow import (
    Close,
    Do,
    Failure,
    Flow,
    Open,
    Pause,
    Read,
    Request,
    Response,
    Send,
    Tell,
    Together,
)
from lamella.client.transport import Endpoint, failure_of, network_errors, prepared, response_of
from lamella.core.errors import RunCancelledError

__all__ = ["Driver"]

T = TypeVar("T")


class Driver:
    """One server and the connections to it; close it, or use it as a context manager.

    Args:
        endpoint: the server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        import httpx2

        self.endpoint = endpoint
        self.http = httpx2.Client(**endpoint.settings())
        self._is_stopped = threading.Event()

    def run(self, flow: Flow[T], listen: Callable[[Any], None] | None = None) -> T:
        """Carry out a flow to its end.

        Args:
            flow: what to do.
            listen: told every event; what it raises ends the flow.
        """
        return self._run(flow, listen, self._is_stopped)

    def _run(self, flow: Flow[T], listen: Callable[[Any], None] | None, stop: threading.Event) -> T:
        steps = self.steps(flow, stop)
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                return end.value
            if listen is not None:
                try:
                    listen(event)
                except BaseException:
                    steps.close()
                    raise

    def steps(self, flow: Flow[T], stop: threading.Event | None = None) -> Generator[Any, None, T]:
        """Carry out a flow, yielding what it tells; ``stop`` ends it from another thread."""
        stop = stop or self._is_stopped
        hands = _Hands(self, stop)
        answer: Any = None
        try:
            while True:
                if stop.is_set() or self._is_stopped.is_set():
                    raise RunCancelledError("the client was told to stop")
                try:
                    instruction = flow.send(answer)
                except StopIteration as end:
                    return end.value
                if isinstance(instruction, Tell):
                    yield instruction.event
                    answer = None
                elif isinstance(instruction, Together):
                    answer = yield from self._together(instruction)
                else:
                    answer = hands.carry_out(instruction)
        finally:
            hands.let_go()
            flow.close()

    def close(self) -> None:
        """Close all connections; flows that still run end with an error."""
        self._is_stopped.set()
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _together(self, instruction: Together) -> Generator[Any, None, list[Any]]:
        told: queue.Queue[Any] = queue.Queue()
        is_over = threading.Event()
        end = object()

        def work(flow: Flow[Any]) -> Any:
            try:
                return self._run(flow, told.put, is_over)
            finally:
                told.put(end)

        pool = ThreadPoolExecutor(len(instruction.flows), thread_name_prefix="lamella-part")
        try:
            futures = [pool.submit(work, flow) for flow in instruction.flows]
            for _ in futures:
                while (event := told.get()) is not end:
                    yield event
                for future in futures:
                    if future.done() and (error := future.exception()) is not None:
                        raise error
            return [future.result() for future in futures]
        finally:
            is_over.set()
            pool.shutdown(wait=True, cancel_futures=True)


class _Hands:
    """What one flow holds: at most one open stream."""

    def __init__(self, driver: Driver, stop: threading.Event) -> None:
        self._driver = driver
        self._stop = stop
        self._stream: Any = None
        self._chunks: Iterator[bytes] = iter(())

    def carry_out(self, instruction: Any) -> Any:
        if isinstance(instruction, Send):
            return self._ask(instruction.request, is_stream=False)
        if isinstance(instruction, Open):
            return self._ask(instruction.request, is_stream=True)
        if isinstance(instruction, Read):
            return self._read()
        if isinstance(instruction, Do):
            return instruction.work()
        if isinstance(instruction, Pause):
            self._stop.wait(instruction.seconds)
            return None
        assert isinstance(instruction, Close), f"no instruction of a flow: {instruction!r}"
        return self.let_go()

    def let_go(self) -> None:
        stream, self._stream, self._chunks = self._stream, None, iter(())
        if stream is not None:
            with contextlib.suppress(*network_errors()):
                stream.close()

    def _ask(self, request: Request, *, is_stream: bool) -> Response | Failure:
        self.let_go()
        endpoint = self._driver.endpoint
        http = self._driver.http
        words = prepared(endpoint, request)
        try:
            answer = http.send(http.build_request(**words), stream=is_stream)
            if is_stream and answer.status_code >= 400:
                # Why not, is in the body.
                answer.read()
        except network_errors() as error:
            return failure_of(error, endpoint)
        if not is_stream or answer.status_code >= 400:
            return response_of(answer, answer.content)
        self._stream = answer
        # Raw: what is compressed is not wanted, and offsets must be those of the file.
        self._chunks = answer.iter_raw()
        return response_of(answer, b"")

    def _read(self) -> bytes | Failure:
        try:
            return next(self._chunks, b"")
        except network_errors() as error:
            return failure_of(error, self._driver.endpoint)
