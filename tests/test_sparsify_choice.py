"""Which weights become zero, and what the others become: against the papers and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nets
from modelpack.numerics.fitting import Layer, Reading, inputs, moments, refit
from modelpack.numerics.sparsity import layers, magnitude, sparsegpt, wanda
from modelpack.numerics.sparsity.pattern import Pattern, chosen, smallest
from test_sparsify import tokens

torch.set_num_threads(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.data())
def test_exactly_the_smallest_are_marked_even_among_equals(count, data):
    scores = torch.tensor(
        [data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)) for _ in range(3)]
    ).double()
    wanted = data.draw(st.integers(0, count))
    marked = smallest(scores, wanted)
    order = np.argsort(scores.numpy(), axis=1, kind="stable")
    assert all(
        set(np.flatnonzero(row)) == set(ranks[:wanted]) for row, ranks in zip(marked.numpy(), order, strict=True)
    )


@settings(max_examples=25, deadline=None)
@given(
    flat=st.booleans(),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
)  # fmt: skip
def test_a_convolution_is_its_matrix_times_what_it_reads(flat, groups, kernel, stride, dilation, padding, mode):
    torch.manual_seed(0)
    if padding == "same":  # torch warns of even kernels
        stride, kernel = 1, kernel // 2 * 2 + 1
    layer = (nn.Conv1d if flat else nn.Conv2d)(
        4, 6, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode
    ).double()
    values = torch.randn(2, 4, *([9] if flat else [9, 8]), dtype=torch.float64)
    wanted = layer(values)
    matrix = Layer("weight", (layer,)).matrix()
    given = matrix @ inputs(layer, values).mT
    found = given.reshape(6, 2, *wanted.shape[2:]).transpose(0, 1)
    assert torch.allclose(found, wanted, atol=1e-12)
    before = layer.weight.detach().clone()
    Layer("weight", (layer,)).put(matrix)
    assert torch.equal(layer.weight, before)


def problem(rows=12, width=48, seed=0, groups=1):
    """Weights, and moments of strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups, width, width // 3, generator=generator, dtype=torch.float64)
    hidden = torch.randn(groups, width // 3, 400, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(groups, width, 400, generator=generator, dtype=torch.float64)
    inputs = mixing @ hidden + noise
    return torch.randn(groups, rows, width, generator=generator, dtype=torch.float64), inputs @ inputs.mT


def error(weight, made, moment):
    gap = weight - made
    return float(((gap @ moment) * gap).sum())


def surgery(weight, moment, ratio, pattern, damping):
    """Walk over the inputs as the paper derives it, inverting the moment of the inputs that are left at each of them."""
    work, count = weight.clone(), weight.shape[-1]
    firm = moment + damping * moment.diagonal(dim1=-2, dim2=-1).mean() * torch.eye(count, dtype=torch.float64)
    inverses = [torch.linalg.inv(firm[0, j:, j:]) for j in range(count)]
    zero = torch.zeros(weight.shape[1:], dtype=torch.bool)
    for j in range(count):
        ahead = slice(j, j + pattern.of) if pattern else slice(0, count)
        if (pattern and j % pattern.of == 0) or (not pattern and j == 0):
            cost = torch.stack([work[0, :, i] ** 2 / inverses[i][0, 0] for i in range(count)[ahead]], 1)
            places = (cost if pattern else cost.flatten()).sort(stable=True).indices
            if pattern:
                zero[:, ahead] = zero[:, ahead].scatter(1, places[:, : pattern.of - pattern.keep], value=True)
            else:
                zero.view(-1)[places[: round(ratio * cost.numel())]] = True
        step = (work[0, :, j] * zero[:, j]) / inverses[j][0, 0]
        work[0, :, j:] -= step[:, None] * inverses[j][0][None]
        work[0, zero[:, j], j] = 0
    return work


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4), Pattern(1, 3)])
def test_sparsegpt_is_optimal_brain_surgery(pattern):
    weight, moment = problem()
    made = sparsegpt.solved(weight, moment, 0.5, pattern, 0.01)
    assert torch.allclose(made, surgery(weight, moment, 0.5, pattern, 0.01), atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(0.2, 0.6), two=st.booleans(), width=st.sampled_from([48, 200]))
def test_on_correlated_inputs_repair_beats_choice_and_choice_beats_size(seed, ratio, two, width):
    weight, moment = problem(seed=seed, groups=2, width=width)
    pattern = Pattern(2, 4) if two else None
    made = sparsegpt.solved(weight, moment, ratio, pattern, 0.01)
    fitted = refit.refitted(weight, made, moment, 0.01)
    power = moment.diagonal(dim1=-2, dim2=-1)
    plain = weight.masked_fill(magnitude.zeros(weight, ratio, pattern), 0)
    judged = weight.masked_fill(wanda.zeros(weight, power, ratio, pattern), 0)
    assert error(weight, made, moment) < 0.85 * min(error(weight, plain, moment), error(weight, judged, moment))
    assert error(weight, fitted, moment) < 0.5 * error(weight, made, moment)
    assert torch.equal(fitted == 0, made == 0)
    expected = round(0.5 * weight.numel()) if two else 2 * round(ratio * 12 * width)
    assert int((made == 0).sum()) == expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(0.1, 0.9))
def test_no_output_is_worse_for_being_refitted_and_the_fit_is_least_squares(seed, ratio):
    weight, moment = problem(rows=4, width=16, seed=seed)
    made = weight.masked_fill(magnitude.zeros(weight, ratio, None), 0)
    fitted = refit.refitted(weight, made, moment, 0.1)
    firm = moment + 0.1 * moment.diagonal(dim1=-2, dim2=-1).mean() * torch.eye(16, dtype=torch.float64)
    before, after = (refit.error(weight, item, firm) for item in (made, fitted))
    assert bool((after <= before * (1 + 1e-9)).all())
    for row, stays in enumerate(made[0] != 0):
        wanted = torch.zeros(16, dtype=torch.float64)
        wanted[stays] = torch.linalg.solve(firm[0][stays][:, stays], (firm[0] @ weight[0, row])[stays])
        best = refit.error(weight[:, row : row + 1], wanted[None, None], firm)
        assert float(after[0, row]) <= 1.1 * float(best) + 0.02 * float(before.sum())


def test_wanda_compares_the_weights_of_one_output():
    weight = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]]], dtype=torch.float64)
    power = torch.tensor([[100.0, 1.0, 1.0, 4.0]], dtype=torch.float64)
    marked = wanda.zeros(weight, power, 0.5, None)
    assert marked.tolist() == [[[False, True, True, False], [False, False, True, True]]]
    assert chosen(weight, 0.0, Pattern(1, 2)).tolist() == [[[True, False, True, False], [False, True, False, True]]]


def test_inputs_that_are_always_zero_are_no_obstacle():
    weight, moment = problem()
    moment[:, :5] = moment[:, :, :5] = 0
    for found in (moment, 0 * moment):
        made = sparsegpt.solved(weight, found, 0.5, None, 0.01)
        assert bool(made.isfinite().all())
        assert bool(refit.refitted(weight, made, found, 0.01).isfinite().all())
        assert int((made == 0).sum()) == weight.numel() // 2


def test_moments_are_summed_over_real_positions_alone():
    module = nets.encoder().eval()
    found = layers.find(module, (), (), None, seen=True).layers
    read = []
    module.layers[0].fc1.register_forward_pre_hook(lambda _layer, given: read.append(given[0].detach().double()))

    def gathered(mask, whole):
        rows = list(tokens(8, real=7).batches())
        read = moments.gather(module, found, Reading(lambda: rows, mask, "cpu"), whole=whole)
        return {name: moment[0] for name, moment in read.items()}

    counted = gathered("attention_mask", True)["layers.0.fc1.weight"]
    values = read[0][:, :7].reshape(-1, 32)
    assert torch.allclose(counted[0], values.T @ values, atol=1e-3)
    assert torch.allclose(gathered("attention_mask", False)["layers.0.fc1.weight"][0], counted[0].diagonal(), rtol=1e-5)
    assert float(gathered(None, True)["layers.0.fc1.weight"].diagonal(dim1=1, dim2=2).sum()) > 1.3 * float(
        counted[0].trace()
    )
    shares = list(moments.shares(found, 8 * 3 * 32**2))
    assert [layer for share in shares for layer in share] == list(found)
    assert [len(share) for share in shares[:2]] == [3, 2]
