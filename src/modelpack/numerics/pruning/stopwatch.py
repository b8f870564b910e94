"""Times of modules as `bench` takes them: exported, in onnxruntime, on one thread, one row at a time."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.errors import StageError
from modelpack.numerics import export, onnxfile, tracing
from modelpack.numerics.measure import timing
from modelpack.numerics.measure.subjects import Subject
from modelpack.numerics.pruning import cost
from modelpack.numerics.pruning.surgery import twin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto
    from torch import nn

    from modelpack.numerics.measure.timing import Timer
    from modelpack.numerics.pruning.cost import Times
    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

_OPSET = 20
"""What the stage `export` writes unless it is told otherwise."""


@dataclass
class Exports:
    """Exports modules and takes their times.

    Attributes:
        inputs: What modules are fed.
        outputs: What they give, as their signature describes it.
        feed: What runs through them.
        device: Where they run.
        seed: Of the example that they are traced with.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, Any]
    feed: Feed
    device: str = "cpu"
    seed: int = 0
    _last: tuple[nn.Module, ModelProto] | None = field(default=None, repr=False)

    def times(self, module: nn.Module) -> Times:
        """Give what the layers of a module take.

        Raises:
            StageError: When it cannot be exported or run.
        """
        return cost.measured(self._exported(module), module, self.feed, self.device)

    def timer(self, module: nn.Module) -> Timer:
        """Make what runs a module once and gives the milliseconds it took.

        Raises:
            StageError: When it cannot be exported or opened.
        """
        with tempfile.TemporaryDirectory(prefix="modelpack-latency-") as folder:
            path = onnxfile.write(self._exported(module), Path(folder))
            subject = Subject("module", "onnx", path, self.inputs, path.stat().st_size)
            return timing.opened(subject, self.device, threads=1, level="all")(self.feed)

    def _exported(self, module: nn.Module) -> ModelProto:
        """Export a module; the last one is remembered, since both of its times are asked for."""
        if self._last is None or self._last[0] is not module:
            example = tracing.traceable(self.feed, self.inputs, self.seed)
            try:
                found = export.export(twin(module).cpu(), example, self.inputs, self.outputs, _OPSET)
            except StageError as error:
                error.then = "; ".join(filter(None, (error.then, "times are those of exports: `macs` needs none")))
                raise
            self._last = (module, found.model)
        return self._last[1]
