"""Rewriting an ONNX graph once, so that it need not be done at every start, and proving that nothing moved."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack.errors import MissingError, StageError
from modelpack.numerics import differences, onnxfile, runtime
from modelpack.numerics.differences import Case, Tolerance
from modelpack.numerics.silence import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from onnx import ModelProto

    from modelpack.numerics.rows import Feed

LEVEL = "extended"
"""The strongest level whose result does not depend on the processor it was made on."""


def by_onnxruntime(model: ModelProto, level: str = LEVEL) -> ModelProto:
    """Fold constants and fuse operators with onnxruntime's own rules.

    Raises:
        StageError: When onnxruntime cannot load the model.
    """
    with tempfile.TemporaryDirectory() as place, onnxfile.loadable(model) as source:
        path = Path(place) / onnxfile.NAME
        runtime.session(source, threads=1, level=level, optimized=path)
        return _tidied(onnxfile.read(path), model)


def by_onnxslim(model: ModelProto) -> ModelProto:
    """Fold constants and remove needless operators with onnxslim.

    Raises:
        MissingError: When onnxslim is not installed.
        StageError: When it fails.
    """
    try:
        import onnxslim
    except ImportError as error:
        raise MissingError("onnxslim is not installed", then="pip install 'modelpack[slim]'") from error
    try:
        with quiet():
            slim = onnxslim.slim(onnxfile.copied(model))
    except Exception as error:  # what it raises is not documented
        raise StageError(f"onnxslim failed: {runtime.reason(error)}", then="use `tool: onnxruntime`") from error
    return _tidied(slim, model)


TOOLS: dict[str, Callable[[ModelProto], ModelProto]] = {"onnxruntime": by_onnxruntime, "onnxslim": by_onnxslim}
"""Tool name → function."""


def _tidied(optimized: ModelProto, before: ModelProto) -> ModelProto:
    """Drop domains that no operator uses, and give the model its own description back."""
    used = {node.domain for graph in onnxfile.graphs(optimized.graph) for node in graph.node}
    used |= {node.domain for function in optimized.functions for node in function.node}
    kept = [item for item in optimized.opset_import if item.domain in {*used, ""}]
    del optimized.opset_import[:]
    optimized.opset_import.extend(sorted(kept, key=lambda item: item.domain))
    del optimized.metadata_props[:]
    optimized.metadata_props.extend(before.metadata_props)
    onnxfile.modernize(optimized)
    optimized = onnxfile.infer(optimized)
    onnxfile.check(optimized)
    return optimized


def prove(
    before: ModelProto,
    after: ModelProto,
    feeds: Sequence[Feed],
    tolerance: Tolerance,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> float:
    """Compare a rewritten graph with the original, at every optimization level.

    Returns:
        The largest absolute difference of any output.

    Raises:
        StageError: Beyond tolerance, naming the first layer that differs.
    """
    names = [item.name for item in before.graph.output]
    with onnxfile.loadable(before) as place:
        opened = runtime.session(place, threads=1, level="disabled")
        cases = [Case(feed, runtime.execute(opened, feed, names)) for feed in feeds]
    largest, finding = differences.compare(after, cases, tolerance, track=track)
    if finding is not None:
        feed = finding.case.feed
        layer = differences.first_layer(after, feed, _inner_values(before, feed), tolerance, finding.level)
        raise differences.refuse(finding, "the optimized graph gives other outputs than the original", layer)
    return largest


def _inner_values(model: ModelProto, feed: Feed) -> Feed:
    names = [name for node in model.graph.node for name in node.output if name]
    with onnxfile.loadable(differences.tapped(model, names)) as place:
        return runtime.execute(runtime.session(place, threads=1, level="disabled"), feed, names)
