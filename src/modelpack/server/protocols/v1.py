"""The REST paths of KServe v1 and of TensorFlow Serving, which share one place and most of their words.

Sources: KServe, "V1 Inference Protocol"; TensorFlow Serving, "RESTful API".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..exchange import JSON, UNSAID, Refused, Response, as_json
from ..faults import Invalid
from ..openapi.platforms import v1 as described
from ..router import Protocol, Route
from ..rows import dump, from_either, parse, to_lone, to_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..model import Model
    from ..request import Request
    from ..service import Service
    from ..settings import Settings
    from ..signature import Signature, Tensor

SIGNATURE = "serving_default"
_METHODS = ("classify", "regress", "explain")
_TYPES = {
    "float32": "DT_FLOAT", "float64": "DT_DOUBLE", "float16": "DT_HALF", "bool": "DT_BOOL",
    "bytes": "DT_STRING", "string": "DT_STRING",
    **{f"{sign}int{bits}": f"DT_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


def protocol(_settings: Settings) -> Protocol:
    """Give the table."""
    routes = [Route("GET", "/v1/models", models)]
    for model in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}"):
        routes += [
            Route("GET", model, status),
            Route("GET", f"{model}/metadata", metadata),
            Route("POST", f"{model}:predict", predict, describe=described),
            *(Route("POST", f"{model}:{method}", refuse, media=()) for method in _METHODS),
        ]
    return Protocol("v1", tuple(routes))


async def predict(service: Service, request: Request) -> Response:
    """Run a model on rows or columns."""
    with service.catalog.find(*_named(request)) as model:
        request.expect((JSON,), UNSAID)
        body = await request.body()
        content = parse(body)
        if b'"b64"' in body and not _takes_texts(model.signature) and _holds_bytes(content):
            raise Invalid(f'bytes ({{"b64": ...}}) are not taken: the inputs are {_wanted(model.signature)}')
        feed, rows = from_either(content, model.signature, ("parameters", "signature_name"))
        if content.get("signature_name", SIGNATURE) not in (SIGNATURE, ""):
            raise Invalid(f"no signature {str(content['signature_name'])[:80]!r}: there is only {SIGNATURE!r}")
        answer = await service.infer(model, feed, request.arrived, request.gone)
    if rows:
        return Response(200, dump({"predictions": to_rows(answer.outputs, answer.rows)}))
    return Response(200, dump({"outputs": to_lone(answer.outputs)}))


def _named(request: Request) -> tuple[str, str]:
    return request.parts["model"], request.parts.get("version", "")


def _takes_texts(signature: Signature) -> bool:
    return any(tensor.textual for tensor in signature.inputs.values())


def _holds_bytes(content: Any) -> bool:
    """Tell whether an object with nothing but `b64` is anywhere inside."""
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if list(value) == ["b64"] and isinstance(value["b64"], str):
                return True
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False


def _wanted(signature: Signature) -> str:
    return ", ".join(f"{name!r} ({tensor.dtype})" for name, tensor in signature.inputs.items())


async def refuse(_service: Service, request: Request) -> Response:
    """Say that a method is not served."""
    raise Refused(501, f"{request.path.rpartition(':')[2]!r} is not served: models answer to 'predict'")


async def models(service: Service, _request: Request) -> Response:
    """List the names of the models."""
    return as_json({"models": list(service.catalog.current)})


async def status(service: Service, request: Request) -> Response:
    """Say whether a model answers, for both protocols at once."""
    name, version = _named(request)
    chosen = service.catalog.find(name, version)
    asked = [version] if version else service.catalog.versions(name)
    ready = chosen.ready and service.state != "draining"
    states = [_state(service.catalog.find(name, each)) for each in asked]
    return as_json({"name": name, "ready": ready, "model_version_status": states}, 200 if ready else 503)


def _state(model: Model) -> dict[str, Any]:
    fine = {"error_code": "OK", "error_message": ""}
    return {"version": model.version, "state": "AVAILABLE" if model.ready else "LOADING", "status": fine}


async def metadata(service: Service, request: Request) -> Response:
    """Describe a model's tensors as TensorFlow Serving does."""
    model = service.catalog.find(*_named(request))
    signature = {
        "inputs": _tensors(model.signature.inputs),
        "outputs": _tensors(model.signature.outputs),
        "method_name": "tensorflow/serving/predict",
    }
    return as_json(
        {
            "model_spec": {"name": model.name, "signature_name": "", "version": model.version},
            "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
        }
    )


def _tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Describe tensors by name; sizes are texts, and -1 where any will do."""
    return {
        name: {
            "dtype": _TYPES[tensor.dtype],
            "tensor_shape": {
                "dim": [{"size": str(size if isinstance(size, int) else -1), "name": ""} for size in tensor.shape],
                "unknown_rank": False,
            },
            "name": name,
        }
        for name, tensor in tensors.items()
    }
