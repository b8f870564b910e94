"""`/invocations` and `/ping`, which MLflow, SageMaker and TorchServe share: all of their forms, told apart by content.

Sources: MLflow, "Deploy MLflow Model as a Local Inference Server"; Amazon SageMaker, "Custom Inference Code with
Hosting Services" and "… with Batch Transform"; TorchServe, "Inference API".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import VERSION, blobs
from ..exchange import JSON, Refused, Response, as_json, failure, preferred
from ..faults import Failed, Forbidden, Full, Invalid, Late, Unknown, Unproven, Unready
from ..frames import from_records, from_split
from ..openapi.platforms import invocations as described
from ..router import Protocol, Route
from ..rows import dump, from_columns, from_lines, from_rows, parse, to_lines, to_lone, to_rows
from ..signature import quote
from ..table import CSV, from_csv, to_csv
from ..texts import from_body, whole
from .v2 import enveloped

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from ..faults import Fault
    from ..model import Answer
    from ..request import Request
    from ..service import Service
    from ..settings import Settings
    from ..signature import Signature

    Feed = dict[str, np.ndarray]

LINES = "application/jsonlines"
TRITON = "application/vnd.sagemaker-triton.binary+json"
_READERS: dict[str, Callable[[bytes, Signature], Feed]] = {
    CSV: from_csv, LINES: from_lines, "application/jsonl": from_lines, blobs.NPY: blobs.from_npy,
}  # fmt: skip
_FORMS: dict[str, Callable[[Any, Signature], Feed]] = {
    "dataframe_split": lambda content, signature: from_split(content, signature, "dataframe_split"),
    "dataframe_records": lambda content, signature: from_records(content, signature, "dataframe_records"),
    "instances": from_rows,
    "inputs": from_columns,
}
_GIVEN = (JSON, CSV, LINES, blobs.NPY)
_CODES: dict[type[Fault], str] = {
    Invalid: "BAD_REQUEST", Refused: "BAD_REQUEST", Unproven: "UNAUTHENTICATED", Forbidden: "PERMISSION_DENIED",
    Unknown: "RESOURCE_DOES_NOT_EXIST",
    Full: "REQUEST_LIMIT_EXCEEDED", Unready: "TEMPORARILY_UNAVAILABLE", Late: "TEMPORARILY_UNAVAILABLE",
    Failed: "INTERNAL_ERROR",
}  # fmt: skip
_MOST_MEGABYTES = 100  # that SageMaker sends in one request of a batch transform


def protocol(_settings: Settings) -> Protocol:
    """Give the table."""
    routes = (
        Route("POST", "/invocations", invocations, media=_GIVEN, describe=described),
        Route("GET", "/ping", ping, open=True),
        Route("GET", "/version", version, media=("text/plain",)),
        Route("GET", "/execution-parameters", execution),
    )
    return Protocol("invocations", routes, fail=worded)


def worded(fault: Fault) -> Response:
    """Word a fault as MLflow does."""
    return failure(fault, {"error_code": _CODES[type(fault)], "message": fault.message})


async def invocations(service: Service, request: Request) -> Response:
    """Run the only model on rows, columns, a data frame, a table or a tensor."""
    return await invoke(service, request, "")


async def invoke(service: Service, request: Request, name: str) -> Response:
    """Run a model of this name, or the only one, as `/invocations` does."""
    with service.catalog.find(name) as model:
        if request.media == TRITON:
            return await enveloped(service, request, model)
        media = request.expect((JSON, *_READERS, *whole(model.signature.only), TRITON))
        feed, form = _decode(media, await request.body(), model.signature)
        answer = await service.infer(model, feed, request.arrived, request.gone)
    return _encode(preferred(request.header("accept"), _GIVEN), form, answer)


def _decode(media: str, body: bytes, signature: Signature) -> tuple[Feed, str]:
    """Give the inputs, and the form in which they came: rows with a name or without one, or columns."""
    rows = "rows" if signature.rowwise else "columns"
    if media in _READERS:
        return _READERS[media](body, signature), rows
    if media != JSON and signature.only is not None:
        return {signature.only.name: from_body(body, signature.only)}, rows
    content = parse(body)
    if isinstance(content, list):
        return from_rows(content, signature, "rows"), "bare"
    if not isinstance(content, dict):
        raise Invalid(f"expected a JSON object with one of {quote(_FORMS)}, or an array of rows")
    if unknown := [key for key in content if key not in (*_FORMS, "params")]:
        raise Invalid(f"unknown key {quote(sorted(unknown)[:3])}: expected one of {quote(_FORMS)}, and 'params'")
    given = [key for key in content if key in _FORMS]
    if len(given) != 1:
        raise Invalid(f"expected exactly one of {quote(_FORMS)}, got {quote(given) or 'none'}")
    if not isinstance(content.get("params"), (dict, type(None))):
        raise Invalid("'params' is not an object")
    return _FORMS[given[0]](content[given[0]], signature), "columns" if given == ["inputs"] else rows


def _encode(media: str, form: str, answer: Answer) -> Response:
    if media == blobs.NPY:
        content, headers = blobs.to_npy(answer.outputs)
        return Response(200, content, media, headers)
    if media == CSV:
        return Response(200, to_csv(answer.outputs, answer.rows), media)
    if media == LINES:
        return Response(200, to_lines(answer.outputs, answer.rows), media)
    if form == "columns":
        return Response(200, dump({"predictions": to_lone(answer.outputs)}))
    rows = to_rows(answer.outputs, answer.rows)
    return Response(200, dump(rows if form == "bare" else {"predictions": rows}))


async def ping(service: Service, _request: Request) -> Response:
    """Say whether the models answer and the server is not stopping."""
    if service.ready:
        return as_json({"status": "Healthy"})
    return as_json({"status": "Unhealthy"}, 503)


async def version(_service: Service, _request: Request) -> Response:
    """Say which version of modelpack serves."""
    return Response(200, VERSION.encode(), "text/plain; charset=utf-8")


async def execution(service: Service, _request: Request) -> Response:
    """Tell SageMaker's batch transform how to send its records."""
    signature, limits = service.catalog.find().signature, service.settings
    several = signature.fixed_rows is None or signature.splits
    return as_json(
        {
            "MaxConcurrentTransforms": limits.concurrency,
            "BatchStrategy": "MULTI_RECORD" if several else "SINGLE_RECORD",
            "MaxPayloadInMB": max(1, min(_MOST_MEGABYTES, limits.max_body // 2**20)),
        }
    )
