"""Vertex AI: the paths that it names in the environment, rows to predictions, and anything else as a raw prediction.

Source: Google Cloud, "Custom container requirements for prediction".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..exchange import JSON, Response
from ..faults import Invalid
from ..openapi.platforms import vertex as described
from ..router import Protocol, Route
from ..rows import dump, from_either, parse, to_rows
from . import native
from .v2 import enveloped, infer

if TYPE_CHECKING:
    from ..request import Request
    from ..service import Service
    from ..settings import Settings

_INFER = re.compile(r"/?v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
TRITON = "application/vnd.vertex-ai-triton.binary+json"


def protocol(settings: Settings) -> Protocol:
    """Give the table, which is empty elsewhere than on Vertex AI."""
    routes = []
    if settings.health_route:
        routes.append(Route("GET", settings.health_route, native.readyz, name="health", open=True))
    if settings.predict_route:
        routes.append(Route("POST", settings.predict_route, predict, name="predict", describe=described))
    return Protocol("vertex", tuple(routes), first=True)


async def predict(service: Service, request: Request) -> Response:
    """Run the only model on rows, or the one that a header names; other content types are read as `/predict` does."""
    if redirect := request.header("x-vertex-ai-triton-redirect"):
        return await _redirected(service, request, redirect)
    if request.media not in (JSON, TRITON):
        return await native.predict(service, request)
    with service.catalog.find() as model:
        if request.media == TRITON:
            return await enveloped(service, request, model)
        feed, rows = from_either(parse(await request.body()), model.signature)
        if not rows:
            raise Invalid("'inputs' are not taken here: send rows, {\"instances\": [...]}")
        answer = await service.infer(model, feed, request.arrived, request.gone)
    return Response(200, dump({"predictions": to_rows(answer.outputs, answer.rows)}))


async def _redirected(service: Service, request: Request, path: str) -> Response:
    """Run the model of a path of the Open Inference Protocol v2, as Triton's container on Vertex AI does."""
    if not (named := _INFER.fullmatch(path)):
        raise Invalid(f"the request is redirected to {path[:200]!r}: expected v2/models/MODEL[/versions/VERSION]/infer")
    request.parts = named.groupdict("")
    if request.media != TRITON:
        return await infer(service, request)
    with service.catalog.find(request.parts["model"], request.parts["version"]) as model:
        return await enveloped(service, request, model)
