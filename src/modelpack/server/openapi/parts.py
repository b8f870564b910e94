"""The pieces of a description that several routes share: tensors, objects, errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..exchange import JSON
from ..texts import MEDIA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..signature import Tensor

ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_ERRORS = {
    400: "The body is not what the model takes; the message names the input, what was expected and what came.",
    404: "There is no such model or version.",
    408: "The body came too slowly.",
    413: "The body is larger than the limit.",
    415: "The body is compressed, or its content type is not one of those above.",
    429: "Too many requests wait; try again after `Retry-After` seconds.",
    500: "The model failed; the server's log has the reason.",
    503: "The model is still loading, or the server is stopping.",
    504: "The deadline passed.",
}


def errors(more: Mapping[int, str] | None = None, schema: str = "Error") -> dict[str, Any]:
    """Describe the answers of a route that runs a model and cannot, in the form of a schema."""
    return {str(status): error(text, schema) for status, text in sorted({**_ERRORS, **(more or {})}.items())}


def error(text: str, schema: str = "Error") -> dict[str, Any]:
    """Describe an answer that says what was wrong."""
    return {"description": text, "content": {JSON: {"schema": ref(schema)}}}


def ref(name: str) -> dict[str, str]:
    """Point to a schema among the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def fields(properties: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """Describe an object that has these properties and no others."""
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": dict(properties), "required": needed, "additionalProperties": False}


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
    if tensor.textual:
        return _text(tensor)
    kind = np.dtype(tensor.dtype).kind
    if kind == "b":
        return {"type": "boolean"}
    if kind == "f":
        hint = {} if tensor.range is None else {"description": f"usually {tensor.range[0]:g} to {tensor.range[1]:g}"}
        if output:
            return {"anyOf": [{"type": "number"}, {"type": "null"}], **hint}
        largest = float(np.finfo(tensor.dtype).max)
        return {"type": "number", "minimum": -largest, "maximum": largest, **hint}
    limits = np.iinfo(tensor.dtype)
    least, most = tensor.range or (-math.inf, math.inf)
    return {"type": "integer", "minimum": int(max(least, limits.min)), "maximum": int(min(most, limits.max))}


def _text(tensor: Tensor) -> dict[str, Any]:
    if tensor.dtype == "string":
        return {"type": "string"}
    encoded = {"type": "string", "contentEncoding": "base64", "description": f"One of {', '.join(MEDIA['bytes'])}."}
    return {"anyOf": [encoded, fields({"b64": encoded})]}
