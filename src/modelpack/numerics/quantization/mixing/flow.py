"""What mixed precision asks of a method: to quantize the same model with any of its layers left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.qdq import Marks
    from modelpack.numerics.quantization.settings import Outcome


@dataclass(frozen=True)
class Draft:
    """A quantized graph before the last step.

    Attributes:
        outcome: The graph, and what there is to tell.
        risky: What the last step is to know of layers that may overflow.
    """

    outcome: Outcome
    risky: Mapping[str, float] = field(default_factory=dict)


class Flow(Protocol):
    """What is done to a model, whichever of its layers are quantized."""

    @property
    def model(self) -> ModelProto:
        """The float graph that is quantized."""

    @property
    def corrects(self) -> bool:
        """Whether `correct` fits constants to rows, which brings the graph closer and takes its time."""

    def marks(self, chosen: Sequence[str], /) -> Marks:
        """Give what is rounded when some layers are quantized."""

    def write(self, chosen: Sequence[str], /) -> ModelProto:
        """Make the graph in which they are, without any correction."""

    def correct(self, chosen: Sequence[str], /) -> Draft:
        """Make it as the settings say, but for the last step."""

    def align(self, model: ModelProto, /) -> ModelProto:
        """Give a graph the form in which it runs."""

    def finish(self, draft: Draft, chosen: Sequence[str], /) -> Outcome:
        """Take the last step."""
