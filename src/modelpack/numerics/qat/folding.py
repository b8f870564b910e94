"""Batch norms folded into the layers before them, so that training rounds the weights that will be shipped.

A batch norm in evaluation is a factor and an offset a channel. The layer before it takes both over, in float64, and
the batch norm is left without effect: statistics 0 and 1, factor 1, offset 0, epsilon 0. All of that are tensors and
plain attributes, so that the folded model is still data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.numerics.tracing import NORM, PREFIX

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

_LAYERS = frozenset(
    {
        torch.ops.aten.convolution.default,
        torch.ops.aten.conv1d.default,
        torch.ops.aten.conv2d.default,
        torch.ops.aten.conv3d.default,
        torch.ops.aten.linear.default,
    }
)


def fold(module: nn.Module, traced: ExportedProgram) -> list[str]:
    """Fold every batch norm that alone reads a layer with weights of its own, in place.

    Pairs are found in the trace, so that subclasses of torch's layers and functional calls count like any other.

    Args:
        module: In evaluation mode.
        traced: Its program.

    Returns:
        Paths of the folded batch norms.
    """
    paths = _paths(traced)
    folded = []
    for norm in traced.graph.nodes:
        if norm.op != "call_function" or norm.target is not NORM:
            continue
        layer = norm.args[0]
        weight = _weight(layer)
        if weight is None or len(layer.users) != 1 or len(weight.users) != 1 or weight.name not in paths:
            continue
        owner, name = _owner(module, paths[weight.name])
        path = paths[norm.args[3].name].rpartition(".")[0]
        batch_norm = module.get_submodule(path)
        if name != "weight" or not isinstance(getattr(batch_norm, "eps", None), float):
            continue
        _merge(owner, batch_norm)
        folded.append(path)
    return folded


def _weight(layer: fx.Node) -> fx.Node | None:
    """Give the weights of a layer whose outputs have their channels where the batch norm looks for them."""
    if layer.target not in _LAYERS or (layer.target is torch.ops.aten.convolution.default and layer.args[6]):
        return None
    if layer.target is torch.ops.aten.linear.default and layer.meta["val"].ndim != 2:
        return None
    weight = layer.args[1]
    return weight if weight.op == "placeholder" else None  # type: ignore[union-attr, return-value]


def _paths(traced: ExportedProgram) -> dict[str, str]:
    """Name parameters and buffers as the user's module does, by placeholder."""
    signature = traced.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {place: path.removeprefix(PREFIX) for place, path in named.items()}


def _owner(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, name = path.rpartition(".")
    return module.get_submodule(owner), name


@torch.no_grad()
def _merge(layer: nn.Module, norm: nn.Module) -> None:
    weight, bias = _tensor(layer.weight), _tensor(layer.bias)
    mean, variance = _tensor(norm.running_mean), _tensor(norm.running_var)
    assert weight is not None, "found in the trace"
    assert mean is not None, "the operator of evaluation reads it"
    assert variance is not None, "the operator of evaluation reads it"
    scale, shift = _tensor(norm.weight), _tensor(norm.bias)
    factor = (variance.double() + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
    factor = factor if scale is None else factor * scale.double()
    offset = (0.0 if bias is None else bias.double()) - mean.double()
    offset = offset * factor + (0.0 if shift is None else shift.double())
    weight.copy_(weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1)))
    if bias is None:
        layer.bias = nn.Parameter(offset.to(weight.dtype))
    else:
        bias.copy_(offset)
    for tensor, value in ((mean, 0.0), (variance, 1.0), (scale, 1.0), (shift, 0.0)):
        if tensor is not None:
            tensor.fill_(value)
    norm.eps = 0.0  # type: ignore[assignment]


def _tensor(value: object) -> Tensor | None:
    return value if isinstance(value, Tensor) else None
