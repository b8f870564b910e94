"""The stage that splits layers: what it saves and tells, what follows it, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import nets
from modelpack.errors import StageError
from modelpack.numerics import macs, models, structure
from modelpack.stages.distill import distill
from modelpack.stages.export import export
from modelpack.stages.low_rank import LowRankConfig, low_rank
from modelpack.stages.prune import prune
from support import Rows, run_stage
from test_models import IDS, feed_for, imported, outputs

torch.set_num_threads(1)


def sentences(count=24):
    ids = np.random.default_rng(0).integers(0, 50, (count, 12))
    return Rows({"input_ids": ids, "attention_mask": np.ones_like(ids)}, 8)


@pytest.mark.parametrize("wanted", [{"energy": 0.8}, {"macs": 0.7}])
@pytest.mark.parametrize("with_data", [True, False])
def test_the_stage_splits_saves_and_reports(tmp_path, wanted, with_data):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    asked = {**wanted, **({"data": "train"} if with_data else {})}
    events = []
    one = run_stage(tmp_path / "1", low_rank, asked, model=source, data={"train": sentences()}, collect=events)
    two = run_stage(tmp_path / "2", low_rank, asked, model=source, data={"train": sentences()})
    assert one.id == two.id
    module, original, feed = models.load(one), models.load(source), feed_for(source, 2)
    assert macs.count(module, feed) / macs.count(original, feed) == pytest.approx(one.metrics["macs"], rel=0.02)
    assert models.parameter_count(module) == one.metrics["parameters"] < models.parameter_count(original)
    table = one.manifest.record["results"]["layers"]
    for row in table:
        first, second = module.get_submodule(row["layer"])
        assert first.out_features == second.in_features == row["rank"]
        assert row.keys() == {"layer", "type", "form", "rank", "full", "energy", "before", "after"}
    told = " ".join(getattr(event, "text", "") for event in events)
    assert f"split {len(table)} layers" in told
    assert ("positions where 'attention_mask' is 0 did not count" in told) is with_data


def test_a_model_with_fewer_blocks_and_split_layers_exports_is_pruned_and_learns(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    shallow = run_stage(tmp_path, prune, {"drop": ["block1"]}, model=source)
    made = run_stage(tmp_path, low_rank, {"macs": 0.8}, model=shallow)
    assert [item.operation for item in structure.made(models.load(made))][:2] == ["bypass", "factor"]
    feed = feed_for(made)
    exported = run_stage(tmp_path, export, {}, model=made)
    session = onnxruntime.InferenceSession(exported.file("model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in feed.items()})
    assert np.allclose(found, outputs(models.load(made), feed)["output"], atol=1e-4)
    pruned = run_stage(tmp_path, prune, {"macs": 0.7}, model=made)
    images = Rows({"image": np.random.default_rng(0).random((16, 1, 16, 16), np.float32)}, 8)
    lesson = {"teacher": "model", "data": "train", "epochs": 1, "task": "none"}
    learned = run_stage(tmp_path, distill, lesson, model=pruned, steps={"model": source}, data={"train": images})
    assert macs.count(models.load(learned), feed) == macs.count(models.load(pruned), feed)


def test_tied_weights_stay_tied(tmp_path):
    source = imported(tmp_path, "tied", IDS)
    with pytest.raises(StageError, match="no layer becomes smaller") as caught:
        run_stage(tmp_path, low_rank, {"energy": 0.99999}, model=source)
    assert "it shares its weights with 'embedding'" in caught.value.what
    module = models.load(run_stage(tmp_path, low_rank, {"energy": 0.5}, model=source))
    assert module.decoder.weight is module.embedding.weight
    assert isinstance(module.inner, nn.Sequential)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "by one of energy and macs"),
        ({"energy": 0.9, "macs": 0.5}, "by one of energy and macs"),
        ({"energy": 1}, "less than 1"),
        ({"macs": 0}, "greater than 0"),
        ({"macs": 0.5, "convolutions": "tucker"}, "channel"),
        ({"macs": 0.5, "rows": 8}, "rows is about data"),
        ({"macs": 0.5, "mask": "m"}, "mask is about data"),
        ({"rank": 8}, "rank"),
    ],
)
def test_settings_are_checked(wrong, says):
    with pytest.raises(ValidationError, match=says):
        LowRankConfig.model_validate(wrong)
    assert low_rank.owes == {"unrecovered"}


def test_patterns_and_convolutions_are_respected(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    made = run_stage(tmp_path, low_rank, {"macs": 0.9, "convolutions": "spatial", "keep": ["block*"]}, model=source)
    rows = made.manifest.record["results"]["layers"]
    assert {row["layer"]: row["form"] for row in rows}.items() >= {("stem", "spatial"), ("down", "spatial")}
    assert not any(row["layer"].startswith("block") for row in rows)
    with pytest.raises(StageError, match="no module matches 'blok'"):
        run_stage(tmp_path, low_rank, {"macs": 0.9, "keep": ["blok"]}, model=source)
    for wanted in ({"energy": 0.9}, {"macs": 0.5}):
        with pytest.raises(StageError, match=r"no layer becomes smaller .* convolutions are left alone"):
            run_stage(tmp_path, low_rank, {**wanted, "convolutions": "none", "keep": ["head"]}, model=source)


@pytest.mark.cuda
@pytest.mark.parametrize("wanted", [{"energy": 0.8}, {"macs": 0.7}])
def test_a_gpu_splits_as_the_processor_does(tmp_path, wanted):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    given_ = {"model": source, "data": {"train": sentences()}}
    here, there, again = (
        run_stage(tmp_path / name, low_rank, {**wanted, "data": "train"}, device=device, **given_)
        for name, device in (("1", "cpu"), ("2", "cuda:0"), ("3", "cuda:0"))
    )
    assert there.id == again.id
    ranks_of = [
        {row["layer"]: row["rank"] for row in item.manifest.record["results"]["layers"]} for item in (here, there)
    ]
    assert ranks_of[0] == ranks_of[1]
    feed = feed_for(source, 4)
    one, two = (outputs(models.load(item), feed)["logits"] for item in (here, there))
    assert torch.allclose(one, two, atol=1e-3)
