"""Clipping: weights end where rounding them loses least, and a net with outliers comes closer to itself for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

import nets
from modelpack.errors import StageError
from modelpack.numerics import clipping, models, zeros
from modelpack.stages.clip import ClipConfig, clip
from modelpack.stages.sparsify import sparsify
from support import DEVICES, run_stage
from test_models import feed_for, imported, outputs
from test_sparsify import texts, weights

torch.set_num_threads(1)


def heavy(count=4, width=2000, seed=0, freedom=3.0):
    torch.manual_seed(seed)
    return torch.distributions.StudentT(freedom).sample((count, width)).double()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), bits=st.sampled_from([4, 8]), freedom=st.sampled_from([1.5, 3.0, 100.0]))
def test_no_end_is_better_than_the_one_found(seed, bits, freedom):
    rows = heavy(seed=seed, freedom=freedom)
    ends, largest = clipping.best(rows, bits), rows.abs().amax(1)
    found = clipping.error(rows, ends, bits)
    assert bool((found <= clipping.error(rows, largest, bits)).all())
    assert bool((ends <= largest).all())
    grid = torch.linspace(0.01, 1, 300, dtype=torch.float64)
    dense = torch.stack([clipping.error(rows, largest * share, bits) for share in grid]).amin(0)
    assert bool((found <= 1.06 * dense).all())


@given(width=st.integers(1, 40), percentile=st.floats(50, 99.99), seed=st.integers(0, 99))
def test_a_percentile_lies_where_torch_has_it(width, percentile, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(width, 3).double()
    wanted = layer.weight.detach().abs().quantile(percentile / 100, dim=1)
    clipping.clip(nn.Sequential(layer), 8, percentile, (), channels=True)
    assert torch.allclose(layer.weight.detach().abs().amax(1), wanted)


def test_a_percentile_of_more_weights_than_torch_takes_is_found():
    layer = nn.Linear(4100, 4100, dtype=torch.float16)
    (told,), _ = clipping.clip(nn.Sequential(layer), 8, 75, (), channels=False)
    assert told.count == pytest.approx(0.25 * told.weights, rel=1e-2)


def test_the_error_is_that_of_rounding_around_zero():
    rows = torch.tensor([[0.4, -0.9, 7.0, 3.0, 9.0]], dtype=torch.float64)
    assert float(clipping.error(rows, torch.tensor([7.0], dtype=torch.float64), 4)) == pytest.approx(0.16 + 0.01 + 4)
    assert float(clipping.error(rows, torch.tensor([0.0], dtype=torch.float64), 4)) == pytest.approx(
        float(rows.square().sum())
    )


def outlying(artifact):
    """Give a model's weights the long tails that training sometimes leaves."""
    module = models.load(artifact)
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.weight *= torch.distributions.StudentT(4.0).sample(layer.weight.shape).abs()
    return module


def rounded(module, bits):
    """Round weights as quantization by channels does: a grid to the largest magnitude of each."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                top = 2 ** (bits - 1) - 1
                step = layer.weight.abs().amax(1, keepdim=True) / top
                layer.weight.copy_((layer.weight / step).round() * step)
    return module


def test_a_net_with_outliers_loses_less_by_rounding_once_clipped(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS, arguments={"width": 128, "hidden": 256})
    feed = feed_for(source, 16)
    wanted = outputs(outlying(source), feed)["logits"]
    plain = outputs(rounded(outlying(source), 4), feed)["logits"]
    module = outlying(source)
    done, _ = clipping.clip(module, 4, None, (), channels=True)
    cut = outputs(rounded(module, 4), feed)["logits"]
    assert float((cut - wanted).norm()) < 0.85 * float((plain - wanted).norm())
    assert all(item.after <= item.before for item in done)
    assert sum(item.after for item in done) < 0.9 * sum(item.before for item in done)
    assert 0 < sum(item.count for item in done) < 0.05 * sum(item.weights for item in done)


@pytest.mark.parametrize("device", DEVICES)
def test_the_stage_cuts_says_so_and_keeps_zeros(tmp_path, device):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    sparse = run_stage(tmp_path, sparsify, {"ratio": 0.5}, model=source)
    events = []
    asked = {"bits": 4, "exclude": ["stem"]}
    made = run_stage(tmp_path, clip, asked, model=sparse, collect=events, device=device)
    assert run_stage(tmp_path / "again", clip, asked, model=sparse, device=device).id == made.id
    assert made.metrics["weights_sqnr_db"] > made.metrics["source_weights_sqnr_db"] + 0.5
    before, after = weights(sparse), weights(made)
    assert made.metrics["clipped_weights"] == sum(int((before[name] != after[name]).sum()) for name in before)
    assert torch.equal(before["stem.weight"], after["stem.weight"])
    assert zeros.read(made) == zeros.read(sparse)
    told = texts(events)
    assert any(
        text.startswith(f"cut {made.metrics['clipped_weights']} of ") and "rounded to 4 bits" in text for text in told
    )
    assert "left alone: stem (excluded)" in told
    rows = made.manifest.record["results"]["layers"]
    assert {row["layer"] for row in rows} >= {"head", "down", "block1.expand"}
    assert all(row["sqnr_db_after"] >= row["sqnr_db_before"] for row in rows)


def test_a_percentile_is_taken_by_channel_or_by_layer_and_a_loss_is_told(tmp_path):
    source = imported(tmp_path, "grouped", nets.PICTURE)
    events = []
    made = run_stage(tmp_path, clip, {"percentile": 90}, model=source, collect=events)
    before, after = weights(source), weights(made)
    for name, axis in (("first.weight", 0), ("up.weight", 1), ("side.weight", 0)):
        for index in range(before[name].shape[axis]):
            one, other = before[name].select(axis, index), after[name].select(axis, index)
            limit = one.double().abs().quantile(0.9)
            assert torch.allclose(other, one.clamp(-limit, limit), atol=1e-6)
    assert any("weights have -" in getattr(event, "text", "") and event.warning for event in events)
    whole = weights(run_stage(tmp_path, clip, {"percentile": 90, "scope": "layer"}, model=source))
    limit = before["first.weight"].double().abs().flatten().quantile(0.9)
    assert float(whole["first.weight"].abs().max()) == pytest.approx(float(limit), rel=1e-6)


def test_tied_and_dead_and_broken_weights(tmp_path):
    ids = {"ids": {"shape": ["batch", "n"], "dtype": "int64", "range": [0, 19]}}
    made = run_stage(tmp_path, clip, {"bits": 4}, model=imported(tmp_path, "tied", ids))
    assert made.manifest.record["results"]["left_alone"] == {"decoder": "it shares its weights with an embedding"}
    dead = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        dead[0].weight.zero_()
    done, _ = clipping.clip(dead, 8, None, (), channels=True)
    assert (done[0].count, done[0].after) == (0, 0)
    with torch.no_grad():
        dead[0].weight[0, 0] = torch.nan
    with pytest.raises(StageError, match="not finite") as caught:
        clipping.clip(dead, 8, None, (), channels=True)
    assert caught.value.where == "0"
    with pytest.raises(StageError, match="exclude: no module matches 'x'") as caught:
        clipping.clip(dead, 8, None, ["x"], channels=True)
    assert caught.value.then == "one of: 0"
    with pytest.raises(StageError, match="no layer whose weights could be clipped"):
        clipping.clip(nn.Sequential(nn.LayerNorm(4)), 8, None, (), channels=True)


def test_settings_are_checked():
    for wrong in ({"bits": 3}, {"percentile": 100}, {"percentile": 10}, {"scope": "all"}, {"bit": 4}):
        with pytest.raises(ValidationError):
            ClipConfig.model_validate(wrong)
    assert ClipConfig().bits == 8
