"""What of a layer is kept: the best halves of a rank, by weights and by data, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import nets
from modelpack.numerics import low_rank as numerics
from modelpack.numerics import macs, structure
from modelpack.numerics.fitting import Reading
from modelpack.numerics.low_rank import spectra
from modelpack.numerics.low_rank.layers import Layer
from modelpack.numerics.randomness import seeded
from test_low_rank import split, wide

torch.set_num_threads(1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    outputs_=st.integers(2, 24),
    inputs=st.integers(2, 24),
    rank=st.integers(1, 24),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_data_decide_what_is_kept_and_no_weights_of_that_rank_do_better(outputs_, inputs, rank, bias, seed):
    """Against the closed form: the whitened decomposition, with the mean in the bias where there is one."""
    rank = min(rank, outputs_, inputs)
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, outputs_, bias=bias).double())
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(outputs_, inputs, generator=generator, dtype=torch.float64))
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    rows = torch.randn(60, inputs, generator=generator, dtype=torch.float64) @ mixing + 3
    layer = Layer("0", "channel", min(outputs_, inputs), 2, 1, 2, 1, 1.0)
    seen = spectra.of_outputs(net, [layer], Reading(lambda: [{"x": rows.numpy()}], None, "cpu"))[layer]
    given_ = net(rows)
    pair = nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs_, bias=bias)).double()
    spectra.fill(pair, layer, seen, net[0].bias)
    error = float((pair(rows) - given_).detach().square().sum())
    around = rows - rows.mean(0) if bias else rows
    tail = torch.linalg.svdvals(around @ net[0].weight.detach().mT)[rank:].square().sum()
    scale = float(given_.detach().square().sum())
    assert error == pytest.approx(float(tail), abs=1e-9 * scale)
    assert float(seen.lost()[rank]) == pytest.approx(
        float(tail) / max(1e-300, float(seen.energies.sum()) * 60), abs=1e-9
    )


@pytest.mark.parametrize("convolutions", ["channel", "spatial", "auto"])
def test_data_beat_weights_alone_on_these_data_with_convolutions_too(convolutions):
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 3 * 64, generator=generator, dtype=torch.float64)
    x = (torch.randn(32, 3, generator=generator, dtype=torch.float64) @ basis).view(32, 3, 8, 8)
    errors = {}
    for name, rows in (("weights", None), ("data", [{"x": x.numpy()}])):
        module = wide()
        wanted = module(x)
        made = split(module, {"x": x}, rows=rows, keep_macs=0.5, convolutions=convolutions)
        assert made.macs == pytest.approx(0.5, rel=0.02)
        errors[name] = float((module(x) - wanted).detach().square().sum())
    assert errors["data"] < 0.5 * errors["weights"]


def test_the_mean_of_what_columns_add_goes_into_the_bias():
    """On constant inputs without borders, a spatial split of any rank gives exactly what the layer did."""
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(4, 6, 3)).double().eval()
    x = torch.ones(2, 4, 7, 7, dtype=torch.float64) * 3
    wanted = net(x)
    layer = next(item for item in numerics.find(net, {"x": x}, convolutions="spatial").layers)
    spectrum = spectra.of_outputs(net, [layer], Reading(lambda: [{"x": x.numpy()}], None, "cpu"))[layer]
    made = structure.halves(net[0], "spatial", 1)
    spectra.fill(made, layer, spectrum, net[0].bias)
    assert torch.allclose(made(x), wanted)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 2)])
def test_columns_and_rows_of_kernels_are_the_best_such_product(stride):
    """Against the closed form: the error is the tail of the decomposition of columns by rows."""
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(6, 8, (3, 5), stride=stride, padding=(1, 2)).double().eval())
    feed = {"x": torch.randn(2, 6, 9, 9, dtype=torch.float64)}
    found = numerics.find(net, feed, convolutions="spatial")
    assert [layer.form for layer in found.layers] == ["spatial"]
    layer, weight = found.layers[0], net[0].weight.detach()
    spectrum = spectra.of_weights(net, layer)
    rank = layer.most
    assert rank < layer.full
    numerics.split(net, feed, found, {layer: spectrum}, energy=1 - float(spectrum.lost()[rank]) - 1e-12)
    column, row = net[0]
    together = torch.einsum("rih,orw->oihw", column.weight[..., 0], row.weight[:, :, 0])
    tail = spectrum.energies[rank:].sum()
    assert float((together - weight).detach().square().sum()) == pytest.approx(float(tail))
    assert macs.count(net, feed) == layer.rank_cost * rank
    expected = functional.conv2d(feed["x"], together, net[0][1].bias, stride, (1, 2))
    assert torch.allclose(net(feed["x"]), expected)


def test_a_head_of_many_classes_is_seen_through_its_inputs():
    with seeded(0):
        net = nn.Sequential(nn.Linear(16, 500))
    layer = numerics.find(net, {"x": torch.randn(2, 16)}).layers[0]
    seen = spectra.of_outputs(
        net, [layer], Reading(lambda: [{"x": np.random.default_rng(0).random((40, 16), np.float32)}], None, "cpu")
    )
    assert seen[layer].second.shape == (500, 16)
    assert torch.allclose(seen[layer].second @ seen[layer].first, net[0].weight.double(), atol=1e-6)


def test_padded_positions_do_not_count():
    module = nets.encoder().eval()
    layer = next(item for item in numerics.find(module, sentences_feed()).layers if item.path == "layers.0.fc1")
    ids = np.random.default_rng(0).integers(0, 50, (6, 12))
    mask = np.ones_like(ids)
    mask[:, 5:] = 0
    spectra_ = [
        spectra.of_outputs(
            module, [layer], Reading([{"input_ids": i, "attention_mask": m}].copy, "attention_mask", "cpu")
        )[layer]
        for i, m in ((ids, mask), (np.where(mask, ids, 7), mask), (ids[:, :5], mask[:, :5]))
    ]
    assert torch.allclose(spectra_[0].energies, spectra_[1].energies, atol=1e-6)
    assert torch.allclose(spectra_[0].energies, spectra_[2].energies, atol=1e-5)


def sentences_feed():
    ids = torch.arange(24).view(2, 12)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
