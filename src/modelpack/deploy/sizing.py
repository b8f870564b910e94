"""How much processor and memory a model's server needs, and the smallest machine that has it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.deploy.facts import Facts

MIB = 2**20
SERVER = 112
"""MiB that the server holds before any model, onnxruntime and its libraries included."""
EXTRAS = {"grpc": 24, "image": 64, "text": 48}
"""MiB more with gRPC, and where it prepares images or texts."""
REQUESTS = 64
"""MiB for requests: two bodies of the largest size that the server takes."""
SPARE = 1.25
"""What a model's memory is multiplied by, as shapes differ from those that were measured."""
UNMEASURED = 3
"""Times its file that a model takes where nothing was measured."""


@dataclass(frozen=True)
class Needs:
    """What one server needs.

    Attributes:
        cpus: Processors.
        memory: MiB.
        why_cpus: Where the first comes from, in words.
        why_memory: Where the second does.
        speed: What that gives, in words; empty when it was not measured.
    """

    cpus: int
    memory: int
    why_cpus: str
    why_memory: str
    speed: str


def needs(facts: Facts) -> Needs:
    """Say what one server of a model needs."""
    bench, image = facts.bench, facts.image
    grown = bench.growth if bench else UNMEASURED * facts.size
    extras = [*(["grpc"] if image and image.grpc else []), *sorted(facts.prepared & EXTRAS.keys())]
    memory = SERVER + sum(EXTRAS[name] for name in extras) + REQUESTS + SPARE * grown / MIB
    rounded = math.ceil(memory / 32) * 32
    spent = f"{SERVER} MiB for the server, {REQUESTS} for requests, " + "".join(
        f"{EXTRAS[name]} for {name}, " for name in extras
    )
    if bench is None:
        guess = "Not measured: a plain default. A recipe with a `bench` step has the figures."
        held = f"{UNMEASURED} times its {math.ceil(facts.size / MIB)} MiB for the model, which was not measured."
        return Needs(1, rounded, guess, spent + held, "")
    where = f" on {bench.processor}" if bench.processor else ""
    return Needs(
        bench.threads,
        rounded,
        f"As many processors as the bench gave the model threads: {bench.threads}.",
        f"{spent}{math.ceil(bench.growth / MIB)} measured for the model, a quarter more.",
        f"The model alone does {bench.rows_per_second:,.0f} rows a second{where}, {bench.batch} in a call of "
        f"{bench.latency_ms:.3g} ms, on {bench.threads} thread{'s' * (bench.threads > 1)}.",
    )


def machine(kinds: Mapping[str, tuple[int, int]], wanted: Needs, more: int = 512) -> str:
    """Choose the first kind of machine that is large enough.

    Args:
        kinds: Name → processors and MiB, the smallest first.
        wanted: What the server needs.
        more: MiB that the platform takes for itself.

    Raises:
        UsageError: When none is.
    """
    for name, (cpus, memory) in kinds.items():
        if cpus >= wanted.cpus and memory >= wanted.memory + more:
            return name
    raise UsageError(
        f"no machine that is known here has {wanted.cpus} processors and {wanted.memory + more} MiB of memory",
        then="measure with fewer threads in the recipe's `bench`",
    )
