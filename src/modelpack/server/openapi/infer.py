"""What `POST /v2/models/MODEL/infer` takes and gives (Open Inference Protocol v2), without the binary tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..exchange import BYTES, JSON
from ..open_inference import DATATYPES, NAMES
from ..router import Described
from .parts import errors, fields, ref

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..model import Model
    from ..settings import Settings
    from ..signature import Tensor

_FREE = {"type": "object"}


def infer(model: Model, settings: Settings, prefix: str) -> Described:
    """Describe the route for one model, whose schemas are named with a prefix."""
    signature = model.signature
    names, count = f"{prefix}InferRequest", len(signature.inputs)
    outputs = fields({"name": {"enum": list(signature.outputs)}, "parameters": _FREE}, required=["name"])
    inputs = {"type": "array", "minItems": count, "maxItems": count, "items": _one_of(signature.inputs)}
    request = {"id": {"type": "string"}, "parameters": _FREE, "inputs": inputs}
    given = {"type": "array", "items": _one_of(signature.outputs, output=True)}
    labels = {"model_name": {"type": "string"}, "model_version": {"type": "string"}, "id": {"type": "string"}}
    schemas = {
        names: fields({**request, "outputs": {"type": "array", "items": outputs}}, required=["inputs"]),
        f"{prefix}InferResponse": fields(
            {**labels, "outputs": given}, required=["model_name", "model_version", "outputs"]
        ),
    }
    operation = {
        "summary": f"Run {model.name}",
        "description": f"At most {settings.max_rows} rows and {settings.max_body} bytes in a request. With the header "
        "Inference-Header-Content-Length binary tensors follow the JSON.",
        "requestBody": {"required": True, "content": {JSON: {"schema": ref(names)}}},
        "responses": {
            "200": {
                "description": "What the model gives.",
                "content": {JSON: {"schema": ref(f"{prefix}InferResponse")}, BYTES: {}},
            },
            **errors(),
        },
    }
    return Described(operation, schemas)


def _one_of(tensors: Mapping[str, Tensor], *, output: bool = False) -> dict[str, Any]:
    each = [_tensor(tensor, output=output) for tensor in tensors.values()]
    return {"oneOf": each} if len(each) > 1 else each[0]


def _tensor(tensor: Tensor, *, output: bool) -> dict[str, Any]:
    sizes = [{"const": size} if isinstance(size, int) else {"type": "integer", "minimum": 1} for size in tensor.shape]
    shape: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
    if not tensor.shape or isinstance(tensor.shape[0], str):  # a fixed number of rows may be split into runs of one
        shape = {"type": "array", "prefixItems": sizes, "items": False, "minItems": len(sizes)}
    kinds = {"const": NAMES[tensor.dtype]} if output or tensor.textual else {"enum": list(DATATYPES)}
    properties = {"name": {"const": tensor.name}, "shape": shape, "datatype": kinds, "parameters": _FREE}
    return fields({**properties, "data": {"type": "array"}}, required=["name", "shape", "datatype"])
