"""What a model takes and gives: written in the model's order, found out by trying."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from modelpack import canonical
from modelpack.errors import StageError
from modelpack.numerics import rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from modelpack.tensors import TensorSpec

Call = Callable[["nn.Module", Mapping[str, "Tensor"]], dict[str, "Tensor"]]
Shapes = dict[str, tuple[tuple[int, ...], str]]

_TRIED_SIZES = (rows.DYNAMIC_SIZE, 32, 64, 128, 224)
_ROWS = 2


def encode(inputs: Mapping[str, TensorSpec], outputs: Mapping[str, Any]) -> bytes:
    """Give the bytes of ``signature.json``; names keep their order, because positional calls depend on it."""
    body = {
        "inputs": {name: canonical.plain(spec) for name, spec in inputs.items()},
        "outputs": {name: canonical.plain(value) for name, value in outputs.items()},
    }
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def probe(
    module: nn.Module, inputs: Mapping[str, TensorSpec], names: tuple[str, ...] | None, seed: int, call: Call
) -> dict[str, dict[str, Any]]:
    """Run a model on made-up inputs and describe its outputs.

    Each named dimension is tried at other sizes, so that the outputs' dimensions that follow it are known.

    Returns:
        Output name → ``{"shape": sizes and names, "dtype": element type}``.

    Raises:
        StageError: When the model fails on the declared inputs, or a named dimension cannot vary.
    """
    run = _runner(module, inputs, names, seed, call)
    sizes, first = _first_run(run, inputs)
    shapes: dict[str, list[int | str]] = {name: list(shape) for name, (shape, _) in first.items()}
    for name in sizes:
        for size, varied in _varied(run, sizes, name).items():
            for output, (new, _) in varied.items():
                _follow(shapes[output], output, (name, sizes[name], size), first[output][0], new)
    return {name: {"shape": shapes[name], "dtype": dtype} for name, (_, dtype) in first.items()}


def example(
    module: nn.Module, inputs: Mapping[str, TensorSpec], count: int, seed: int, call: Call
) -> dict[str, NDArray[np.generic]]:
    """Make inputs that a model accepts: `count` rows, named dimensions as small as it allows.

    Args:
        module: On the CPU.
        inputs: Its inputs.
        count: Rows.
        seed: Seed of the values.
        call: How a module is called.

    Raises:
        StageError: When the model fails on the declared inputs.
    """
    sizes, _ = _first_run(_runner(module, inputs, None, seed, call), inputs)
    return rows.sample(inputs, count, seed, sizes)


def _runner(
    module: nn.Module, inputs: Mapping[str, TensorSpec], names: tuple[str, ...] | None, seed: int, call: Call
) -> Callable[[Mapping[str, int]], Shapes]:
    counted = rows.batch_name(inputs)

    def run(sizes: Mapping[str, int]) -> Shapes:
        batch = rows.sample(inputs, sizes.get(counted or "", _ROWS), seed, sizes)
        feed = {name: torch.from_numpy(array) for name, array in batch.items()}
        with torch.inference_mode():
            outputs = call(module, feed)
        if names is not None:
            outputs = rename(outputs, names)
        return {name: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in outputs.items()}

    return run


def _follow(
    shape: list[int | str], output: str, dimension: tuple[str, int, int], old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    """Name the axes of an output that change with an input's dimension: by its name where the sizes are the same."""
    name, before, after = dimension
    if len(old) != len(new):
        raise StageError(f"output '{output}' changes its number of dimensions with '{name}'")
    for axis, sizes in enumerate(zip(old, new, strict=True)):
        if sizes == (before, after) and shape[axis] in (before, name):
            shape[axis] = name
        elif sizes[0] != sizes[1] or shape[axis] == name:
            shape[axis] = f"{output}_{axis}"


def rename(found: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Apply the recipe's output names: keep these keys where all exist, else name the members in order.

    Raises:
        StageError: When neither fits.
    """
    if set(names) <= set(found):
        return {name: found[name] for name in names}
    if len(names) != len(found):
        raise StageError(
            f"the model returns {len(found)} tensors ({', '.join(found)}), the recipe names {len(names)} outputs",
            then="name every tensor in order, or keys of the returned dict",
        )
    return dict(zip(names, found.values(), strict=True))


def _first_run(
    run: Callable[[Mapping[str, int]], Shapes], inputs: Mapping[str, TensorSpec]
) -> tuple[dict[str, int], Shapes]:
    """Find sizes of the named dimensions that the model accepts: small ones first, as convolutions may need more."""
    counted = rows.batch_name(inputs)
    named = dict.fromkeys(name for spec in inputs.values() for name in spec.dynamic.values())
    tried = _TRIED_SIZES if set(named) - {counted} else _TRIED_SIZES[:1]
    failure: Exception | None = None
    for size in tried:
        # Different sizes first, to tell the dimensions apart; equal ones where the model wants squares.
        steps = 1 if size == tried[0] else 0
        sizes = {name: size * (1 + steps * place) for place, name in enumerate(n for n in named if n != counted)}
        sizes |= {counted: _ROWS} if counted is not None else {}
        try:
            return sizes, run(sizes)
        except StageError:
            raise
        except Exception as error:  # noqa: BLE001  the user's forward may raise anything
            failure = failure or error
    declared = ", ".join(f"{name} {list(spec.shape)} {spec.dtype}" for name, spec in inputs.items())
    raise StageError(
        f"the model fails on the declared inputs ({declared}): {_said(failure)}",
        then="correct `inputs:` in the recipe",
    ) from failure


def _varied(run: Callable[[Mapping[str, int]], Shapes], sizes: Mapping[str, int], name: str) -> dict[int, Shapes]:
    """Run with two other sizes of one dimension; one of them may fail, as where only multiples are accepted."""
    failure: Exception | None = None
    found = {}
    for size in (sizes[name] + 1, sizes[name] * 2):
        try:
            found[size] = run({**sizes, name: size})
        except StageError:
            raise
        except Exception as error:  # noqa: BLE001  the user's forward may raise anything
            failure = failure or error
    if not found:
        raise StageError(
            f"the dimension '{name}' is declared dynamic, but the model runs with {sizes[name]} and fails with "
            f"{sizes[name] + 1} and {sizes[name] * 2}: {_said(failure)}",
            then="give its size as a number in `inputs:`",
        ) from failure
    return found


def _said(error: Exception | None) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"
