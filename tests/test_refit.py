"""After pruning, the layers that lost inputs give what they gave before, as well as what is left of them allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import nets
from modelpack.errors import StageError
from modelpack.numerics import models, pruning
from modelpack.numerics.calling import call
from modelpack.numerics.fitting import Reading, inputs, moments
from modelpack.numerics.pruning import plan, refit, surgery
from modelpack.stages.prune import PruneConfig, prune
from support import Rows, run_stage
from test_models import imported
from test_prune import images, tokens

torch.set_num_threads(1)


class Copies(nn.Module):
    """Its middle layer makes far more channels than it has inputs, so that most of them say nothing new."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return self.second(self.first(x))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def off(module, other, feed):
    """Give how far one output is from another, relative to it."""
    with torch.no_grad():
        wanted, found = (next(iter(call(item, models.tensors(feed, "cpu")).values())) for item in (module, other))
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("first", "second", "shape"),
    [
        (lambda: nn.Linear(6, 32), lambda: nn.Linear(32, 5), (6,)),
        (lambda: nn.Conv1d(3, 32, 1), lambda: nn.Conv1d(32, 5, 3, stride=2, padding=1), (3, 20)),
        (lambda: nn.Conv2d(3, 32, 1), lambda: nn.Conv2d(32, 5, 3, padding="same"), (3, 12, 12)),
        (lambda: nn.Conv2d(3, 32, 1), lambda: nn.Conv2d(32, 4, (1, 3), groups=2, dilation=2), (3, 12, 12)),
    ],
    ids=["linear", "conv1d", "conv2d", "grouped"],
)
def test_channels_that_say_nothing_new_can_go_without_loss(first, second, shape):
    torch.manual_seed(0)
    module = Copies(first(), second()).eval()
    rows = {"x": normal(64, *shape)}
    feed = models.tensors({"x": rows["x"][:2]}, "cpu")
    goal, worth = pruning.targets.of_params(0.5), pruning.Worth("l2")
    plain = pruning.prune(module, feed, goal, worth)
    fit = refit.by_least_squares(Reading(lambda: [rows], None, "cpu"))
    fitted = pruning.prune(module, feed, goal, worth, fit=fit)
    assert fitted.layers == plain.layers
    assert fitted.refitted == ("second",)
    unseen = {"x": normal(64, *shape, seed=1)}
    assert off(module, fitted.module, unseen) < 0.05 < 0.3 < off(module, plain.module, unseen)


@pytest.mark.parametrize(
    ("factory", "rows", "mask"),
    [
        (nets.cnn, {"image": normal(32, 1, 16, 16)}, None),
        (nets.grouped, {"picture": normal(32, 4, 16, 16), "extra": normal(32, 3)}, None),
        (
            nets.encoder,
            {
                "input_ids": np.random.default_rng(0).integers(0, 50, (32, 12)),
                "attention_mask": (np.arange(12) < np.arange(1, 33)[:, None] % 12 + 1).astype(np.int64),
            },
            "attention_mask",
        ),
    ],
    ids=["cnn", "grouped", "encoder"],
)
def test_no_layer_is_worse_for_being_fitted_and_the_others_stay(factory, rows, mask):
    torch.manual_seed(0)
    module = factory().eval()
    reading = Reading(lambda: [rows], mask, "cpu")
    seen = {}

    def fit(whole, removals):
        seen["removals"] = removals
        return refit.by_least_squares(reading)(whole, removals)

    goal = pruning.targets.of_macs(0.5)
    feed = models.tensors({name: value[:2] for name, value in rows.items()}, "cpu")
    made = pruning.prune(module, feed, goal, pruning.Worth("l2"), fit=fit)
    silent = surgery.twin(module)
    for removal in seen["removals"]:
        surgery.silence(silent, removal.group.members, removal.roots)
    again = refit.by_least_squares(reading)(module, seen["removals"])
    fitted, names = again.module, again.layers
    assert names == made.refitted
    for path, layer in module.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        quiet, ours = (item.get_submodule(path).weight for item in (silent, fitted))
        if path not in names:
            assert torch.equal(quiet, ours)
            continue
        assert bool((ours[quiet == 0] == 0).all())
        read = _read(module, path, rows, mask)
        gaps = ((layer.weight - weight).detach().movedim(1, -1) for weight in (quiet, ours))
        before, after = (float((read @ gap.reshape(len(read), -1, read.shape[-1]).mT).square().sum()) for gap in gaps)
        assert after < before
    assert torch.equal(
        next(iter(call(made.module, feed).values())),
        next(iter(call(plan.apply(fitted, seen["removals"]), feed).values())),
    )


def _read(module, path, rows, mask):
    """Give what a layer reads, ``(groups, rows, inputs)`` in the order of its weights."""
    layer, found = module.get_submodule(path), []
    hook = layer.register_forward_pre_hook(lambda _layer, given: found.append(given[0]))
    with torch.no_grad():
        call(module, models.tensors(rows, "cpu"))
    hook.remove()
    values = found[0]
    if mask is not None and values.ndim == 3:
        values = values[torch.from_numpy(rows[mask]).bool()]
    return inputs(layer, values)


def test_the_stage_fits_wherever_data_are_named(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    data = {"train": images(256)}
    wanted = {"macs": 0.6, "importance": "l2", "data": "train"}
    events = []
    fitted = run_stage(tmp_path / "1", prune, wanted, model=source, data=data, collect=events)
    again = run_stage(tmp_path / "2", prune, wanted, model=source, data=data)
    plain = run_stage(tmp_path / "3", prune, wanted | {"refit": False, "importance": "l2", "data": None}, model=source)
    assert fitted.id == again.id
    results = fitted.manifest.record["results"]
    assert results["came_to"] == {"refit": True}
    assert results["refitted"]
    (note,) = [event.text for event in events if getattr(event, "text", "").startswith("fitted to what they gave")]
    assert results["refitted"][0] in note
    assert results["layers"] == plain.manifest.record["results"]["layers"]
    assert "refitted" not in plain.manifest.record["results"]
    feed = {"image": images(64, seed=7).columns["image"]}
    whole = models.load(source)
    assert off(whole, models.load(fitted), feed) < 0.8 * off(whole, models.load(plain), feed)


def test_padded_positions_do_not_count(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    rows = tokens(16)
    full = run_stage(tmp_path / "1", prune, {"macs": 0.6, "data": "train"}, model=source, data={"train": rows})
    columns = dict(rows.columns)
    ids, mask = (np.pad(columns[name], ((0, 0), (0, 6))) for name in ("input_ids", "attention_mask"))
    wide = Rows(columns | {"input_ids": ids, "attention_mask": mask}, 8)
    wanted = {"macs": 0.6, "data": "train"}
    masked, blind = (
        models.load(run_stage(tmp_path / name, prune, wanted | {"mask": name}, model=source, data={"train": wide}))
        for name in ("auto", "none")
    )
    feed = {name: rows.columns[name][:4] for name in ("input_ids", "attention_mask")}
    wanted = models.load(full)
    assert off(wanted, masked, feed) < 1e-3 < off(wanted, blind, feed)


class Stream(nn.Module):
    """What its words are and what its words are told by is one matrix, as wide as all that is between."""

    def __init__(self):
        super().__init__()
        self.words, self.mix, self.told = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 20, bias=False)
        self.told.weight = self.words.weight

    def forward(self, ids):
        words = self.words(ids)
        return self.told(words + self.mix(words).relu())


def test_weights_that_an_embedding_shares_stay():
    torch.manual_seed(0)
    module = Stream().eval()
    rows = {"ids": np.random.default_rng(0).integers(0, 20, (64, 6))}
    feed = models.tensors({"ids": rows["ids"][:2]}, "cpu")
    fit = refit.by_least_squares(Reading(lambda: [rows], None, "cpu"))
    goal, worth = pruning.targets.of_params(0.524), pruning.Worth("l2")
    plain, made = (pruning.prune(module, feed, goal, worth, **how) for how in ({}, {"fit": fit}))
    assert made.refitted == ("mix",)
    assert made.unfitted == {"told": "it shares its weights with an embedding"}
    assert made.module.told.weight is made.module.words.weight
    assert torch.equal(made.module.words.weight, plain.module.words.weight)


def test_a_moment_too_large_for_memory_is_left_out(monkeypatch):
    torch.manual_seed(0)
    module = nets.cnn().eval()
    rows = {"image": normal(8, 1, 16, 16)}
    feed = models.tensors({"image": rows["image"][:2]}, "cpu")
    monkeypatch.setattr(refit, "LARGEST", 8 * 64**2)
    fit = refit.by_least_squares(Reading(lambda: [rows], None, "cpu"))
    made = pruning.prune(module, feed, pruning.targets.of_macs(0.5), pruning.Worth("l2"), fit=fit)
    assert made.refitted
    sizes = {name: module.get_submodule(name).weight[0].numel() for name in made.refitted}
    assert max(sizes.values()) <= 64
    assert set(made.unfitted.values()) == {"it reads too many inputs at once"}


def test_layers_that_keep_their_weights_are_named(tmp_path):
    source = imported(tmp_path, "grouped", nets.PICTURE)
    rows = Rows({"picture": normal(16, 4, 16, 16), "extra": normal(16, 3)})
    events = []
    wanted = {"macs": 0.5, "data": "train"}
    made = run_stage(tmp_path, prune, wanted, model=source, data={"train": rows}, collect=events)
    assert made.manifest.record["results"]["unfitted"] == {"up": "the inputs of a ConvTranspose2d cannot be looked at"}
    assert any(getattr(event, "text", "").startswith("not fitted: up (") for event in events)


def test_rows_that_come_one_by_one_are_halved_too():
    torch.manual_seed(0)
    module = nets.cnn().eval()
    columns = images(8).columns["image"]
    layers = [moments.Layer("down.weight", (module.down,))]
    reads = [[columns], [columns[:3], columns[3:4], columns[4:]], [columns[at : at + 1] for at in range(8)]]
    whole, uneven, single = (
        moments.gather(
            module, layers, Reading(lambda read=read: [{"image": x} for x in read], None, "cpu"), whole=True, parts=2
        )
        for read in reads
    )
    for other in (uneven, single):
        assert torch.allclose(other["down.weight"], whole["down.weight"], atol=1e-4)
    assert whole["down.weight"].diagonal(dim1=-2, dim2=-1).sum(-1).min() > 0


def test_what_does_not_hold_for_other_rows_is_not_taken(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    plain = models.load(run_stage(tmp_path / "plain", prune, {"macs": 0.5}, model=source))
    wanted = {"macs": 0.5, "data": "train"}
    made = run_stage(tmp_path / "one", prune, wanted, model=source, data={"train": images(1)})
    results = made.manifest.record["results"]
    assert "refitted" not in results
    assert all("does not hold for the other" in reason for reason in results["unfitted"].values())
    for one, other in zip(models.load(made).parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    many = run_stage(tmp_path / "many", prune, wanted, model=source, data={"train": images(64)})
    assert set(many.manifest.record["results"]["refitted"]) == set(results["unfitted"])


def test_large_images_are_read_in_pieces(monkeypatch):
    torch.manual_seed(0)
    module = nets.cnn().eval()
    layers = [refit.Layer("down.weight", (module.down,))]
    reading = Reading(lambda: [{"image": normal(16, 1, 16, 16)}], None, "cpu")
    whole = moments.gather(module, layers, reading, whole=True)["down.weight"][0]
    monkeypatch.setattr(moments, "_PIECE", 1)
    pieces = moments.gather(module, layers, reading, whole=True)["down.weight"][0]
    assert torch.allclose(whole, pieces, atol=1e-5 * float(whole.abs().max()))
    assert not torch.equal(whole, pieces)


class Embedded(nn.Module):
    """As many channels as positions, and a scale that it keeps once it has seen how long rows are."""

    def __init__(self):
        super().__init__()
        self.words, self.scale = nn.Embedding(20, 8), None
        self.mix, self.last = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 2)

    def forward(self, ids, mask):
        if self.scale is None:
            self.scale = 1 / torch.arange(1.0, ids.shape[1] + 1)
        return self.last(self.mix(self.words(ids).mT * self.scale).mT) * mask[..., None]


def test_a_mask_is_of_positions_not_of_channels():
    torch.manual_seed(0)
    module = Embedded().eval()
    rows = {"ids": np.arange(32).reshape(4, 8) % 20, "mask": np.tile(np.arange(8) < 5, (4, 1)).astype(np.int64)}
    layers = [refit.Layer("mix.weight", (module.mix,)), refit.Layer("last.weight", (module.last,))]
    masked, full = (
        moments.gather(module, layers, Reading(lambda: [rows], mask, "cpu"), whole=True) for mask in ("mask", None)
    )
    assert torch.equal(masked["mix.weight"], full["mix.weight"])
    assert not torch.allclose(masked["last.weight"], full["last.weight"])
    call(module, models.tensors(rows, "cpu"))["output"].sum().backward()  # what was looked at can be trained
    assert module.mix.weight.grad is not None


def test_rows_that_are_not_finite_are_told(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    bad = images(8)
    bad.columns["image"][3] = np.nan
    with pytest.raises(StageError, match="what this layer reads is not finite") as caught:
        run_stage(tmp_path, prune, {"macs": 0.5, "data": "train"}, model=source, data={"train": bad})
    assert "`keep`" in caught.value.then


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"macs": 0.5, "refit": True}, "refit needs data"),
        ({"macs": 0.5, "mask": "none"}, "`mask` does nothing without refit"),
        ({"depth": 0.5, "data": "rows", "refit": True}, "refit is about channels"),
    ],
)
def test_settings_that_do_not_fit(wanted, told):
    with pytest.raises(ValidationError, match=told):
        PruneConfig.model_validate(wanted)
