"""Metrics against labels, from torchmetrics, fed batch by batch.

Accuracy counts every decision alike; precision, recall and F1 are means over classes ("macro"). AUROC is one against
the rest, averaged over classes. AUROC and Spearman keep every row's scores, because they need the order of all; the
others hold a few numbers whatever the length of the data.

A yes-or-no score is a probability when all of them lie in 0…1, else a logit. Only all the data can tell, so both
readings are kept until the end.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchmetrics
from torchmetrics import classification as by_class
from torchmetrics.functional import classification as functional

from modelpack.errors import StageError
from modelpack.numerics.measure import truth
from modelpack.numerics.measure.statistics import ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torchmetrics import Metric

    from modelpack.numerics.measure.truth import Truth

OF_CLASSES = frozenset({"accuracy", "top5", "precision", "recall", "f1", "auroc"})
OF_DISTANCES = frozenset({"mse", "mae", "r2", "pearson", "spearman"})
FALLING = frozenset({"mse", "mae"})
"""Metrics that are better when smaller."""
COUNTED = frozenset({"accuracy", "top5"})
"""Metrics that are a whole number of decisions over all of them."""

_COUNTED: dict[str, tuple[Callable[..., Metric], Callable[..., Metric], Callable[..., Metric]]] = {
    "accuracy": (by_class.MulticlassAccuracy, by_class.BinaryAccuracy, by_class.MultilabelAccuracy),
    "precision": (by_class.MulticlassPrecision, by_class.BinaryPrecision, by_class.MultilabelPrecision),
    "recall": (by_class.MulticlassRecall, by_class.BinaryRecall, by_class.MultilabelRecall),
    "f1": (by_class.MulticlassF1Score, by_class.BinaryF1Score, by_class.MultilabelF1Score),
}
_DISTANCES: dict[str, Callable[[], Metric]] = {
    "mse": torchmetrics.MeanSquaredError,
    "mae": torchmetrics.MeanAbsoluteError,
    "r2": torchmetrics.R2Score,
    "pearson": torchmetrics.PearsonCorrCoef,
    "spearman": torchmetrics.SpearmanCorrCoef,
}


class LabelMetrics:
    """The metrics of one model on labelled data."""

    def __init__(self, names: Sequence[str], where: str) -> None:
        """Prepare to count.

        Args:
            names: Members of `OF_CLASSES` and `OF_DISTANCES`.
            where: How errors name the output that is measured.
        """
        self.names = tuple(names)
        self.where = where
        self.warnings: set[str] = set()
        self.class_axis: int | None = None
        self._classes: _Decisions | None = None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all targets and predictions.*")
            self._distances: dict[str, Metric] = {
                name: _DISTANCES[name]().set_dtype(torch.float64) for name in self.names if name in OF_DISTANCES
            }

    @property
    def decided(self) -> int:
        """How many decisions were counted; 0 without metrics of classes."""
        return self._classes.decided if self._classes is not None else 0

    def update(self, output: NDArray[Any], label: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Count one batch; for one class of several, give which decisions were right.

        Raises:
            StageError: When output and labels do not fit each other or a metric.
        """
        if self._distances:
            pair = truth.distances(output, label, self.where)
            with self._quietly():
                for metric in self._distances.values():
                    metric.update(_tensor(pair.scores), _tensor(pair.targets))
        if not OF_CLASSES.intersection(self.names):
            return None
        pair = truth.decisions(output, label, self.where)
        if self._classes is None:
            self._classes = _Decisions([name for name in self.names if name in OF_CLASSES], pair, self.where)
        with self._quietly():
            self._classes.update(pair)
        if pair.task != "classes":
            return None
        self.class_axis = pair.axis
        return np.asarray(pair.scores.argmax(axis=1) == pair.targets)

    def compute(self) -> dict[str, float]:
        """Give every metric, in the order asked.

        Raises:
            StageError: When a metric has no value on these data.
        """
        if self._classes is not None and not self.decided:
            raise StageError(f"no label counts: all of them are {truth.IGNORED}", where=self.where)
        with self._quietly():
            values = {name: metric.compute() for name, metric in self._distances.items()}
            if self._classes is not None:
                values |= self._classes.compute()
        found = {name: float(values[name]) for name in self.names if name in values}
        for name, value in found.items():
            if not math.isfinite(value):
                raise StageError(
                    f"'{name}' has no value on these data: the labels or the outputs do not vary", where=self.where
                )
        return found

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Let torchmetrics work and keep its warnings, which belong in the report and not on a terminal."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            except ValueError as error:
                raise StageError(f"the metric cannot be computed: {error}", where=self.where) from error
            finally:
                self.warnings |= {f"{self.where}: {item.message}" for item in caught}


class _Decisions:
    """Metrics of classes, for the task that the first batch shows."""

    def __init__(self, names: Sequence[str], first: Truth, where: str) -> None:
        self.task, self.where = first.task, where
        self.names = tuple(names)
        self.width = first.scores.shape[1] if first.scores.ndim == 2 else 1
        self.low, self.high = math.inf, -math.inf
        self.decided = 0
        self.kept: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
        if "top5" in names and (self.task != "classes" or self.width < 5):
            raise StageError(f"'top5' needs 5 classes or more, the output has {self.width}", where=where)
        self.counters = {cut: {name: self._counter(name) for name in names if name != "auroc"} for cut in self._cuts()}

    def _cuts(self) -> tuple[float, ...]:
        return (0.0,) if self.task == "classes" else (0.0, 0.5)

    def _counter(self, name: str) -> Metric:
        if name == "top5":
            return by_class.MulticlassAccuracy(self.width, top_k=5, average="micro")
        several, single, many = _COUNTED[name]
        if self.task == "classes":
            return several(self.width, average="micro" if name == "accuracy" else "macro")
        return single() if self.task == "binary" else many(self.width)

    def update(self, pair: Truth) -> None:
        if pair.task != self.task or (pair.scores.shape[1] if pair.scores.ndim == 2 else 1) != self.width:
            raise StageError("the number of classes changes between batches", where=self.where)
        if not pair.scores.size:
            return
        self.decided += pair.targets.size
        self.low, self.high = min(self.low, pair.scores.min()), max(self.high, pair.scores.max())
        if "auroc" in self.names:
            self.kept.append((pair.scores, pair.targets))
        for cut, counters in self.counters.items():
            chosen = pair.scores.argmax(axis=1) if self.task == "classes" else (pair.scores > cut).astype(np.int64)
            for name, counter in counters.items():
                counter.update(_tensor(pair.scores if name == "top5" else chosen), _tensor(pair.targets))

    def compute(self) -> dict[str, torch.Tensor]:
        probabilities = self.low >= 0 and self.high <= 1
        counters = self.counters[0.5 if probabilities and self.task != "classes" else 0.0]
        values: dict[str, torch.Tensor] = {name: counter.compute() for name, counter in counters.items()}
        if "auroc" in self.names:
            values["auroc"] = self._auroc(probabilities=probabilities)
        for name in COUNTED.intersection(values):
            # torchmetrics divides in float32; a budget of 0.01 needs the quotient itself.
            values[name] = torch.round(values[name].double() * self.decided) / self.decided
        return values

    def _auroc(self, *, probabilities: bool) -> torch.Tensor:
        scores = np.concatenate([scores for scores, _ in self.kept])
        targets = _tensor(np.concatenate([targets for _, targets in self.kept]))
        if self.task == "classes":
            if not probabilities:
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                scores /= scores.sum(axis=1, keepdims=True)
            return functional.multiclass_auroc(_tensor(scores), targets, self.width)
        # Only the order matters, and ranks keep it where a sigmoid would saturate and merge large logits.
        if self.task == "binary":
            return functional.binary_auroc(_tensor(ranks(scores) / len(scores)), targets)
        ordered = np.stack([ranks(column) / len(column) for column in scores.T], axis=1)
        return functional.multilabel_auroc(_tensor(ordered), targets, self.width)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
