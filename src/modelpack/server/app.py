"""Every protocol's routes over one service: each request gets an answer, whatever happens in it."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING

from . import logs, openapi, protocols, spans
from .exchange import Refused, Response, as_json
from .faults import Disconnected, Failed, Fault, Unknown, Unproven, Unready
from .router import Place, Protocol, Route, Router
from .service import DRAINING

if TYPE_CHECKING:
    from .request import Request
    from .service import Service

_log = logging.getLogger("modelpack.server")
_NOWHERE = Place(Protocol("native", ()), "unknown")


class App:
    """The service behind HTTP.

    Raises:
        StartError: When two protocols claim one path.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        about = Protocol("native", (Route("GET", "/openapi.json", self._describe),))
        every = [*protocols.every(service.settings), about]
        self._protocols = sorted(every, key=lambda each: each.first)  # the last one to describe a path describes it
        self.router = Router(self._protocols)

    async def _describe(self, service: Service, _request: Request) -> Response:
        """Describe every route."""
        return as_json(openapi.describe(self._protocols, service.catalog.current, service.settings))

    async def __call__(self, request: Request) -> None:
        """Answer one request, whatever happens in it."""
        found, request.parts = self.router.find(request.path)
        place, metrics = found or _NOWHERE, self.service.metrics
        metrics.inflight.inc()
        if self.service.spans:
            self.service.spans.open()
        status = 499
        try:
            response = await self._answer(request, place)
            status = response.status
            request.answer(response, close=self.service.state == DRAINING)
        except Disconnected:
            pass
        finally:
            self._ended(request, place, status)

    def _ended(self, request: Request, place: Place, status: int) -> None:
        metrics, seconds = self.service.metrics, perf_counter() - request.arrived
        metrics.inflight.dec()
        metrics.count(place.protocol.name, place.name, status)
        metrics.time(place.protocol.name, place.name, seconds)
        if self.service.spans and not place.open:
            done = spans.http(request, place.name, status, seconds)
            self.service.spans.tell(request.trace, request.header("tracestate"), done)
        if self.service.settings.log_requests:
            where = {"protocol": place.protocol.name, "route": place.name, "path": request.path[:256]}
            about = {**request.ids, **where, "method": request.method, "seconds": round(seconds, 6)}
            logs.answered(f"{request.method} {place.name} {status}", status, about)

    async def _answer(self, request: Request, place: Place) -> Response:
        try:
            return await self._work(request, place)
        except Disconnected:
            raise
        except asyncio.CancelledError:  # only the end of the drain cancels, and the client is still owed an answer
            fault: Fault = Unready("the server stopped before the model was done")
        except Exception as error:  # noqa: BLE001 - whatever failed, the client gets an answer and the log the trace
            fault = error if isinstance(error, Fault) else Failed("")
            if isinstance(fault, Failed):
                _log.exception("request %s to %s failed", request.id, place.name, extra={"fields": request.ids})
                fault = Failed(f"the server failed on this request; its log has the reason ({request.id})")
        return place.protocol.fail(fault.with_traceback(None))  # else it would hold this frame, and so the request

    async def _work(self, request: Request, place: Place) -> Response:
        if not place.open:
            try:
                self.service.access.check(request.header("authorization"), certified=request.certified)
            except Unproven as fault:
                if place.locked is None:
                    raise
                return place.locked(request, fault)
        if answer := place.methods.get("GET" if request.method == "HEAD" else request.method):
            return await answer(self.service, request)
        if place is _NOWHERE:
            raise Unknown(f"nothing is at {request.path[:200]!r}: /openapi.json describes the routes")
        if request.method == "OPTIONS":
            return Response(204, b"", headers={"allow": place.allow})
        raise Refused(405, f"{request.path} does not take {request.method}", allow=place.allow)
