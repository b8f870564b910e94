"""Labels beside outputs: which task they describe, and one flat row of scores per decision.

What is read, by the shapes of output and label (N rows, C classes, ``…`` further dimensions):

1. ``[N, C, …]`` or ``[N, …, C]`` with integers ``[N, …]``: one class of C is right at every place.
2. ``[N]`` or ``[N, 1]`` with integers ``[N]`` or ``[N, 1]``: yes or no.
3. ``[N, C]`` with 0 and 1 of the same shape: any number of labels is right.
4. ``[N, …, 3 or more]`` with 0 and 1 of the same shape: yes or no at every place.
5. any numbers of one shape: regression, for the metrics that measure distances.

Class numbers may come as floats, as long as they are whole. The class -100 marks places that do not count, as in
torch's own losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from modelpack.errors import StageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Task = Literal["classes", "binary", "labels", "regression"]
IGNORED = -100


@dataclass(frozen=True)
class Truth:
    """One batch of decisions.

    Attributes:
        task: What the labels describe.
        scores: Float64; ``[M, C]`` for classes and labels, ``[M]`` otherwise.
        targets: Int64 ``[M]`` (``[M, C]`` for labels), or float64 ``[M]`` for regression.
        axis: The output's class axis, for the task ``classes``.
    """

    task: Task
    scores: NDArray[np.float64]
    targets: NDArray[Any]
    axis: int = -1


def distances(output: NDArray[Any], label: NDArray[Any], where: str) -> Truth:
    """Pair numbers with numbers.

    Raises:
        StageError: When the shapes differ, or the labels are no numbers.
    """
    _check_numbers(label, where)
    scores, targets = _without_single_column(output), _without_single_column(label)
    if scores.shape != targets.shape:
        raise StageError(f"the output has shape {list(output.shape)}, its labels {list(label.shape)}", where=where)
    return Truth("regression", scores.astype(np.float64).reshape(-1), targets.astype(np.float64).reshape(-1))


def decisions(output: NDArray[Any], label: NDArray[Any], where: str) -> Truth:
    """Pair scores of classes with class numbers.

    Raises:
        StageError: When the labels are no class numbers, or the shapes fit none of the cases above.
    """
    targets = _class_numbers(label, where)
    if not np.issubdtype(output.dtype, np.floating):
        raise StageError(
            f"the output holds {output.dtype.name}, metrics of classes need scores",
            where=where,
            then="choose the output that holds scores with `output:`",
        )
    scores, targets = _without_single_column(output).astype(np.float64), _without_single_column(targets)
    if scores.ndim == targets.ndim + 1:
        return _classes(scores, targets, where)
    if scores.shape != targets.shape:
        raise StageError(
            f"the output has shape {list(output.shape)}, its labels {list(label.shape)}: "
            "no dimension can be the classes",
            where=where,
        )
    if scores.ndim == 2:
        _check_range(targets, 2, where)
        return Truth("labels", scores, targets)
    counted = targets != IGNORED
    _check_range(targets[counted], 2, where)
    return Truth("binary", scores[counted], targets[counted])


def _classes(scores: NDArray[np.float64], targets: NDArray[np.int64], where: str) -> Truth:
    second = scores.shape[:1] + scores.shape[2:] == targets.shape
    last = scores.shape[:-1] == targets.shape
    if not (second or last):
        raise StageError(
            f"the output has shape {list(scores.shape)}, its labels {list(targets.shape)}: "
            "no dimension can be the classes",
            where=where,
        )
    if second and last and scores.ndim > 2:
        raise StageError(
            f"in the output's shape {list(scores.shape)} the classes may be the second or the last dimension",
            where=where,
            then="use rows of another length, so that the shapes tell them apart",
        )
    axis = 1 if second else scores.ndim - 1
    count = scores.shape[axis]
    flat, flat_targets = np.moveaxis(scores, axis, -1).reshape(-1, count), targets.reshape(-1)
    counted = flat_targets != IGNORED
    _check_range(flat_targets[counted], count, where)
    return Truth("classes", flat[counted], flat_targets[counted], axis)


def _without_single_column(values: NDArray[Any]) -> NDArray[Any]:
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _check_numbers(label: NDArray[Any], where: str) -> None:
    if label.dtype.kind not in "biuf":
        raise StageError(f"the labels are {label.dtype.name}, not numbers", where=where)
    if label.dtype.kind == "f" and not np.isfinite(label).all():
        raise StageError("the labels hold NaN or infinity", where=where)


def _class_numbers(label: NDArray[Any], where: str) -> NDArray[np.int64]:
    _check_numbers(label, where)
    if label.dtype.kind == "f" and (label != np.round(label)).any():
        raise StageError(
            f"the labels hold fractions such as {float(label[label != np.round(label)].flat[0]):g}, not class numbers",
            where=where,
            then="use a metric of distances (mse, mae, r2, pearson, spearman)",
        )
    return label.astype(np.int64)


def _check_range(targets: NDArray[np.int64], count: int, where: str) -> None:
    wrong = targets[(targets < 0) | (targets >= count)]
    if len(wrong):
        raise StageError(
            f"a label is {int(wrong.flat[0])}, the output knows the classes 0 to {count - 1}",
            where=where,
            then="number the classes as the model does",
        )
