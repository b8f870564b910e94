"""What a model gives, and what it computes on the way: taken by hooks that are gone when the model has answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics.calling import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


def first_tensor(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Tensor | None:
    """Take what a module gives: itself, or the first of its tuple or dict; None where that is no tensor of floats."""
    if isinstance(output, dict):
        output = next(iter(output.values()), None)
    elif isinstance(output, (tuple, list)):
        output = next(iter(output), None)
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


@dataclass(frozen=True)
class Tap:
    """A value inside a model.

    Attributes:
        path: The module where it is.
        take: Makes it of the module, its positional inputs and its output.
    """

    path: str
    take: Callable[[nn.Module, tuple[Any, ...], Any], Tensor | None] = first_tensor


@dataclass(frozen=True)
class Seen:
    """What one pass through a model showed.

    Attributes:
        outputs: By name.
        inner: By tap, as floats of 32 bits.
    """

    outputs: dict[str, Tensor]
    inner: dict[Tap, Tensor] = field(default_factory=dict)


def watch(module: nn.Module, inputs: Mapping[str, Tensor], taps: Iterable[Tap] = ()) -> Seen:
    """Call a model and look inside.

    Raises:
        StageError: When a tapped module does not exist, is not called exactly once, or gives no tensor.
    """
    outputs, caught = _caught(module, inputs, taps)
    return Seen(outputs, {tap: _only(tap, found).float() for tap, found in caught.items()})


@dataclass(frozen=True)
class Told:
    """A model that tells what it gives and what it computes on the way as one set of named tensors.

    Attributes:
        module: In evaluation mode.
        taps: Where to look.
    """

    module: nn.Module
    taps: tuple[Tap, ...] = ()

    @torch.no_grad()
    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give outputs by name, and values inside by the place of their tap."""
        seen = watch(self.module, inputs, self.taps)
        return {**seen.outputs, **{_key(place): seen.inner[tap] for place, tap in enumerate(self.taps)}}


def _key(place: int) -> str:
    return f" tap {place}"  # no output can have this name


def untold(given: dict[str, Tensor], taps: Sequence[Tap]) -> Seen:
    """Read what `Told` gave."""
    inner = {tap: given[_key(place)] for place, tap in enumerate(taps)}
    keys = {_key(place) for place in range(len(taps))}
    return Seen({name: value for name, value in given.items() if name not in keys}, inner)


def survey(module: nn.Module, inputs: Mapping[str, Tensor], paths: Iterable[str]) -> dict[str, Tensor]:
    """Call a model and give what the modules at some paths give, those left out that `watch` would refuse."""
    _, caught = _caught(module, inputs, [Tap(path) for path in paths])
    return {tap.path: found[0].float() for tap, found in caught.items() if len(found) == 1 and found[0] is not None}


def _caught(
    module: nn.Module, inputs: Mapping[str, Tensor], taps: Iterable[Tap]
) -> tuple[dict[str, Tensor], dict[Tap, list[Tensor | None]]]:
    caught: dict[Tap, list[Tensor | None]] = {tap: [] for tap in taps}
    hooks = []
    try:
        for tap, found in caught.items():
            hooks.append(at(module, tap.path).register_forward_hook(_catching(tap, found)))
        outputs = call(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, caught


def _catching(tap: Tap, found: list[Tensor | None]) -> Callable[..., None]:
    def catch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found.append(tap.take(module, inputs, output))

    return catch


def at(module: nn.Module, path: str, whose: str = "model") -> nn.Module:
    """Find a module by its path in a model, which errors call `whose`.

    Raises:
        StageError: When there is none.
    """
    try:
        return module.get_submodule(path or " ")  # an empty path would be the whole model
    except AttributeError:
        known = [name for name, _ in module.named_modules() if name]
        raise StageError(
            f"the {whose} has no module '{path}'", then=did_you_mean(path, known) or _roots(known)
        ) from None


def _roots(known: Iterable[str]) -> str:
    return f"its modules begin with {', '.join(dict.fromkeys(path.partition('.')[0] for path in known if path))}"


def _only(tap: Tap, found: list[Tensor | None]) -> Tensor:
    if len(found) == 1 and found[0] is not None:
        return found[0]
    where = f"module '{tap.path}'"
    if not found:
        raise StageError("the model does not call it, so that it has nothing to compare", where=where)
    if len(found) > 1:
        raise StageError(
            f"the model calls it {len(found)} times, so that nobody knows which time to compare",
            where=where,
            then="name a module that is called once",
        )
    raise StageError("it gives no tensor of floats that could be compared", where=where, then="name another module")
