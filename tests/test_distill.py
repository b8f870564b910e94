"""Distillation: the student learns, the best epoch is kept, and a killed run continues as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

import nets
from modelpack.errors import StageError
from modelpack.numerics import models
from modelpack.stages.distill import DistillConfig, distill
from modelpack.stages.model import model
from support import Rows, run_stage
from test_models import feed_for, imported, outputs, same

torch.set_num_threads(1)
HERE = Path(__file__).parent


def patterns(count=192, seed=0, target="label", batch=32):
    """Images of ten fixed patterns in noise: easy to learn, impossible to guess."""
    generator = np.random.default_rng(seed)
    shapes = np.random.default_rng(99).standard_normal((10, 1, 16, 16))
    label = generator.integers(0, 10, count)
    image = (shapes[label] + 0.5 * generator.standard_normal((count, 1, 16, 16))).astype(np.float32)
    return Rows({"image": image, target: label}, batch)


def student_and_teacher(root, factory="cnn", inputs=nets.IMAGE):
    return imported(root, factory, inputs, arguments={"width": 8} if factory == "cnn" else {}), imported(
        root, factory, inputs
    )


def run(root, student, teacher, settings, **data):
    return run_stage(root, distill, settings, model=student, steps={"model": teacher}, data=data)


def history(artifact):
    return artifact.manifest.record["results"]["history"]


def accuracy(artifact, rows):
    module = models.load(artifact)
    right = 0
    for batch in rows.batches():
        logits = outputs(module, {"image": torch.from_numpy(batch["image"])})["output"]
        right += int((logits.argmax(1).numpy() == batch["label"]).sum())
    return right / len(rows)


def test_a_student_learns_the_truth_and_the_same_twice(tmp_path):
    student, teacher = student_and_teacher(tmp_path)
    settings = {"data": "train", "eval_data": "val", "epochs": 6, "alpha": 0.0, "lr": 5e-3}
    data = {"train": patterns(), "val": patterns(96, seed=1)}
    first = run(tmp_path / "1", student, teacher, settings, **data)
    second = run(tmp_path / "2", student, teacher, settings, **data)
    assert first.id == second.id
    reached = accuracy(first, patterns(96, seed=1))
    assert reached > 0.8 > 0.4 > accuracy(student, patterns(96, seed=1))
    assert first.metrics["eval_accuracy"] == pytest.approx(reached)
    assert reached == pytest.approx(max(line["score"] for line in history(first)))
    assert [line["epoch"] for line in history(first)] == list(range(7))


def test_a_student_comes_nearer_to_its_teacher_without_labels(tmp_path):
    student, teacher = student_and_teacher(tmp_path)
    data = Rows({"image": patterns().columns["image"]})
    made = run(tmp_path, student, teacher, {"data": "train", "epochs": 4, "lr": 5e-3}, train=data)
    feed = {"image": torch.from_numpy(patterns(64, seed=3).columns["image"])}
    wanted = outputs(models.load(teacher), feed)["output"]

    def distance(artifact):
        return float(functional.mse_loss(outputs(models.load(artifact), feed)["output"], wanted))

    assert distance(made) < 0.5 * distance(student)
    assert "task" not in history(made)[-1]


def test_the_best_epoch_is_kept_even_when_training_spoils_the_student(tmp_path):
    student, teacher = student_and_teacher(tmp_path)
    good = run(
        tmp_path / "good", student, teacher, {"data": "train", "epochs": 4, "alpha": 0.0, "lr": 5e-3}, train=patterns()
    )
    settings = {"data": "noise", "eval_data": "val", "epochs": 2, "alpha": 0.0, "lr": 0.05}
    noise = patterns()
    noise.columns["label"] = (noise.columns["label"] + 1) % 10
    spoilt = run(tmp_path / "bad", good, teacher, settings, noise=noise, val=patterns(96, seed=1))
    feed = feed_for(good)
    assert same(outputs(models.load(good), feed), outputs(models.load(spoilt), feed))
    assert history(spoilt)[-1]["score"] < history(spoilt)[0]["score"]


@pytest.mark.parametrize(
    ("factory", "inputs", "columns"),
    [
        ("encoder", nets.TOKENS, {"input_ids": (12,), "attention_mask": (12,)}),
        ("grouped", nets.PICTURE, {"picture": (4, 16, 16), "extra": (3,)}),
        ("recurrent", nets.SERIES, {"series": (9, 6)}),
    ],
)
def test_several_inputs_and_outputs_are_imitated(tmp_path, factory, inputs, columns):
    generator = np.random.default_rng(0)
    rows = Rows(
        {
            name: np.ones((40, *shape), np.int64)
            if name == "attention_mask"
            else generator.integers(0, 50, (40, *shape))
            if name == "input_ids"
            else generator.standard_normal((40, *shape)).astype(np.float32)
            for name, shape in columns.items()
        },
        8,
    )
    teacher = imported(tmp_path, factory, inputs)
    other = run_stage(
        tmp_path / "s",
        model,
        {"factory": f"nets.py:{factory}", "inputs": inputs},
        base=HERE,
        seed=1,
    )
    made = run(tmp_path, other, teacher, {"data": "train", "eval_data": "train", "epochs": 3, "lr": 5e-3}, train=rows)
    lines = history(made)
    assert lines[-1]["score"] > lines[0]["score"]
    assert made.metrics["eval_distance"] == pytest.approx(-max(line["score"] for line in lines))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains_too(tmp_path, precision):
    student, teacher = student_and_teacher(tmp_path)
    settings = {"data": "train", "eval_data": "val", "epochs": 6, "lr": 5e-3, "alpha": 0.0, "precision": precision}
    made = run(tmp_path, student, teacher, settings, train=patterns(), val=patterns(96, seed=1))
    assert made.metrics["eval_accuracy"] > 0.7
    assert models.load(made).stem.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("settings", "change", "says"),
    [
        (
            {"task": "cross_entropy"},
            {"label": None},
            "no column 'label', which task cross_entropy asks for\n  name the",
        ),
        ({"target": "lable"}, {}, "no column 'lable', which `target` asks for\n  did you mean 'label'?"),
        ({"task": "mse"}, {}, r"shape \[32\], the output \[32, 10\]\n  task mse compares"),
        ({"task": "cross_entropy"}, {"label": np.zeros(192, np.float32)}, "needs integers"),
        ({}, {"label": np.full(192, 10)}, "10 classes"),
        ({}, {"label": np.zeros((192, 3), np.int64)}, "do not fit"),
        ({"output": "nothing"}, {}, "no output 'nothing'"),
        ({"alpha": 0}, {"label": None}, "no column 'label', which `alpha` asks for"),
        ({"label_smoothing": 0.1}, {"label": None}, "no column 'label', which `label_smoothing` asks for"),
        ({}, {"image": np.zeros((192, 3, 16, 16), np.float32)}, "image"),
    ],
)
def test_unfit_data_are_refused_with_a_reason(tmp_path, settings, change, says):
    student, teacher = student_and_teacher(tmp_path)
    data = patterns()
    for name, column in change.items():
        data.columns.pop(name)
        if column is not None:
            data.columns[name] = column
    with pytest.raises(StageError, match=says):
        run(tmp_path, student, teacher, {"data": "train", "epochs": 1, **settings}, train=data)


def test_rows_that_judge_need_the_truth_where_rows_to_learn_from_have_it(tmp_path):
    student, teacher = student_and_teacher(tmp_path)
    val = patterns(32, target="lable")
    with pytest.raises(StageError, match=r"evaluation data have no column 'label'.*\n  did you mean 'lable'?"):
        run(tmp_path, student, teacher, {"data": "train", "eval_data": "val"}, train=patterns(), val=val)
    alone = {"data": "train", "eval_data": "val", "epochs": 1, "alpha": 1}
    made = run(tmp_path, student, teacher, alone, train=patterns(64, target="lable"), val=patterns(32))
    assert "eval_distance" in made.metrics


def test_a_teacher_with_other_outputs_is_refused(tmp_path):
    student = imported(tmp_path, "cnn", nets.IMAGE)
    teacher = imported(tmp_path, "cnn", nets.IMAGE, arguments={"classes": 7})
    with pytest.raises(StageError, match="differ in the output 'output'"):
        run(tmp_path, student, teacher, {"data": "train"}, train=patterns())


def test_a_teacher_with_other_inputs_is_refused(tmp_path):
    student = imported(tmp_path, "cnn", nets.IMAGE)
    teacher = imported(tmp_path, "recurrent", nets.SERIES)
    with pytest.raises(StageError, match="teacher reads series, the student image"):
        run(tmp_path, student, teacher, {"data": "train"}, train=patterns())


def test_a_model_that_cannot_be_trained_says_why(tmp_path):
    code = """
from torch import nn
class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)
    def forward(self, x):
        hidden = self.one(x)
        out = self.two(hidden)
        hidden.zero_()
        return out
"""
    (tmp_path / "own.py").write_text(code)
    settings = {"factory": "own.py:Overwriting", "inputs": {"x": {"shape": ["batch", 4]}}}
    source = run_stage(tmp_path, model, settings, base=tmp_path)
    rows = Rows({"x": np.ones((6, 4), np.float32)})
    with pytest.raises(StageError, match="cannot be trained: RuntimeError: one of the variables"):
        run(tmp_path, source, source, {"data": "train", "epochs": 1}, train=rows)


def test_settings_are_checked():
    for wrong in ({}, {"data": "a", "alpha": 2}, {"data": "a", "epochs": 0}, {"data": "a", "task": "none", "alpha": 0}):
        with pytest.raises(ValidationError):
            DistillConfig.model_validate(wrong)
    assert distill.pays == {"unrecovered"}
