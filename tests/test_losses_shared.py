"""Several processes that share a batch learn what one alone would, and share what their teachers answered."""

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
from modelpack.numerics.distillation.taps import Seen, Tap, Told
from modelpack.numerics.training import crew, sharing
from modelpack.numerics.training.augmentation import Augmentation, Wanted
from modelpack.numerics.training.batches import TRUTH
from modelpack.tensors import TensorSpec
from test_imitation import tokens
from test_recover import unlabelled

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


def answers(room: str) -> list[list[float]]:
    """Train twice with one cache and once without; give figures of the cache, and of the weights."""
    found = []
    for attempt, limit in enumerate((2**24, 2**24, 0)):
        torch.manual_seed(0)
        student, teacher = nets.cnn(width=8), nets.cnn(width=8).eval()
        data = training.Rows(unlabelled(64).batches, {"image": TensorSpec(shape=("batch", 1, 16, 16))}, None)
        objective = distillation.imitation(
            teacher, student, data, None, wish=distillation.Wish(), device=training.device("cpu")
        )
        assert isinstance(objective.teacher, Told)
        change = Augmentation(Wanted(flip=True, mixup=0.2, variants=2), data, 0)
        lesson = training.Lesson(
            objective, data, None, training.Schedule(epochs=4, rate=1e-3), training.device("cpu"), 0, change=change
        )
        lesson = distillation.remembering(lesson, Path(room), limit, teacher="teacher", variants=2)
        training.train(student, lesson, Path(room).parent / f"scratch{attempt}")
        use = distillation.remembered(lesson)
        weights = torch.cat([value.flatten() for value in student.state_dict().values()])
        found.append([use.rows if use else 0, use.remembered if use else 0, float(weights.double().sum())])
    return found


def everything(root: str) -> dict[str, object]:
    """All of the above: starting processes takes longer than what they compute."""
    ways = {parallel: train(f"{root}/{parallel}", parallel) for parallel in ("ddp", "fsdp")}
    return {"losses": losses(), "answers": answers(f"{root}/room"), **ways}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Where two processes leave what they write."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def shared(two):
    """What two processes find."""
    return together("test_losses_shared", "everything", root=two)


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


def test_two_processes_share_what_their_teachers_answered(shared, two):
    one, other = (found["answers"] for found in shared)
    assert [line[2] for line in one] == [line[2] for line in other]
    assert one[0][2] == one[1][2] == one[2][2]
    # Each takes half of each of 2 batches in 4 epochs. What one wrote in the first 2 epochs, both find later.
    assert one[0][0] + other[0][0] == 64 * 2
    assert one[0][1] == other[0][1] == 2 * 2 - 2
    assert one[1][:2] == other[1][:2] == [0, 4 * 2 - 2]
    assert len(list((two / "room").glob("*/*.index"))) == 2
