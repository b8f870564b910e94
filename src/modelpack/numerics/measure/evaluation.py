"""One pass over the data: a model's metrics against labels, and against another model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics.measure.comparison import PAIRED_ROWS, Comparison
from modelpack.numerics.measure.pairs import Similarities
from modelpack.numerics.measure.statistics import paired_error, proportion_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.measure.metrics import LabelMetrics
    from modelpack.numerics.prediction import Predictor

PAIRS = "spearman_pairs"
SIMILARITY = "similarity"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        metrics: Metrics against labels, `SIMILARITY` of pairs against labels, and `PAIRS` against another model.
        target: Key of the labels in a batch.
        output: Output that metrics look at; the first when empty.
        task: Whether the output's rows are scores of classes or plain values; ``auto`` decides by metrics and shape.
    """

    metrics: tuple[str, ...] = ()
    target: str = "label"
    output: str = ""
    task: Literal["auto", "classes", "values"] = "auto"

    @property
    def labelled(self) -> tuple[str, ...]:
        """The metrics that compare each row with its label."""
        return tuple(name for name in self.metrics if name not in (PAIRS, SIMILARITY))

    @property
    def told(self) -> tuple[str, ...]:
        """The metrics that need labels."""
        return tuple(name for name in self.metrics if name != PAIRS)


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        rows: Rows of data.
        output: The output that `metrics` describe.
        metrics: Figures by name.
        outputs: For every output, its comparison with the reference; empty without one.
        warnings: What the user should know about the figures.
    """

    rows: int
    output: str
    metrics: Mapping[str, float]
    outputs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give the figures as one JSON object."""
        return {
            "rows": self.rows,
            "output": self.output,
            "metrics": dict(self.metrics),
            "outputs": {name: dict(figures) for name, figures in self.outputs.items()},
        }


def evaluate(
    subject: Predictor, reference: Predictor | None, batches: Iterable[Mapping[str, NDArray[Any]]], plan: Plan
) -> Evaluation:
    """Run one or two models over the same batches and measure; memory is bounded by a batch.

    Raises:
        StageError: For a missing output or label, an output with NaN or infinity, labels that fit no metric, models
            whose outputs differ in name or shape, or no data at all.
    """
    run = _Pass(subject, reference, plan)
    for batch in batches:
        run.update(batch)
    return run.result()


class _Pass:
    """The state of one pass over the data."""

    def __init__(self, subject: Predictor, reference: Predictor | None, plan: Plan) -> None:
        self.plan = plan
        self.models = {"model": subject} | ({"reference": reference} if reference is not None else {})
        self.output = _choose(subject, plan.output)
        self.rows = self.lost = self.won = 0
        self.labelled: dict[str, LabelMetrics] = {}
        if plan.labelled:
            from modelpack.numerics.measure.metrics import LabelMetrics

            self.labelled = {name: LabelMetrics(plan.labelled, self._where(name)) for name in self.models}
        self.similarities = (
            {name: Similarities(self._where(name)) for name in self.models} if SIMILARITY in plan.metrics else {}
        )
        self.comparisons: dict[str, Comparison] = {}
        if reference is not None:
            _check_same_outputs(subject, reference)
            self.comparisons = {
                name: Comparison(name, classes=self._classes(name), pairs=PAIRS in plan.metrics and name == self.output)
                for name in subject.outputs
            }

    def _where(self, model: str) -> str:
        return f"output '{self.output}' of the {model}"

    def _classes(self, output: str) -> bool | None:
        if self.plan.task != "auto":
            return self.plan.task == "classes"
        if output != self.output or not self.plan.metrics:
            return None
        from modelpack.numerics.measure.metrics import OF_CLASSES

        return bool(OF_CLASSES.intersection(self.plan.metrics))

    def update(self, batch: Mapping[str, NDArray[Any]]) -> None:
        label = self._label(batch)
        rows = len(next(iter(batch.values())))
        if rows == 0:
            return
        answers = {name: predict(model, batch, rows) for name, model in self.models.items()}
        for name, outputs in answers.items():
            self._check_finite(outputs, name)
        if label is not None:
            if self.labelled:
                self._count(answers, label)
            for name, similarities in self.similarities.items():
                similarities.update(answers[name][self.output], batch, label)
        for name, comparison in self.comparisons.items():
            comparison.update(answers["reference"][name], answers["model"][name], rows)
        self.rows += rows

    def _label(self, batch: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
        if not self.plan.told:
            return None
        if self.plan.target not in batch:
            raise StageError(
                f"the metrics {', '.join(self.plan.told)} need labels under the key '{self.plan.target}', "
                f"the data have {', '.join(batch)}",
                then="name the key with `target:`, or measure against another model without labels (`against:`)",
            )
        return np.asarray(batch[self.plan.target])

    def _check_finite(self, outputs: Mapping[str, NDArray[Any]], model: str) -> None:
        for name, values in outputs.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                kind = "NaN" if np.isnan(values).any() else "infinite values"
                raise StageError(
                    f"output '{name}' of the {model} holds {kind}, first seen after {self.rows} good rows",
                    then="find the layer with `modelpack show`; float16 overflows above 65504",
                )

    def _count(self, answers: Mapping[str, Mapping[str, NDArray[Any]]], label: NDArray[Any]) -> None:
        right = {name: metrics.update(answers[name][self.output], label) for name, metrics in self.labelled.items()}
        mine, theirs = right["model"], right.get("reference")
        if mine is not None and theirs is not None:
            self.lost += int((theirs & ~mine).sum())
            self.won += int((mine & ~theirs).sum())
            self.comparisons[self.output].class_axis = self.labelled["model"].class_axis

    def result(self) -> Evaluation:
        if not self.rows:
            raise StageError("the data gave no rows", then="raise the data's `limit:`, or check its path")
        metrics = self._label_figures()
        outputs = {name: comparison.result() for name, comparison in self.comparisons.items()}
        metrics |= outputs.get(self.output, {})
        warnings = {text for item in self.labelled.values() for text in item.warnings}
        if PAIRS in self.plan.metrics and self.rows > PAIRED_ROWS:
            warnings.add(f"{PAIRS} compares the first {PAIRED_ROWS} of {self.rows} rows")
        if alone := max((len(item.waiting) for item in self.similarities.values()), default=0):
            warnings.add(f"{alone} rows had no other row of their pair: {SIMILARITY} leaves them out")
        return Evaluation(self.rows, self.output, metrics, outputs, tuple(sorted(warnings)))

    def _label_figures(self) -> dict[str, float]:
        if not self.labelled:
            return self._similarity()
        from modelpack.numerics.measure.metrics import COUNTED, FALLING

        figures = self.labelled["model"].compute()
        decided = self.labelled["model"].decided
        reference = self.labelled["reference"].compute() if "reference" in self.labelled else {}
        for name, value in list(figures.items()):
            if name in reference:
                figures[f"{name}_reference"] = reference[name]
                loss = value - reference[name] if name in FALLING else reference[name] - value
                if name in COUNTED:
                    loss = round(loss * decided) / decided
                figures[f"{name}_{'rise' if name in FALLING else 'drop'}"] = loss
        # Decisions inside one row, such as a sentence's tokens, are not independent: no error is claimed for them.
        if "accuracy" in figures and decided == self.rows:
            figures["accuracy_stderr"] = proportion_error(figures["accuracy"] * decided, decided)
            if self.labelled["model"].class_axis is not None and reference:
                figures["accuracy_drop_stderr"] = paired_error(self.lost, self.won, decided)
        return figures | self._similarity()

    def _similarity(self) -> dict[str, float]:
        found = {name: item.compute() for name, item in self.similarities.items()}
        if not found:
            return {}
        if "reference" not in found:
            return {SIMILARITY: found["model"]}
        drop = found["reference"] - found["model"]
        return {SIMILARITY: found["model"], f"{SIMILARITY}_reference": found["reference"], f"{SIMILARITY}_drop": drop}


def predict(model: Predictor, batch: Mapping[str, NDArray[Any]], rows: int) -> dict[str, NDArray[Any]]:
    """Predict a batch; a model with a fixed number of rows gets it in pieces, the last one filled up by repetition."""
    sizes = {spec.shape[0] for spec in model.inputs.values() if spec.shape}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    if not isinstance(size, int) or size == rows:
        return model(batch)
    arrays = {name: np.asarray(batch[name]) for name in model.inputs if name in batch}
    pieces: list[Mapping[str, NDArray[Any]]] = []
    for start in range(0, rows, size):
        picked = np.minimum(np.arange(start, start + size), rows - 1)
        pieces.append(model({name: values[picked] for name, values in arrays.items()}))
    joined: dict[str, NDArray[Any]] = {}
    for name, first in pieces[0].items():
        if size not in first.shape:
            raise StageError(
                f"output '{name}' has shape {list(first.shape)}: no dimension counts the {size} rows the model takes",
                then=f"give the data `batch: {size}`",
            )
        axis = first.shape.index(size)
        joined[name] = np.concatenate([piece[name] for piece in pieces], axis=axis).take(range(rows), axis=axis)
    return joined


def _choose(model: Predictor, output: str) -> str:
    if not output:
        return model.outputs[0]
    if output not in model.outputs:
        raise StageError(f"the model has no output '{output}'", then=did_you_mean(output, model.outputs))
    return output


def _check_same_outputs(subject: Predictor, reference: Predictor) -> None:
    names: tuple[Sequence[str], Sequence[str]] = (subject.outputs, reference.outputs)
    if set(names[0]) != set(names[1]):
        raise StageError(
            f"the model's outputs are {', '.join(names[0])}; the reference's are {', '.join(names[1])}",
            then="compare models with outputs of the same names",
        )
