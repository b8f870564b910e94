"""TorchServe's `/predictions`: one example a request, which the server batches with others.

Source: TorchServe, "Inference API".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import blobs
from ..exchange import JSON, STATUSES, Refused, Response, failure
from ..faults import Failed, Forbidden, Full, Invalid, Late, Unknown, Unproven, Unready
from ..openapi.platforms import torchserve as described
from ..router import Protocol, Route
from ..rows import dump, from_either, from_rows, parse, to_rows
from ..table import CSV
from ..texts import from_body, whole
from . import native

if TYPE_CHECKING:
    import numpy as np

    from ..faults import Fault
    from ..request import Request
    from ..service import Service
    from ..settings import Settings
    from ..signature import Signature

_TYPES: dict[type[Fault], str] = {
    Invalid: "BadRequestException", Refused: "BadRequestException", Unproven: "InvalidKeyException",
    Forbidden: "ForbiddenException",
    Unknown: "ModelNotFoundException", Full: "ServiceUnavailableException", Unready: "ServiceUnavailableException",
    Late: "RequestTimeoutException", Failed: "InternalServerException",
}  # fmt: skip
_REFUSED = {405: "MethodNotAllowedException", 409: "ConflictStatusException", 507: "InsufficientStorageException"}


def protocol(_settings: Settings) -> Protocol:
    """Give the table."""
    routes = (
        Route("POST", "/predictions/{model}", predict, describe=described),
        Route("PUT", "/predictions/{model}", predict, describe=described),  # which is how curl uploads a file
        Route("POST", "/predictions/{model}/{version}", predict),
        Route("PUT", "/predictions/{model}/{version}", predict),
    )
    return Protocol("torchserve", routes, fail=worded)


def worded(fault: Fault) -> Response:
    """Word a fault as TorchServe does."""
    code = fault.status if isinstance(fault, Refused) else STATUSES[type(fault)]
    kind = _REFUSED.get(code, _TYPES[type(fault)])
    return failure(fault, {"code": code, "type": kind, "message": fault.message})


async def predict(service: Service, request: Request) -> Response:
    """Run a model on one row of JSON, a text or image, rows as `instances`, or another body that `/predict` takes."""
    with service.catalog.find(request.parts["model"], request.parts.get("version", "")) as model:
        signature, media = model.signature, request.media
        if media.startswith("multipart/"):
            raise Refused(415, f"{media} is not read: send the example itself as the body")
        file = media not in (JSON, CSV) and bool(whole(signature.only))
        if not file and media in (blobs.RAW, blobs.NPY, CSV):
            return await native.predict(service, request)
        feed, several = _decode(await request.body(), signature, file=file)
        answer = await service.infer(model, feed, request.arrived, request.gone)
    rows = to_rows(answer.outputs, answer.rows)
    return Response(200, dump({"predictions": rows} if several else rows[0]))


def _decode(body: bytes, signature: Signature, *, file: bool) -> tuple[dict[str, np.ndarray], bool]:
    """Give the inputs, and whether they are several rows; a file is the only input as it is."""
    if file and signature.only is not None:
        return {signature.only.name: from_body(body, signature.only)}, False
    content = parse(body)
    if isinstance(content, dict) and "instances" in content:
        return from_either(content, signature)
    return from_rows([content], signature, "row"), False
