"""What goes into a model: its inputs picked from a batch and checked, or made up within the declared ranges."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelpack.errors import StageError, did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from modelpack.tensors import TensorSpec

Feed = dict[str, NDArray[np.generic]]
"""Arrays by name."""

DYNAMIC_SIZE = 16
"""Size that `sample` gives a named dimension that is not the batch."""


def feed(batch: Mapping[str, NDArray[np.generic]], inputs: Mapping[str, TensorSpec]) -> Feed:
    """Pick the model's inputs from a batch and check them; integers and floats may be widened, nothing else.

    Raises:
        StageError: Naming the input that is missing or has another type or shape than declared.
    """
    named: dict[str, tuple[int, str]] = {}
    chosen: Feed = {}
    for name, spec in inputs.items():
        if name not in batch:
            raise StageError(
                f"the data have no column '{name}', which the model reads",
                then=did_you_mean(name, batch),
            )
        array = np.asarray(batch[name])
        _check_shape(name, array.shape, spec, named)
        chosen[name] = _widen(name, array, np.dtype(spec.dtype))
    return chosen


def _check_shape(name: str, shape: tuple[int, ...], spec: TensorSpec, named: dict[str, tuple[int, str]]) -> None:
    declared = f"declared {list(spec.shape)}, got {list(shape)}"
    if len(shape) != len(spec.shape):
        raise StageError(f"input '{name}' has {len(shape)} dimensions: {declared}")
    for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(wanted, str):
            known, where = named.setdefault(wanted, (size, name))
            if known != size:
                raise StageError(
                    f"dimension '{wanted}' is {size} in input '{name}' and {known} in '{where}': {declared}"
                )
        elif size != wanted:
            raise StageError(
                f"input '{name}' has size {size} in dimension {axis}: {declared}",
                then="give the data this size, or name the dimension in `inputs:` to make it dynamic",
            )


def _widen(name: str, array: NDArray[np.generic], wanted: np.dtype[Any]) -> NDArray[np.generic]:
    if array.dtype == wanted:
        return array
    same_family = all(np.issubdtype(kind, np.integer) for kind in (array.dtype, wanted)) or all(
        np.issubdtype(kind, np.floating) for kind in (array.dtype, wanted)
    )
    if not (same_family and np.can_cast(array.dtype, wanted, "safe")):
        raise StageError(
            f"input '{name}' is declared {wanted.name}, the data hold {array.dtype.name}",
            then=f"convert the column to {wanted.name}, or declare `dtype: {array.dtype.name}`",
        )
    return array.astype(wanted)


def sample(inputs: Mapping[str, TensorSpec], batch: int, seed: int, sizes: Mapping[str, int] | None = None) -> Feed:
    """Make values inside the declared ranges, the same for the same seed.

    A dimension named like the first input's first one counts rows. Without a range, floats are standard
    normal and integers are 0 or 1, which every vocabulary has.

    Args:
        inputs: The model's inputs.
        batch: Size of the batch dimension, where there is one.
        seed: Seed of the generator.
        sizes: Sizes of other named dimensions; `DYNAMIC_SIZE` where absent.
    """
    generator = np.random.default_rng(seed)
    named = {name: DYNAMIC_SIZE for spec in inputs.values() for name in spec.dynamic.values()}
    named |= sizes or {}
    rows = batch_name(inputs)
    if rows is not None:
        named[rows] = batch
    return {name: _draw(generator, spec, spec.sizes(named)) for name, spec in inputs.items()}


def batch_name(inputs: Mapping[str, TensorSpec]) -> str | None:
    """Give the name of the dimension that counts rows: the first input's outermost one, if it is dynamic."""
    return next((spec.dynamic[0] for spec in inputs.values() if 0 in spec.dynamic), None)


def _draw(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[np.generic]:
    kind = np.dtype(spec.dtype)
    if kind == np.bool_:
        return generator.integers(0, 2, shape).astype(kind)
    if np.issubdtype(kind, np.integer):
        low, high = spec.range or (0, 1)
        return generator.integers(int(np.ceil(low)), int(np.floor(high)), shape, endpoint=True).astype(kind)
    if spec.range is None:
        return generator.standard_normal(shape).astype(kind)
    return generator.uniform(*spec.range, shape).astype(kind)


def feeds(
    batches: Iterable[Mapping[str, NDArray[np.generic]]], inputs: Mapping[str, TensorSpec], limit: int
) -> Iterator[Feed]:
    """Pick the model's inputs from batches, up to `limit` rows.

    For a model that always takes the same number of rows, batches are cut to that size, and one is given at least.

    Raises:
        StageError: When an input is missing or unfit, or there are no rows.
    """
    return (feed(piece, inputs) for piece in _pieces(batches, inputs, limit))


def labelled(
    batches: Iterable[Mapping[str, NDArray[np.generic]]], inputs: Mapping[str, TensorSpec], limit: int, target: str
) -> Iterator[tuple[Feed, NDArray[np.generic]]]:
    """Pick the model's inputs as `feeds` does, each time with the labels of these rows.

    Args:
        batches: The data.
        inputs: The model's inputs.
        limit: How many rows, at most.
        target: Key of the labels.

    Raises:
        StageError: When an input or the labels are missing or unfit, or there are no rows.
    """
    for piece in _pieces(batches, inputs, limit):
        if target not in piece:
            raise StageError(
                f"the data have no labels under the key '{target}', they have {', '.join(piece)}",
                then=did_you_mean(target, piece) or "name their key, or ask for what needs no labels",
            )
        yield feed(piece, inputs), np.asarray(piece[target])


def _pieces(
    batches: Iterable[Mapping[str, NDArray[np.generic]]], inputs: Mapping[str, TensorSpec], limit: int
) -> Iterator[Mapping[str, NDArray[np.generic]]]:
    fixed = _fixed_rows(inputs)
    left, most, given = max(limit, fixed or 0), 0, False
    columns: tuple[str, ...] = ()
    for batch in batches:
        columns, rows = tuple(batch), min((len(batch[name]) for name in inputs if name in batch), default=0)
        most, count = max(most, rows), min(left, rows)
        count -= count % (fixed or 1)
        for start in range(0, count, fixed or max(count, 1)):
            given = True
            yield {name: value[start : min(start + (fixed or count), count)] for name, value in batch.items()}
        left -= count
        if left < (fixed or 1):
            break
    if not given:
        raise _lacking(inputs, columns, most)


def _lacking(inputs: Mapping[str, TensorSpec], columns: Sequence[str] = (), most: int = 0) -> StageError:
    """Say why there is nothing to feed: names that differ, batches below a fixed size, or nothing at all."""
    reads, fixed = f"the model reads {', '.join(inputs)}", _fixed_rows(inputs)
    if columns and not any(name in columns for name in inputs):
        then = f"{reads}; the data have {listed(columns, 12)}: name them alike"
    elif most and fixed:
        then = f"the model takes {fixed} rows at a time, and no batch of the data has more than {most}"
    else:
        then = f"{reads}; the data are empty"
    return StageError("the data have no rows that the model could read", then=then)


def peeked(given: Iterable[Feed], inputs: Mapping[str, TensorSpec]) -> tuple[Feed, Iterator[Feed]]:
    """Give the first of some feeds, and all of them.

    Raises:
        StageError: When there are none.
    """
    rest = iter(given)
    first = next(rest, None)
    if first is None:
        raise _lacking(inputs)
    # A batch may be large: a list would hold the first to the end, its iterator lets go of it.
    return first, chain(iter([first]), rest)


def _fixed_rows(inputs: Mapping[str, TensorSpec]) -> int | None:
    """Give the number of rows that a model always takes, None where it may vary."""
    first = {spec.shape[0] if spec.shape else None for spec in inputs.values()}
    size = next(iter(first)) if len(first) == 1 else None
    return size if isinstance(size, int) else None


def take(whole: Feed, inputs: Mapping[str, TensorSpec], count: int) -> Feed:
    """Give the first `count` rows of a feed, along whichever dimension counts rows; all of it where none does."""
    name = batch_name(inputs)
    part = {}
    for key, value in whole.items():
        axes = [axis for axis, size in inputs[key].dynamic.items() if size == name]
        part[key] = value.take(range(count), axis=axes[0]) if axes and count < value.shape[axes[0]] else value
    return part


def pieces(whole: Feed, inputs: Mapping[str, TensorSpec], size: int) -> Iterator[Feed]:
    """Cut a feed into feeds of at most `size` rows; whole where no dimension counts rows."""
    name, total = batch_name(inputs), count(whole, inputs)
    if name is None or size >= total:
        yield whole
        return
    for start in range(0, total, size):
        part = {}
        for key, value in whole.items():
            axes = [axis for axis, dimension in inputs[key].dynamic.items() if dimension == name]
            cut = [slice(start, start + size) if axis in axes[:1] else slice(None) for axis in range(value.ndim)]
            part[key] = value[tuple(cut)]
        yield part


def count(given: Feed, inputs: Mapping[str, TensorSpec]) -> int:
    """Count a feed's rows."""
    name = batch_name(inputs)
    for key, spec in inputs.items():
        for axis, size in spec.dynamic.items():
            if size == name:
                return int(given[key].shape[axis])
    return _fixed_rows(inputs) or 1


def examples(
    batches: Iterable[Mapping[str, NDArray[np.generic]]] | None,
    inputs: Mapping[str, TensorSpec],
    limit: int,
    seed: int,
) -> list[Feed]:
    """Gather inputs to compare two models on, in batches of several sizes: real rows, or made-up ones for None.

    Raises:
        StageError: When the data have no rows, or do not fit.
    """
    if batches is None:
        return _invented(inputs, limit, seed)
    return _portions(next(feeds(batches, inputs, limit)), inputs)


def _portions(whole: Feed, inputs: Mapping[str, TensorSpec]) -> list[Feed]:
    """Cut a feed into batches of several sizes, the whole first; only the whole where the batch size is fixed."""
    total = count(whole, inputs)
    if batch_name(inputs) is None:
        return [whole]
    return [take(whole, inputs, size) for size in sorted({total, min(3, total), 1}, reverse=True)]


def _invented(inputs: Mapping[str, TensorSpec], limit: int, seed: int) -> list[Feed]:
    """Make up batches of several sizes, and of a second size in every other named dimension."""
    whole = sample(inputs, limit, seed)
    others = {name for spec in inputs.values() for name in spec.dynamic.values()} - {batch_name(inputs)}
    doubled = [sample(inputs, 2, seed, dict.fromkeys(others, 2 * DYNAMIC_SIZE))] if others else []
    return [*_portions(whole, inputs), *doubled]
