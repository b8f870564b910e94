"""What students imitate: values inside models are found, paired, projected and compared; students of three kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import nets
from modelpack.errors import StageError
from modelpack.numerics import models
from modelpack.numerics.distillation import attention, matching, projections
from modelpack.numerics.distillation.aspects import features
from modelpack.numerics.distillation.question import Question, question
from modelpack.numerics.distillation.taps import Seen, Tap, Told, untold, watch
from modelpack.numerics.training.recompute import recomputed
from modelpack.stages.distill import DistillConfig, distill
from modelpack.stages.model import model
from modelpack.stages.recover import RecoverConfig, recover
from support import Rows, run_stage
from test_distill import accuracy, history, patterns, run
from test_models import imported

torch.set_num_threads(1)
HERE = Path(__file__).parent


def tokens(count=48, length=8, seed=0, batch=16):
    """Rows of token numbers, each padded at its end."""
    generator = np.random.default_rng(seed)
    real = generator.integers(3, length + 1, count)
    mask = (np.arange(length) < real[:, None]).astype(np.int64)
    return Rows({"input_ids": generator.integers(1, 50, (count, length)) * mask, "attention_mask": mask}, batch)


def feed(rows, count=8):
    return {name: torch.from_numpy(column[:count]) for name, column in rows.columns.items()}


def notes(events):
    return [event.text for event in events if hasattr(event, "text")]


def test_hooks_catch_values_and_are_gone_afterwards():
    module = nets.encoder()
    tap = Tap("layers.1.norm2")
    seen = watch(module, feed(tokens()), [tap])
    mask = feed(tokens())["attention_mask"][..., None]
    pooled = (seen.inner[tap] * mask).sum(1) / mask.sum(1)
    assert torch.allclose(pooled, seen.outputs["embedding"], atol=1e-6)
    assert not any(child._forward_hooks for child in module.modules())
    told = Told(module, (tap,))(feed(tokens()))
    again = untold(told, (tap,))
    assert set(again.outputs) == {"logits", "embedding"}
    assert torch.equal(again.inner[tap], seen.inner[tap])
    assert not again.inner[tap].requires_grad


class Odd(nn.Module):
    """Calls a layer twice, another never."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.pair = nn.Linear(4, 4), nn.Linear(4, 4), nn.GRU(4, 4)

    def forward(self, x):
        return self.pair(self.twice(self.twice(x)))[0].argmax(-1)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("twice", "calls it 2 times"),
        ("never", "does not call it"),
        ("twyce", "no module 'twyce'\n  did you mean 'twice'?"),
        ("", "no module ''\n  one of"),
    ],
)
def test_a_path_that_cannot_be_tapped_says_why(path, says):
    module = Odd()
    with pytest.raises(StageError, match=says):
        watch(module, {"x": torch.zeros(2, 3, 4)}, [Tap(path)])
    assert not any(child._forward_hooks for child in module.modules())
    assert watch(module, {"x": torch.zeros(2, 3, 4)}, [Tap("pair")]).inner[Tap("pair")].shape == (2, 3, 4)


def test_values_inside_blocks_that_are_computed_again_have_the_same_gradients():
    student, given = nets.encoder(), feed(tokens())
    taps = [Tap("layers.0"), Tap("layers.1.attention.query")]

    def gradients():
        seen = watch(student, given, taps)
        loss = seen.outputs["embedding"].square().mean() + sum(value.square().mean() for value in seen.inner.values())
        return torch.autograd.grad(loss, [student.words.weight, student.layers[1].attention.query.weight])

    plain = gradients()
    with recomputed(student):
        again = gradients()
    assert all(torch.allclose(one, other) for one, other in zip(plain, again, strict=True))


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (nets.cnn, ("block1", "block2", "block3")),
        (nets.encoder, ("layers.0", "layers.1")),
        (nets.torch_encoder, ("encoder.layers.0", "encoder.layers.1")),
    ],
)
def test_blocks_are_found_by_their_repetition(made, found):
    assert matching.blocks(made(), made()) == (found, found)


def test_a_student_of_one_layer_has_a_block_nevertheless():
    assert matching.blocks(nets.encoder(layers=1), nets.encoder(layers=3))[0] == ("layers.0",)


def shapes(*sizes):
    return {f"b{place}": torch.zeros(size) for place, size in enumerate(sizes)}


def test_blocks_are_paired_by_depth_and_by_shape():
    layer = (2, 5, 8)
    assert matching.matched(shapes(*[layer] * 3), shapes(*[layer] * 6)) == (("b0", "b1"), ("b1", "b3"), ("b2", "b5"))
    assert matching.matched(shapes(*[layer] * 2), shapes(*[layer] * 2)) == (("b0", "b0"), ("b1", "b1"))
    small, large = (2, 8, 4, 4), (2, 8, 8, 8)
    teacher = shapes(large, large, large, small)
    assert matching.matched(shapes(large, small), teacher) == (("b0", "b1"), ("b1", "b3"))
    assert matching.matched(shapes(small, (2, 16, 4, 4)), teacher) == (("b0", "b3"), ("b1", "b3"))
    assert matching.matched(shapes((2, 3)), teacher) == ()


@pytest.mark.parametrize(("axis", "shape"), [(1, (6, 3, 4, 4)), (2, (6, 4, 3)), (1, (40, 3))])
def test_a_projection_begins_as_the_regression_of_the_teachers_features(axis, shape):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(shape, generator=generator)
    matrix = torch.randn(3, 5, generator=generator)
    teacher = (student.movedim(axis, -1) @ matrix + 2).movedim(-1, axis)
    assert projections.width_axis(student, teacher) == axis
    fitted = projections.fitted(student, teacher, axis, Question({}))
    assert torch.allclose(fitted(student.movedim(axis, -1)), teacher.movedim(axis, -1), atol=0.02)
    again = projections.fitted(student, teacher, axis, Question({}))
    assert torch.equal(fitted.weight, again.weight)


def test_a_projection_is_fitted_to_no_more_places_than_memory_holds(monkeypatch):
    monkeypatch.setattr(projections, "_PLACES", 50)
    student = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    teacher = torch.cat([student, -student], 1)
    fitted = projections.fitted(student, teacher, 1, Question({}))
    assert torch.allclose(fitted(student.movedim(1, -1)), teacher.movedim(1, -1), atol=0.02)
    few = projections._sample(student.movedim(1, -1))
    assert 25 < len(few) <= 50
    assert torch.equal(few[-1], student.movedim(1, -1).flatten(0, -2)[13 * (len(few) - 1)].double())


def test_features_are_compared_at_real_positions_only():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    asked = question({"mask": mask}, {}, "mask")
    generator = torch.Generator().manual_seed(0)
    given, wanted = torch.randn(2, 3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    seen, told = Seen({}, {Tap("a"): given}), Seen({}, {Tap("b"): wanted})
    plan = features.planned([("a", "b")], seen, told, asked)
    s, t = (value[mask.bool()].double() for value in (given, wanted))
    assert float(plan.loss(seen, told, asked)) == pytest.approx(float((s - t).square().mean() / t.var(correction=0)))
    wide = Seen({}, {Tap("b"): torch.randn(2, 3, 9, generator=generator)})
    projected = features.planned([("a", "b")], seen, wide, asked)
    assert projected.projections.made["0"].weight.shape == (9, 4)
    # Four rows of four features can tell three positions apart.
    assert float(projected.loss(seen, wide, asked).detach()) < 0.05
    other = Seen({}, {Tap("b"): torch.randn(2, 5, 9, generator=generator)})
    with pytest.raises(StageError, match=r"\[2, 3, 4\] at 'a', the teacher \[2, 5, 9\] at 'b'"):
        features.planned([("a", "b")], seen, other, asked)


class Together(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, -1)
        return self.out((query @ key.transpose(-1, -2)).softmax(-1) @ value)


def test_attention_is_found_in_its_common_forms():
    module = nets.encoder()
    assert list(attention.attentions(module)) == ["layers.0.attention", "layers.1.attention"]
    taps = attention.named(module, attention.last(module, "teacher"), "teacher")
    assert [tap.path.rpartition(".")[2] for tap in taps] == ["query", "key", "value"]

    fused = nn.Sequential(Together())
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    taps = attention.named(fused, "0", "student")
    seen = watch(fused, {"input": x}, taps)
    assert torch.equal(torch.cat([seen.inner[tap] for tap in taps], -1), fused[0].qkv(x))

    with pytest.raises(StageError, match="has no layers of queries"):
        attention.named(nets.encoder(), "layers.0", "student")
    with pytest.raises(StageError, match="the student has no attention"):
        attention.last(nets.cnn(), "student")


@pytest.mark.parametrize("batch_first", [True, False])
def test_queries_of_torchs_own_attention_are_what_it_multiplies(batch_first):
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = layer

        def forward(self, x):
            return self.attention(x, x, x)[0]

    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    net = Net()
    taps = attention.named(net, "attention", "teacher")
    seen = watch(net, {"x": x if batch_first else x.transpose(0, 1)}, taps)
    for tap, weight in zip(taps, layer.in_proj_weight.chunk(3), strict=True):
        assert torch.allclose(seen.inner[tap], x @ weight.T, atol=1e-6)


@pytest.mark.parametrize(
    "imitate",
    [["outputs", "features"], ["features"], {"relations": 2, "outputs": 0.5}, ["similarity"], ["relations"]],
    ids=str,
)
def test_a_narrow_student_comes_nearer_in_every_way(tmp_path, imitate):
    teacher = imported(tmp_path, "encoder", nets.TOKENS)
    # Outputs must have the teacher's shapes: what is narrow is inside.
    student = run_stage(tmp_path, model, {"factory": "narrow.py:build", "inputs": nets.TOKENS}, base=narrow(tmp_path))
    events = []
    made = run_stage(
        tmp_path,
        distill,
        {
            "data": "text",
            "eval_data": "text",
            "epochs": 3,
            "lr": 3e-3,
            "imitate": imitate,
            "precision": "float32" if len(imitate) == 1 else "bfloat16",
        },
        model=student,
        steps={"model": teacher},
        data={"text": tokens()},
        collect=events,
    )
    lines = history(made)
    assert lines[-1]["imitation"] < lines[1]["imitation"]
    if len(imitate) > 1:
        assert set(imitate) < set(lines[1])
    assert "eval_cosine" in made.metrics
    assert models.load(made).state_dict().keys() == models.load(student).state_dict().keys()
    if "features" in imitate:
        assert any("2 pairs of modules, 2 of them through learned projections" in text for text in notes(events))
    if "relations" in imitate:
        assert any("layers.1.attention.query" in text for text in notes(events))


def narrow(root):
    (root / "narrow.py").write_text(
        """
import torch
from torch import nn
from nets import Encoder

class Narrow(Encoder):
    def __init__(self):
        super().__init__(16, 2, 32, 2, 50, 5)
        self.wide = nn.Linear(16, 32)

    def forward(self, input_ids, attention_mask):
        found = super().forward(input_ids, attention_mask)
        return {**found, "embedding": self.wide(found["embedding"])}

def build():
    return Narrow()
"""
    )
    (root / "nets.py").write_text((HERE / "nets.py").read_text())
    return root


def weighed(count, seed):
    """Patterns, half of whose labels are wrong and count for nothing."""
    rows = patterns(count, seed)
    counts = np.random.default_rng(seed).random(count) < 0.5
    label = np.where(counts, rows.columns["label"], (rows.columns["label"] + 1) % 10)
    unread = {"name": np.array([f"row {number}" for number in range(count)])}
    return Rows({**rows.columns, "label": label, "weight": counts.astype(np.float32), **unread})


def test_ones_own_task_has_all_columns_of_numbers_and_is_learnt_and_judged(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch.nn import functional\n"
        "def loss(outputs, columns):\n"
        "    assert set(columns) == {'image', 'label', 'weight'}, set(columns)\n"
        "    each = functional.cross_entropy(outputs['output'], columns['label'], reduction='none')\n"
        "    return (each * columns['weight']).mean()\n"
    )
    net = imported(tmp_path, "cnn", nets.IMAGE, arguments={"width": 8})
    settings = {"data": "train", "eval_data": "val", "epochs": 6, "alpha": 0, "lr": 5e-3, "task": "own.py:loss"}
    made = run_stage(
        tmp_path,
        distill,
        settings,
        model=net,
        steps={"model": net},
        data={"train": weighed(192, 0), "val": weighed(64, 1)},
        base=tmp_path,
    )
    assert made.metrics["eval_loss"] < 0.8 * -history(made)[0]["score"]
    assert accuracy(made, patterns(64, 1)) > 0.6  # of the labels that count
    for idle in ("target", "output"):
        with pytest.raises(ValidationError, match=f"`{idle}` does nothing"):
            DistillConfig.model_validate({**settings, idle: "label"}, context={"base": tmp_path})
    before = DistillConfig.model_validate(settings, context={"base": tmp_path}).task.canonical()
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text().replace("label", "klass"))
    after = DistillConfig.model_validate(settings, context={"base": tmp_path}).task.canonical()
    assert before != after


@pytest.mark.parametrize(
    ("factory", "inputs", "says"),
    [
        ("encoder", nets.TOKENS, "compares the features of 2 pairs of modules: layers.0, layers.1"),
        (
            "tied",
            {"ids": {**nets.TOKENS["input_ids"], "range": [0, 19]}},
            "compares no features: nothing of the two models belongs together",
        ),
    ],
)
def test_recovery_restores_the_features_of_blocks_where_there_are_any(tmp_path, factory, inputs, says):
    net = imported(tmp_path, factory, inputs)
    rows = tokens() if factory == "encoder" else Rows({"ids": np.random.default_rng(0).integers(0, 20, (48, 8))}, 16)
    events = []
    made = run_stage(
        tmp_path,
        recover,
        {"data": "text", "epochs": 1},
        model=net,
        steps={"model": net},
        data={"text": rows},
        collect=events,
    )
    assert any(text.startswith(says) for text in notes(events)), notes(events)
    assert ("features" in history(made)[-1]) == (factory == "encoder")


def test_recovery_is_judged_by_agreement_where_scores_of_classes_are_compared(tmp_path):
    net = imported(tmp_path, "cnn", nets.IMAGE, arguments={"width": 8})
    rows = Rows({"image": patterns(96).columns["image"]})
    settings = {"data": "rows", "eval_data": "rows", "epochs": 1, "distance": "kl", "imitate": ["outputs", "features"]}
    made = run_stage(tmp_path, recover, settings, model=net, steps={"model": net}, data={"rows": rows})
    first = history(made)[0]
    # A teacher agrees with itself, but for the statistics of its batch norms.
    assert 0 < first["eval_agreement"] <= 1
    assert made.metrics["eval_agreement"] >= first["eval_agreement"] - 0.05
    assert made.metrics["eval_distance"] >= 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"imitate": ["features"], "features": ["blok1"]},
            "the student has no module 'blok1'\n  did you mean 'block1'",
        ),
        ({"imitate": ["features"], "features": {"block1": "block3"}}, "can only change one dimension"),
        ({"imitate": ["relations"]}, "the student has no attention"),
        ({"distance": {"logits": "kl"}}, "distance: the model has no output 'logits'"),
        ({"mask": "image"}, "no input 'image' that could be a mask"),
    ],
)
def test_what_cannot_be_imitated_is_named(tmp_path, settings, says):
    net = imported(tmp_path, "cnn", nets.IMAGE, arguments={"width": 8})
    with pytest.raises(StageError, match=says):
        run(tmp_path, net, net, {"data": "train", "epochs": 1, **settings}, train=patterns(64))


def test_settings_are_checked():
    for wrong in (
        {"imitate": []},
        {"imitate": ["output"]},
        {"imitate": {}},
        {"imitate": {"outputs": 0}},
        {"imitate": ["outputs"], "features": ["a"]},
        {"imitate": ["outputs"], "relations": {"a": "b"}},
        {"distance": "hinton"},
        {"distance": {"a": "hinton"}},
        {"temperature": 0},
        {"mask": ""},
        {"imitate": ["features"], "compile": True},
    ):
        for config in (DistillConfig, RecoverConfig):
            with pytest.raises(ValidationError):
                config.model_validate({"data": "a", **wrong})
    for wrong in (
        {"task": "none", "label_smoothing": 0.1},
        {"task": "mse", "label_smoothing": 0.1},
        {"task": "crossentropy"},
        {"features": ["a"]},
        {"keep_layers": 2, "student": {"factory": "nets.py:cnn"}},
        {"student": {}},
    ):
        with pytest.raises(ValidationError):
            DistillConfig.model_validate({"data": "a", **wrong}, context={"base": HERE})
    assert DistillConfig.model_validate({"data": "a"}).weights == {"outputs": 1.0}
    assert RecoverConfig.model_validate({"data": "a", "features": ["x"]}).weights == {"outputs": 1.0, "features": 3.0}
    for without in ({"compile": True}, {"epochs": 0}):
        assert RecoverConfig.model_validate({"data": "a", **without}).weights == {"outputs": 1.0}
    config = DistillConfig.model_validate({"data": "a", "imitate": ["outputs", "features"], "features": ["x"]})
    assert config.imitate == {"outputs": 1.0, "features": 1.0}
    assert config.features == {"x": "x"}
    assert DistillConfig.model_validate({"data": "a", "keep_layers": "3"}).keep_layers == 3
    assert DistillConfig.model_validate({"data": "a", "keep_layers": ["0", "2"]}).keep_layers == (0, 2)
