"""Cog's `/predictions`: named inputs, one output, and what became of it.

Source: replicate/cog, `docs/http.md`.
"""

from __future__ import annotations

import re
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..exchange import JSON, UNSAID, Refused, Response, as_json, failure, preferred
from ..faults import Invalid
from ..openapi.platforms import cog as described
from ..router import Protocol, Route
from ..rows import dump, from_columns, from_rows, parse, to_lone, to_rows
from ..service import LOADING, READY
from ..signature import quote

if TYPE_CHECKING:
    from ..faults import Fault
    from ..request import Request
    from ..rows import Tensors
    from ..service import Service
    from ..settings import Settings
    from ..signature import Signature

_KEYS = ("input", "id", "created_at")
_CALLS = ("webhook", "webhook_events_filter", "output_file_prefix")
_EVENTS = "text/event-stream"
_URL = re.compile(r"\Adata:[\w/+.-]*;base64,")


def protocol(_settings: Settings) -> Protocol:
    """Give the table."""
    routes = (
        Route("POST", "/predictions", predict, describe=described),
        Route("GET", "/health-check", health, open=True),
    )
    return Protocol("cog", routes, fail=worded)


def worded(fault: Fault) -> Response:
    """Word a fault as a prediction that failed."""
    return failure(fault, {"status": "failed", "error": fault.message})


async def predict(service: Service, request: Request) -> Response:
    """Run the only model on named inputs."""
    if preferred(request.header("accept"), (JSON, _EVENTS)) == _EVENTS:
        raise Refused(406, "an answer is given at once, not as a stream of events")
    with service.catalog.find() as model:
        request.expect((JSON,), UNSAID)
        content = _content(await request.body())
        feed, one = _decode(content["input"], model.signature)
        answer = await service.infer(model, feed, request.arrived, request.gone)
        seconds = perf_counter() - request.arrived
    given = {"id": content["id"]} if "id" in content else {}
    output = to_rows(answer.outputs, answer.rows)[0] if one else to_lone(answer.outputs)
    return Response(200, dump({**given, "status": "succeeded", "output": output, "metrics": {"predict_time": seconds}}))


def _content(body: bytes) -> dict[str, Any]:
    content = parse(body)
    if not isinstance(content, dict) or not isinstance(content.get("input"), dict):
        raise Invalid('expected a JSON object with the inputs by name: {"input": {...}}')
    if calls := [key for key in _CALLS if key in content]:
        raise Invalid(f"{quote(calls)}: this server calls nobody; it answers when the prediction is done")
    if unknown := [key for key in content if key not in _KEYS]:
        raise Invalid(f"unknown key {quote(sorted(unknown)[:3])}: expected one of {quote(_KEYS)}")
    if not isinstance(content.get("id", ""), str):
        raise Invalid("'id' is not a string")
    return content


def _decode(given: dict[str, Any], signature: Signature) -> tuple[Tensors, bool]:
    """Give the inputs, and whether they are one row: texts and images by themselves, these also as data URLs."""
    if not given or not all(isinstance(value, str) for value in given.values()):
        return from_columns(given, signature, "'input'"), False
    for name, tensor in signature.inputs.items():
        if tensor.dtype == "bytes" and name in given:
            given = {**given, name: _URL.sub("", given[name], count=1)}
    return from_rows([given], signature, "input"), True


async def health(service: Service, _request: Request) -> Response:
    """Say in its body whether the server takes work."""
    waiting = any(model.waiting for model in service.catalog.models)
    words = {LOADING: "STARTING", READY: "BUSY" if waiting else "READY"}
    setup = "starting" if service.state == LOADING else "succeeded"
    return as_json({"status": words.get(service.state, "BUSY"), "setup": {"status": setup}})
