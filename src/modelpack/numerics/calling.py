"""How a module is called: named tensors in, named tensors out, whatever its forward() takes and returns."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Mapping
from types import MethodType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics import signatures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

_NAMES = "_modelpack_outputs"


def call(module: nn.Module, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Call a module with named tensors and name what it returns.

    Inputs go by keyword where `forward` has all the names, else by position in the feed's order. A tensor is called
    ``output``, the members of a tuple ``output_0``, ``output_1``, …, those of a dict by their keys; names that the
    recipe gave replace these. None is left out.

    Raises:
        StageError: When something other than tensors is returned.
    """
    returned = module(**feed) if _by_keyword(module, feed) else module(*feed.values())
    found = dict(_flatten(returned, ""))
    names: tuple[str, ...] | None = getattr(module, _NAMES, None)
    return signatures.rename(found, names) if names is not None else found


Outline = dict[str, tuple[torch.Size, torch.dtype]]
"""Shapes and element types of a module's outputs, by name."""


def outline(module: nn.Module, feed: Mapping[str, Tensor]) -> Outline:
    """Run a module and give the form of what it returns."""
    with torch.no_grad():
        return {name: (value.shape, value.dtype) for name, value in call(module, feed).items()}


@contextlib.contextmanager
def watched(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Show what modules get and give for as long as this is open.

    Args:
        hooks: Module → what is called after it, with the module, its arguments by place and by name, and its output.
    """
    with contextlib.ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def name_outputs(module: nn.Module, names: tuple[str, ...]) -> None:
    """Let `call` give what a module returns under these names, in order."""
    setattr(module, _NAMES, names)


def _by_keyword(module: nn.Module, feed: Mapping[str, Tensor]) -> bool:
    parameters = _parameters(module.forward)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if set(feed) <= named:
        return True
    positions = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    kinds = {p.kind for p in parameters}
    return (
        inspect.Parameter.VAR_KEYWORD in kinds
        and inspect.Parameter.VAR_POSITIONAL not in kinds
        and positions < len(feed)
    )


def _parameters(forward: Callable[..., object]) -> Sequence[inspect.Parameter]:
    """Give the parameters of a function or a bound method; those of a method are looked up once."""
    if not isinstance(forward, MethodType):
        return list(inspect.signature(forward).parameters.values())
    found = _of_function(forward.__func__)
    return found if found and found[0].kind is inspect.Parameter.VAR_POSITIONAL else found[1:]


@functools.lru_cache(maxsize=64)
def _of_function(function: Callable[..., object]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(function).parameters.values())


def _flatten(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{name}_{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{name or 'output'}_{index}")
    elif value is not None:
        raise StageError(
            f"the model returns a {type(value).__name__} as '{name or 'output'}', which is no tensor",
            then="wrap the model in a factory whose forward returns tensors only",
        )


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads for a while; as many as before for None."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
