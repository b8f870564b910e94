import io
import json
import math
import statistics
import tracemalloc
import weakref
import zipfile

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper

from modelpack.errors import StageError
from modelpack.numerics import graph, rows
from modelpack.numerics.quantization.calibration import entropy, hidden, mse, percentile, record
from modelpack.numerics.quantization.calibration.histogram import (
    FINEST,
    SIDE,
    Tally,
    Workspace,
    exponent_for,
)
from modelpack.numerics.quantization.calibration.measure import measure
from modelpack.numerics.quantization.calibration.record import Calibration, Seen
from modelpack.numerics.quantization.calibration.reductions import ends
from modelpack.tensors import TensorSpec
from onnx_support import graph_of, weights

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
CPU = Workspace(torch.device("cpu"))
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
values = arrays.arrays(np.float32, st.integers(1, 300), elements=floats | st.floats(-8, 8, width=32) | st.just(0.0))


def histogram(data, positive=False):
    tally = Tally(CPU, positive=positive)
    assert tally.add(torch.from_numpy(np.asarray(data, np.float32)))
    return tally.result()


def same(one, two):
    return (
        one.exponent == two.exponent
        and (one.low, one.high) == (two.low, two.high)
        and np.array_equal(one.counts, two.counts)
    )


# Histograms


@given(values)
def test_counts_are_those_of_a_float64_reference(data):
    found = histogram(data)
    largest = float(np.abs(data.astype(np.float64)).max())
    exponent = FINEST
    while largest >= math.ldexp(SIDE + 1, exponent):
        exponent += 1
    assert found.exponent == exponent
    bins = np.trunc(data.astype(np.float64) / math.ldexp(1.0, exponent)).astype(int)
    assert np.array_equal(found.counts, np.bincount(bins + SIDE, minlength=2 * SIDE + 1))
    assert found.counts.dtype == np.int64
    assert (found.low, found.high) == (data.min(), data.max())


@given(values, st.data())
@settings(max_examples=60)
def test_counts_do_not_depend_on_order_or_on_how_values_are_cut(data, draw):
    shuffled = data[draw.draw(st.permutations(range(data.size)))]
    cuts = sorted(draw.draw(st.lists(st.integers(0, data.size), max_size=6)))
    tally = Tally(CPU)
    for part in np.split(shuffled, cuts):
        assert tally.add(torch.from_numpy(np.ascontiguousarray(part)))
    assert same(tally.result(), histogram(data))


def test_chunks_of_the_workspace_do_not_show():
    data = np.random.default_rng(0).standard_normal(3 * CPU.size + 17).astype(np.float32) ** 3
    small = Workspace(torch.device("cpu"))
    small.size = 1000
    tally = Tally(small)
    tally.add(torch.from_numpy(data.reshape(1, -1)))
    assert same(tally.result(), histogram(data))


@given(arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(0, 100, width=32)))
def test_a_promise_of_no_negative_values_changes_nothing_but_the_smallest(data):
    found, plain = histogram(data, positive=True), histogram(data)
    assert np.array_equal(found.counts, plain.counts)
    assert (found.low, found.high) == (0.0, plain.high)


def test_counts_go_on_where_float32_would_stop():
    tally, ones = Tally(CPU), torch.ones(2**20)
    for _ in range(17):
        tally.add(ones)
    tally.add(torch.ones(3))
    assert tally.result().counts.max() == 17 * 2**20 + 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_reported_and_not_counted(bad):
    tally = Tally(CPU)
    assert not tally.add(torch.tensor([1.0, bad, 2.0]))
    assert tally.result().total == 0
    assert Tally(CPU).add(torch.empty(0))


@pytest.mark.cuda
@given(values)
@settings(max_examples=30, deadline=None)
def test_counts_on_cuda_are_those_of_the_processor_bit_for_bit(data):
    device = torch.device("cuda:0")
    tally = Tally(Workspace(device))
    for part in np.array_split(data, 3):
        tally.add(torch.from_numpy(part).to(device))
    assert same(tally.result(), histogram(data))


@given(st.floats(0, 1e38))
def test_the_narrowest_bins_that_reach_are_chosen(magnitude):
    width = math.ldexp(1.0, exponent_for(magnitude))
    assert magnitude < (SIDE + 1) * width
    assert exponent_for(magnitude) == FINEST or magnitude >= (SIDE + 1) * width / 2


# Ranges

DRAWS = {
    "normal": lambda g: g.standard_normal(40_000),
    "relu6": lambda g: np.clip(3 * g.standard_normal(40_000) + 1, 0, 6),
    "sparse": lambda g: np.where(g.random(40_000) < 0.8, 0.0, np.abs(g.standard_normal(40_000))),
    "long": lambda g: np.concatenate([g.standard_normal(40_000), 60 + g.standard_normal(4)]),
    "gelu": lambda g: np.where((x := 2 * g.standard_normal(40_000)) > 0, x, -0.17 * g.random(40_000)),
    "below": lambda g: -np.abs(g.standard_normal(20_000)) - 1,
}


@pytest.fixture(params=DRAWS)
def drawn(request):
    return request.param, DRAWS[request.param](np.random.default_rng(3)).astype(np.float32)


@pytest.mark.parametrize("share", [99.0, 99.9, 100.0])
def test_percentiles_are_those_of_the_values_to_a_bins_width(drawn, share):
    data = np.sort(drawn[1].astype(np.float64))
    found = histogram(data)
    low, high = percentile.between(found, share)
    cut = data.size * (1 - share / 100) / 2
    assert low == pytest.approx(data[math.floor(cut)], abs=1.01 * found.width)
    assert high == pytest.approx(data[math.ceil(data.size - cut) - 1], abs=1.01 * found.width)
    assert found.low <= low <= high <= found.high


def rounded(data, low, high):
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return (np.clip(np.rint(data / step) + zero, 0, 255) - zero) * step


def squared(data, low, high):
    return float(((rounded(data, low, high) - data) ** 2).mean())


def test_no_other_range_loses_much_less_than_the_one_of_least_squares(drawn):
    data = drawn[1].astype(np.float64)
    got = squared(data, *mse.least(histogram(data)))
    tried = [
        squared(data, low, high)
        for low in np.linspace(min(data.min(), 0), 0, 24, endpoint=data.min() >= 0)
        for high in np.linspace(max(data.max(), 0), 0, 24, endpoint=data.max() <= 0)
        if high > low
    ]
    assert got <= 1.05 * min(tried)
    assert got <= 1.02 * squared(data, data.min(), data.max())


def test_least_squares_clips_where_steps_are_few_but_never_a_spike():
    for name, steps, whole in (("relu6", 255, True), ("relu6", 15, True), ("normal", 15, False)):
        data = DRAWS[name](np.random.default_rng(0))
        high = mse.least(histogram(data), steps)[1]
        assert (high > 0.97 * data.max()) == whole, (name, steps)


def reference_spikes(counts):
    """Bin by bin; beyond the histogram there is nothing."""
    padded = [0] * 16 + counts.tolist() + [0] * 16
    medians = [statistics.median(padded[place : place + 33]) for place in range(counts.size)]
    return {place - SIDE for place, one in enumerate(medians) if counts[place] > 4 * max(one, 1)}


def reference_divergence(counts, first, last, levels):
    """Definition by definition, one bin after the other."""
    places, kept = range(-SIDE, SIDE + 1), {first, 0, last} | reference_spikes(counts)
    inside = [place for place in places if first <= place <= last]
    wanted = {place: float(counts[place + SIDE]) for place in inside}
    wanted[first] += float(sum(counts[place + SIDE] for place in places if place < first))
    wanted[last] += float(sum(counts[place + SIDE] for place in places if place > last))
    got = {}
    for level in range(levels):
        members = [place for place in inside if (place - first) * levels // len(inside) == level]
        shared = [place for place in members if place not in kept and counts[place + SIDE]]
        got |= {place: float(counts[place + SIDE]) for place in members}
        got |= dict.fromkeys(shared, sum(float(counts[place + SIDE]) for place in shared) / max(len(shared), 1))
    total, left, sum_ = sum(wanted.values()), sum(got.values()), 0.0
    for place in inside:
        if wanted[place]:
            if not got[place]:
                return math.inf
            sum_ += wanted[place] / total * math.log(wanted[place] / total / (got[place] / left))
    return sum_


@given(
    arrays.arrays(np.float32, st.integers(2, 200), elements=st.floats(-4, 4, width=32)),
    st.integers(0, SIDE),
    st.integers(0, SIDE),
    st.sampled_from([4, 16, 256]),
)
@settings(max_examples=25, deadline=None)
def test_the_divergence_is_that_of_its_definition(data, below, above, levels):
    counts = histogram(data).counts
    inside = counts[SIDE - below : SIDE + above + 1]
    if not inside.sum():
        return
    expected = reference_divergence(counts, -below, above, levels)
    found = entropy.divergence(counts, entropy.spikes(counts), -below, above, levels)
    assert found == pytest.approx(expected, abs=1e-9)


def test_entropy_cuts_no_spike_off_and_clips_a_long_tail():
    generator = np.random.default_rng(0)
    for name, least in (("relu6", 5.9), ("sparse", 2.5), ("normal", 2.5)):
        assert entropy.nearest(histogram(DRAWS[name](generator)))[1] > least, name
    assert entropy.nearest(histogram(DRAWS["long"](generator)))[1] < 30


@pytest.mark.parametrize(("share", "last"), [(0.2, None), (0.7, None), (0.7, 6.0)])
def test_entropy_is_not_misled_by_what_channels_make_of_a_plain_background(share, last):
    """Equal values, wherever they lie, are no reason to clip others."""
    generator = np.random.default_rng(5)
    data = generator.laplace(0, 1.5, 200_000)
    plain = entropy.nearest(histogram(data))
    background = generator.choice(generator.uniform(-3, 3, 16), 200_000)
    data = np.where(generator.random(data.size) < share, background, data)
    if last is not None:
        data = np.clip(data, 0, last)
    low, high = entropy.nearest(histogram(data))
    assert (data > high).mean() + (data < low).mean() < 1e-3
    assert high == 6.0 if last is not None else high > 0.75 * plain[1]
    assert low == 0.0 if last is not None else low < 0.75 * plain[0]


@pytest.mark.parametrize("sign", [1, -1])
def test_entropy_keeps_values_none_of_which_is_near_zero(sign):
    data = sign * np.random.default_rng(3).uniform(0.26, 1.5, 2000)
    low, high = entropy.nearest(histogram(data))
    assert ((data > high) | (data < low)).mean() < 0.05


def test_equal_values_are_spikes_and_chance_makes_hardly_any():
    data = np.random.default_rng(2).standard_normal(100_000)
    found = histogram(data)
    assert found.counts[entropy.spikes(found.counts)].sum() < 1e-3 * data.size
    found = histogram(np.concatenate([data, np.full(1000, 1.25), np.full(1000, -2.5)]))
    bins = {math.trunc(value / found.width) + SIDE for value in (1.25, -2.5)}
    assert bins == set(np.flatnonzero(entropy.spikes(found.counts) & (found.counts > 1000)))


@given(values)
@settings(max_examples=40, deadline=None)
def test_every_rule_gives_a_range_inside_the_values(data):
    found = histogram(data)
    kept = Calibration("m", 1, {"t": Seen(found.low, found.high, found)})
    for rule in ("minmax", "percentile", "entropy", "mse"):
        got = kept.extents(["t"], rule, 99.9)["t"]
        assert min(found.low, 0) <= got.low <= got.high <= max(found.high, 0), rule


# Measuring


def specs(proto):
    return {name: TensorSpec.model_validate(spec) for name, spec in graph.signature(proto)["inputs"].items()}


def measured(proto, names, feeds, **more):
    return measure(proto, names, feeds, specs(proto), **more).tensors


@pytest.fixture
def chain():
    return graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["hidden"], name="first"),
            helper.make_node("Relu", ["hidden"], ["bent"], name="relu"),
            helper.make_node("MatMul", ["bent", "v"], ["y"], name="second"),
        ],
        {"x": (["batch", 6], FLOAT)},
        {"y": ["batch", 4]},
        {"w": weights(6, 32), "v": weights(32, 4, seed=1)},
    )


@pytest.fixture
def image():
    return graph_of(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[3, 3]),
            helper.make_node("Clip", ["c", "zero", "six"], ["r"], name="clip"),
            helper.make_node("Conv", ["r", "v"], ["d"], name="second", kernel_shape=[1, 1]),
            helper.make_node("Add", ["d", "d"], ["s"], name="sum"),
            helper.make_node("MaxPool", ["s"], ["y"], name="pool", kernel_shape=[2, 2]),
        ],
        {"x": (["batch", 3, 8, 8], FLOAT)},
        {"y": ["batch", 4, 5, 5]},
        {
            "w": weights(8, 3, 3, 3), "v": weights(4, 8, 1, 1, seed=1),
            "zero": np.float32(0), "six": np.float32(6),
        },
    )  # fmt: skip


@pytest.mark.parametrize("histograms", [False, True])
def test_extremes_are_those_of_a_float64_reference(chain, histograms):
    x = weights(50, 6, seed=3)
    hidden = x.astype(np.float64) @ weights(6, 32)
    found = measured(chain, ["x", "hidden", "bent"], [{"x": x[:8]}, {"x": x[8:]}], histograms=histograms)
    assert (found["x"].low, found["x"].high) == (x.min(), x.max())
    assert found["hidden"].low == pytest.approx(hidden.min(), rel=1e-5)
    assert found["hidden"].high == pytest.approx(hidden.max(), rel=1e-5)
    assert (found["bent"].low, found["bent"].high) == (0.0, found["hidden"].high)
    assert not histograms or found["hidden"].histogram.total == 50 * 32


def test_both_ways_of_measuring_see_the_same_in_images(image):
    feeds = [{"x": weights(5, 3, 8, 8, seed=seed)} for seed in range(3)]
    names = ["x", "c", "r", "d", "s", "y"]
    one, two = (measured(image, names, feeds, histograms=flag) for flag in (False, True))
    for name in names:
        assert one[name].high == pytest.approx(two[name].high, rel=1e-6), name
        assert one[name].low == pytest.approx(two[name].low, rel=1e-6), name


@pytest.mark.parametrize("budget", [1, 4000])
def test_a_small_budget_changes_nothing(chain, budget):
    feeds = [{"x": weights(40, 6, seed=seed)} for seed in range(2)]
    whole, cut = (measured(chain, ["x", "bent"], feeds, budget=size) for size in (2**28, budget))
    for name in whole:
        assert whole[name].histogram.total == cut[name].histogram.total
        assert whole[name].high == pytest.approx(cut[name].high, rel=1e-6)
    assert same(whole["x"].histogram, cut["x"].histogram)


def test_memory_does_not_grow_with_the_rows(chain):
    def peak(batches):
        tracemalloc.start()
        measured(chain, ["hidden"], ({"x": weights(2000, 6, seed=number)} for number in range(batches)))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(2)
    assert peak(40) < 1.5 * peak(4)


@pytest.mark.parametrize("histograms", [False, True])
def test_no_batch_is_held_after_the_next_was_looked_at(chain, histograms):
    given, alive = [], []

    def feeds():
        for number in range(5):
            alive.append(sum(one() is not None for one in given))
            x = weights(3, 6, seed=number)
            given.append(weakref.ref(x))
            yield {"x": x}
            del x

    measured(chain, ["hidden"], feeds(), histograms=histograms)
    assert alive == [0, 1, 1, 1, 1]


def test_no_rows_are_no_calibration(chain):
    with pytest.raises(StageError, match="no rows"):
        measured(chain, ["x"], [])


@pytest.mark.cuda
def test_cuda_measures_what_the_processor_does(image):
    feeds = [{"x": weights(5, 3, 8, 8, seed=seed)} for seed in range(3)]
    one, two = (measured(image, ["x", "r", "d"], feeds, device=device) for device in ("cpu", "cuda:0"))
    assert same(one["x"].histogram, two["x"].histogram)
    for name in one:
        assert one[name].high == pytest.approx(two[name].high, rel=1e-3)
        assert one[name].histogram.total == two[name].histogram.total


# What is not finite


@pytest.mark.parametrize("histograms", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_data_that_are_not_finite_are_blamed_by_column(chain, histograms, bad):
    x = weights(4, 6)
    x[2, 3] = bad
    with pytest.raises(StageError, match="calibration data hold NaN or infinity in 'x'"):
        measured(chain, ["x", "hidden"], [{"x": x}], histograms=histograms)


def faulty(first):
    """Two tapped layers behind an operator that fails where x is negative."""
    return graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="sound"),
            helper.make_node(first, ["a"], ["b"], name="culprit"),
            helper.make_node("Add", ["b", "b"], ["c"], name="passes_on"),
            helper.make_node("MatMul", ["c", "w"], ["y"], name="last"),
        ],
        {"x": (["batch", 8], FLOAT)},
        {"y": ["batch", 8]},
        {"w": np.eye(8, dtype=np.float32)},
    )


@pytest.mark.parametrize("histograms", [False, True])
@pytest.mark.parametrize("operator", ["Sqrt", "Log", "Reciprocal"])
def test_the_layer_is_named_that_makes_the_first_bad_value(histograms, operator):
    x = np.abs(weights(6, 8)) + 1
    x[4, 5] = 0.0 if operator == "Reciprocal" else -1.0
    with pytest.raises(StageError, match="makes NaN or infinity of finite values") as caught:
        measured(faulty(operator), ["a", "c"], [{"x": x[:2]}, {"x": x[2:]}], histograms=histograms)
    assert caught.value.where == "culprit"


def test_bad_weights_are_named(chain):
    bad = weights(32, 4, seed=1)
    bad[3, 1] = np.nan
    chain.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(bad, "v"))
    with pytest.raises(StageError, match="weights 'v' hold NaN") as caught:
        measured(chain, ["y"], [{"x": weights(4, 6)}], histograms=False)
    assert caught.value.where == "second"


def test_nan_that_a_pooling_swallows_is_still_seen():
    proto = graph_of(
        [
            helper.make_node("Sqrt", ["x"], ["r"], name="root"),
            helper.make_node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[8, 8]),
            helper.make_node("Relu", ["p"], ["y"], name="relu"),
        ],
        {"x": (["batch", 2, 8, 8], FLOAT)},
        {"y": ["batch", 2, 1, 1]},
        {},
    )
    x = np.ones((2, 2, 8, 8), np.float32)
    x[1, 1, 3, 4] = -1
    assert ends(proto, ["r"]) == ["y", "r"]
    with pytest.raises(StageError) as caught:
        measured(proto, ["r"], [{"x": x}], histograms=False)
    assert caught.value.where == "root"


def test_one_sum_at_the_end_watches_over_layers_that_hand_nan_on(image, chain):
    assert ends(chain, ["x", "hidden", "bent"]) == ["y"]
    assert ends(image, ["x", "r", "s"]) == ["y", "s"]


# Padded positions


@pytest.fixture
def text():
    """Embeds words; then a product by word, one over rows that are no longer apart, and one by text."""
    return graph_of(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"], name="words"),
            helper.make_node("MatMul", ["e", "w"], ["h"], name="product"),
            helper.make_node("Reshape", ["h", "flat"], ["f"], name="flatten"),
            helper.make_node("Gemm", ["f", "w"], ["g"], name="gemm"),
            helper.make_node("ReduceMax", ["h"], ["m"], name="pool", axes=[1], keepdims=0),
            helper.make_node("MatMul", ["m", "w"], ["y"], name="head"),
        ],
        {"ids": (["batch", "time"], INT64), "attention_mask": (["batch", "time"], INT64)},
        {"y": ["batch", 4], "g": ["rows", 4]},
        {"table": weights(30, 4) * np.arange(30)[:, None].astype(np.float32), "w": weights(4, 4, seed=1),
         "flat": np.array([-1, 4])},
    )  # fmt: skip


def padded_texts():
    """Texts of 4 and 6 words; word 29, the largest, pads."""
    ids = np.full((2, 6), 29)
    ids[0, :4], ids[1] = [1, 2, 3, 4], [5, 6, 7, 8, 9, 1]
    return {"ids": ids, "attention_mask": (ids != 29).astype(np.int64)}


@pytest.mark.parametrize("histograms", [False, True])
def test_padded_positions_do_not_count(text, histograms):
    padded = padded_texts()
    alone = [
        {name: value[row : row + 1, :length] for name, value in padded.items()} for row, length in ((0, 4), (1, 6))
    ]
    names, flag = ["e", "h", "f", "g"], {"histograms": histograms}
    wanted = measured(text, names, alone, mask=None, **flag)
    found = measured(text, names, [padded], mask="attention_mask", **flag)
    careless = measured(text, names, [padded], mask=None, **flag)
    for name in names:
        assert found[name].high == pytest.approx(max(wanted[name].high, 0.0), rel=1e-5), name
        assert found[name].low == pytest.approx(min(wanted[name].low, 0.0), rel=1e-5), name
        if histograms:
            assert found[name].histogram.total == wanted[name].histogram.total == 40
    assert careless["e"].high > found["e"].high


def test_tensors_of_other_axes_are_left_whole(text):
    inputs = specs(text)
    found = hidden.aligned(text, ["e", "h", "f", "m", "y"], "attention_mask", inputs, padded_texts())
    assert found == {"e": (2, 3), "h": (2, 3), "f": (1, 2)}


def test_a_mask_of_other_numbers_is_refused(text):
    feed = padded_texts()
    feed["attention_mask"][0, 0] = 3
    with pytest.raises(StageError, match="values other than 0 and 1"):
        measured(text, ["e"], [feed], mask="attention_mask")


@pytest.mark.parametrize("histograms", [False, True])
def test_a_mask_that_leaves_nothing_is_refused(text, histograms):
    feed = padded_texts()
    other = feed | {"attention_mask": np.zeros_like(feed["attention_mask"])}
    with pytest.raises(StageError, match="'attention_mask' is 0 at every position of all rows") as caught:
        measured(text, ["e"], [other], mask="attention_mask", histograms=histograms)
    assert "say `mask: none`" in caught.value.then
    found = measured(text, ["e"], [other, feed], mask="attention_mask", histograms=histograms)["e"]
    alone = measured(text, ["e"], [feed], mask="attention_mask", histograms=histograms)["e"]
    assert (found.low, found.high) == (alone.low, alone.high)


# Numbers that hide positions


def scores(number, how):
    """Scores of attention with some positions hidden by a number."""
    deep, nodes = np.array(number, np.float32), []
    if how == "where":
        nodes = [helper.make_node("Where", ["keep", "x", "deep"], ["s"], name="choose")]
    elif how == "chosen, then added":
        nodes = [
            helper.make_node("Where", ["keep", "zero", "deep"], ["m"], name="choose"),
            helper.make_node("Unsqueeze", ["m", "axis"], ["u"], name="spread"),
            helper.make_node("Squeeze", ["u", "axis"], ["v"], name="gather"),
            helper.make_node("Add", ["x", "v"], ["s"], name="add"),
        ]
    else:
        nodes = [
            helper.make_node("Cast", ["keep"], ["k"], name="cast", to=FLOAT),
            helper.make_node("Sub", ["one", "k"], ["i"], name="invert"),
            helper.make_node("Mul", ["i", "deep"], ["m"], name="scale"),
            helper.make_node("Add", ["x", "m"], ["s"], name="add"),
        ]
    nodes += [helper.make_node("Softmax", ["s"], ["p"], name="softmax"), helper.make_node("Identity", ["p"], ["y"])]
    fixed = {"deep": deep, "zero": np.float32(0), "one": np.float32(1), "axis": np.array([0])}
    used = {name for node in nodes for name in node.input}
    return graph_of(
        nodes,
        {"x": (["batch", 5], FLOAT), "keep": (["batch", 5], TensorProto.BOOL)},
        {"y": ["batch", 5]},
        {name: value for name, value in fixed.items() if name in used},
    )


@pytest.mark.parametrize("histograms", [False, True])
@pytest.mark.parametrize(
    ("number", "how"),
    [
        (number, how)
        for how in ("where", "chosen, then added", "multiplied")
        for number in (-np.inf, float(np.finfo(np.float32).min), -1e4, -65504.0)
        if not (how == "multiplied" and number == -np.inf)  # 0 * inf is no number at all
    ],
)
def test_numbers_that_hide_positions_stretch_no_range(histograms, number, how):
    x = weights(8, 5, seed=1) * 20
    keep = np.random.default_rng(0).random((8, 5)) < 0.7
    keep[:, 0] = True
    found = measured(scores(number, how), ["s", "p"], [{"x": x, "keep": keep}], histograms=histograms)
    assert found["s"].left_out == (~keep).sum()
    assert found["s"].high == pytest.approx(x[keep].max(), rel=1e-6)
    assert found["s"].low == pytest.approx(x[keep].min(), rel=1e-6)
    assert found["p"].left_out == 0
    assert 0 < found["p"].high <= 1


@pytest.mark.parametrize("histograms", [False, True])
def test_a_tensor_of_nothing_but_hidden_positions_has_a_range_of_zero(histograms, tmp_path):
    feed = {"x": np.ones((2, 5), np.float32), "keep": np.zeros((2, 5), bool)}
    found = measured(scores(-1e4, "where"), ["s"], [feed], histograms=histograms)
    assert (found["s"].low, found["s"].high, found["s"].left_out) == (0.0, 0.0, 10)
    record.write(Calibration("m", 2, found), tmp_path)
    assert record.read(tmp_path / record.FACTS, tmp_path / record.ARRAYS).tensors["s"].high == 0.0


@pytest.mark.parametrize(
    ("operator", "more"), [("Trilu", []), ("Clip", []), ("Max", ["x"]), ("Min", ["x"]), ("Unsqueeze", ["axis"])]
)
def test_what_hides_positions_is_followed(operator, more):
    proto = graph_of(
        [
            helper.make_node("Where", ["keep", "x", "deep"], ["s"], name="where"),
            helper.make_node(operator, ["s", *more], ["y"], name="after"),
        ],
        {"x": (["batch", 5], FLOAT), "keep": (["batch", 5], TensorProto.BOOL)},
        {"y": None},
        {"deep": np.float32(-1e4), "axis": np.array([0])},
    )
    assert hidden.floors(proto) == {"s": -5000.0, "y": -5000.0}
    assert hidden.constants(proto) == {"deep"}


def test_ordinary_large_constants_hide_nothing(chain):
    proto = graph_of(
        [helper.make_node("Add", ["x", "bias"], ["y"], name="add")],
        {"x": (["batch", 4], FLOAT)},
        {"y": ["batch", 4]},
        {"bias": np.array([-20000.0, 3.0, 0.0, 7.0], np.float32)},
    )
    assert hidden.floors(proto) == {}
    assert measured(proto, ["y"], [{"x": weights(3, 4)}])["y"].low < -19_000


# Files


@pytest.fixture
def kept(chain):
    found = measure(chain, ["x", "bent"], [{"x": weights(20, 6)}], specs(chain))
    return Calibration("id", found.rows, found.tensors, "mask", smooth=0.5, factors={"first": np.ones(6, np.float32)})


def test_what_is_written_is_read_again_and_equal_bytes_come_of_equal_findings(kept, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        record.write(kept, tmp_path / name)
    for file in (record.FACTS, record.ARRAYS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    back = record.read(tmp_path / "one" / record.FACTS, tmp_path / "one" / record.ARRAYS)
    assert (back.model, back.rows, back.mask, back.smooth, back.counted) == ("id", 20, "mask", 0.5, True)
    assert np.array_equal(back.factors["first"], np.ones(6))
    for name, seen in kept.tensors.items():
        assert same(back.tensors[name].histogram, seen.histogram)
        assert (back.tensors[name].low, back.tensors[name].high) == (seen.low, seen.high)


def spoiled(place, kept, change):
    record.write(kept, place)
    change(place)
    return record.read(place / record.FACTS, place / record.ARRAYS)


def _pickle(place):
    held = io.BytesIO()
    np.savez(held, **{"counts/0": np.array([{}], object), "counts/1": np.array([1])})
    (place / record.ARRAYS).write_bytes(held.getvalue())


def _edit(change):
    def edit(place):
        facts = json.loads((place / record.FACTS).read_text())
        change(facts)
        (place / record.FACTS).write_text(json.dumps(facts))

    return edit


def _arrays(change):
    def edit(place):
        with np.load(place / record.ARRAYS) as held:
            arrays = {name: held[name] for name in held.files}
        change(arrays)
        (place / record.ARRAYS).write_bytes(record.packed(arrays))

    return edit


def _part(body):
    """Put some bytes in the place of an array."""

    def edit(place):
        with zipfile.ZipFile(place / record.ARRAYS, "w") as archive:
            archive.writestr("counts/0.npy", body)

    return edit


def _flip(offset):
    """Change a byte of the archive's first entry."""

    def edit(place):
        body = bytearray((place / record.ARRAYS).read_bytes())
        body[body.index(b"PK\x01\x02") + offset] ^= 32
        (place / record.ARRAYS).write_bytes(bytes(body))

    return edit


HUGE = b"{'descr': '<i8', 'fortran_order': False, 'shape': (999999999999,), }"

DAMAGE = {
    "no JSON": lambda place: (place / record.FACTS).write_bytes(b"{"),
    "another schema": _edit(lambda facts: facts.update(schema=9)),
    "a key is missing": _edit(lambda facts: facts.pop("rows")),
    "bins outside": _edit(lambda facts: facts["tensors"][0].update(first=5000)),
    "no JSON that Python can nest": lambda place: (place / record.FACTS).write_bytes(b"[" * 100_000),
    "endless rows": _edit(lambda facts: facts.update(rows=float("inf"))),
    "no number": _edit(lambda facts: facts["tensors"][0].update(min=float("nan"))),
    "a range upside down": _edit(lambda facts: facts["tensors"][0].update(min=9e9)),
    "another exponent": _edit(lambda facts: facts["tensors"][0].update(exponent=10**9)),
    "factors of nothing": _arrays(lambda arrays: arrays.update({"factors/x": np.zeros(3, np.float32)})),
    "factors in doubles": _arrays(lambda arrays: arrays.update({"factors/x": np.ones(3)})),
    "no array": _part(b"text"),
    "an array beyond all memory": _part(b"\x93NUMPY\x01\x00v\x00" + HUGE.ljust(117) + b"\n"),
    "a compression that nobody knows": _flip(10),
    "patched data": _flip(8),
    "no archive": lambda place: (place / record.ARRAYS).write_bytes(b"PK"),
    "cut off": lambda place: (place / record.ARRAYS).write_bytes((place / record.ARRAYS).read_bytes()[:300]),
    "code": _pickle,
    "gone": lambda place: (place / record.ARRAYS).unlink(),
    "empty": lambda place: zipfile.ZipFile(place / record.ARRAYS, "w").close(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(kept, tmp_path, damage):
    with pytest.raises(StageError, match="the calibration cannot be read"):
        spoiled(tmp_path, kept, DAMAGE[damage])


def test_what_was_not_measured_cannot_be_asked_for(kept):
    with pytest.raises(StageError, match=r"no ranges of 1 tensors, such as 'hidden'"):
        kept.extents(["x", "hidden"], "minmax")
    bare = Calibration("id", 1, {"x": Seen(0.0, 1.0)})
    assert not bare.counted
    with pytest.raises(StageError, match="needs histograms"):
        bare.extents(["x"], "mse")


# Rows in pieces


def test_pieces_are_all_rows_in_order():
    inputs = {"a": TensorSpec(shape=("n", 2)), "b": TensorSpec(shape=(3, "n"))}
    feed = {"a": weights(7, 2), "b": weights(3, 7)}
    parts = list(rows.pieces(feed, inputs, 3))
    assert [rows.count(part, inputs) for part in parts] == [3, 3, 1]
    assert np.array_equal(np.concatenate([part["a"] for part in parts]), feed["a"])
    assert np.array_equal(np.concatenate([part["b"] for part in parts], 1), feed["b"])
    assert list(rows.pieces(feed, {"a": TensorSpec(shape=(7, 2)), "b": TensorSpec(shape=(3, 7))}, 1)) == [feed]
