"""Students of three kinds: the model that is read, fewer layers of it, and one of its own code."""

from __future__ import annotations

import pytest
import torch

import nets
from modelpack.errors import StageError
from modelpack.numerics import models
from modelpack.numerics.training import checkpoint
from modelpack.stages.distill import distill
from modelpack.stages.sparsify import sparsify
from support import run_stage
from test_distill import history, patterns
from test_imitation import HERE, feed, narrow, notes, tokens
from test_models import imported, outputs

torch.set_num_threads(1)


def test_a_student_of_its_own_is_built_trained_and_rebuilt(tmp_path):
    teacher = imported(tmp_path, "encoder", nets.TOKENS)
    base = narrow(tmp_path)
    settings = {
        "data": "text",
        "eval_data": "text",
        "epochs": 6,
        "lr": 1e-2,
        "imitate": {"outputs": 1, "features": 0.5},
        "student": {"factory": "narrow.py:build"},
    }

    def make(root):
        return run_stage(
            root, distill, settings, model=teacher, steps={"model": teacher}, data={"text": tokens()}, base=base
        )

    made, again = make(tmp_path / "1"), make(tmp_path / "2")
    assert made.id == again.id
    student = models.load(made)
    assert student.wide.in_features == 16
    found, wanted = outputs(student, feed(tokens())), outputs(models.load(teacher), feed(tokens()))
    assert list(found) == list(wanted) == list(made.read_json("signature.json")["outputs"])
    lines = history(made)
    assert lines[-1]["score"] > 0.8 * lines[0]["score"]  # scores are negative distances


def test_zeros_of_the_model_that_is_read_are_none_of_a_student_of_its_own(tmp_path):
    (tmp_path / "nets.py").write_text((HERE / "nets.py").read_text())
    (tmp_path / "zero.py").write_text(
        "import nets\ndef build():\n    net = nets.cnn()\n    net.block3.project.weight.data.zero_()\n    return net\n"
    )
    sparse = run_stage(tmp_path, sparsify, {"ratio": 0.5}, model=imported(tmp_path, "cnn", nets.IMAGE))
    assert (models.load(sparse).block3.project.weight == 0).any()
    made = run_stage(
        tmp_path,
        distill,
        {"data": "train", "epochs": 1, "student": {"factory": "zero.py:build"}},
        model=sparse,
        steps={"model": sparse},
        data={"train": patterns(64)},
        base=tmp_path,
    )
    assert (models.load(made).block3.project.weight != 0).all()


class Interrupted(list):
    """Ends a run in its second epoch."""

    def append(self, event):
        if getattr(event, "label", "").startswith("epoch 2 ") and event.done == 1:
            raise KeyboardInterrupt
        super().append(event)


def test_projections_go_on_where_an_interrupted_run_left_them(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSE", 0)
    monkeypatch.setattr(checkpoint, "COST", 0)
    teacher = imported(tmp_path, "encoder", nets.TOKENS)
    settings = {"data": "text", "epochs": 2, "imitate": ["features"], "student": {"factory": "narrow.py:build"}}
    shared = {"model": teacher, "steps": {"model": teacher}, "data": {"text": tokens()}, "base": narrow(tmp_path)}
    straight = run_stage(tmp_path / "1", distill, settings, **shared)
    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "2", distill, settings, **shared, collect=Interrupted())
    events = []
    resumed = run_stage(tmp_path / "2", distill, settings, **shared, collect=events)
    assert any("continued after" in text for text in notes(events))
    assert resumed.id == straight.id


def test_a_student_whose_outputs_differ_is_refused_before_it_is_trained(tmp_path):
    teacher = imported(tmp_path, "cnn", nets.IMAGE)
    settings = {"data": "train", "student": {"factory": "nets.py:cnn", "arguments": {"classes": 7}}}
    with pytest.raises(StageError, match=r"differ in the output 'output': the teacher gives \[32, 10\], the student"):
        run_stage(
            tmp_path, distill, settings, model=teacher, steps={"model": teacher}, data={"train": patterns()}, base=HERE
        )
    settings = {"data": "train", "student": {"factory": "nets.py:grouped"}}
    with pytest.raises(StageError, match=r"^student: the model fails on the declared inputs"):
        run_stage(
            tmp_path, distill, settings, model=teacher, steps={"model": teacher}, data={"train": patterns()}, base=HERE
        )


def test_a_student_of_fewer_layers_starts_as_its_teacher(tmp_path):
    teacher = imported(tmp_path, "encoder", nets.TOKENS, arguments={"layers": 4})
    events = []
    made = run_stage(
        tmp_path,
        distill,
        {"data": "text", "eval_data": "text", "epochs": 2, "keep_layers": "2", "imitate": ["outputs", "features"]},
        model=teacher,
        steps={"model": teacher},
        data={"text": tokens()},
        collect=events,
    )
    assert len(models.load(made).layers) == 2
    assert made.metrics["parameters"] < teacher.metrics["parameters"]
    assert any("layers.0 with layers.1, layers.1 with layers.3" in text for text in notes(events))
    lines = history(made)
    assert lines[-1]["score"] > lines[0]["score"]
    assert made.metrics["eval_cosine"] > 0.9
    with pytest.raises(StageError, match="keep_layers is 5"):
        run_stage(
            tmp_path,
            distill,
            {"data": "text", "keep_layers": 5},
            model=teacher,
            steps={"model": teacher},
            data={"text": tokens()},
        )
