"""The application: a table of routes over one model, as raw ASGI.

Other protocols join by adding rows to the table and decoders beside `codecs`; what runs the model stays the same.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from . import codecs, openapi, page
from .exchange import Request, Response, as_json, preferred, respond
from .faults import Disconnected, Refused
from .metrics import Metrics
from .signature import quote, read
from .tensors import check

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .engine import Engine
    from .exchange import Receive, Scope, Send
    from .pool import Pool
    from .settings import Settings

_log = logging.getLogger("modelpack.server")
_READY, _LOADING, _DRAINING = "ready", "loading", "draining"


@dataclass(frozen=True)
class Route:
    """One row of the table: what answers at a path, by method, and how metrics call it."""

    name: str
    methods: Mapping[str, Callable[[Request], Awaitable[Response]]]
    protocol: str = "native"

    @property
    def allow(self) -> str:
        """The methods that the path knows, for an `Allow` header."""
        return ", ".join([*self.methods, *(["HEAD"] if "GET" in self.methods else []), "OPTIONS"])


_UNKNOWN = Route("unknown", {})


class App:
    """One model behind HTTP.

    Args:
        settings: Limits, and the directory of the model.
        card: What `/` shows.

    Raises:
        StartError: When the directory has no readable signature.
    """

    def __init__(self, settings: Settings, card: Mapping[str, Any]) -> None:
        self.settings = settings
        self.signature = read(Path(settings.model) / "signature.json")
        self.card = {"name": "model", "version": "1", **card}
        self.labels = {"model_name": str(self.card["name"]), "model_version": str(self.card["version"])}
        self.metrics = Metrics()
        self.state = _LOADING
        self._pool: Pool | None = None
        self._engine: Engine | None = None
        self.metrics.watch(self.metrics.depth, lambda: self._pool.waiting if self._pool else 0)
        self.metrics.watch(self.metrics.ready, lambda: float(self.state == _READY))
        self.routes = self._table()

    def _table(self) -> dict[str, Route]:
        table = {
            "/": Route("/", {"GET": self._card}),
            "/predict": Route("/predict", {"POST": self._predict}),
            "/openapi.json": Route("/openapi.json", {"GET": self._openapi}),
            "/metrics": Route("/metrics", {"GET": self._metrics}),
            "/readyz": Route("/readyz", {"GET": self._readyz}),
            "/startupz": Route("/startupz", {"GET": self._startupz}),
        }
        return table | {path: Route("/livez", {"GET": self._livez}) for path in ("/livez", "/healthz", "/health")}

    async def load(self) -> None:
        """Load the model and warm it up in a thread; only then is the server ready.

        Raises:
            StartError: When the model cannot be served.
        """
        began = perf_counter()
        self._engine = engine = await asyncio.to_thread(self._build)
        from . import engine as runtime
        from .pool import Pool

        self._pool = Pool(engine.run, runtime.stoppable, self.settings.concurrency, self.settings.queue)
        seconds = perf_counter() - began
        self.metrics.load.set(seconds)
        digest, precision = (str(self.card.get(key, "")) for key in ("artifact", "precision"))
        name, version = self.labels.values()
        self.metrics.describe(name, version, digest, precision, runtime.VERSION)
        if self.state == _LOADING:
            self.state = _READY
            threads = engine.threads
            _log.info("ready: %s %s, loaded in %.2f s, threads: %d", *self.labels.values(), seconds, threads)

    def _build(self) -> Engine:
        from .engine import Engine

        engine = Engine(Path(self.settings.model) / "model.onnx", self.signature, self.settings.threads)
        engine.warm_up()
        return engine

    def drain(self) -> None:
        """Say "not ready" from now on and close connections after their answers; work is still served."""
        self.state = _DRAINING

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.close(1.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens in it."""
        request = Request(scope, receive)
        route = self.routes.get(request.path, _UNKNOWN)
        self.metrics.inflight.inc()
        status = 499
        try:
            response = await self._answer(request, route)
            status = response.status
            await respond(request, response, send, close=self.state == _DRAINING)
        except Disconnected:
            pass
        finally:
            self.metrics.inflight.dec()
            self.metrics.count(route.protocol, route.name, status)
            self.metrics.time(route.protocol, route.name, perf_counter() - request.arrived)

    async def _answer(self, request: Request, route: Route) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        try:
            if handler := route.methods.get(method):
                return await handler(request)
            if route is _UNKNOWN:
                known = f"nothing is at {request.path[:200]!r}: the routes are {quote(self.routes)}"
                return as_json({"error": known}, 404)
            if method == "OPTIONS":
                return Response(204, b"", headers={"allow": route.allow})
            return as_json({"error": f"{request.path} does not take {request.method}"}, 405, allow=route.allow)
        except Refused as refused:
            return as_json({"error": refused.message}, refused.status, **refused.headers)
        except asyncio.CancelledError:  # only the end of the drain cancels, and the client is still owed an answer
            return as_json({"error": "the server stopped before the model was done"}, 503)
        except Disconnected:
            raise
        except Exception:  # noqa: BLE001 - whatever failed, the client gets an answer and the log the trace
            _log.exception("request %s to %s failed", request.id, route.name)
            return as_json({"error": f"the server failed on this request; its log has the reason ({request.id})"}, 500)

    async def _predict(self, request: Request) -> Response:
        if self._pool is None:
            raise Refused(503, "the server is loading its model", retry_after="1")
        decode = codecs.DECODERS.get(media := request.media)
        if decode is None:
            got = repr(media[:80]) if media else "none"
            raise Refused(415, f"the content type is {got}: expected one of {quote(codecs.DECODERS)}")
        if request.header("content-encoding") not in ("", "identity"):
            raise Refused(
                415, "a compressed body is not read: send it without Content-Encoding", accept_encoding="identity"
            )
        wanted = preferred(request.header("accept"), (codecs.JSON, *codecs.ENCODERS))
        if wanted != codecs.JSON and len(self.signature.outputs) > 1:
            raise Refused(406, f"several outputs ({quote(self.signature.outputs)}) are answered as {codecs.JSON} only")
        body = await request.body(self.settings.max_body, self.settings.body_timeout)
        began = perf_counter()
        call = decode(body, request.header, self.signature)
        rows = check(call.feed, self.signature, self.settings.max_rows)
        decoded = perf_counter()
        left = self.settings.deadline - (decoded - request.arrived)
        job, outputs = await self._pool.run(call.feed, asyncio.get_running_loop().time() + left, request.gone)
        self.metrics.queue.observe(job.started - job.queued)
        self.metrics.inference.observe(job.done - job.started)
        self.metrics.batch.observe(rows)
        if wanted == codecs.JSON:
            response = Response(200, codecs.encode_json(call, outputs, rows, self.labels))
        else:
            content, headers = codecs.ENCODERS[wanted](outputs)
            response = Response(200, content, wanted, headers)
        spans = {"decode": decoded - began, "queue": job.started - job.queued, "infer": job.done - job.started}
        response.headers["server-timing"] = ", ".join(f"{name};dur={1000 * span:.3f}" for name, span in spans.items())
        return response

    async def _card(self, request: Request) -> Response:
        content = page.describe(self.card, self.signature, self.settings)
        if preferred(request.header("accept"), ("application/json", "text/html")) == "application/json":
            return as_json(content, vary="accept")
        return Response(
            200,
            page.render(content, self.signature, request.header("host")),
            "text/html; charset=utf-8",
            dict(page.HEADERS),
        )

    async def _openapi(self, _request: Request) -> Response:
        return as_json(openapi.describe(self.card, self.signature, self.settings))

    async def _metrics(self, request: Request) -> Response:
        content, media = self.metrics.page(request.header("accept"))
        return Response(200, content, media)

    async def _livez(self, _request: Request) -> Response:
        return as_json({"live": True})

    async def _startupz(self, _request: Request) -> Response:
        return as_json({"started": self._pool is not None}, 503 if self._pool is None else 200)

    async def _readyz(self, _request: Request) -> Response:
        if self.state == _READY:
            return as_json({"ready": True})
        return as_json({"ready": False, "reason": self.state}, 503, retry_after="1")
