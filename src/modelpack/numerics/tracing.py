"""What a module computes, as torch's exporter sees it: a program of operators whose values keep their names in ONNX."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from modelpack.errors import StageError
from modelpack.numerics import rows
from modelpack.numerics.calling import call
from modelpack.numerics.silence import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import fx
    from torch.export import ExportedProgram

    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

PREFIX = "module."
"""What stands before every path of the user's module in what the exporter is given."""

RESERVED = "modelpack."
"""Begins names that no user's module has."""

NORM = torch.ops.aten._native_batch_norm_legit_no_training.default  # noqa: SLF001 - torch's own name of the operator
"""A batch norm in evaluation."""

_RECURRENT = (torch.ops.aten.gru.input, torch.ops.aten.lstm.input)
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class _Positional(nn.Module):
    """A module seen as the exporter needs it: tensors in by position, a tuple of tensors out, in a fixed order."""

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.module, self.inputs, self.outputs = module, tuple(inputs), tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = call(self.module, dict(zip(self.inputs, tensors, strict=True)))
        return tuple(found[name] for name in self.outputs)


def capture(
    module: nn.Module, example: Feed, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, Any], opset: int
) -> torch.onnx.ONNXProgram:
    """Trace a module and translate what was found.

    Args:
        module: On the CPU, in evaluation mode.
        example: Inputs to trace with; named dimensions have at least two entries, since one would be taken as fixed.
        inputs: The inputs; dimensions with the same name are the same size.
        outputs: Output name → ``{"shape", "dtype"}``.
        opset: Version of the standard operators.

    Raises:
        StageError: When torch cannot export the module, with torch's reason.
    """
    for name in inputs.keys() & outputs.keys():
        raise StageError(
            f"the input '{name}' and an output have the same name, which ONNX does not allow",
            then=f"name every output in `model: outputs:`, such as new_{name}",
        )
    dimensions = {name: torch.export.Dim(name) for spec in inputs.values() for name in spec.dynamic.values()}
    shapes = tuple({axis: dimensions[name] for axis, name in spec.dynamic.items()} for spec in inputs.values())
    arguments = tuple(torch.from_numpy(np.array(example[name])) for name in inputs)
    try:
        with quiet(), torch.no_grad(), _recurrence_anew():
            program = torch.onnx.export(
                _Positional(module, list(inputs), list(outputs)).eval(),
                arguments,
                dynamo=True,
                opset_version=opset,
                input_names=[f"{RESERVED}input.{place}" for place in range(len(inputs))],
                output_names=[f"{RESERVED}output.{place}" for place in range(len(outputs))],
                dynamic_shapes=(shapes,),
                verbose=False,
            )
            assert program is not None
            assert program.exported_program is not None
    except StageError:
        raise
    except Exception as error:  # the exporter lets through whatever it or the model's code raises
        raise StageError(
            f"torch cannot export the model: {reason(error)}",
            then="the model's forward() must not depend on the values of tensors, and dimensions that it fixes "
            "must be numbers in `inputs:`",
        ) from error
    return program


def on_device(program: ExportedProgram, device: torch.device) -> ExportedProgram:
    """Let a program traced on the CPU run on another device, the tensors that it makes itself included."""
    if device.type == "cpu":
        return program
    moved = move_to_device_pass(program, device)
    for node in moved.graph.nodes:
        if _makes_tensors(node) and "device" not in node.kwargs:  # torch moves those alone that name a device
            node.kwargs = {**node.kwargs, "device": device}
    moved.graph_module.recompile()
    return moved


def _makes_tensors(node: fx.Node) -> bool:
    """Whether a node makes a tensor of numbers alone, wherever it is told to."""
    if not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - the type of an operator has no other name
        return False
    arguments = {item.name: str(item.type) for item in node.target._schema.arguments}  # noqa: SLF001 - nor its signature
    return "device" in arguments and not any("Tensor" in kind for kind in arguments.values())


@contextlib.contextmanager
def _recurrence_anew() -> Iterator[None]:
    """Let the exporter put its own form of recurrent layers in place, which holds for any length.

    torch remembers what it once chose for an operator: without this, whatever came first in the process stays.
    """
    remembered = [getattr(operator, "_dispatch_cache", {}) for operator in _RECURRENT]
    for choices in remembered:
        choices.clear()
    try:
        yield
    finally:
        for choices in remembered:
            choices.clear()


def reason(error: BaseException) -> str:
    """Find what went wrong underneath the exporter's own wrapping, in its first lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOR.sub("", str(error)).splitlines() if line.strip()]
    text = " ".join(lines[:3])
    return f"{type(error).__name__}: {text if len(text) <= 400 else text[:397] + '...'}"


def traceable(example: Feed, inputs: Mapping[str, TensorSpec], seed: int) -> Feed:
    """Give an example whose named dimensions have two entries or more, and whose batch is small."""
    sizes: dict[str, int] = {}
    for name, spec in inputs.items():
        for axis, dimension in spec.dynamic.items():
            sizes[dimension] = max(2, example[name].shape[axis])
    counted = rows.batch_name(inputs)
    return rows.sample(inputs, 2, seed, {name: size for name, size in sizes.items() if name != counted})
