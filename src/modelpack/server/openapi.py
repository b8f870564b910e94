"""The OpenAPI 3.1 description of this one model: its real tensors, limits and errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .model import Model
    from .settings import Settings
    from .signature import Signature, Tensor

JSON, RAW, NPY, CSV = "application/json", "application/octet-stream", "application/x-npy", "text/csv"
_ERRORS = {
    400: "The body is not what the model takes; the message names the input, what was expected and what came.",
    406: "Several outputs were asked for in a format that carries one.",
    408: "The body came too slowly.",
    413: "The body is larger than the limit.",
    415: "The content type is not one of those above.",
    429: "Too many requests wait; try again after `Retry-After` seconds.",
    500: "The model failed; the server's log has the reason.",
    503: "The model is still loading, or the server is stopping.",
    504: "The deadline passed.",
}


def describe(models: Mapping[str, Model], settings: Settings) -> dict[str, Any]:
    """Write the whole description: of `/predict` for one model, of `/predict/NAME` for each of several."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Error": _object({"error": {"type": "string"}})}
    for name, model in models.items():
        alone = len(models) == 1
        prefix = "" if alone else f"{name}."
        paths["/predict" if alone else f"/predict/{name}"] = {"post": _predict(model.signature, settings, prefix)}
        schemas |= {prefix + key: schema for key, schema in _schemas(model.signature).items()}
    return {
        "openapi": "3.1.0",
        "info": _info([model.card for model in models.values()]),
        "paths": {
            **paths,
            "/": _get("The model card", "card", (JSON, "text/html")),
            "/livez": _get("Whether the process is alive", "live"),
            "/readyz": _get("Whether the models answer and the server is not draining", "ready", also=(503,)),
            "/startupz": _get("Whether the models are loaded", "started", also=(503,)),
            "/metrics": _get("Prometheus metrics", "metrics", ("text/plain",)),
            "/openapi.json": _get("This description", "openapi"),
        },
        "components": {"schemas": schemas},
    }


def _info(cards: list[Mapping[str, Any]]) -> dict[str, str]:
    if len(cards) != 1:
        return {"title": "models", "version": "1", "description": "Models served by modelpack."}
    about = str(cards[0].get("description", "A model served by modelpack."))
    return {"title": str(cards[0]["name"]), "version": str(cards[0]["version"]), "description": about}


def _predict(signature: Signature, settings: Settings, prefix: str) -> dict[str, Any]:
    rows = f"at most {settings.max_rows} rows"
    if signature.splits:
        rows += ", which run one by one because the model was built for exactly one"
    elif signature.fixed_rows is not None:
        rows = f"exactly {signature.fixed_rows} rows"
    content: dict[str, Any] = {JSON: {"schema": _either(signature, f"{prefix}Rows", f"{prefix}Columns")}}
    answers: dict[str, Any] = {JSON: {"schema": _either(signature, f"{prefix}RowAnswer", f"{prefix}ColumnAnswer")}}
    parameters = []
    if signature.only is not None:
        content |= {RAW: {}, NPY: {}}
        parameters = [
            {
                "name": "X-Shape", "in": "header", "required": False, "schema": {"type": "string"},
                "description": f"The sizes of the raw tensor {signature.only.wanted}, with {RAW} only.",
                "example": ",".join(str(size) if isinstance(size, int) else "1" for size in signature.only.shape),
            }
        ]  # fmt: skip
    if all(tensor.shape for tensor in signature.inputs.values()):
        content |= {CSV: {"schema": {"type": "string"}}}
    if len(signature.outputs) == 1:
        answers |= {RAW: {}, NPY: {}}
    errors = {str(status): _error(text) for status, text in _ERRORS.items()}
    return {
        "summary": "Run the model",
        "operationId": f"{prefix}predict",
        "description": f"Takes {rows} and {settings.max_body} bytes in a request. Raw tensors are little-endian. "
        "JSON has no NaN and no infinity: where the model gives one, the answer holds `null`.",
        "parameters": parameters,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "What the model gives.", "content": answers}, **errors},
    }


def _either(signature: Signature, rows: str, columns: str) -> dict[str, Any]:
    return {"oneOf": [_ref(rows), _ref(columns)]} if signature.rowwise else _ref(columns)


def _schemas(signature: Signature) -> dict[str, Any]:
    free = signature.splits
    inputs = {name: tensor_schema(tensor, free=free) for name, tensor in signature.inputs.items()}
    outputs = {name: tensor_schema(tensor, free=free, output=True) for name, tensor in signature.outputs.items()}
    unused = {"type": "object", "description": "Accepted and not used."}
    schemas = {
        "Columns": _object({"inputs": _object(inputs), "parameters": unused}, required=["inputs"]),
        "ColumnAnswer": _object({"outputs": _object(outputs), **_LABELS}),
    }
    if signature.rowwise:
        instances: dict[str, Any] = {"type": "array", "minItems": 1, "items": _row(signature.inputs)}
        if signature.fixed_rows is not None and not free:
            instances |= {"minItems": signature.fixed_rows, "maxItems": signature.fixed_rows}
        predictions = {"type": "array", "items": _row(signature.outputs, output=True)}
        schemas["Rows"] = _object({"instances": instances, "parameters": unused}, required=["instances"])
        schemas["RowAnswer"] = _object({"predictions": predictions, **_LABELS})
    return schemas


_LABELS = {"model_name": {"type": "string"}, "model_version": {"type": "string"}}


def _row(tensors: Mapping[str, Tensor], *, output: bool = False) -> dict[str, Any]:
    each = {name: tensor_schema(tensor, skip=1, output=output) for name, tensor in tensors.items()}
    return next(iter(each.values())) if len(each) == 1 else _object(each)


def tensor_schema(tensor: Tensor, *, skip: int = 0, free: bool = False, output: bool = False) -> dict[str, Any]:
    """Describe a tensor as nested arrays, without its first `skip` dimensions; `free` rows may be any number."""
    schema = _element(tensor, output=output)
    for axis, size in reversed(list(enumerate(tensor.shape))[skip:]):
        schema = {"type": "array", "items": schema}
        if isinstance(size, str):
            schema |= {"description": f"any number: {size}", **({} if output else {"minItems": 1})}
        elif axis or not free:
            schema |= {"minItems": size, "maxItems": size}
    return schema | {"title": f"{tensor.name}: {tensor.dtype} {tensor.wanted}"}


def _element(tensor: Tensor, *, output: bool) -> dict[str, Any]:
    kind = np.dtype(tensor.dtype).kind
    if kind == "b":
        return {"type": "boolean"}
    if kind == "f":
        hint = {} if tensor.range is None else {"description": f"usually {tensor.range[0]:g} to {tensor.range[1]:g}"}
        return {"type": ["number", "null"] if output else "number", **hint}
    limits = np.iinfo(tensor.dtype)
    least, most = tensor.range or (-math.inf, math.inf)
    return {"type": "integer", "minimum": int(max(least, limits.min)), "maximum": int(min(most, limits.max))}


def _get(summary: str, name: str, media: Iterable[str] = (JSON,), also: Iterable[int] = ()) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": summary, "content": {each: {} for each in media}}}
    responses |= {str(status): {"description": "Not now.", "content": {JSON: {}}} for status in also}
    return {"get": {"summary": summary, "operationId": name, "responses": responses}}


def _error(text: str) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": _ref("Error")}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": dict(properties), "required": needed, "additionalProperties": False}
