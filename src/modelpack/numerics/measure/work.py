"""How many multiply-accumulates one row of input costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.artifact import Artifact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import ModelProto

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
    if facts.uncounted:
        # Inference gives up where sizes are computed in the graph; a run knows them.
        facts = graph.facts(model, named, seen_shapes(model, facts.uncounted, feed))
    return None if facts.uncounted else facts.macs // rows


def seen_shapes(model: ModelProto, nodes: Iterable[str], feed: Feed) -> dict[str, tuple[int, ...]]:
    """Run a graph once and give the shapes of all that the named nodes read and write.

    Args:
        model: Any ONNX model.
        nodes: Names of nodes, or of the first output of nodes without a name.
        feed: The graph's inputs.
    """
    from onnx import ValueInfoProto

    from modelpack.numerics import onnxfile, runtime

    wanted = set(nodes)
    touched = {
        name
        for node in model.graph.node
        if wanted & {node.name, *node.output[:1]}
        for name in (*node.input, *node.output)
        if name
    }
    computed = {name for node in model.graph.node for name in node.output}
    names = sorted(touched & computed)
    twin = onnxfile.copied(model)
    del twin.graph.output[:]
    twin.graph.output.extend(ValueInfoProto(name=name) for name in names)
    with onnxfile.loadable(twin) as loadable:
        seen = runtime.execute(runtime.session(loadable, threads=1, level="disabled"), feed, names)
    return {name: array.shape for name, array in seen.items()}
