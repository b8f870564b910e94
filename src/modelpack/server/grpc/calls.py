"""One way for every call, whatever its method: read messages, answer, word what went wrong as a status, count."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from contextlib import asynccontextmanager, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError, Message

from ..exchange import STATUSES
from ..faults import Disconnected, Failed, Fault, Forbidden, Full, Invalid, Late, Unknown, Unready
from . import schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from ..service import Service

    Unary = Callable[[Service, Any, "Call"], Awaitable[Message]]
    Streaming = Callable[[Service, AsyncIterator[Any], "Call"], AsyncIterator[Message]]

CODES = {
    Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    Unknown: grpc.StatusCode.NOT_FOUND,
    Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Failed: grpc.StatusCode.INTERNAL,
    Unready: grpc.StatusCode.UNAVAILABLE,
    Late: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""What each fault is called in gRPC."""
_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_LONGEST = 2000  # characters of a status; clients refuse trailers over 8 KiB
_log = logging.getLogger("modelpack.server")


class Call:
    """One call: when it arrived, what it is called in the log, and whether its client still waits."""

    def __init__(self, context: Any, calls: Calls) -> None:
        self.arrive()
        self.context, self._calls = context, calls
        self.metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        given = self.metadata.get("x-request-id", "")
        self.id = given if _SAFE_ID.fullmatch(given) else os.urandom(12).hex()

    def arrive(self) -> None:
        """Begin the time that an answer may take."""
        self.arrived = perf_counter()

    def gone(self) -> bool:
        """Tell, from any thread, whether the client has left."""
        left: bool = self.context.cancelled()
        return left

    @property
    def late(self) -> bool:
        """Whether the deadline that the client set has passed."""
        return self.context.time_remaining() == 0

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Wait for something that a stopping server need not wait for."""
        task = asyncio.current_task()
        self._calls.idle.add(task)
        try:
            yield
        finally:
            self._calls.idle.discard(task)

    def fault(self, error: Exception) -> Fault:
        """Word what went wrong for the client; the log gets the trace of what is the server's own fault."""
        fault = error if isinstance(error, Fault) else Failed("")
        if isinstance(fault, Failed):
            _log.error("request %s failed", self.id, exc_info=error)
            return Failed(f"the server failed on this request; its log has the reason ({self.id})")
        return fault


class Calls:
    """The calls of one server.

    Attributes:
        running: The tasks of calls that are not answered yet.
        idle: Those of them that only wait for their clients.
        stopped: Whether a call that is cancelled now is so because the server ends.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.running: set[asyncio.Task[Any] | None] = set()
        self.idle: set[asyncio.Task[Any] | None] = set()
        self.stopped = False

    def end(self, tasks: set[asyncio.Task[Any] | None]) -> None:
        """Cut calls short; their clients are told that they may try elsewhere."""
        self.stopped = True
        for task in list(tasks):
            if task is not None:
                task.cancel()

    def handler(self, name: str, methods: Mapping[str, Unary | Streaming], alias: str = "") -> Any:
        """Give a service's handler for gRPC, which knows methods by their names.

        Args:
            name: The service's full name.
            methods: By their names in the schema; those with a stream on either side take and give iterators.
            alias: Under which name it is served; its own when empty.
        """
        made = {}
        for method in schema.pool().FindServiceByName(name).methods:
            take = _taking(method.input_type.full_name)
            work: Any = methods[method.name]
            if method.client_streaming or method.server_streaming:
                made[method.name] = grpc.stream_stream_rpc_method_handler(self._streaming(method.full_name, take, work))
            else:
                made[method.name] = grpc.unary_unary_rpc_method_handler(self._unary(method.full_name, take, work))
        return grpc.method_handlers_generic_handler(alias or name, made)

    def _unary(self, route: str, take: Callable[[bytes], Message], work: Unary) -> Callable[[bytes, Any], Any]:
        async def answer(data: bytes, context: Any) -> bytes:
            response = b""
            async with self._call(route, context) as call:
                response = (await work(self.service, take(data), call)).SerializeToString()
            return response

        return answer

    def _streaming(self, route: str, take: Callable[[bytes], Message], work: Streaming) -> Callable[[Any, Any], Any]:
        async def answer(_requests: Any, context: Any) -> None:
            async with self._call(route, context) as call:
                async for response in work(self.service, _messages(call, take), call):
                    await context.write(response.SerializeToString())

        return answer

    @asynccontextmanager
    async def _call(self, route: str, context: Any) -> AsyncIterator[Call]:
        call, metrics, task = Call(context, self), self.service.metrics, asyncio.current_task()
        self.running.add(task)
        metrics.inflight.inc()
        status, fault = 499, None
        try:
            yield call
            status = 200
        except Disconnected:
            pass
        except asyncio.CancelledError:
            if not self.stopped:  # the client left, or its deadline has passed
                status = 504 if call.late else 499
                raise
            fault = Unready("the server stopped before the model was done")
        except Exception as error:  # noqa: BLE001 - whatever failed, the client gets a status and the log the trace
            fault = call.fault(error)
        finally:
            status = status if fault is None else STATUSES[type(fault)]
            self.running.discard(task)
            metrics.inflight.dec()
            metrics.count("grpc", route, status)
            metrics.time("grpc", route, perf_counter() - call.arrived)
        if fault is not None:
            await context.abort(CODES[type(fault)], fault.message[:_LONGEST])


def _taking(name: str) -> Callable[[bytes], Message]:
    """Give what reads a message of this name."""
    kind = schema.message(name)

    def take(data: bytes) -> Message:
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise Invalid(f"this is no message {name}: {error}") from None

    return take


async def _messages(call: Call, take: Callable[[bytes], Message]) -> AsyncIterator[Message]:
    """Give the messages of a stream as they come, until the client ends it."""
    while True:
        with call.idle():
            data = await call.context.read()
        if data is grpc.aio.EOF:
            return
        yield take(data)
