"""How many multiply-accumulates one row of input costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.artifact import Artifact

if TYPE_CHECKING:
    from modelpack.numerics.measure.subjects import Subject
    from modelpack.numerics.rows import Feed


def macs_per_row(subject: Subject, feed: Feed) -> int | None:
    """Count the multiply-accumulates of a run and divide by its rows; None where a layer cannot be counted."""
    rows = max(1, len(next(iter(feed.values()))))
    if subject.kind == "torch":
        from modelpack.numerics import macs, models

        return macs.count(models.load(Artifact.load(subject.path)), models.tensors(feed, "cpu")) // rows
    from modelpack.numerics import graph, onnxfile

    model = onnxfile.read(subject.path)
    named = {
        dimension: feed[name].shape[axis]
        for name, spec in subject.inputs.items()
        for axis, dimension in spec.dynamic.items()
    }
    facts = graph.facts(model, named)
    return None if facts.uncounted else facts.macs // rows
