"""The input that tells padded positions: chosen in one way by all that reads rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from modelpack.errors import StageError
from modelpack.numerics import masks
from modelpack.numerics.distillation import question
from modelpack.stages.calibrate import CalibrateConfig
from modelpack.stages.distill import DistillConfig
from modelpack.stages.low_rank import LowRankConfig
from modelpack.stages.prune import PruneConfig
from modelpack.stages.sparsify import SparsifyConfig
from modelpack.tensors import TensorSpec

TEXT = TensorSpec(shape=("batch", "time"), dtype="int64")
INPUTS = {"ids": TEXT, "attention_mask": TEXT, "bias_mask": TensorSpec(shape=("batch", "time"))}


def test_the_mask_is_found_by_name_or_named():
    assert masks.chosen("auto", INPUTS) == "attention_mask"
    assert masks.chosen("none", INPUTS) is None
    assert masks.chosen("ids", INPUTS) == "ids"
    assert masks.chosen("auto", {"ids": TEXT}) is None
    with pytest.raises(StageError, match="several inputs"):
        masks.chosen("auto", {**INPUTS, "other_mask": TEXT})
    with pytest.raises(StageError, match="no input 'bias_mask' that could be a mask"):
        masks.chosen("bias_mask", INPUTS)


@pytest.mark.parametrize("shape", [("batch",), ("batch", "time", "time"), ("batch", 1, 8, 8)])
def test_a_mask_of_pixels_or_of_pairs_is_taken_only_where_it_is_named(shape):
    other = TensorSpec(shape=shape, dtype="int64")
    assert masks.chosen("auto", {"pixel_mask": other}) is None
    assert masks.chosen("auto", {"pixel_mask": other, "attention_mask": TEXT}) == "attention_mask"
    assert masks.chosen("pixel_mask", {"pixel_mask": other}) == "pixel_mask"


def test_a_mask_holds_nothing_but_0_and_1():
    assert masks.real("mask", {"mask": np.array([[1, 0]])}).tolist() == [[True, False]]
    assert masks.real("mask", {"mask": np.zeros((0, 4), np.int64)}).shape == (0, 4)
    with pytest.raises(StageError, match="values other than 0 and 1") as one:
        masks.real("mask", {"mask": np.array([[1, 2]])})
    with pytest.raises(StageError) as other:
        question.question({"mask": torch.tensor([[1, 2]])}, {}, "mask")
    assert str(one.value) == str(other.value)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (PruneConfig, {"macs": 0.5}),
        (SparsifyConfig, {"ratio": 0.5}),
        (LowRankConfig, {"macs": 0.5}),
        (DistillConfig, {}),
        (CalibrateConfig, {}),
    ],
)
def test_every_stage_that_reads_rows_names_it_alike(config, settings):
    asked = {**settings, "data": "rows"}
    assert config.model_validate(asked).mask == "auto"
    with pytest.raises(ValidationError, match="mask"):
        config.model_validate({**asked, "mask": ""})
