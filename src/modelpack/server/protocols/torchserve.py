"""TorchServe's `/predictions`: one example a request, which the server batches with others.

Source: TorchServe, "Inference API".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import blobs
from ..exchange import STATUSES, Refused, Response, failure
from ..faults import Failed, Forbidden, Full, Invalid, Late, Unknown, Unready
from ..openapi.platforms import torchserve as described
from ..router import Protocol, Route
from ..rows import dump, from_either, from_rows, parse, to_rows
from ..table import CSV
from . import native

if TYPE_CHECKING:
    from ..exchange import Request
    from ..faults import Fault
    from ..service import Service
    from ..settings import Settings

_TYPES: dict[type[Fault], str] = {
    Invalid: "BadRequestException", Refused: "BadRequestException", Forbidden: "ForbiddenException",
    Unknown: "ModelNotFoundException", Full: "ServiceUnavailableException", Unready: "ServiceUnavailableException",
    Late: "RequestTimeoutException", Failed: "InternalServerException",
}  # fmt: skip
_REFUSED = {405: "MethodNotAllowedException", 409: "ConflictStatusException", 507: "InsufficientStorageException"}


def protocol(_settings: Settings) -> Protocol:
    """Give the table."""
    routes = (
        Route("POST", "/predictions/{model}", predict, describe=described),
        Route("POST", "/predictions/{model}/{version}", predict),
    )
    return Protocol("torchserve", routes, fail=worded)


def worded(fault: Fault) -> Response:
    """Word a fault as TorchServe does."""
    code = fault.status if isinstance(fault, Refused) else STATUSES[type(fault)]
    kind = _REFUSED.get(code, _TYPES[type(fault)])
    return failure(fault, {"code": code, "type": kind, "message": fault.message})


async def predict(service: Service, request: Request) -> Response:
    """Run a model on one row of JSON, on rows as `instances`, or on any other body that `/predict` takes."""
    if request.media in (blobs.RAW, blobs.NPY, CSV):
        return await native.predict(service, request)
    with service.catalog.lease(request.parts["model"], request.parts.get("version", "")) as model:
        content = parse(await request.body())
        several = isinstance(content, dict) and "instances" in content
        if several:
            feed, _ = from_either(content, model.signature)
        else:
            feed = from_rows([content], model.signature, "row")
        answer = await service.infer(model, feed, request.arrived, request.gone)
    rows = to_rows(answer.outputs, answer.rows)
    return Response(200, dump({"predictions": rows} if several else rows[0]))
