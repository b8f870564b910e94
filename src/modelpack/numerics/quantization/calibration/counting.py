"""Histograms of the values that a session hands back on its own device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from modelpack.errors import StageError
from modelpack.numerics import differences, masks, onnxfile, rows, runtime
from modelpack.numerics.calling import torch_threads
from modelpack.numerics.quantization.calibration.histogram import Tally, Workspace
from modelpack.numerics.quantization.calibration.record import Seen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.calibration.taps import Tap
    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

BUDGET = 256 * 2**20
"""Bytes of activations that one run may hand back; a larger row is handed back in several runs."""

PIECE = 32 * 2**20
"""Bytes of activations that one run hands back where a row is smaller: few enough to stay near the processor."""


class Counter:
    """Counts the values of some tensors of a model."""

    def __init__(
        self,
        model: ModelProto,
        taps: Sequence[Tap],
        inputs: Mapping[str, TensorSpec],
        *,
        mask: str | None = None,
        device: str = "cpu",
        budget: int = BUDGET,
    ) -> None:
        """Open the model so that it hands back the tensors.

        Args:
            model: A prepared graph.
            taps: The tensors.
            inputs: What the model takes.
            mask: The input that tells padded positions apart, if any.
            device: Where model and histograms are.
            budget: Bytes that one run may hand back.
        """
        self.taps = {tap.name: tap for tap in taps}
        self.inputs, self.mask, self.budget = inputs, mask, budget
        self.device = torch.device(device)
        with onnxfile.loadable(differences.tapped(model, list(self.taps))) as place:
            self.session = runtime.session(place, device, entries=runtime.AT_REST, planned=False)
        space = Workspace(self.device)
        self.tallies = {name: Tally(space, positive=tap.positive) for name, tap in self.taps.items()}
        self.left_out = dict.fromkeys(self.taps, 0)
        self.sizes: dict[str, int] = {}  # tensor → bytes of one row of it

    def portion(self, feed: Feed) -> int:
        """Say how many rows of a feed to look at in one go."""
        if not self.sizes:
            self.sizes = self._guesses(feed)
        return max(1, min(self.budget, PIECE) // max(sum(self.sizes.values()), 1))

    def look(self, piece: Feed) -> str | None:
        """Count the values on some rows.

        Returns:
            The first tensor that is not finite on them.

        Raises:
            StageError: When the model fails on the rows, or a tensor has another form than before.
        """
        # Pieces are small: threads would spend their time waiting for each other.
        with torch_threads(1):
            return self._counted(piece)

    def _counted(self, piece: Feed) -> str | None:
        count, wrong = rows.count(piece, self.inputs), None
        for names in self._chunks(count):
            for name, values in zip(names, handed(self.session, piece, names, self.device), strict=True):
                self.sizes[name] = max(self.sizes[name], values.nbytes // count)
                if not self._count(self.taps[name], values, piece) and wrong is None:
                    wrong = name
        return wrong

    def _count(self, tap: Tap, values: torch.Tensor, feed: Feed) -> bool:
        if tap.axes and self.mask is not None:
            real = torch.from_numpy(masks.real(self.mask, feed))
            if real.numel() != values.shape[: tap.axes].numel():
                raise StageError(
                    f"'{tap.name}' has shape {list(values.shape)}, which does not fit the mask's {list(real.shape)}",
                    then="say `mask: none`",
                )
            values = values[real.reshape(values.shape[: tap.axes]).to(self.device)]
        if tap.floor is not None:
            hidden = values <= tap.floor
            self.left_out[tap.name] += int(hidden.sum())
            values = values[~hidden]
        return self.tallies[tap.name].add(values)

    def _guesses(self, feed: Feed) -> dict[str, int]:
        """Guess the bytes of one row of each tensor from the shapes that onnxruntime infers."""
        known = {
            name: feed[key].shape[axis] for key, spec in self.inputs.items() for axis, name in spec.dynamic.items()
        }
        other = max(known.values(), default=1)
        known |= {name: 1 for name in [rows.batch_name(self.inputs)] if name is not None}
        found = {}
        for item in self.session.get_outputs():
            shape = [size if isinstance(size, int) else known.get(size, other) for size in item.shape]
            found[item.name] = 4 * math.prod(shape)
        return found

    def result(self) -> dict[str, Seen]:
        """Give what was seen of each tensor."""
        found = {}
        for name, tally in self.tallies.items():
            histogram = tally.result()
            found[name] = Seen(histogram.low, histogram.high, histogram, self.left_out[name])
        return found

    def _chunks(self, count: int) -> Iterable[list[str]]:
        """Group the tensors so that a run on `count` rows hands back at most the budget, or one tensor."""
        chunks: list[list[str]] = []
        room = 0
        for name, size in list(self.sizes.items()):
            if not chunks or size * count > room:
                chunks.append([])
                room = self.budget
            chunks[-1].append(name)
            room -= size * count
        return chunks


def handed(
    opened: runtime.ort.InferenceSession, feed: Feed, names: Sequence[str], device: torch.device
) -> list[torch.Tensor]:
    """Run a session once and take some of its outputs where they are, without copying them.

    Raises:
        StageError: When onnxruntime fails on these values.
    """
    binding = opened.io_binding()
    try:
        for name, values in feed.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(values))
        for name in names:
            binding.bind_output(name, device.type, device.index or 0)
        opened.run_with_iobinding(binding)
        binding.synchronize_outputs()
    except runtime.ENGINE_ERRORS as error:
        raise StageError(f"onnxruntime failed: {runtime.reason(error)}") from error
    return [torch.utils.dlpack.from_dlpack(value) for value in binding.get_outputs()]
