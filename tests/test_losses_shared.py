"""Several processes that share a batch learn what one alone would, though positions are padded."""

from pathlib import Path

import numpy as np
import pytest
import torch

import nets
from crewing import together
from modelpack.numerics import distillation, training
from modelpack.numerics.distillation import tasks
from modelpack.numerics.distillation.aspects import features, relations
from modelpack.numerics.distillation.aspects.outputs import ALL, Outputs
from modelpack.numerics.distillation.question import question
from modelpack.numerics.distillation.taps import Seen, Tap
from modelpack.numerics.training import crew, sharing
from modelpack.numerics.training.batches import TRUTH
from modelpack.tensors import TensorSpec
from test_imitation import tokens

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
    asked = question(given, {TRUTH: given["classes"]}, "mask")
    taps = {Tap("a"): given["student"]}, {Tap("a"): given["teacher"]}
    seen, told = (
        Seen({"output": given[name]}, inner) for name, inner in zip(("student", "teacher"), taps, strict=True)
    )
    three = (Tap("a"),) * 3
    aspects = {way: Outputs(None, {ALL: way}) for way in WAYS[:4]}
    aspects["features"] = features.Features([("a", "a")])
    aspects["relations"] = relations.Relations([(three, three)])
    with sharing.taking(share):
        found = {name: aspect.loss(seen, told, asked) for name, aspect in aspects.items()}
        found |= {name: tasks.named(name).loss(seen.outputs, asked) for name in WAYS[6:]}
    weighed = {name: float(value) * share.weight for name, value in found.items()}
    return {name: value / crew.size() for name, value in crew.summed(weighed).items()}


def train(root: str, parallel: str) -> dict[str, float]:
    """Train a narrow student by features through projections, and by relations; give its losses and its score."""
    torch.manual_seed(0)
    teacher, student = nets.encoder().eval(), Narrow().eval()
    specs = {name: TensorSpec(shape=("batch", "sequence"), dtype="int64") for name in ("input_ids", "attention_mask")}
    data = training.Rows(tokens().batches, specs, None)
    weights = {"outputs": 1.0, "features": 1.0, "relations": 1.0}
    wish = distillation.Wish(weights=weights, alpha=1.0, mask="attention_mask")
    objective = distillation.imitation(teacher, student, data, None, wish=wish, device=torch.device("cpu"))
    schedule = training.Schedule(2, 3e-3, parallel=parallel)
    lesson = training.Lesson(objective, data, data, schedule, torch.device("cpu"), 0)
    done = training.train(student, lesson, Path(root) / str(crew.rank()))
    last = done.history[-1]
    with torch.no_grad():
        weight = float(sum(value.abs().sum() for value in student.parameters()))
    return {"score": done.score, "weight": weight, **{name: last[name] for name in weights}}


class Narrow(nets.Encoder):
    """Gives what the encoder gives, from half its width."""

    def __init__(self):
        super().__init__(16, 2, 32, 2, 50, 5)
        self.wide = torch.nn.Linear(16, 32)

    def forward(self, input_ids, attention_mask):
        found = super().forward(input_ids, attention_mask)
        return {**found, "embedding": self.wide(found["embedding"])}


def everything(root: str) -> dict[str, dict[str, float]]:
    """All of the above: starting processes takes longer than what they compute."""
    return {"losses": losses(), "ddp": train(f"{root}/ddp", "ddp"), "fsdp": train(f"{root}/fsdp", "fsdp")}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What two processes find."""
    return together("test_losses_shared", "everything", root=tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_projections_are_learnt_by_several_processes_as_by_one(tmp_path, parallel, shared):
    alone = train(tmp_path, parallel)
    for found in shared:
        assert found[parallel] == pytest.approx(alone, rel=1e-4)


def test_losses_of_parts_are_those_of_the_whole(shared):
    alone = losses()
    assert set(alone) == set(WAYS)
    for found in shared:
        assert found["losses"] == pytest.approx(alone, rel=1e-5)
