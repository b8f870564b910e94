"""One way for every call, whatever its method: read messages, answer, word what went wrong as a status, count."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from .. import logs, spans, tracing
from ..exchange import STATUSES, identity
from ..faults import Disconnected, Failed, Fault, Forbidden, Full, Invalid, Late, Unknown, Unproven, Unready
from . import schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from ..service import Service

    Unary = Callable[[Service, Any, "Call"], Awaitable[Message]]
    Streaming = Callable[[Service, AsyncIterator[Any], "Call"], AsyncIterator[Message]]

T = TypeVar("T")
CODES = {
    Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    Unproven: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    Unknown: grpc.StatusCode.NOT_FOUND,
    Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Failed: grpc.StatusCode.INTERNAL,
    Unready: grpc.StatusCode.UNAVAILABLE,
    Late: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""What each fault is called in gRPC."""
_NAMES = {200: "OK", 499: "CANCELLED", **{STATUSES[fault]: code.name for fault, code in CODES.items()}}
OPEN = (f"{schema.HEALTH}.", f"{schema.INFERENCE}.ServerLive", f"{schema.INFERENCE}.ServerReady")
"""With what methods begin that are answered without a token."""
_STOPPED = "the server stopped before the answer was there"
_LONGEST = 2000  # characters of a status; clients refuse trailers over 8 KiB
_log = logging.getLogger("modelpack.server")


class Call:
    """One call: when it arrived, what the log calls it, and whether its client still waits."""

    def __init__(self, context: Any, calls: Calls) -> None:
        self.arrive()
        self.context, self._calls = context, calls
        self.metadata = list(context.invocation_metadata() or ())
        self.id = identity(self.given("x-request-id"))
        context.set_trailing_metadata((("x-request-id", self.id),))

    def arrive(self) -> None:
        """Begin the time that an answer may take."""
        self.arrived = perf_counter()

    def given(self, name: str) -> str:
        """Give the metadata of a name, or an empty text."""
        return next((str(value) for key, value in self.metadata if key == name), "")

    def gone(self) -> bool:
        """Tell, from any thread, whether the client has left."""
        return bool(self.context.cancelled())

    @property
    def late(self) -> bool:
        """Whether the deadline that the client set has passed."""
        return bool(self.context.time_remaining() == 0)

    @property
    def ids(self) -> dict[str, str]:
        """What the log calls it."""
        return {"request_id": self.id, **self.trace.ids}

    @cached_property
    def trace(self) -> tracing.Trace:
        """Where it belongs in its caller's trace, or the trace that begins with it."""
        return tracing.continued([str(value) for key, value in self.metadata if key == "traceparent"])

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Wait for something that a stopping server need not wait for.

        Raises:
            Unready: When it is stopping already.
            Full: When half of the calls that there may be at once do so: the rest is for those that have work.
        """
        if self._calls.stopped:
            raise Unready(_STOPPED)
        if len(self._calls.idle) >= self._calls.most:
            raise Full(f"{self._calls.most} streams wait for their clients already: try again later")
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
            _log.error("request %s failed", self.id, exc_info=error, extra={"fields": self.ids})
            return Failed(f"the server failed on this request; its log has the reason ({self.id})")
        return fault


class Calls:
    """The calls of one server.

    Attributes:
        running: The tasks of calls that are not answered yet.
        idle: Those of them that only wait for their clients.
        stopped: Whether the server ends, and cancels calls for that.
        most: How many may be idle.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.running: set[asyncio.Task[Any] | None] = set()
        self.idle: set[asyncio.Task[Any] | None] = set()
        self.stopped = False
        self.most = max(1, service.settings.max_connections // 2)

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
            else:  # on the wire it is a stream too, whose only message can be waited for with a limit
                made[method.name] = grpc.stream_unary_rpc_method_handler(self._unary(method.full_name, take, work))
        return grpc.method_handlers_generic_handler(alias or name, made)

    def _unary(self, route: str, take: Callable[[bytes], Message], work: Unary) -> Callable[[bytes, Any], Any]:
        async def working(call: Call) -> bytes:
            request = take(await self._message(call))
            data: bytes = (await work(self.service, request, call)).SerializeToString()
            return data

        async def answer(_requests: Any, context: Any) -> bytes | None:
            return await self._run(route, context, working)

        return answer

    async def _message(self, call: Call) -> bytes:
        """Give the one message of a call that is no stream, while it comes in time."""
        patience = self.service.patience
        try:
            data = await patience.wait(call.context.read())
        except TimeoutError:
            raise Late(f"the message was not there after {patience.seconds:g} seconds") from None
        if data is grpc.aio.EOF:
            raise Invalid("the call has no message")
        return bytes(data)

    def _streaming(self, route: str, take: Callable[[bytes], Message], work: Streaming) -> Callable[[Any, Any], Any]:
        async def working(call: Call) -> None:
            async for response in work(self.service, _messages(call, take), call):
                await call.context.write(response.SerializeToString())

        async def answer(_requests: Any, context: Any) -> None:
            await self._run(route, context, working)

        return answer

    async def _run(self, route: str, context: Any, work: Callable[[Call], Awaitable[T]]) -> T | None:
        """Do the work of one call, whatever happens in it; nothing comes of one that is aborted."""
        call, task = Call(context, self), asyncio.current_task()
        began, status = call.arrived, 499
        self.running.add(task)
        self.service.metrics.inflight.inc()
        if self.service.spans:
            self.service.spans.open()
        try:
            done = await self._tried(call, route, work)
            status = STATUSES[type(done)] if isinstance(done, Fault) else 200
        except asyncio.CancelledError:  # the client left, or its deadline has passed
            status = 504 if call.late else 499
            raise
        finally:
            self.running.discard(task)
            self._ended(call, route, status, perf_counter() - began)
        if isinstance(done, Fault):
            await context.abort(CODES[type(done)], done.message[:_LONGEST])
            return None
        return done

    async def _tried(self, call: Call, route: str, work: Callable[[Call], Awaitable[T]]) -> T | Fault:
        try:
            if not route.startswith(OPEN):
                self.service.access.check(call.given("authorization"), certified=True)  # by the handshake
            return await work(call)
        except (Disconnected, grpc.aio.BaseError):  # nobody is there to read or write for
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            if not self.stopped:
                raise
            return Unready(_STOPPED)
        except Exception as error:  # noqa: BLE001 - whatever failed, the client gets a status and the log the trace
            return call.fault(error)

    def _ended(self, call: Call, route: str, status: int, seconds: float) -> None:
        metrics = self.service.metrics
        metrics.inflight.dec()
        metrics.count("grpc", route, status)
        metrics.time("grpc", route, seconds)
        if self.service.spans and not route.startswith(OPEN):
            done = spans.rpc(route, _NAMES.get(status, "UNKNOWN"), seconds, failed=status >= 500)
            self.service.spans.tell(call.trace, call.given("tracestate"), done)
        if self.service.settings.log_requests:
            about = {**call.ids, "protocol": "grpc", "route": route, "seconds": round(seconds, 6)}
            logs.answered(f"{route} {status}", status, about)


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
