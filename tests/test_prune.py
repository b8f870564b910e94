"""Pruning: the target is met, shapes stay coherent, what is removed is what was meant, and a reload is exact."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

import nets
from modelpack import engine, recipe
from modelpack.errors import BudgetError, StageError
from modelpack.numerics import macs, models, pruning
from modelpack.numerics.calling import call
from modelpack.numerics.randomness import seeded
from modelpack.numerics.training.batches import Rows as DataRows
from modelpack.stages.model import model
from modelpack.stages.prune import PruneConfig, prune
from modelpack.store import Store
from modelpack.tensors import TensorSpec
from support import Rows, run_stage
from test_models import HERE, feed_for, imported, outputs, same

torch.set_num_threads(1)


def pruned_to(share, module, feed, *, method="l2", scope="global", evidence=None, **settings):
    """Keep a share of a module's multiply-accumulates."""
    worth = pruning.Worth(method, scope, evidence)
    return pruning.prune(module, feed, pruning.targets.of_macs(share), worth, **settings)


def images(count=64, seed=0, labels=True):
    generator = np.random.default_rng(seed)
    columns = {"image": generator.standard_normal((count, 1, 16, 16)).astype(np.float32)}
    if labels:
        columns["label"] = generator.integers(0, 10, count)
    return Rows(columns)


def tokens(count=32, labels=True):
    generator = np.random.default_rng(0)
    columns = {
        "input_ids": generator.integers(0, 50, (count, 12)),
        "attention_mask": np.ones((count, 12), np.int64),
    }
    if labels:
        columns["label"] = generator.integers(0, 5, count)
    return Rows(columns, 8)


@pytest.mark.parametrize("importance", ["l2", "bn_scale", "taylor"])
@pytest.mark.parametrize("target", [0.8, 0.4])
def test_a_cnn_keeps_the_fraction_asked_for_and_reloads_exactly(tmp_path, importance, target):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    wanted = {"macs": target, "importance": importance}
    data = {"data": {"train": images()}} if importance == "taylor" else {}
    wanted |= {"data": "train"} if data else {}
    one = run_stage(tmp_path / "1", prune, wanted, model=source, **data)
    two = run_stage(tmp_path / "2", prune, wanted, model=source, **data)
    assert one.id == two.id
    before, after = models.load(source), models.load(one)
    feed = feed_for(source, 1)
    measured = macs.count(after, feed) / macs.count(before, feed)
    assert measured == pytest.approx(target, rel=0.02)
    assert one.metrics["macs"] == pytest.approx(measured, rel=0.01)
    assert models.parameter_count(after) == one.metrics["parameters"] < models.parameter_count(before)
    assert one.model_bytes < source.model_bytes
    assert outputs(after, feed)["output"].shape == (1, 10)
    for row in one.manifest.record["results"]["layers"]:
        layer = after.get_submodule(row["layer"])
        width = "features" if isinstance(layer, nn.Linear) else "channels"
        assert [getattr(layer, f"in_{width}"), getattr(layer, f"out_{width}")] == row["after"]


def test_an_encoder_loses_hidden_units_and_whole_heads(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    pruned = run_stage(tmp_path, prune, {"macs": 0.45}, model=source)
    module = models.load(pruned)
    for layer in module.layers:
        attention = layer.attention
        assert attention.query.out_features == attention.num_heads * attention.head_size
        assert attention.head_size == 8  # heads go as a whole, those that stay keep their size
    assert sum(layer.attention.num_heads for layer in module.layers) < 8
    assert sum(layer.fc1.out_features for layer in module.layers) < 128
    feed = feed_for(pruned, 2)
    assert outputs(module, feed)["embedding"].shape == (2, 32)
    longer = {name: value.repeat(1, 2) for name, value in feed.items()}
    assert outputs(module, longer)["logits"].shape == (2, 5)


def test_pruning_equals_ignoring_what_was_pruned(tmp_path):
    """Weights whose readers are zero are the first to go by Taylor importance, and losing them changes nothing."""
    source = imported(tmp_path, "encoder", nets.TOKENS)
    module = models.load(source)
    dead_units, dead_heads = range(0, 64, 2), (1, 2)
    with torch.no_grad():
        for layer in module.layers:
            layer.fc2.weight[:, list(dead_units)] = 0
            for head in dead_heads:
                layer.attention.out.weight[:, head * 8 : head * 8 + 8] = 0
    feed = feed_for(source, 4)
    evidence, _ = pruning.evidence.gather(rows_of(tokens(), nets.TOKENS), 32, "cpu", 0)
    whole = macs.count(module, feed)
    ideal = whole - 2 * 4 * 16 * (2 * 32 * 32 + 4 * 32 * 16 + 2 * 16 * 16)
    kept = pruned_to(ideal / whole, module, feed, method="taylor", evidence=evidence)
    assert kept.fraction == pytest.approx(ideal / whole, rel=1e-6)
    wanted, found = outputs(module, feed), outputs(kept.module, feed)
    assert torch.allclose(wanted["logits"], found["logits"], atol=1e-5)


def test_taylor_judges_frozen_weights_like_the_others():
    """Fine-tuning often freezes a backbone; weights without gradients must not look worthless."""
    kept = []
    for frozen in (False, True):
        with seeded(0):
            module = nets.cnn().requires_grad_(not frozen).eval()
            feed = {"image": torch.rand(4, 1, 16, 16)}

        def loss(net, batch):
            return next(iter(call(net, batch).values())).square().sum()

        evidence = pruning.Evidence([feed], loss)
        kept.append(pruned_to(0.6, module, feed, method="taylor", evidence=evidence).layers)
        assert all(parameter.requires_grad is not frozen for parameter in module.parameters())
    assert kept[0] == kept[1]


def rows_of(source, inputs, target="label"):
    from modelpack.numerics.training import Rows as Picked
    from modelpack.tensors import TensorSpec

    return Picked(source.batches, {k: TensorSpec.model_validate(v) for k, v in inputs.items()}, target)


def test_grouped_and_transposed_convolutions_shrink_together(tmp_path):
    source = imported(tmp_path, "grouped", nets.PICTURE)
    pruned = run_stage(tmp_path, prune, {"macs": 0.5}, model=source)
    module = models.load(pruned)
    assert module.grouped.groups == 4
    assert module.grouped.in_channels % 4 == module.grouped.out_channels % 4 == 0
    assert module.norm.num_channels == module.grouped.out_channels
    assert module.up.out_channels == module.mask.in_channels
    assert module.mask.out_channels == 1
    assert module.score.out_features == 2
    assert pruned.metrics["macs"] == pytest.approx(0.5, rel=0.02)


def test_recurrent_layers_are_left_alone_with_a_note(tmp_path):
    source = imported(tmp_path, "recurrent", nets.SERIES)
    events = []
    pruned = run_stage(tmp_path, prune, {"macs": 0.99}, model=source, collect=events)
    module = models.load(pruned)
    assert (module.gru.input_size, module.gru.hidden_size) == (12, 10)
    assert module.before.out_features == 12
    assert module.hidden.out_features < 32
    assert any("left alone: gru (GRU" in getattr(event, "text", "") for event in events)
    with pytest.raises(StageError, match=r"nearest possible is 9\d(\.\d)?%") as caught:
        run_stage(tmp_path, prune, {"macs": 0.5}, model=source)
    assert "GRU" in caught.value.then


def test_layers_before_a_recurrent_one_shrink_but_for_what_it_reads():
    class Audio(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(2, 16, 5, padding=2)
            self.second = nn.Conv1d(16, 12, 5)
            self.lstm = nn.LSTM(12, 6, batch_first=True)

        def forward(self, wave):
            return self.lstm(functional.relu(self.second(functional.relu(self.first(wave)))).transpose(1, 2))[0]

    pruned = pruned_to(0.6, Audio().eval(), {"wave": torch.randn(2, 2, 32)})
    assert pruned.module.first.out_channels == pruned.module.second.in_channels < 16
    assert pruned.module.second.out_channels == 12


def test_fused_attention_is_left_alone_and_its_feed_forward_is_pruned(tmp_path):
    source = imported(tmp_path, "torch_encoder", {"tokens": {"shape": ["batch", "n", 16]}})
    pruned = run_stage(tmp_path, prune, {"macs": 0.8}, model=source)
    layer = models.load(pruned).encoder.layers[0]
    assert layer.self_attn.embed_dim == 16
    assert layer.linear1.out_features == layer.linear2.in_features < 32


def test_tied_weights_survive(tmp_path):
    inputs = {"ids": {"shape": ["batch", "n"], "dtype": "int64", "range": [0, 19]}}
    source = imported(tmp_path, "tied", inputs)
    module = models.load(run_stage(tmp_path, prune, {"macs": 0.7}, model=source))
    assert module.decoder.weight is module.embedding.weight
    assert module.inner.out_features < 16


def test_keep_and_round_to_are_respected(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    wanted = {"macs": 0.75, "keep": ["block1", "block3.exp*"], "round_to": 4}
    module = models.load(run_stage(tmp_path, prune, wanted, model=source))
    original = models.load(source)
    for path, layer in original.named_modules():
        if path.startswith("block1") and isinstance(layer, nn.Conv2d):
            assert module.get_submodule(path).weight.shape == layer.weight.shape
    assert module.block3.expand.out_channels == 128
    assert module.block2.expand.out_channels < 64
    assert all(layer.out_channels % 4 == 0 for layer in module.modules() if isinstance(layer, nn.Conv2d))
    with pytest.raises(StageError, match="no module matches 'blok1'") as caught:
        run_stage(tmp_path, prune, {"macs": 0.7, "keep": ["blok1"]}, model=source)
    assert "block1" in caught.value.then


def test_an_unreachable_target_names_the_nearest(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    with pytest.raises(StageError, match=r"cannot keep 1% .* nearest possible is"):
        run_stage(tmp_path, prune, {"macs": 0.01, "keep": ["block1"]}, model=source)


def test_nothing_is_lost_when_everything_is_kept(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    pruned = run_stage(tmp_path, prune, {"macs": 1.0}, model=source)
    feed = feed_for(source)
    assert same(outputs(models.load(source), feed), outputs(models.load(pruned), feed))
    assert json.loads(pruned.file("edits.json").read_bytes()) == {}


def test_bn_scale_needs_batch_norms(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    with pytest.raises(StageError, match="needs channels that pass a batch norm"):
        run_stage(tmp_path, prune, {"macs": 0.7, "importance": "bn_scale"}, model=source)


@pytest.mark.parametrize(
    ("loss", "says"), [("task", "task loss (cross_entropy)"), ("outputs", "change of the outputs")]
)
def test_taylor_says_what_it_judges(tmp_path, loss, says):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    events = []
    wanted = {"macs": 0.7, "importance": "taylor", "data": "train", "rows": 16, "loss": loss}
    run_stage(tmp_path, prune, wanted, model=source, data={"train": tokens()}, collect=events)
    assert any(says in getattr(event, "text", "") for event in events)
    if loss == "task":
        with pytest.raises(StageError, match="needs the column 'label'"):
            run_stage(tmp_path, prune, wanted, model=source, data={"train": tokens(labels=False)})


@pytest.mark.parametrize("loss", ["outputs", "task"])
def test_importance_needs_rows(tmp_path, loss):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    wanted = {"macs": 0.7, "importance": "fisher", "data": "train", "loss": loss}
    with pytest.raises(StageError, match="hold no rows"):
        run_stage(tmp_path, prune, wanted, model=source, data={"train": images(0)})


def test_settings_are_checked():
    with pytest.raises(ValidationError, match="taylor needs data"):
        PruneConfig.model_validate({"macs": 0.5, "importance": "taylor"})
    for wrong in ({"macs": 0}, {"macs": 1.2}, {"importance": "l3"}, {"round_to": 0}, {"ratio": 0.5}):
        with pytest.raises(ValidationError):
            PruneConfig.model_validate({"macs": 0.5, **wrong})
    assert PruneConfig(size=0.5, round_to="4").round_to == 4


@pytest.mark.parametrize("given", [{}, {"macs": 0.5, "size": 0.5}])
def test_one_target_says_how_small_the_model_shall_be(given):
    with pytest.raises(ValidationError, match="say how much to keep by one of macs, params, size"):
        PruneConfig.model_validate(given)


class Shuffled(nn.Module):
    """Channel shuffle, a gated unit and a fixed channel scale: places where index bookkeeping goes wrong."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.c = nn.Conv2d(16, 24, 1)
        self.gate = nn.Linear(24, 32)
        self.head = nn.Linear(16, 4)
        self.register_buffer("scale", torch.linspace(0.5, 2, 16)[None, :, None, None])

    def forward(self, x):
        x = functional.relu(self.a(x))
        x = x.view(len(x), 4, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        x = functional.relu(self.b(x)) * self.scale
        x = self.c(x).mean((2, 3))
        value, gate = self.gate(x).chunk(2, 1)
        return self.head(value * gate.sigmoid())


def test_what_cannot_be_pruned_soundly_is_left_alone():
    torch.manual_seed(0)
    module = Shuffled().eval()
    feed = {"x": torch.randn(2, 3, 6, 6)}
    pruned = pruned_to(0.97, module, feed)
    assert pruned.module.a.out_channels == 16  # its channels are shuffled by a fixed view
    assert pruned.module.b.out_channels == 16  # a fixed scale is multiplied with them
    assert {"a", "b"} <= set(pruned.left)
    assert pruned.module.c.out_channels < 24 or pruned.module.gate.out_features < 32
    halves = pruned_to(0.996, module, feed, keep=["c"])
    assert halves.module.gate.out_features == 2 * halves.module.head.in_features < 32


def test_every_layer_that_is_left_alone_is_named():
    """What a norm spans is a whole stream of layers, not only the last of them."""
    torch.manual_seed(0)
    feed = {"input_ids": torch.randint(0, 50, (2, 6)), "attention_mask": torch.ones(2, 6).long()}
    module = nets.encoder().eval()
    found = pruned_to(0.8, module, feed)
    stream = {f"layers.{number}.{name}" for number in range(2) for name in ("attention.out", "fc2")}
    (reason,) = [reason for reason, layers in pruning.reasons(found.left).items() if stream == set(layers)]
    assert "normalises over it" in reason
    with pytest.raises(StageError, match=r"classifier.*: 'layers\.1\.fc2' is kept") as caught:
        pruned_to(0.8, module, feed, keep=["layers*", "classifier"])
    assert caught.value.then == "shorten keep"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    width=st.integers(3, 12),
    target=st.floats(0.3, 0.95),
    round_to=st.sampled_from([1, 2]),
    method=st.sampled_from(["l2", "bn_scale"]),
)
def test_any_width_and_target_gives_a_working_model_or_a_reason(width, target, round_to, method):
    torch.manual_seed(width)
    module = nets.cnn(width=width).eval()
    feed = {"image": torch.randn(2, 1, 16, 16)}
    try:
        pruned = pruned_to(target, module, feed, method=method, rounding=pruning.Rounding(round_to))
    except StageError as error:
        refusal = error.what
    else:
        assert abs(pruned.fraction - target) <= 0.02 * target
        assert outputs(pruned.module, feed)["output"].shape == (2, 10)
        return
    assert "nearest possible" in refusal


def test_the_stage_declares_what_it_owes():
    assert prune.owes == {"unrecovered"}
    assert "macs" in prune.gauges(PruneConfig(macs=0.5))
    assert model.accepts == frozenset()
    assert HERE.name == "tests"


class _Computed(nn.Module):
    """Layers whose weights are computed, between layers that can be cut."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 32)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))
        self.middle = nn.Linear(32, 32)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        return self.last(self.middle(self.normed(self.first(x).relu()).relu()).relu())


def test_layers_with_computed_weights_are_left_alone():
    module = _Computed().eval()
    pruned = pruned_to(0.8, module, {"x": torch.randn(2, 8)})
    assert pruned.module.middle.out_features < 32
    assert pruned.module.first.out_features == pruned.module.normed.out_features == 32
    assert "computed from other tensors" in pruned.left["first"]
    with pytest.raises(StageError, match="no layers whose channels"):
        pruned_to(0.8, nn.Identity(), {"x": torch.randn(2, 8)})


class _Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        hidden = self.one(x)
        out = self.two(hidden)
        hidden.zero_()  # the gradient of `two` needs it
        return out


def test_taylor_says_when_a_model_has_no_gradients():
    rows = Rows({"x": np.ones((8, 8), np.float32)})
    data = DataRows(rows.batches, {"x": TensorSpec(shape=("batch", 8))}, None)
    evidence, _ = pruning.evidence.gather(data, 8, "cpu", 0)
    with pytest.raises(StageError, match="gradients cannot be computed: RuntimeError: one of the variables"):
        pruned_to(0.5, _Overwriting().eval(), {"x": torch.randn(2, 8)}, method="taylor", evidence=evidence)


def test_a_budget_of_multiply_accumulates_is_about_all_prunings_together(tmp_path):
    shutil.copy(HERE / "nets.py", tmp_path)
    body = """
name: twice
allow: [unrecovered]
model:
  factory: nets.py:cnn
  inputs: {image: {shape: [batch, 1, 16, 16]}}
budget: {macs: LIMIT}
stages:
  - prune: {macs: 0.7, round_to: 1}
    id: once
  - prune: {macs: 0.7, round_to: 1}
    id: twice
"""
    store = Store(tmp_path / "store")
    store.prepare()

    def run(limit):
        text = body.replace("LIMIT", limit)
        return engine.run(engine.open_desk(recipe.parse(text, tmp_path / "r.yaml"), store, "cpu"), lambda _event: None)

    steps = {step.id: step.metrics for step in run("0.5").steps}
    kept = steps["twice"]["mac_count"] / steps["model"]["mac_count"]
    assert kept == pytest.approx(0.49, rel=0.04)
    assert steps["twice"]["macs"] == pytest.approx(0.7, rel=0.02)
    with pytest.raises(BudgetError, match="macs"):
        run("0.47")


@pytest.mark.cuda
@pytest.mark.parametrize("importance", ["l2", "taylor", "fisher"])
@pytest.mark.parametrize(
    ("factory", "inputs", "data"), [("cnn", nets.IMAGE, images()), ("encoder", nets.TOKENS, tokens())]
)
def test_a_gpu_chooses_what_the_processor_chooses(tmp_path, importance, factory, inputs, data):
    source = imported(tmp_path, factory, inputs)
    wanted = {"macs": 0.6, "importance": importance, "round_to": 1, **({} if importance == "l2" else {"data": "train"})}
    here, there, again = (
        run_stage(tmp_path / name, prune, wanted, model=source, data={"train": data}, device=device)
        for name, device in (("1", "cpu"), ("2", "cuda:0"), ("3", "cuda:0"))
    )
    assert there.id == again.id
    assert there.metrics["macs"] == pytest.approx(here.metrics["macs"], abs=0.01)
    one, two = (
        {row["layer"]: row["after"][1] for row in item.manifest.record["results"]["layers"]} for item in (here, there)
    )
    assert sum(one.values()) == pytest.approx(sum(two.values()), rel=0.02)  # equal but for what rounding decides
    feed = feed_for(source, 8)
    found, other = (next(iter(outputs(models.load(item), feed).values())) for item in (here, there))
    assert importance != "l2" or torch.allclose(found, other, atol=1e-5)


@pytest.mark.cuda
def test_whole_blocks_are_left_out_on_a_gpu(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    given_ = {"model": source, "data": {"train": images()}}
    here, there, again = (
        run_stage(tmp_path / name, prune, {"depth": 0.7, "data": "train"}, device=device, **given_)
        for name, device in (("1", "cpu"), ("2", "cuda:0"), ("3", "cuda:0"))
    )
    assert there.id == again.id
    gone = [[row["order"] for row in item.manifest.record["results"]["blocks"]] for item in (here, there)]
    assert gone[0] == gone[1]
    feed = feed_for(source, 8)
    one, two = (outputs(models.load(item), feed)["output"] for item in (here, there))
    assert torch.allclose(one, two, atol=0.01)  # batch norms were measured with convolutions in TF32
