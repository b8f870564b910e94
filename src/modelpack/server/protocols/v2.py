"""The Open Inference Protocol v2 over REST, as KServe, Triton and MLServer speak it.

With binary tensors, the model repository, statistics and configuration, which are Triton's extensions.
Sources: kserve/open-inference-protocol, `inference_rest.md`; triton-inference-server/server, `docs/protocol`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .. import descriptions, open_inference
from ..exchange import BYTES, JSON, UNSAID, Response, as_json
from ..faults import Invalid, Unready
from ..openapi.infer import infer as described
from ..router import Protocol, Route
from ..rows import parse

if TYPE_CHECKING:
    from ..model import Model
    from ..request import Request
    from ..service import Service
    from ..settings import Settings

LENGTH = "inference-header-content-length"
_SIZE = re.compile(r";\s*json-header-size\s*=\s*\"?(\d{1,12})")


def protocol(_settings: Settings) -> Protocol:
    """Give the table."""
    routes = [
        Route("GET", "/v2", server),
        Route("GET", "/v2/health/live", live, open=True),
        Route("GET", "/v2/health/ready", ready, open=True),
        Route("GET", "/v2/models", models),
        Route("GET", "/v2/models/stats", statistics),
        Route("POST", "/v2/repository/index", index),
        Route("POST", "/v2/repository/models/{model}/load", load),
        Route("POST", "/v2/repository/models/{model}/unload", unload),
    ]
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Route("GET", model, metadata),
            Route("GET", f"{model}/ready", model_ready),
            Route("GET", f"{model}/config", configuration),
            Route("GET", f"{model}/stats", statistics),
            Route("POST", f"{model}/infer", infer, describe=described),
        ]
    return Protocol("v2", tuple(routes))


async def infer(service: Service, request: Request) -> Response:
    """Run a model."""
    with service.catalog.find(*_named(request)) as model:
        request.expect((JSON, BYTES), UNSAID)
        body, length = await _run(service, request, model, request.header(LENGTH))
    if length is None:
        return Response(200, body)
    return Response(200, body, BYTES, {LENGTH: str(length)})


async def enveloped(service: Service, request: Request, model: Model) -> Response:
    """Run a model where a platform passes no header on, and the media type says how many bytes are JSON."""
    if not (size := _SIZE.search(request.header("content-type"))):
        raise Invalid(f"the content type {request.media} needs the parameter json-header-size")
    body, length = await _run(service, request, model, size[1])
    if length is None:
        return Response(200, body)
    return Response(200, body, f"{request.media};json-header-size={length}")


async def _run(service: Service, request: Request, model: Model, length: str) -> tuple[bytes, int | None]:
    """Give the answer, and how many of its bytes are JSON: None when all are."""
    asked = open_inference.read(await request.body(), length, model.signature)
    answer = await service.infer(model, asked.feed, request.arrived, request.gone)
    return open_inference.write(asked, answer, model)


def _named(request: Request) -> tuple[str, str]:
    return request.parts["model"], request.parts.get("version", "")


async def server(_service: Service, _request: Request) -> Response:
    """Say what this server is."""
    return as_json(descriptions.server())


async def live(_service: Service, _request: Request) -> Response:
    """Say that the process is alive."""
    return as_json({"live": True})


async def ready(service: Service, _request: Request) -> Response:
    """Say whether the models answer and the server is not stopping."""
    return as_json({"ready": service.ready}, 200 if service.ready else 503)


async def models(service: Service, _request: Request) -> Response:
    """List the names of the models."""
    return as_json({"models": list(service.catalog.current)})


async def metadata(service: Service, request: Request) -> Response:
    """Describe a model's tensors."""
    model = service.catalog.find(*_named(request))
    version = request.parts.get("version")
    return as_json(descriptions.metadata(model, [version] if version else service.catalog.versions(model.name)))


async def model_ready(service: Service, request: Request) -> Response:
    """Say whether a model answers."""
    model = service.catalog.find(*_named(request))
    if not (model.ready and service.state != "draining"):
        raise Unready(f"model {model.name!r} is not ready")
    return as_json({"name": model.name, "ready": True})


async def configuration(service: Service, request: Request) -> Response:
    """Describe a model as Triton's configuration would."""
    model = service.catalog.find(*_named(request))
    return as_json(descriptions.configuration(model, service.settings.max_rows))


async def statistics(service: Service, request: Request) -> Response:
    """Tell what one model has done, or all of them."""
    chosen = service.catalog.chosen(request.parts.get("model", ""), request.parts.get("version", ""))
    totals = service.ledger.totals()
    return as_json({"model_stats": [descriptions.statistics(model, totals) for model in chosen]})


async def index(service: Service, request: Request) -> Response:
    """List every version of every model with its state."""
    only = (await _object(request)).get("ready", False)
    entries = service.catalog.index()
    return as_json([entry for entry in entries if not only or entry["state"] == "READY"])


async def load(service: Service, request: Request) -> Response:
    """Read a model's directory again; off unless the operator allows it."""
    request.from_here()
    if (await _object(request)).get("parameters"):
        raise Invalid("a model is loaded from its directory: 'parameters' are not taken")
    await service.change(lambda: service.catalog.load(request.parts["model"]))
    return as_json({})


async def unload(service: Service, request: Request) -> Response:
    """Serve a model no longer; off unless the operator allows it."""
    request.from_here()
    await _object(request)
    await service.change(lambda: service.catalog.unload(request.parts["model"]))
    return as_json({})


async def _object(request: Request) -> dict[str, Any]:
    if body := await request.body():
        request.expect((JSON,), UNSAID)
    content = parse(body) if body else {}
    if not isinstance(content, dict):
        raise Invalid("expected a JSON object")
    return content
