"""What tests of evaluation share: predictors that give known outputs, and made-up scores and labels."""

import numpy as np

from modelpack.numerics.measure import evaluation
from modelpack.tensors import TensorSpec
from support import Rows


class Given:
    """A predictor that gives columns of the batch as its outputs."""

    def __init__(self, prefix, *outputs, spec=None):
        self.inputs = {"x": spec or TensorSpec(shape=("batch",))}
        self.outputs = outputs
        self.prefix = prefix
        self.seen = []

    def __call__(self, batch):
        self.seen.append(len(batch["x"]))
        return {name: batch[f"{self.prefix}{name}"] for name in self.outputs}


def measure(plan, label=None, batch=7, output="a", **columns):
    """Evaluate given outputs: `a` of the model, `r_a` of the reference where there is one."""
    rows = len(next(iter(columns.values())))
    columns = {"x": np.zeros(rows, np.float32), **columns}
    if label is not None:
        columns["label"] = label
    names = [name for name in columns if f"r_{name}" in columns] or [output]
    reference = Given("r_", *names) if f"r_{names[0]}" in columns else None
    return evaluation.evaluate(Given("", *names), reference, Rows(columns, batch).batches(), plan)


def scores(rows=50, classes=7, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, classes)).astype(np.float32)


def labels(rows=50, classes=7, seed=1):
    return np.random.default_rng(seed).integers(0, classes, rows)
