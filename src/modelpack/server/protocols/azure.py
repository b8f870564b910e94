"""Azure ML's `/score`, in the forms of its scoring scripts and of its MLflow deployments.

Its probes are `/livez` and `/readyz`. Source: Azure Machine Learning, "Use a custom container to deploy a model to an
online endpoint".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..exchange import JSON, Response
from ..faults import Invalid
from ..frames import from_split
from ..openapi.platforms import azure as described
from ..router import Protocol, Route
from ..rows import dump, from_columns, from_rows, parse, to_lone, to_rows
from ..signature import quote
from . import native

if TYPE_CHECKING:
    import numpy as np

    from ..request import Request
    from ..service import Service
    from ..settings import Settings
    from ..signature import Signature

_FORMS = ("data", "input_data")


def protocol(_settings: Settings) -> Protocol:
    """Give the table."""
    return Protocol("azure", (Route("POST", "/score", score, describe=described),))


async def score(service: Service, request: Request) -> Response:
    """Run the only model on rows, a data frame or columns; another content type is read as `/predict` reads it."""
    if request.media not in ("", JSON):
        return await native.predict(service, request)
    with service.catalog.find() as model:
        feed, rows = _decode(parse(await request.body()), model.signature)
        answer = await service.infer(model, feed, request.arrived, request.gone)
    return Response(200, dump(to_rows(answer.outputs, answer.rows) if rows else to_lone(answer.outputs)))


def _decode(content: Any, signature: Signature) -> tuple[dict[str, np.ndarray], bool]:
    """Give the inputs, and whether they came as rows."""
    if not isinstance(content, dict):
        raise Invalid('expected a JSON object: {"data": [...]} or {"input_data": ...}')
    if unknown := [key for key in content if key not in (*_FORMS, "params")]:
        raise Invalid(f"unknown key {quote(sorted(unknown)[:3])}: expected one of {quote(_FORMS)}, and 'params'")
    if ("data" in content) == ("input_data" in content):
        raise Invalid(f"expected exactly one of {quote(_FORMS)}")
    if not isinstance(content.get("params", {}), dict):
        raise Invalid("'params' is not an object")
    if "data" in content:
        return from_rows(content["data"], signature, "data"), True
    given = content["input_data"]
    if isinstance(given, list):
        return from_rows(given, signature, "input_data"), True
    if isinstance(given, dict) and "data" in given and "columns" in given:
        return from_split(given, signature, "input_data"), signature.rowwise
    return from_columns(given, signature, "'input_data'"), False
