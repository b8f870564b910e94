"""What quantization-aware training is made of: rounding, its gradients, ranges, and folded batch norms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import nn
from torch.nn import functional

import nets
from modelpack.numerics import grid, qat, rows, tracing
from modelpack.numerics.calling import call
from modelpack.numerics.fake_quantization import rounding
from modelpack.numerics.qat import folding, places, writing
from modelpack.tensors import TensorSpec
from onnx_support import graph_of, weights

torch.set_num_threads(1)

SCALES = st.floats(2.0**-20, 10, width=32)
SEEDS = st.integers(0, 2**31)


def drawn(seed, *shape, spread=3.0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape) * spread).float()


@settings(max_examples=60, deadline=None)
@given(SCALES, st.integers(0, 255), SEEDS)
def test_bytes_are_the_nearest_ones(scale, zero_point, seed):
    values = drawn(seed, 50, spread=200 * scale)
    got = rounding.FixedBytes(scale, zero_point)(values).double().numpy()
    steps = np.clip(values.double().numpy() / np.float32(scale), -zero_point, 255 - zero_point)
    assert np.abs(got / np.float32(scale) - steps).max() <= 0.5 + 1e-4
    np.testing.assert_allclose(got / np.float32(scale), np.rint(got / np.float32(scale)), atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 1), SCALES)
def test_rounded_weights_are_those_of_the_graph_and_tell_their_scales(seed, axis, spread):
    weights = drawn(seed, 7, 5, spread=spread)
    module = rounding.Channels(axis)
    rounded = module(weights)
    scales = grid.symmetric_scales(rounded.numpy(), axis)
    np.testing.assert_allclose(scales, module.scales(weights), rtol=3e-7)
    shape = (-1, 1) if axis == 0 else (1, -1)
    back = grid.to_int8(rounded.numpy(), scales, axis) * scales.astype(np.float64).reshape(shape)
    np.testing.assert_allclose(back, rounded, rtol=1e-6)
    np.testing.assert_allclose(module(rounded), rounded, rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(SCALES, st.integers(0, 255))
def test_the_inserter_finds_exactly_the_learned_grid(scale, zero_point):
    extent = writing._extent(grid.Grid(np.float32(scale), np.uint8(zero_point)))
    found = grid.asymmetric(extent.low, extent.high)
    assert (found.scale, int(found.zero_point)) == (np.float32(scale), zero_point)


def test_a_learned_scale_has_the_gradient_of_the_paper():
    values = torch.tensor([[-3.0, 0.4, 1.26, 2.5, 400.0]], requires_grad=True)
    module = rounding.LearnedBytes(torch.tensor(0.5), torch.tensor(2, dtype=torch.int32)).train()
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    torch.autograd.backward((module(values) * upstream).sum())
    # In steps of 0.5 around 2: -6 is clipped to -2, 0.8 → 1, 2.52 → 3, 5 → 5, 800 is clipped to 253.
    slopes = torch.tensor([-2.0, 1 - 0.8, 3 - 2.52, 0.0, 253.0])
    wanted = float((slopes * upstream).sum()) / np.sqrt(5 * 255) * 0.5  # the logarithm's slope is the scale's times it
    assert float(module.moved.grad) == pytest.approx(wanted * rounding.PACE, rel=1e-4)
    assert values.grad.tolist() == [[0.0, 2.0, 3.0, 4.0, 0.0]]


def test_learning_lowers_the_error_of_a_grid_that_is_too_wide():
    values = drawn(0, 64, 32)
    module = rounding.LearnedBytes(torch.tensor(1.0), torch.tensor(128, dtype=torch.int32)).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05 / rounding.PACE)

    def error():
        return functional.mse_loss(module(values), values)

    before = float(error().detach())
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(error())
        optimizer.step()
    assert float(error().detach()) < before / 10
    assert int(module.zero_point) == 128


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(-3, 3))
def test_learned_scales_of_weights_clip_but_never_exceed_the_largest(seed, shift):
    weights = drawn(seed, 6, 9)
    module = rounding.LearnedChannels(rounding.Channels(0).scales(weights), 0)
    with torch.no_grad():
        module.moved += shift / rounding.PACE
    for mode in (True, False):
        rounded = module.train(mode)(weights).detach()
        steps = (rounded / module.scales(weights).detach()[:, None]).abs().amax(1)
        torch.testing.assert_close(steps, torch.full((6,), 127.0), rtol=1e-5, atol=0)


def test_training_and_evaluation_round_alike():
    values, weights = drawn(1, 8, 40), drawn(2, 8, 40)
    module = rounding.LearnedBytes(torch.tensor(0.03), torch.tensor(100, dtype=torch.int32))
    torch.testing.assert_close(module.train()(values), module.eval()(values))
    channels = rounding.LearnedChannels(rounding.Channels(1).scales(weights) / 2, 1)
    torch.testing.assert_close(channels.train()(weights), channels.eval()(weights))


def test_observed_ranges_hold_all_batches_then_follow_until_they_are_frozen():
    module = rounding.ObservedBytes(100.0, pace=0.5)
    first, second = torch.tensor([-1.0, 0.5]), torch.tensor([0.0, 4.0])
    assert module(first) is first
    module(second)
    assert (float(module.low), float(module.high)) == (-1.0, 4.0)
    module.follow(steps=1)
    module.train()(torch.tensor([-3.0, 4.0]))
    assert (float(module.low), float(module.high)) == (-2.0, 4.0)
    module(torch.tensor([-9.0, 9.0]))
    module.eval()(torch.tensor([-9.0, 9.0]))
    assert (float(module.low), float(module.high)) == (-2.0, 4.0)
    scale, zero_point = module.grid()
    wanted = grid.asymmetric(-2.0, 4.0)
    assert (np.float32(scale), int(zero_point)) == (wanted.scale, int(wanted.zero_point))


def test_a_percentile_cuts_both_ends_evenly():
    module = rounding.ObservedBytes(90.0)
    module(torch.arange(-50.0, 50.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))])
    assert (float(module.low), float(module.high)) == (-45.0, 44.0)


class Special(nn.Conv2d):
    """A convolution whose type torch does not know."""


class Folding(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm1 = Special(3, 6, 3, groups=3), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)
        self.last, self.norm3 = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.alone = nn.BatchNorm1d(5)

    def forward(self, x):
        x = functional.relu(self.norm1(self.first(x)))
        x = self.norm2(self.second(x)).mean((2, 3))
        return self.alone(functional.relu(self.norm3(self.last(x))))


def test_batch_norms_fold_into_what_they_follow_and_nothing_changes():
    torch.manual_seed(0)
    module = Folding()
    for _ in range(3):
        module(torch.randn(8, 3, 9, 9) * 2 + 1)
    module.eval()
    for norm in (module.norm1, module.norm3):
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.normal_(norm.bias)
    inputs = {"x": TensorSpec(shape=("batch", 3, 9, 9))}
    feed = {name: torch.from_numpy(value) for name, value in rows.sample(inputs, 4, 1).items()}
    before = call(module, feed)["output"]
    example = tracing.traceable(rows.sample(inputs, 2, 0), inputs, 0)
    described = {"output": {"shape": ["batch", 5], "dtype": "float32"}}
    program = tracing.capture(module, example, inputs, described, 20).exported_program
    assert folding.fold(module, program) == ["norm1", "norm2", "norm3"]
    torch.testing.assert_close(call(module, feed)["output"], before, rtol=1e-4, atol=1e-5)
    folded = functional.relu(module.first(feed["x"]))
    assert torch.equal(functional.relu(module.norm1(module.first(feed["x"]))), folded)
    assert module.second.bias is not None
    assert module.alone.eps > 0


class Twice(nn.Module):
    """One layer before two batch norms, and one whose output is read beside its batch norm too."""

    def __init__(self):
        super().__init__()
        self.shared, self.norm1, self.norm2 = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.read, self.norm3 = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        y = self.read(self.norm1(self.shared(x)) + self.norm2(self.shared(x * 2)))
        return self.norm3(y) + y


def test_a_batch_norm_that_shares_its_layer_is_left_as_it_is():
    torch.manual_seed(0)
    inputs, described = {"x": TensorSpec(shape=("batch", 4))}, {"output": {"shape": ["batch", 4], "dtype": "float32"}}
    module = Twice().eval()
    example = tracing.traceable(rows.sample(inputs, 2, 0), inputs, 0)
    program = tracing.capture(module, example, inputs, described, 20).exported_program
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert folding.fold(module, program) == []
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.pad, self.first = nn.ZeroPad2d((0, 1, 0, 1)), Special(3, 6, 3, stride=2)
        self.second, self.last = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Linear(6, 2)

    def forward(self, x):
        x = functional.relu6(self.first(self.pad(x)))
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        return self.last(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


def test_layers_behind_padding_pooling_and_flattening_are_found():
    torch.manual_seed(0)
    inputs = {"x": TensorSpec(shape=("batch", 3, 8, 8))}
    described = {"output": {"shape": ["batch", 2], "dtype": "float32"}}
    made = qat.prepare(Padded().eval(), inputs, described, exclude=(), feed=rows.sample(inputs, 2, 0), seed=0)
    assert [layer.reason for layer in made.found.layers] == ["", "", ""]
    assert made.found.lost == ()
    found = made.found.places
    assert {path for _, path in found.layers} == set(found.weights) == {"first.weight", "second.weight", "last.weight"}
    assert len(found.activations["x"].readers) == 1


def test_a_layer_whose_rounded_value_torch_lacks_stays_float_whichever_activation_its_kernel_takes():
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["g"], "first"),
        helper.make_node("Relu", ["g"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w"], ["y"], "last"),
    ]
    graph = graph_of(nodes, {"x": (["batch", 4], 1)}, {"y": ["batch", 4]}, {"w": weights(4, 4)}).graph
    found = places._stranded(graph, ["first", "last"], {"r"})
    assert set(found) == {"first", "last"}
    assert found["first"] == "torch has no value like 'r', which would be rounded"
    # What goes to two readers is rounded before them.
    graph.node.append(helper.make_node("Sigmoid", ["g"], ["s"], "another"))
    assert set(places._stranded(graph, ["first"], {"r"})) == set()
    assert set(places._stranded(graph, ["first"], {"g"})) == {"first"}


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.offset = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5))
        self.square, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = functional.relu(functional.linear(x, self.kernel, self.offset))
        x = functional.relu(self.square(functional.relu(self.square(x))))
        return self.last(x)


def test_biases_end_on_the_grids_of_their_products_whatever_their_names():
    torch.manual_seed(0)
    module, inputs = Named().eval(), {"x": TensorSpec(shape=("batch", 4))}
    described = {"output": {"shape": ["batch", 2], "dtype": "float32"}}
    feed = rows.sample(inputs, 8, 0)
    made = qat.prepare(module, inputs, described, exclude=(), feed=feed, seed=0)
    assert set(made.found.biases) == {"offset", "last.bias"}
    # One bias, added to the products of two inputs, each with a grid of its own.
    assert len(made.found.adrift) == 2
    assert set(made.found.adrift) < {layer.name for layer in made.found.layers}
    device = torch.device("cpu")
    student = qat.learning(made, qat.observe(made, [feed], 100.0, device), None, device)
    before = module.square.bias.detach().clone()
    grids = qat.finish(made, student).grids
    assert torch.equal(module.square.bias, before)
    for bias, (value, path) in made.found.biases.items():
        products = module.get_parameter(path).detach().double().abs().amax(1) / 127 * grids[value].scale
        steps = module.get_parameter(bias).detach().double() / products
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-2)


def test_a_program_that_makes_numbers_of_its_own_makes_them_on_its_device():
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in nets.TOKENS.items()}
    outputs = {
        "logits": {"shape": ["batch", 5], "dtype": "float32"},
        "embedding": {"shape": ["batch", 32], "dtype": "float32"},
    }
    feed, module = rows.sample(inputs, 2, 0, {"sequence": 9}), nets.encoder(layers=1).eval()
    made = qat.prepare(module, inputs, outputs, exclude=(), feed=feed, seed=0)
    away = torch.device("meta")
    moved = tracing.on_device(made.exported.program, away).module()
    found = moved(*(torch.tensor(value, device=away) for value in feed.values()))
    assert {tensor.device for tensor in found} == {away}
