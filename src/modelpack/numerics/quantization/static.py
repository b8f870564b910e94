"""The static method: activations on calibrated grids, then constants that are corrected for what rounding did."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from modelpack.errors import StageError
from modelpack.numerics.quantization import embedding, hardware, layers, qdq, unpacked
from modelpack.numerics.quantization.adjustment import adjust
from modelpack.numerics.quantization.correction import reconstruction
from modelpack.numerics.quantization.mixing import mixed
from modelpack.numerics.quantization.mixing.flow import Draft
from modelpack.numerics.quantization.rewriting import alignment
from modelpack.numerics.quantization.rewriting.prepare import raised
from modelpack.numerics.quantization.saturation import overflow
from modelpack.numerics.quantization.settings import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.calibration.record import Calibration
    from modelpack.numerics.quantization.correction.reconstruction import Gain
    from modelpack.numerics.quantization.extent import Extent
    from modelpack.numerics.quantization.hardware import Profile
    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.quantization.qdq import Marks
    from modelpack.numerics.quantization.settings import Evidence, Settings


def quantize(model: ModelProto, found: Sequence[Layer], settings: Settings, evidence: Evidence) -> Outcome:
    """Quantize weights and activations.

    Args:
        model: A prepared graph; it stays as it is.
        found: Its layers, chosen.
        settings: What to do.
        evidence: Their calibration, and rows to correct on.

    Raises:
        StageError: When the calibration lacks a tensor or histograms that the ranges need, or is of other weights.
        ValueError: When there is no calibration.
    """
    seen = evidence.calibration
    if seen is None:
        raise ValueError("static quantization takes ranges from a calibration")
    _agree(seen, settings)
    ready = adjust.adjusted(model, seen, settings.operators)
    chosen = [layer.name for layer in found if layer.quantized and layer.operator != "Gather"]
    whole = embedding.quantize(
        ready.model, [layer.name for layer in found if layer.quantized and layer.operator == "Gather"]
    )
    wide = layers.matching(found, settings.wide, "wide")
    flow = _Flow(raised(whole, qdq.WIDE_OPSET) if wide else whole, tuple(found), settings, evidence, tuple(wide))
    if settings.budget is None:
        outcome = flow.finish(flow.correct(chosen), chosen)
    else:
        outcome = mixed.quantize(ready.model, flow, chosen, settings.budget, evidence)
    results, warnings = {**ready.results, **outcome.results}, (*ready.warnings, *outcome.warnings)
    return replace(outcome, results=results, warnings=warnings)


def _agree(seen: Calibration, settings: Settings) -> None:
    """Refuse ranges of other weights.

    Raises:
        StageError: When the calibration adjusted weights in another way than asked for.
    """
    for name, was, asked in (("equalize", seen.equalize, settings.equalize), ("smooth", seen.smooth, settings.smooth)):
        if was != asked:
            raise StageError(
                f"the calibration was made with `{name}: {_shown(was)}`, not with `{name}: {_shown(asked)}`",
                where="calibration",
                then=f"say the same `{name}:` in both steps, or leave `calibration:` out",
            )


def _shown(value: float | None) -> str:
    return "none" if value is None else str(value).lower()


@dataclass(frozen=True)
class _Flow:
    """What is done to a model, whichever of its layers are quantized."""

    model: ModelProto
    found: tuple[Layer, ...]
    settings: Settings
    evidence: Evidence
    wide: tuple[str, ...]
    ranges: dict[str, Extent] = field(default_factory=dict)

    @property
    def corrects(self) -> bool:
        return self.settings.correction != "none"

    @property
    def profile(self) -> Profile:
        return hardware.profile(self.settings.target, self.evidence.device)

    def marks(self, chosen: Sequence[str]) -> Marks:
        return qdq.marks(self.model, chosen, neighbours=_flows(self.model, self.settings.operators))

    def write(self, chosen: Sequence[str], narrow: Collection[str] = ()) -> ModelProto:
        """Insert QDQ pairs."""
        marked = self.marks(chosen)
        extents = self.extents(marked.measured)
        return qdq.quantize(self.model, chosen, marked, extents, profile=self.profile, wide=self.wide, narrow=narrow)

    def extents(self, names: Sequence[str]) -> dict[str, Extent]:
        """Give ranges, each found once: mixing writes the graph again and again, and some rules take their time."""
        seen = self.evidence.calibration
        assert seen is not None
        new = [name for name in names if name not in self.ranges]
        self.ranges.update(seen.extents(new, self.settings.ranges, self.settings.percentile))
        return {name: self.ranges[name] for name in names}

    def correct(self, chosen: Sequence[str]) -> Draft:
        """Insert QDQ pairs, mend what overflows, and correct constants."""
        plain, risky = self._narrowed(chosen)
        if not self.corrects:
            return Draft(Outcome(plain), risky)
        return Draft(_corrected(self.model, plain, chosen, self.settings, self.evidence), risky)

    def _narrowed(self, chosen: Sequence[str]) -> tuple[ModelProto, dict[str, float]]:
        """Insert QDQ pairs; narrow, for a portable model, the weights of layers that overflow, until none does."""
        plain, risky = self.write(chosen), dict[str, float]()
        if not (self.settings.portable or self.profile.saturates):
            return plain, risky
        while True:
            found = overflow.found(plain, chosen, self.profile, self.evidence)
            if found.keys() <= risky.keys():
                return plain, risky
            risky = {**found, **risky}
            if not self.settings.portable:
                return plain, risky
            # Narrowed layers give their readers other values, and so may bring those over the edge.
            plain = self.write(chosen, risky)

    def align(self, model: ModelProto) -> ModelProto:
        """Give a graph the form in which it runs."""
        return alignment.aligned(model, self.profile.channels)

    def finish(self, draft: Draft, chosen: Sequence[str]) -> Outcome:
        """Take the last step, and tell what was done."""
        outcome, profile, portable = draft.outcome, self.profile, self.settings.portable
        last = overflow.finished(outcome.model, chosen, draft.risky, profile, self.evidence, portable=portable)
        floats = unpacked.told(last.model, self.found, profile, self.evidence.device, wide=self.wide)
        return replace(
            outcome,
            model=last.model,
            results={**outcome.results, **({"overflow": last.table} if last.table else {})},
            notes=(f"made for {profile.name}: {profile.reason}", *last.notes, *outcome.notes),
            warnings=(*outcome.warnings, *last.warnings, *floats),
        )


def tensors(model: ModelProto, operators: Sequence[str] | None) -> list[str]:
    """Name the tensors whose ranges static quantization may ask for, whichever layers it leaves out.

    Args:
        model: A prepared graph.
        operators: Quantize only these; chosen by the kind of network when None.
    """
    found = layers.choose(model, "static", operators, ())
    chosen = {layer.name for layer in found if layer.quantized and layer.operator != "Gather"}
    marked = qdq.marks(model, chosen, neighbours=_flows(model, operators))
    # Where a layer is left out, what carried its output's grid has one of its own.
    return sorted({*marked.measured, *(node.input[0] for node in model.graph.node if node.name in chosen)})


def _flows(model: ModelProto, operators: Sequence[str] | None) -> bool:
    """Whether bytes flow on between layers, through operators without weights."""
    return "Conv" in operators if operators is not None else not layers.has_attention(model.graph)


def _corrected(
    model: ModelProto, plain: ModelProto, chosen: Sequence[str], settings: Settings, evidence: Evidence
) -> Outcome:
    """Correct layers, unless the whole model does not gain from what each of its layers gained from."""
    feeds = list(evidence.read("read rows to fit on", settings.correction_rows))
    assert settings.correction != "none"
    assert evidence.calibration is not None
    made = reconstruction.correct(
        model,
        plain,
        chosen,
        feeds,
        settings.correction,
        mask=evidence.calibration.mask,
        seed=evidence.seed,
        device=evidence.device,
        track=lambda names: evidence.track(names, "correct layers"),
    )
    return Outcome(
        made.model,
        results={"correction": [gain.to_json() for gain in made.gains]},
        metrics={"quantize_corrected_layers": sum(1 for gain in made.gains if gain.changed) if made.kept else 0},
        notes=_left_alone(made.gains),
        warnings=()
        if made.kept
        else ("correction brought each layer closer to the float one, but not the model: it was left out",),
    )


def _left_alone(gains: Sequence[Gain]) -> tuple[str, ...]:
    """Say which layers no correction reached, or reached in part."""
    reasons: dict[str, list[str]] = {}
    for gain in gains:
        if gain.reason:
            reasons.setdefault(gain.reason, []).append(gain.layer)
    return tuple(
        f"{len(names)} of {len(gains)} layers could not be corrected fully, such as {names[0]}: {reason}"
        for reason, names in reasons.items()
    )
