"""What a layer gives, as a sum of parts in descending order of their energy: the first ones make up its halves.

The weights are a matrix: of outputs by inputs, or of a kernel's rows by its columns where the form is spatial.

* By the weights alone: its singular value decomposition.
* By data: the principal directions of what the matrix gives. To project on the first r of them is the best that any
  matrix of rank r can do on these data, which is what whitening the inputs before the decomposition amounts to (Zhang
  et al. 2015, arXiv 1505.06798; Wang et al., SVD-LLM, 2024, arXiv 2403.07378). The mean goes into the bias where there
  is one. Of the spatial form this is true of what each column of the kernel adds, as if these were independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics import models, structure
from modelpack.numerics.calling import call, watched

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelpack.numerics.fitting import Reading
    from modelpack.numerics.low_rank.layers import Layer

_PIECE = 2**16
"""Positions that are looked at together: large images have millions."""

_THEN = "keep it by `keep`, or mend the model or the data"


@dataclass(frozen=True)
class Spectrum:
    """A layer's weights as a product, float64: the first r columns and rows are its halves with r channels between.

    Attributes:
        energies: Of each part, descending, ``(parts,)``.
        second: ``(rows, parts)`` of the matrix.
        first: ``(parts, columns)`` of the matrix.
        mean: What the matrix gives on average, ``(rows,)``; zero where that is not known, or no bias takes it up.
    """

    energies: Tensor
    second: Tensor
    first: Tensor
    mean: Tensor

    def lost(self) -> Tensor:
        """Give the share of the energy that is lost with 0, 1, 2, … channels between the halves."""
        left = torch.cat([self.energies.flip(0).cumsum(0).flip(0), self.energies.new_zeros(1)])
        return left / left[0].clamp(min=torch.finfo(left.dtype).tiny)


def of_weights(module: nn.Module, layer: Layer) -> Spectrum:
    """Decompose a layer's weights.

    Raises:
        StageError: When they are not finite.
    """
    matrix = _matrix(module, layer)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values.sqrt()
    return Spectrum(values.square(), left * roots, roots[:, None] * right, matrix.new_zeros(len(matrix)))


def of_outputs(module: nn.Module, layers: Sequence[Layer], reading: Reading) -> dict[Layer, Spectrum]:
    """Decompose what layers give on data, at the positions that are real.

    Args:
        module: In evaluation mode, on the device of the reading.
        layers: Which are to be decomposed.
        reading: The rows.

    Returns:
        Layer → spectrum.

    Raises:
        StageError: When there are no rows, or weights or outputs are not finite.
    """
    seen = {layer: _Moments(module, layer) for layer in layers}
    real: list[Any] = [None]

    def look(layer: Layer) -> Callable[..., None]:
        return lambda _layer, given, named, output: seen[layer].add(
            given[0] if given else named["input"], output, real[0]
        )

    hooks = [(module.get_submodule(item.path), look(item)) for item in layers]
    with torch.inference_mode(), models.blamed("the model fails on the rows"), watched(hooks):
        for feed in reading.read():
            real[0] = reading.real(feed)
            call(module, models.tensors(feed, reading.device))
    return {layer: moments.spectrum(layer.path) for layer, moments in seen.items()}


class _Moments:
    """Sums over what the matrix of one layer gave, in an orthonormal basis of all that it can give."""

    def __init__(self, module: nn.Module, layer: Layer) -> None:
        self.matrix = _matrix(module, layer)
        owner: Any = module.get_submodule(layer.path)
        self.bias, self.linear = owner.bias, isinstance(owner, nn.Linear)
        self.columns: nn.Module | None = None
        rows, columns = self.matrix.shape
        if layer.form == "spatial":
            # A first half with all rows of the matrix gives what each of them adds.
            self.columns = structure.halves(owner, "spatial", rows)[0].requires_grad_(requires_grad=False)
            weight = self.columns.get_parameter("weight")
            weight.copy_(self.matrix.reshape(weight.shape))
        # A head of many classes gives far fewer dimensions than it has outputs.
        self.basis = torch.linalg.qr(self.matrix).Q if rows > columns else None
        width = min(rows, columns)
        self.square, self.sum, self.count = self.matrix.new_zeros(width, width), self.matrix.new_zeros(width), 0

    def add(self, given: Tensor, output: Tensor, real: Any) -> None:
        """Count what the layer gave at the positions that are real."""
        if self.columns is not None:
            output = self.columns(given)
        values = output if self.linear else output.movedim(1, -1)
        if real is not None and values.ndim == real.ndim + 1 and values.shape[:-1] == real.shape:
            values = values[torch.from_numpy(real).to(values.device)]
        for piece in torch.split(values.flatten(0, -2), _PIECE):
            rows = piece.double()
            if self.bias is not None and self.columns is None:
                rows = rows - self.bias.detach().double()
            rows = rows if self.basis is None else rows @ self.basis
            self.square += rows.mT @ rows
            self.sum += rows.sum(0)
            self.count += len(rows)

    def spectrum(self, path: str) -> Spectrum:
        """Give the principal directions of all rows; around their mean where a bias can take it up."""
        mean = self.sum / max(1, self.count) if self.bias is not None else torch.zeros_like(self.sum)
        moment = self.square / max(1, self.count) - torch.outer(mean, mean)
        if not bool(moment.isfinite().all()):
            raise StageError("what this layer gives is not finite on the rows", where=path, then=_THEN)
        energies, directions = torch.linalg.eigh(moment)
        energies, directions = energies.flip(0).clamp(min=0), directions.flip(1)
        if self.basis is not None:
            directions, mean = self.basis @ directions, self.basis @ mean
        return Spectrum(energies, directions, directions.mT @ self.matrix, mean)


@torch.no_grad()
def fill(pair: Any, layer: Layer, spectrum: Spectrum, bias: Tensor | None) -> None:
    """Set the weights of a layer's halves.

    Args:
        pair: The halves, with some channels between them.
        layer: What was split.
        spectrum: Its parts.
        bias: That of the layer that was split.
    """
    first, second = pair
    rank = first.weight.shape[0]
    left, right = spectrum.second[:, :rank], spectrum.first[:rank]
    missed = spectrum.mean - left @ (left.mT @ spectrum.mean)
    if layer.form == "spatial":
        outputs, _, _, columns = second.weight.shape
        left = left.reshape(outputs, columns, rank).transpose(1, 2)
        missed = missed.view(outputs, columns).sum(1)
    first.weight.copy_(right.reshape(first.weight.shape))
    second.weight.copy_(left.reshape(second.weight.shape))
    if bias is not None:
        second.bias.copy_(bias.double() + missed)


def _matrix(module: nn.Module, layer: Layer) -> Tensor:
    """Give a layer's weights as a matrix, float64."""
    weight = module.get_submodule(layer.path).get_parameter("weight").detach().double()
    if not bool(weight.isfinite().all()):
        raise StageError("the weights of this layer are not finite", where=layer.path, then=_THEN)
    return weight.flatten(1) if layer.form == "channel" else weight.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)
