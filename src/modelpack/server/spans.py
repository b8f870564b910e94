"""Each request as a span of its caller's trace, sent to an OpenTelemetry collector by a thread of its own.

Off unless OpenTelemetry's own variables name a collector; no request waits for it or fails by it.

Source: OpenTelemetry, "Semantic conventions for HTTP spans", "… for RPC spans", "OpenTelemetry environment variables".
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .model import Answer, Model
    from .request import Request
    from .tracing import Trace

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(\d{1,5}))?")
_STEPS: ContextVar[list[_Step] | None] = ContextVar("steps", default=None)
_log = logging.getLogger("modelpack.server")


@dataclass(frozen=True)
class _Step:
    """A part of the work on a request; times in nanoseconds since 1970."""

    name: str
    begin: int
    end: int
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """A request that has been answered.

    Attributes:
        name: What it asked for, with as few values as there are routes.
        seconds: How long it took until now.
        attributes: By the semantic conventions.
        failed: Whether the server is to blame.
    """

    name: str
    seconds: float
    attributes: Mapping[str, Any]
    failed: bool


class _Ids:
    """Gives requests the ids that the log has, and parts of them new ones."""

    def __init__(self) -> None:
        self.trace = self.span = 0

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        given, self.span = self.span, 0
        return given or random.getrandbits(64) or 1

    def is_trace_id_random(self) -> bool:
        return False


class Spans:
    """What tells the collector; it may be used by the thread of the event loop alone.

    Raises:
        ImportError: Without OpenTelemetry.
        ValueError: When its variables cannot be used.
    """

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._api, self._ids = trace, _Ids()
        ids: Any = self._ids
        self._provider = TracerProvider(resource=_resource(), id_generator=ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("modelpack.server")

    def open(self) -> None:
        """Begin to collect the parts of the work in this task."""
        _STEPS.set([])

    def ran(self, model: Model, answer: Answer) -> None:
        """Note what a model did just now for the request of this task."""
        steps, end = _STEPS.get(), time.time_ns()
        if steps is None:
            return
        about = {"modelpack.model": model.name, "modelpack.version": model.version, "modelpack.rows": answer.rows}
        for name, seconds in (("infer", answer.ran), ("queue", answer.queued), ("prepare", answer.prepared)):
            if seconds:
                begin = end - int(seconds * 1e9)
                steps.append(_Step(name, begin, end, about))
                end = begin

    def tell(self, trace: Trace, state: str, done: Done) -> None:
        """Hand a request over; whatever goes wrong with that is logged and nothing else.

        Args:
            trace: Where it belongs.
            state: The caller's `tracestate`.
            done: What it was.
        """
        try:
            self._tell(trace, state, done)
        except Exception:  # noqa: BLE001 - nobody's answer may depend on it
            _log.exception("a span was lost")

    def _tell(self, trace: Trace, state: str, done: Done) -> None:
        api, end = self._api, time.time_ns()
        self._ids.trace, self._ids.span = int(trace.id, 16), int(trace.span, 16)
        span = self._tracer.start_span(
            done.name, self._above(trace, state), api.SpanKind.SERVER, done.attributes,
            start_time=end - int(done.seconds * 1e9),
        )  # fmt: skip
        if not span.is_recording():
            return
        if done.failed:
            span.set_status(api.Status(api.StatusCode.ERROR))
        inside = api.set_span_in_context(span)
        for step in _STEPS.get() or ():
            part = self._tracer.start_span(step.name, inside, attributes=step.attributes, start_time=step.begin)
            part.end(step.end)
        span.end(end)

    def _above(self, trace: Trace, state: str) -> Any:
        """Give the caller's span, or nothing where the trace begins here."""
        api = self._api
        if not trace.parent:
            return api.set_span_in_context(api.INVALID_SPAN)
        flags, states = api.TraceFlags(int(trace.flags, 16)), api.TraceState.from_header([state] if state else [])
        caller = api.SpanContext(int(trace.id, 16), int(trace.parent, 16), True, flags, states)
        return api.set_span_in_context(api.NonRecordingSpan(caller))

    def close(self, seconds: float) -> None:
        """Send what is left; a collector that does not answer holds nothing up for longer."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(seconds)
        if ending.is_alive():
            _log.warning("the last spans were not taken within %g seconds", seconds)


def begin() -> Spans | None:
    """Give what tells a collector, where one is named; what prevents that is logged and prevents no start.

    Platforms set these variables for all their containers, whatever is inside.
    """
    environ = os.environ
    named = next((name for name in _ENDPOINTS if environ.get(name)), None)
    if named is None or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter == "none":
        return None
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), "http/protobuf")
    if (exporter, protocol) != ("otlp", "http/protobuf"):
        _log.warning("no spans are sent: this server sends otlp by http/protobuf, not %s by %s", exporter, protocol)
        return None
    try:
        made = Spans()
    except ImportError as error:
        _log.warning(
            "%s is set, and this server has no OpenTelemetry (%s), so no spans are sent: build the image with "
            "'opentelemetry: true', or install modelpack[otel]",
            named, error,
        )  # fmt: skip
        return None
    except ValueError as error:
        _log.warning("%s is set, and no spans are sent: %s", named, error)
        return None
    _log.info("sending spans to %s", environ[named])
    return made


def _resource() -> Any:
    """Say who tells: what the standard variables name, else modelpack."""
    from opentelemetry.sdk.resources import Resource

    found = Resource.create()
    known = str(found.attributes.get("service.name", "unknown_service"))
    return found.merge(Resource({"service.name": "modelpack"})) if known.startswith("unknown_service") else found


def http(request: Request, route: str, status: int, seconds: float) -> Done:
    """Describe a request by HTTP.

    Args:
        request: It.
        route: Its pattern; `unknown` for a path that no route has.
        status: Of the answer; 499 for none, since the client had left.
        seconds: How long it took.
    """
    method = request.method if request.method in _METHODS else "_OTHER"
    attributes: dict[str, Any] = {
        "http.request.method": method,
        "url.path": request.path[:1024],
        "url.scheme": request.scheme,
        "network.protocol.version": request.version,
        **_server(request.header("host")),
    }
    optional = {
        "http.request.method_original": request.method if method == "_OTHER" else "",
        "http.route": "" if route == "unknown" else route,
        "client.address": request.client,
        "user_agent.original": request.header("user-agent")[:256],
        "error.type": "client_left" if status == 499 else str(status) if status >= 500 else "",
    }
    attributes |= {name: value for name, value in optional.items() if value}
    if status != 499:
        attributes["http.response.status_code"] = status
    name = " ".join(("HTTP" if method == "_OTHER" else method, attributes.get("http.route", ""))).strip()
    return Done(name, seconds, attributes, failed=status >= 500)


def _server(host: str) -> dict[str, Any]:
    found = _HOST.fullmatch(host[:256])
    if found is None or not found[1]:
        return {}
    return {"server.address": found[1], **({"server.port": int(found[2])} if found[2] else {})}


def rpc(route: str, code: str, seconds: float, *, failed: bool) -> Done:
    """Describe a call by gRPC.

    Args:
        route: The method's full name, with a dot before its own.
        code: The status in the words of gRPC.
        seconds: How long it took.
        failed: Whether the server is to blame.
    """
    method = "/".join(route.rsplit(".", 1))
    attributes = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": code}
    if failed:
        attributes["error.type"] = code
    return Done(method, seconds, attributes, failed)
