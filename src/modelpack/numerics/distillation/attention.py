"""Where a network computes queries, keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics.distillation.taps import Tap, at

if TYPE_CHECKING:
    from collections.abc import Callable

_APART = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
)
"""Names of three layers, as common models have them."""

_TOGETHER = ("qkv", "qkv_proj", "to_qkv", "in_proj", "wqkv", "c_attn")
"""Names of one layer that gives all three, one after the other."""

Taps = tuple[Tap, Tap, Tap]


def attentions(module: nn.Module) -> dict[str, Taps]:
    """Find all attention: path of the module that holds it → where queries, keys and values are."""
    found = {path: _taps(path, child) for path, child in module.named_modules() if path}
    return {path: taps for path, taps in found.items() if taps is not None}


def named(module: nn.Module, path: str, whose: str) -> Taps:
    """Give queries, keys and values of one module of a model, which errors call `whose`.

    Raises:
        StageError: When it does not exist, or is no attention that is known.
    """
    taps = _taps(path, at(module, path, whose))
    if taps is None:
        raise StageError(
            f"the {whose}'s module '{path}' has no layers of queries, keys and values",
            where="relations",
            then=did_you_mean(path, attentions(module)),
        )
    return taps


def last(module: nn.Module, whose: str) -> str:
    """Give the path of the last attention.

    Raises:
        StageError: When there is none.
    """
    found = list(attentions(module))
    if not found:
        raise StageError(
            f"the {whose} has no attention whose queries, keys and values could be found",
            where="imitate",
            then="leave `relations` out, or give these layers names such as query, key and value",
        )
    return found[-1]


def _taps(path: str, module: nn.Module) -> Taps | None:
    if isinstance(module, nn.MultiheadAttention):
        return (_own(path, 0), _own(path, 1), _own(path, 2)) if module.in_proj_weight is not None else None
    children = {name.lower(): name for name, child in module.named_children() if child._parameters}  # noqa: SLF001
    for names in _APART:
        if set(names) <= set(children):
            one, two, three = (Tap(f"{path}.{children[name]}") for name in names)
            return one, two, three
    for name in _TOGETHER:
        if name in children:
            inner = f"{path}.{children[name]}"
            return Tap(inner, _THIRDS[0]), Tap(inner, _THIRDS[1]), Tap(inner, _THIRDS[2])
    return None


def _third(place: int) -> Callable[..., Tensor | None]:
    def take(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        return output.chunk(3, -1)[place] if isinstance(output, Tensor) else None

    return take


def _of_torch(place: int) -> Callable[..., Tensor | None]:
    def take(module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> Tensor | None:
        # torch's own attention multiplies by one matrix in a function, whose result no hook sees.
        if len(inputs) <= place:
            return None
        weights: Any = module.in_proj_weight
        biases: Any = module.in_proj_bias
        bias = None if biases is None else biases.chunk(3)[place]
        value = functional.linear(inputs[place], weights.chunk(3)[place], bias)
        return value if module.batch_first or value.ndim < 3 else value.transpose(0, 1)

    return take


_THIRDS = tuple(_third(place) for place in range(3))
_OF_TORCH = tuple(_of_torch(place) for place in range(3))


def _own(path: str, place: int) -> Tap:
    return Tap(path, _OF_TORCH[place])
