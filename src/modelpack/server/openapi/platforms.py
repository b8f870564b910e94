"""What the routes of serving platforms take and give: rows and columns with a model's real tensors, in their words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..exchange import JSON
from ..router import Described
from ..texts import whole
from .parts import ERROR, errors, fields, ref
from .predict import CSV, NPY, columns, instances, predictions, row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..model import Model
    from ..settings import Settings
    from ..signature import Signature

LINES = "application/jsonlines"
_FREE = {"type": "object"}
_TEXT = {"type": "string"}
_FAILED = fields({"status": {"const": "failed"}, "error": _TEXT})
_CODED = fields({"error_code": _TEXT, "message": _TEXT})
_TYPED = fields({"code": {"type": "integer"}, "type": _TEXT, "message": _TEXT})


def v1(model: Model, settings: Settings, prefix: str) -> Described:
    """Describe `:predict` of KServe v1 and TensorFlow Serving."""
    signature, beside = model.signature, {"signature_name": {"const": "serving_default"}, "parameters": _FREE}
    requests = [fields({"inputs": _columns(signature), **beside}, required=["inputs"])]
    answers = [fields({"outputs": _lone(signature)})]
    if signature.rowwise:
        requests.append(fields({"instances": instances(signature), **beside}, required=["instances"]))
        answers.append(fields({"predictions": predictions(signature)}))
    return _described(model, settings, {f"{prefix}V1Request": requests, f"{prefix}V1Answer": answers})


def vertex(model: Model, settings: Settings, prefix: str) -> Described:
    """Describe the prediction route of Vertex AI."""
    request = fields({"instances": instances(model.signature), "parameters": _FREE}, required=["instances"])
    answer = fields({"predictions": predictions(model.signature)})
    return _described(model, settings, {f"{prefix}VertexRequest": [request], f"{prefix}VertexAnswer": [answer]})


def invocations(model: Model, settings: Settings, prefix: str) -> Described:
    """Describe `/invocations` of MLflow and SageMaker."""
    return _invocations(model, settings, prefix, ("InvocationError", _CODED))


def several(model: Model, settings: Settings, prefix: str) -> Described:
    """Describe `/models/MODEL/invoke` of SageMaker, which differs in what it says is wrong."""
    return _invocations(model, settings, prefix, ("OneError", _TYPED))


def _invocations(model: Model, settings: Settings, prefix: str, wrong: tuple[str, dict[str, Any]]) -> Described:
    signature = model.signature
    forms = {"inputs": _columns(signature), "dataframe_split": _split(signature)}
    forms["dataframe_records"] = {"type": "array", "minItems": 1, "items": {"type": "object", "minProperties": 1}}
    requests = []
    answers = [fields({"predictions": _lone(signature)})]
    if signature.rowwise:
        forms["instances"] = instances(signature)
        requests.append(instances(signature))
        answers = [
            fields({"predictions": _either(signature)}),
            predictions(signature),
        ]
    requests += [fields({name: form, "params": _FREE}, required=[name]) for name, form in forms.items()]
    named = {f"{prefix}InvocationRequest": requests, f"{prefix}InvocationAnswer": answers}
    takes = (CSV, LINES, *(whole(signature.only) or (NPY,)))
    return _described(model, settings, named, takes=takes, gives=(CSV, LINES, NPY), wrong=wrong)


def azure(model: Model, settings: Settings, prefix: str) -> Described:
    """Describe `/score` of Azure ML."""
    signature = model.signature
    forms, answers = [columns(signature), _split(signature)], [_lone(signature)]
    requests = [fields({"input_data": {"anyOf": forms}, "params": _FREE}, required=["input_data"])]
    if signature.rowwise:
        forms.append(instances(signature))
        requests.append(fields({"data": instances(signature), "params": _FREE}, required=["data"]))
        answers = [_either(signature)]
    return _described(model, settings, {f"{prefix}ScoreRequest": requests, f"{prefix}ScoreAnswer": answers})


def torchserve(model: Model, settings: Settings, prefix: str) -> Described:
    """Describe `/predictions/MODEL` of TorchServe."""
    signature = model.signature
    requests = [row(signature.inputs), fields({"instances": instances(signature)})]
    answers = [row(signature.outputs, output=True), fields({"predictions": predictions(signature)})]
    named = {f"{prefix}OneRequest": requests, f"{prefix}OneAnswer": answers}
    return _described(model, settings, named, takes=whole(signature.only), wrong=("OneError", _TYPED))


def cog(model: Model, settings: Settings, prefix: str) -> Described:
    """Describe `/predictions` of Cog, whose clients look for the schemas `Input` and `Output`."""
    request = fields({"input": ref(f"{prefix}Input"), "id": _TEXT}, required=["input"])
    metrics = fields({"predict_time": {"type": "number"}})
    given = {"status": {"const": "succeeded"}, "output": ref(f"{prefix}Output"), "metrics": metrics, "id": _TEXT}
    answer = fields(given, required=["status", "output", "metrics"])
    named = {f"{prefix}PredictionRequest": [request], f"{prefix}PredictionResponse": [answer]}
    described = _described(model, settings, named, wrong=("PredictionError", _FAILED))
    takes, gives = columns(model.signature), _lone(model.signature)
    if all(tensor.textual for tensor in model.signature.inputs.values()):  # one text or image may come by itself
        one = fields(dict.fromkeys(model.signature.inputs, _TEXT))
        takes, gives = ({"anyOf": [one, takes]}, {"anyOf": [row(model.signature.outputs, output=True), gives]})
    more = {f"{prefix}Input": takes, f"{prefix}Output": gives}
    return Described(described.operation, {**described.schemas, **more})


def _columns(signature: Signature) -> dict[str, Any]:
    """Describe an object with every input, or the only one without its name."""
    named = columns(signature)
    return named if signature.only is None else {"oneOf": [named, *named["properties"].values()]}


def _either(signature: Signature) -> dict[str, Any]:
    """Describe outputs by rows or by columns, which is the same when there is only one."""
    rows, arrays = predictions(signature), _lone(signature)
    return {"anyOf": [rows, arrays]} if len(signature.outputs) > 1 else arrays


def _split(signature: Signature) -> dict[str, Any]:
    """Describe a data frame; its columns are the inputs, or anything where the only input is its rows."""
    count = len(signature.inputs)
    name = {"type": ["string", "integer"]} if signature.only else {"enum": list(signature.inputs)}
    names = {"type": "array", "items": name, "minItems": count}
    cells = {"type": "array", "items": {"type": "array", "minItems": count}, "minItems": 1}
    if not signature.only:
        names |= {"maxItems": count, "uniqueItems": True}
    return fields({"columns": names, "data": cells, "index": {"type": "array"}}, required=["columns", "data"])


def _lone(signature: Signature) -> dict[str, Any]:
    named = columns(signature, output=True)
    each: list[dict[str, Any]] = list(named["properties"].values())
    return named if len(each) > 1 else each[0]


def _described(
    model: Model,
    settings: Settings,
    named: Mapping[str, list[dict[str, Any]]],
    *,
    takes: tuple[str, ...] = (),
    gives: tuple[str, ...] = (),
    wrong: tuple[str, dict[str, Any]] = ("Error", ERROR),
) -> Described:
    """Describe a route by the forms of its request and of its answer, and of what it says is wrong, by their names."""
    request, answer = named
    schemas = {name: forms[0] if len(forms) == 1 else {"anyOf": forms} for name, forms in named.items()}
    failures = errors({406: "The answer cannot have the form that was asked for."}, wrong[0])
    operation = {
        "summary": f"Run {model.name}",
        "description": f"At most {settings.max_rows} rows and {settings.max_body} bytes in a request.",
        "requestBody": {"required": True, "content": _content(request, takes)},
        "responses": {"200": {"description": "What the model gives.", "content": _content(answer, gives)}, **failures},
    }
    return Described(operation, {**schemas, wrong[0]: wrong[1]})


def _content(name: str, more: tuple[str, ...]) -> dict[str, Any]:
    return {JSON: {"schema": ref(name)}, **{media: {} for media in more}}
