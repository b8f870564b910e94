"""The layers that give a model's outputs: what they lose, nothing after them can make up for."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics.calling import call

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find(module: nn.Module, feed: Mapping[str, Tensor]) -> set[str]:
    """Find the layers whose values reach an output alone: reshaped, averaged or through an activation, never added to.

    Args:
        module: In evaluation mode.
        feed: Inputs of one forward pass.

    Returns:
        Their paths.

    Raises:
        StageError: When no output follows from a layer by gradients, so that nobody can tell.
    """
    leaves: dict[int, str] = {}
    with torch.enable_grad(), _cut_off(module, leaves) as kept:
        outputs = [value for value in call(module, feed).values() if value.grad_fn is not None]
        if not outputs and kept:
            raise StageError(
                "the model's outputs do not follow from its layers by gradients: which of them give outputs is unknown",
                then="take torch.no_grad() and detach() out of forward(), or say `head: true`; see `exclude`",
            )
        found = {_source(value, leaves) for value in outputs}
    return found - {""}


@contextlib.contextmanager
def _cut_off(module: nn.Module, leaves: dict[int, str]) -> Iterator[list[Tensor]]:
    """Let what layers give start the chain of gradients anew; name these starts by their id, and keep them alive."""
    kept: list[Tensor] = []

    def hook(path: str) -> Any:
        def start(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            leaf = output.detach().requires_grad_()
            kept.append(leaf)
            leaves[id(leaf)] = path
            # A model may write into what a layer gives, which torch refuses for a leaf.
            return leaf.clone()

        return start

    with contextlib.ExitStack() as hooks:
        for path, layer in module.named_modules():
            if isinstance(layer, _LAYERS):
                hooks.callback(layer.register_forward_hook(hook(path)).remove)
        yield kept


def _source(output: Tensor, leaves: Mapping[int, str]) -> str:
    """Follow an output back while it is made of one tensor; empty where several meet."""
    node: Any = output.grad_fn
    while node is not None:
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            return leaves.get(id(leaf), "")
        before = [item for item, _ in node.next_functions if item is not None]
        # Scales and offsets of norms are parameters, not values.
        before = [item for item in before if id(getattr(item, "variable", None)) in leaves or _computed(item)]
        if len(before) != 1:
            return ""
        node = before[0]
    return ""


def _computed(node: Any) -> bool:
    return getattr(node, "variable", None) is None
