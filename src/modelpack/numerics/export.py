"""From a torch module to an ONNX graph, by torch's dynamo exporter, and the proof that both compute the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from modelpack.errors import StageError
from modelpack.numerics import differences, models, naming, onnxfile
from modelpack.numerics.calling import call
from modelpack.numerics.differences import Case, Tolerance
from modelpack.numerics.silence import quiet
from modelpack.numerics.tracing import capture, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

_ENDLESS = 2**31


@dataclass(frozen=True)
class Exported:
    """An ONNX graph, its nodes named by the module they come from.

    Attributes:
        model: The graph.
        program: The torch program that it was translated from.
        limits: Dynamic dimension → the sizes for which the graph holds, where the model's code branches on the size.
    """

    model: ModelProto
    program: ExportedProgram
    limits: Mapping[str, str]


def export(
    module: nn.Module, example: Feed, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, Any], opset: int
) -> Exported:
    """Translate a module into an ONNX graph; takes what `tracing.capture` takes.

    Raises:
        StageError: When torch cannot export the module, with torch's reason, or only for another opset or one size.
    """
    program = capture(module, example, inputs, outputs, opset)
    model = program.model_proto
    assert program.exported_program is not None, "checked when it was captured"
    if onnxfile.opset(model) != opset:
        raise StageError(
            f"asked for opset {opset}, the exporter could only give {onnxfile.opset(model)}",
            then=f"set `opset: {onnxfile.opset(model)}`",
        )
    limits = _limits(program.exported_program, inputs)
    return Exported(_tidied(model, list(inputs), outputs), program.exported_program, limits)


def _limits(program: ExportedProgram, inputs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Find the sizes that torch assumed for dynamic dimensions: it follows one branch of ``if size > 100``.

    Raises:
        StageError: When it assumed a single size.
    """
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"}
    found: dict[str, str] = {}
    for name, (key, spec) in zip(program.graph_signature.user_inputs, inputs.items(), strict=True):
        for axis, dimension in spec.dynamic.items():
            size = shapes[name][axis]
            if isinstance(size, int):
                raise StageError(
                    f"the model's code works for one size of '{dimension}' only: {size}",
                    where=key,
                    then=f"declare {size} instead of '{dimension}' in `inputs:`",
                )
            bounds = program.range_constraints.get(size.node.expr)
            if bounds is not None and (bounds.lower > 2 or bounds.upper < _ENDLESS):
                upper = f"to {bounds.upper}" if bounds.upper < _ENDLESS else "and more"
                found[dimension] = f"{max(1, int(bounds.lower))} {upper}"
    return found


def _tidied(model: ModelProto, inputs: Sequence[str], outputs: Mapping[str, Any]) -> ModelProto:
    naming.name_nodes(model.graph)
    naming.name_values(model.graph, inputs, list(outputs))
    onnxfile.strip(model)
    for value in model.graph.output:
        declared = outputs[value.name]["shape"]
        sizes = value.type.tensor_type.shape.dim
        if len(declared) == len(sizes):
            for size, wanted in zip(sizes, declared, strict=True):
                if isinstance(wanted, str):
                    size.dim_param = wanted
    model = onnxfile.infer(model)
    onnxfile.check(model)
    return model


def cases(module: nn.Module, feeds: Iterable[Feed], outputs: Iterable[str]) -> list[Case]:
    """Run the torch module on every feed; its outputs are what the graph must give.

    Raises:
        StageError: When the module fails on one.
    """
    names = tuple(outputs)
    found = []
    for feed in feeds:
        try:
            with torch.inference_mode():
                given = call(module, models.tensors(feed, torch.device("cpu")))
        except StageError:
            raise
        except Exception as error:  # the user's forward() may raise anything
            shapes = Case(feed, {}).shapes
            raise StageError(
                f"the torch model fails on {shapes}: {reason(error)}", then="name real rows with `data:`"
            ) from error
        found.append(Case(feed, {name: given[name].detach().numpy() for name in names}))
    return found


def prove(
    exported: Exported,
    found: Sequence[Case],
    tolerance: Tolerance,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> float:
    """Compare the graph with torch at every optimization level of onnxruntime.

    Returns:
        The largest absolute difference of any output.

    Raises:
        StageError: Beyond tolerance, naming the first layer whose value differs.
    """
    largest, finding = differences.compare(exported.model, found, tolerance, track=track)
    if finding is not None:
        layer = differences.first_layer(
            exported.model, finding.case.feed, values(exported, finding.case.feed), tolerance, finding.level
        )
        refusal = differences.refuse(finding, "the exported graph does not compute what torch computes", layer)
        refusal.then = branches(exported)
        raise refusal
    return largest


def branches(exported: Exported) -> str:
    """Say for which sizes the graph holds, where the model's code branches on them; empty where it does not."""
    told = (f"{dimension} = {sizes}" for dimension, sizes in exported.limits.items())
    sizes = ", ".join(told)
    return f"the graph holds for {sizes} only: the model's code branches on this size" if sizes else ""


def values(exported: Exported, feed: Feed) -> dict[str, NDArray[np.generic]]:
    """Compute with torch every intermediate value that kept its name in the graph, the graph's outputs included."""
    program = exported.program
    recorder = _Recorder(program.module(check_guards=False))
    with quiet(), torch.inference_mode():
        recorder.run(*(torch.from_numpy(np.array(feed[item.name])) for item in exported.model.graph.input))
    last = next(node for node in program.graph.nodes if node.op == "output")
    returned = [node.name for node in last.args[0]]
    for value, name in zip(exported.model.graph.output, returned, strict=False):
        if name in recorder.seen:
            recorder.seen[value.name] = recorder.seen[name]
    return recorder.seen


class _Recorder(fx.Interpreter):
    """Runs a program and keeps a copy of every tensor that its nodes give."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, NDArray[np.generic]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n.name] = value.detach().clone().numpy()
        return value
