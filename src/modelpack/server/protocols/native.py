"""modelpack's own routes: predictions in rows, columns or one tensor; what the model is; whether the server is well."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from .. import blobs, page
from ..exchange import JSON, Refused, Response, as_json, failure, preferred
from ..openapi.predict import predict as described
from ..router import Protocol, Route
from ..rows import dump, from_either, parse, to_columns, to_lone, to_rows
from ..signature import quote
from ..table import CSV, from_csv
from ..texts import from_body, whole

if TYPE_CHECKING:
    import numpy as np

    from ..faults import Unproven
    from ..model import Answer, Model
    from ..request import Request
    from ..service import Service
    from ..settings import Settings
    from ..signature import Signature

_TAKEN = (JSON, blobs.RAW, blobs.NPY, CSV)
_GIVEN = {blobs.RAW: blobs.to_raw, blobs.NPY: blobs.to_npy}
_HTML = "text/html"
_CARD = (JSON, _HTML)


def protocol(settings: Settings) -> Protocol:
    """Give the table."""
    routes = (
        Route("POST", "/predict", predict, describe=described),
        Route("POST", "/predict/{model}", predict, describe=described),
        Route("POST", "/predict/{model}/{version}", predict),
        Route("GET", "/", card, locked=locked, media=_CARD),
        Route("GET", "/card/{model}", card, locked=locked, media=_CARD),
        Route("GET", "/card/{model}/{version}", card, locked=locked),
        Route("POST", "/rollback/{model}", rollback),
        Route("GET", "/metrics", metrics, open=bool(settings.open_metrics), media=("text/plain",)),
        Route("GET", "/readyz", readyz, open=True),
        Route("GET", "/startupz", startupz, open=True),
        *(Route("GET", path, livez, name="/livez", open=True) for path in ("/livez", "/healthz", "/health")),
    )
    return Protocol("native", routes)


async def predict(service: Service, request: Request) -> Response:
    """Run the model on a body of any form that it can take."""
    with service.catalog.find(request.parts.get("model", ""), request.parts.get("version", "")) as model:
        media = request.expect(_taken(model.signature))
        wanted = preferred(request.header("accept"), (JSON, *_GIVEN))
        if wanted != JSON and len(model.signature.outputs) > 1:
            raise Refused(406, f"several outputs ({quote(model.signature.outputs)}) are answered as {JSON} only")
        body = await request.body()
        began = perf_counter()
        feed, form = _decode(media, body, request, model.signature)
        decoding = perf_counter() - began
        answer = await service.infer(model, feed, request.arrived, request.gone)
        response = _encode(wanted, form, answer, model)
        response.headers["server-timing"] = _timing(decoding, answer)
        return response


def _timing(decoding: float, answer: Answer) -> str:
    """Tell what the time went to, in milliseconds; source: W3C, "Server Timing"."""
    spent = f"decode;dur={1000 * decoding:.3f}, queue;dur={1000 * answer.queued:.3f}, infer;dur={1000 * answer.ran:.3f}"
    return f"{spent}, prepare;dur={1000 * answer.prepared:.3f}" if answer.prepared else spent


def _taken(signature: Signature) -> tuple[str, ...]:
    files = whole(signature.only)
    return (JSON, *files, CSV) if files else _TAKEN


def _decode(media: str, body: bytes, request: Request, signature: Signature) -> tuple[dict[str, np.ndarray], str]:
    """Give the inputs, and the form in which they came: rows, columns, or a tensor."""
    if media == blobs.RAW:
        return blobs.from_raw(body, request.header("x-shape"), signature), "tensor"
    if media == blobs.NPY:
        return blobs.from_npy(body, signature), "tensor"
    if media == CSV:
        return from_csv(body, signature), "rows" if signature.rowwise else "columns"
    if media != JSON and signature.only is not None:
        return {signature.only.name: from_body(body, signature.only)}, "rows"
    feed, rows = from_either(parse(body), signature)
    return feed, "rows" if rows else "columns"


def _encode(media: str, form: str, answer: Answer, model: Model) -> Response:
    """Answer rows with rows, columns with columns, and a tensor with the lone output or else with columns."""
    if media != JSON:
        content, headers = _GIVEN[media](answer.outputs)
        return Response(200, content, media, headers)
    named: dict[str, Any]
    if form == "columns":
        named = {"outputs": to_columns(answer.outputs)}
    elif form == "rows":
        named = {"predictions": to_rows(answer.outputs, answer.rows)}
    else:
        named = {"predictions": to_lone(answer.outputs)}
    return Response(200, dump({**named, "model_name": model.name, "model_version": model.version}))


async def card(service: Service, request: Request) -> Response:
    """Show what a model is, as JSON or as a page; at `/` of a server with several, their list."""
    name, catalog = request.parts.get("model", ""), service.catalog
    alive = {} if name else {"status": "alive"}  # what clients of KServe v1 look for at `/`
    several = not name and len(catalog.current) != 1
    model = None if several else catalog.find(name, request.parts.get("version", ""))
    if _wants_page(request):
        return page.answer()
    if model is None:
        return as_json({**alive, "models": catalog.index()}, vary="accept")
    return as_json({**alive, **page.describe(model.card, model.signature, service.settings)}, vary="accept")


def locked(request: Request, fault: Unproven) -> Response:
    """Let a browser that shows no token type one."""
    plain = failure(fault)
    return page.answer(plain.status, plain.headers) if _wants_page(request) else plain


def _wants_page(request: Request) -> bool:
    return preferred(request.header("accept"), _CARD) == _HTML


async def rollback(service: Service, request: Request) -> Response:
    """Go back to the version that was current before; off unless the operator allows it."""
    request.from_here()
    name = request.parts["model"]
    model = await service.change(lambda: service.catalog.rollback(name))
    return as_json({"model_name": model.name, "model_version": model.version})


async def metrics(service: Service, request: Request) -> Response:
    """Show the figures to Prometheus."""
    content, media = service.metrics.page(request.header("accept"))
    return Response(200, content, media)


async def livez(_service: Service, _request: Request) -> Response:
    """Say that the process is alive."""
    return as_json({"live": True})


async def startupz(service: Service, _request: Request) -> Response:
    """Say whether the models have been loaded."""
    started = all(model.ready for model in service.catalog.models)
    return as_json({"started": started}, 200 if started else 503)


async def readyz(service: Service, _request: Request) -> Response:
    """Say whether the models answer and the server is not stopping."""
    if service.ready:
        return as_json({"ready": True})
    return as_json({"ready": False, "reason": service.state}, 503, retry_after="1")
