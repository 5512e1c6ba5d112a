"""Carries out the instructions of flows with asyncio; disk and hashes go to threads."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
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

__all__ = ["AsyncDriver"]

T = TypeVar("T")


class AsyncDriver:
    """One server and the connections to it; close it, or use it as a context manager.

    Args:
        endpoint: the server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        import httpx2

        self.endpoint = endpoint
        self.http = httpx2.AsyncClient(**endpoint.settings())

    async def run(self, flow: Flow[T], listen: Callable[[Any], None] | None = None) -> T:
        """Carry out a flow to its end; ``listen`` is told every event."""
        result: Any = None
        async with contextlib.aclosing(self.steps(flow)) as steps:
            async for kind, value in steps:
                if kind == "end":
                    result = value
                elif listen is not None:
                    listen(value)
        return result

    async def steps(self, flow: Flow[T]) -> AsyncGenerator[tuple[str, Any]]:
        """Carry out a flow: ``("told", event)`` again and again, then ``("end", result)``."""
        hands = _Hands(self)
        answer: Any = None
        try:
            while True:
                try:
                    instruction = flow.send(answer)
                except StopIteration as end:
                    yield "end", end.value
                    return
                if isinstance(instruction, Tell):
                    yield "told", instruction.event
                    answer = None
                elif isinstance(instruction, Together):
                    told: asyncio.Queue[Any] = asyncio.Queue()
                    work = asyncio.ensure_future(self._together(instruction, told))
                    try:
                        while (event := await told.get()) is not None:
                            yield "told", event
                        answer = await work
                    finally:
                        work.cancel()
                else:
                    answer = await hands.carry_out(instruction)
        finally:
            await hands.let_go()
            flow.close()

    async def close(self) -> None:
        """Close all connections."""
        await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def _together(self, instruction: Together, told: "asyncio.Queue[Any]") -> list[Any]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self.run(flow, told.put_nowait)) for flow in instruction.flows
                ]
            return [task.result() for task in tasks]
        except BaseExceptionGroup as several:
            # The first error is the one that ended the others.
            raise several.exceptions[0] from None
        finally:
            told.put_nowait(None)


class _Hands:
    """What one flow holds: at most one open stream."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver
        self._stream: Any = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def carry_out(self, instruction: Any) -> Any:
        if isinstance(instruction, Send):
            return await self._ask(instruction.request, is_stream=False)
        if isinstance(instruction, Open):
            return await self._ask(instruction.request, is_stream=True)
        if isinstance(instruction, Read):
            return await self._read()
        if isinstance(instruction, Do):
            return await asyncio.to_thread(instruction.work)
        if isinstance(instruction, Pause):
            return await asyncio.sleep(instruction.seconds)
        assert isinstance(instruction, Close), f"no instruction of a flow: {instruction!r}"
        return await self.let_go()

    async def let_go(self) -> None:
        stream, self._stream, self._chunks = self._stream, None, None
        if stream is not None:
            with contextlib.suppress(*network_errors()):
                await stream.aclose()

    async def _ask(self, request: Request, *, is_stream: bool) -> Response | Failure:
        await self.let_go()
        endpoint, http = self._driver.endpoint, self._driver.http
        words = await asyncio.to_thread(prepared, endpoint, request)
        try:
            answer = await http.send(http.build_request(**words), stream=is_stream)
            if is_stream and answer.status_code >= 400:
                await answer.aread()
        except network_errors() as error:
            return await asyncio.to_thread(failure_of, error, endpoint)
        if not is_stream or answer.status_code >= 400:
            return response_of(answer, answer.content)
        self._stream = answer
        self._chunks = answer.aiter_raw()
        return response_of(answer, b"")

    async def _read(self) -> bytes | Failure:
        if self._chunks is None:
            return b""
        try:
            return await anext(self._chunks, b"")
        except network_errors() as error:
            return failure_of(error, self._driver.endpoint)
