"""Losses of a batch whose rows several processes hold are the losses of the whole batch, though positions are padded."""

import numpy as np
import pytest
import torch

from crewing import together
from modelpack.numerics.distillation import tasks
from modelpack.numerics.distillation.aspects import features, relations
from modelpack.numerics.distillation.aspects.outputs import ALL, Outputs
from modelpack.numerics.distillation.question import question
from modelpack.numerics.distillation.taps import Seen, Tap
from modelpack.numerics.training import crew, sharing

WAYS = ("kl", "dkd", "mse", "cosine", "features", "relations", "cross_entropy", "language_modelling")


def losses() -> dict[str, float]:
    """The losses of one batch of five rows, of which this process may hold a part."""
    generator = np.random.default_rng(0)
    whole = {
        "student": generator.normal(size=(5, 4, 32)).astype(np.float32),
        "teacher": generator.normal(size=(5, 4, 32)).astype(np.float32),
        "classes": generator.integers(0, 32, (5, 4)),
        "mask": (np.arange(4) < np.array([4, 1, 2, 1, 3])[:, None]).astype(np.int64),
    }
    ((batch, share),) = sharing.dealt([whole])
    given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
    asked = question(given, given["classes"], "mask")
    taps = {Tap("a"): given["student"]}, {Tap("a"): given["teacher"]}
    seen, told = (
        Seen({"output": given[name]}, inner) for name, inner in zip(("student", "teacher"), taps, strict=True)
    )
    three = (Tap("a"),) * 3
    aspects = {way: Outputs(None, {ALL: way}) for way in WAYS[:4]}
    aspects["features"] = features.Features([("a", "a")], torch.nn.ModuleDict(), {})
    aspects["relations"] = relations.Relations([(three, three)])
    with sharing.taking(share):
        found = {name: aspect.loss(seen, told, asked) for name, aspect in aspects.items()}
        found |= {name: tasks.named(name).loss(seen.outputs, asked) for name in WAYS[6:]}
    weighed = {name: float(value) * share.weight for name, value in found.items()}
    return {name: value / crew.size() for name, value in crew.summed(weighed).items()}


def test_losses_of_parts_are_those_of_the_whole():
    alone = losses()
    assert set(alone) == set(WAYS)
    for found in together("test_losses_shared", "losses"):
        assert found == pytest.approx(alone, rel=1e-5)
