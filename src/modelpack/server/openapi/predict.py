"""What `POST /predict` takes and gives: rows and columns with a model's real tensors, one tensor as bytes, a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..exchange import BYTES, JSON
from ..router import Described
from ..texts import MEDIA
from .parts import errors, fields, ref, tensor_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..model import Model
    from ..settings import Settings
    from ..signature import Signature, Tensor

NPY, CSV = "application/x-npy", "text/csv"
_ALSO = {406: "Several outputs were asked for in a format that carries one."}


def predict(model: Model, settings: Settings, prefix: str) -> Described:
    """Describe the route for one model, whose schemas are named with a prefix."""
    signature = model.signature
    rows = f"at most {settings.max_rows} rows"
    if signature.splits:
        rows += ", which run one by one because the model was built for exactly one"
    elif signature.fixed_rows is not None:
        rows = f"exactly {signature.fixed_rows} rows"
    content: dict[str, Any] = {JSON: {"schema": _either(signature, f"{prefix}Rows", f"{prefix}Columns")}}
    answers: dict[str, Any] = {JSON: {"schema": _either(signature, f"{prefix}RowAnswer", f"{prefix}ColumnAnswer")}}
    parameters = []
    if signature.only is not None and signature.only.textual:
        content |= {media: {} for media in MEDIA[signature.only.dtype]}
    elif signature.only is not None:
        content |= {BYTES: {}, NPY: {}}
        parameters = [
            {
                "name": "X-Shape", "in": "header", "required": False, "schema": {"type": "string"},
                "description": f"The sizes of the raw tensor {signature.only.wanted}, with {BYTES} only.",
                "example": ",".join(str(size) if isinstance(size, int) else "1" for size in signature.only.shape),
            }
        ]  # fmt: skip
    if all(tensor.shape for tensor in signature.inputs.values()):
        content |= {CSV: {"schema": {"type": "string"}}}
    if len(signature.outputs) == 1:
        answers |= {BYTES: {}, NPY: {}}
    operation = {
        "summary": f"Run {model.name}",
        "description": f"Takes {rows} and {settings.max_body} bytes in a request. Raw tensors are little-endian. "
        "JSON has no NaN and no infinity: where the model gives one, the answer holds `null`.",
        "parameters": parameters,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "What the model gives.", "content": answers}, **errors(_ALSO)},
    }
    return Described(operation, {prefix + name: schema for name, schema in _schemas(signature).items()})


def _either(signature: Signature, rows: str, columns: str) -> dict[str, Any]:
    return {"oneOf": [ref(rows), ref(columns)]} if signature.rowwise else ref(columns)


def _schemas(signature: Signature) -> dict[str, Any]:
    unused = {"type": "object", "description": "Accepted and not used."}
    schemas = {
        "Columns": fields({"inputs": columns(signature), "parameters": unused}, required=["inputs"]),
        "ColumnAnswer": fields({"outputs": columns(signature, output=True), **_LABELS}),
    }
    if signature.rowwise:
        schemas["Rows"] = fields({"instances": instances(signature), "parameters": unused}, required=["instances"])
        schemas["RowAnswer"] = fields({"predictions": predictions(signature), **_LABELS})
    return schemas


def columns(signature: Signature, *, output: bool = False) -> dict[str, Any]:
    """Describe an object with every input, or every output, as a tensor."""
    tensors = signature.outputs if output else signature.inputs
    return fields(
        {name: tensor_schema(tensor, free=signature.splits, output=output) for name, tensor in tensors.items()}
    )


def instances(signature: Signature) -> dict[str, Any]:
    """Describe an array of rows."""
    count = {"minItems": 1}
    if signature.fixed_rows is not None and not signature.splits:
        count = {"minItems": signature.fixed_rows, "maxItems": signature.fixed_rows}
    return {"type": "array", **count, "items": row(signature.inputs)}


def predictions(signature: Signature) -> dict[str, Any]:
    """Describe an array with an answer for each row."""
    return {"type": "array", "items": row(signature.outputs, output=True)}


_LABELS = {"model_name": {"type": "string"}, "model_version": {"type": "string"}}


def row(tensors: Mapping[str, Tensor], *, output: bool = False) -> dict[str, Any]:
    """Describe one row: the only tensor's, or an object with each."""
    each = {name: tensor_schema(tensor, skip=1, output=output) for name, tensor in tensors.items()}
    return next(iter(each.values())) if len(each) == 1 else fields(each)
