"""Layers that processors without VNNI would get wrong: found on rows, then narrowed or told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.errors import listed
from modelpack.numerics.quantization.rewriting import alignment
from modelpack.numerics.quantization.saturation import narrowing, pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.hardware import Profile
    from modelpack.numerics.quantization.settings import Evidence

ROWS = 32
"""Rows that are looked at, at most."""

LISTED = 8
"""Layers that a warning names."""


def found(model: ModelProto, chosen: Sequence[str], profile: Profile, evidence: Evidence) -> dict[str, float]:
    """Give the share of pairs that would be cut off, for each layer with such pairs.

    Args:
        model: A quantized graph before its last step, `finished`.
        chosen: Names of its quantized layers.
        profile: The hardware that it was made for.
        evidence: Rows.
    """
    return pairs.shares(
        alignment.aligned(model, profile.channels),
        chosen,
        evidence.read("look for overflow", ROWS),
        seed=evidence.seed,
        device=evidence.device,
        track=lambda names: evidence.track(names, "look for overflow"),
    )


@dataclass(frozen=True)
class Finished:
    """A quantized graph as it will run.

    Attributes:
        model: The graph.
        table: What there was of overflow in each layer, before and after, as JSON.
        notes: What was done about it.
        warnings: What is left of it.
    """

    model: ModelProto
    table: list[dict[str, Any]]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def finished(
    model: ModelProto,
    chosen: Sequence[str],
    before: Mapping[str, float],
    profile: Profile,
    evidence: Evidence,
    *,
    portable: bool,
) -> Finished:
    """Take the last step: channels aligned and, for a portable model, weights held to what 16 bits allow.

    Args:
        model: A quantized graph.
        chosen: Names of its quantized layers.
        before: What `found` found in it before anything was narrowed.
        profile: The hardware that it is made for.
        evidence: Rows.
        portable: Whether the layers in `before` were narrowed.
    """
    made, held = alignment.aligned(model, profile.channels), dict(before)
    left: Mapping[str, float] = held
    while portable:
        narrowing.tame(made, held)
        left = found(made, chosen, profile, evidence)
        if left.keys() <= held.keys():
            break
        held = {**left, **held}  # a correction brought these over the edge
    table = [
        {"layer": name, "before": held[name], "after": left.get(name, 0.0)}
        for name in sorted(held, key=lambda name: -held[name])
    ]
    told = f"{len(held)} of {len(chosen)} layers were narrowed, so that no processor's sums of products overflow"
    return Finished(made, table, (told,) if portable else (), _warnings(left))


def _warnings(left: Mapping[str, float]) -> tuple[str, ...]:
    if not left:
        return ()
    worst = sorted(left, key=lambda name: -left[name])
    named = listed((f"{name} ({left[name]:.2g} of its pairs)" for name in worst), LISTED)
    told = (
        f"on processors with AVX2 and no VNNI, sums of two products leave 16 bits in {named}: these give wrong "
        "numbers there; `portable: true` prevents it"
    )
    return (told,)
