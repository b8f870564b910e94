"""Changes of a module's tree: kept as data, made again on load, and nothing else accepted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import nets
from modelpack.artifact import Kind
from modelpack.errors import StageError
from modelpack.numerics import models, structure
from modelpack.numerics.structure import Bypass, Drop, Factor
from modelpack.stage import StageConfig, stage
from modelpack.stages.distill import distill
from modelpack.stages.prune import prune
from support import Rows, run_stage
from test_models import IDS, feed_for, imported, outputs, reloaded, same

torch.set_num_threads(1)
GENERATOR = torch.Generator().manual_seed(0)


def saved(module, like, out):
    models.save(module, out, like=like)
    return reloaded(out, like)


def changed(module, operations):
    """Change a module's tree and give layers that are split weights, as whoever splits them does."""
    for operation in operations:
        structure.change(module, [operation])
        if operation.operation == "factor":
            with torch.no_grad():
                for parameter in module.get_submodule(operation.path).parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=GENERATOR) * 0.1)
    return module


CHOICES = {
    "encoder": (
        nets.TOKENS,
        {"layers": 4},
        [
            Drop(path="layers", items=("1",)),
            Drop(path="layers", items=("0", "2")),
            Factor(path="classifier", rank=3),
            Factor(path="layers.0.fc1", rank=8),
            Factor(path="layers.0.fc1.1", rank=4),
            Bypass(path="layers.0.fc2.0"),
        ],
    ),
    "cnn": (
        nets.IMAGE,
        {},
        [
            Bypass(path="block1"),
            Factor(path="down", form="channel", rank=5),
            Factor(path="stem", form="spatial", rank=3),
            Bypass(path="norm"),
        ],
    ),
    "torch_encoder": (
        {"tokens": {"shape": ["batch", "n", 16]}},
        {},
        [Drop(path="encoder.layers", items=("0",)), Factor(path="head", rank=2)],
    ),
    "tied": (IDS, {}, [Factor(path="inner", rank=4), Factor(path="outer", rank=4), Factor(path="decoder", rank=4)]),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {
        name: imported(root / name, name, inputs, arguments=arguments)
        for name, (inputs, arguments, _) in CHOICES.items()
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from(sorted(CHOICES)))
def test_any_order_of_changes_reloads_exactly_or_is_refused(sources, tmp_path_factory, data, name):
    source = sources[name]
    module = models.load(source)
    chosen = data.draw(st.permutations(CHOICES[name][2]))[: data.draw(st.integers(1, 6))]
    for operation in chosen:
        try:
            changed(module, [operation])
        except StageError as error:
            assert error.where  # noqa: PT017  refused: the tree and its record are as before
    out = tmp_path_factory.mktemp("out")
    again = saved(module, source, out / "1")
    assert structure.made(again) == structure.made(module)
    assert [(path, type(child).__name__) for path, child in again.named_modules()] == [
        (path, type(child).__name__) for path, child in module.named_modules()
    ]
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    models.save(again, out / "2", like=source)
    for path in (out / "1").rglob("*"):
        assert path.is_dir() or path.read_bytes() == (out / "2" / path.relative_to(out / "1")).read_bytes()


def test_layers_that_go_leave_a_model_that_gives_the_same_after_loading(sources, tmp_path):
    source = sources["encoder"]
    module = models.load(source)
    whole = outputs(module, feed_for(source))
    structure.change(module, [Drop(path="layers", items=("1", "3"))])
    again = saved(module, source, tmp_path)
    assert [name for name, _ in again.layers.named_children()] == ["0", "1"]
    feed = feed_for(source)
    assert same(outputs(again, feed), outputs(module, feed))
    assert not same(outputs(again, feed), whole)
    original = models.load(source)
    assert torch.equal(again.layers[1].fc1.weight, original.layers[2].fc1.weight)
    assert json.loads((tmp_path / "structure.json").read_text()) == [
        {"operation": "drop", "path": "layers", "items": ["1", "3"]}
    ]


def test_channels_are_pruned_after_the_tree_changed_and_students_learn(sources, tmp_path):
    """Changes chain: layers go, one is split, channels go from both halves and elsewhere, and it is trained."""
    source = sources["encoder"]
    module = models.load(source)
    changed(module, [Drop(path="layers", items=("0",)), Factor(path="layers.0.fc1", rank=16)])
    shorter = sealed(module, source, tmp_path)
    pruned = run_stage(tmp_path, prune, {"macs": 0.6, "round_to": 4}, model=shorter)
    again = models.load(pruned)
    pair = again.layers[0].fc1
    assert pair[0].out_features == pair[1].in_features < 16
    assert len(again.layers) == 3
    settings = {"teacher": "model", "data": "train", "epochs": 1, "task": "none"}
    ids = np.random.default_rng(0).integers(0, 50, (16, 12))
    sentences = Rows({"input_ids": ids, "attention_mask": np.ones_like(ids)}, 8)
    trained = run_stage(tmp_path, distill, settings, model=pruned, steps={"model": source}, data={"train": sentences})
    learned = models.load(trained)
    assert structure.made(learned) == structure.made(module)
    assert not torch.equal(learned.layers[0].fc1[0].weight, pair[0].weight)


class NothingConfig(StageConfig):
    """Nothing to set."""


def sealed(module, like, root):
    """Save a changed module as an artifact of a store."""

    @stage(version=1, accepts={Kind.TORCH}, produces=Kind.TORCH)
    def keep(config: NothingConfig, job) -> None:
        """Save what is given."""
        models.save(module, job.out, like=like)

    return run_stage(root, keep, {}, model=like)


def test_copies_take_the_record_along_and_light_ones_share_tensors(sources):
    module = models.load(sources["encoder"])
    structure.change(module, [Drop(path="layers", items=("0",))])
    copy = structure.light(module)
    structure.change(copy, [Drop(path="layers", items=("0",))])
    assert (len(copy.layers), len(module.layers)) == (2, 3)
    assert (len(structure.made(copy)), len(structure.made(module))) == (2, 1)
    assert copy.words.weight is module.words.weight


def test_named_items_keep_their_names_and_numbered_ones_are_numbered_anew():
    named = nn.Sequential()
    for name in ("one", "two", "three"):
        named.add_module(name, nn.Linear(2, 2))
    module = nn.Module()
    module.named, module.numbered = named, nn.Sequential(nn.ReLU(), nn.Tanh(), nn.GELU())
    structure.change(module, [Drop(path="named", items=("two",)), Drop(path="numbered", items=("0",))])
    assert list(module.named._modules) == ["one", "three"]
    assert [(name, type(item)) for name, item in module.numbered._modules.items()] == [("0", nn.Tanh), ("1", nn.GELU)]


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        (Drop(path="layers", items=("4",)), "no items 4"),
        (Drop(path="layers", items=("1", "1")), "once"),
        (Drop(path="classifier", items=("weight",)), "no Sequential or ModuleList but a Linear"),
        (Bypass(path=""), "the whole model"),
        (Bypass(path="layers.7"), "no module"),
        (Factor(path="words", rank=1), "type Embedding"),
        (Factor(path="classifier", rank=6), "it has fewer"),
        (Factor(path="classifier", form="spatial", rank=2), "no kernel"),
    ],
)
def test_what_cannot_be_changed_is_refused_and_left(sources, operation, says):
    module = models.load(sources["encoder"])
    before = str(module)
    with pytest.raises(StageError, match=says):
        structure.change(module, [operation])
    assert str(module) == before
    assert structure.made(module) == ()


def test_layers_at_several_places_or_with_code_of_their_own_are_refused():
    module = nn.Module()
    module.one = module.two = nn.Linear(4, 4)
    module.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    module.grouped = nn.Conv2d(4, 4, 3, groups=2)
    module.hooked = nn.Linear(4, 4)
    module.hooked.register_forward_hook(lambda *_: None)
    for path, says in [
        ("one", "several places"),
        ("normed", "computed"),
        ("grouped", "groups"),
        ("hooked", "code of their own"),
    ]:
        with pytest.raises(StageError, match=says):
            structure.change(module, [Factor(path=path, rank=1)])


@pytest.mark.parametrize("form", ["channel", "spatial"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(3, 6, 3, padding="same", bias=False),
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_a_split_of_full_rank_can_be_the_same_layer(form, layer):
    """With all channels between, the halves can compute what the layer did: their geometry is right."""
    torch.manual_seed(0)
    module = nn.Sequential(layer.double())
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    wanted = module(x)
    weight, bias = layer.weight.detach(), layer.bias
    rank = structure.full_rank(layer, form)
    structure.change(module, [Factor(path="0", form=form, rank=rank)])
    first, second = module[0]
    with torch.no_grad():
        if form == "channel":
            first.weight.copy_(weight)
            second.weight.copy_(torch.eye(6, dtype=torch.float64)[:, :, None, None])
        else:
            rows = weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
            u, s, v = torch.linalg.svd(rows, full_matrices=False)
            first.weight.copy_((u * s).T.reshape(rank, 3, -1)[..., None])
            second.weight.copy_(v.reshape(rank, 6, -1).transpose(0, 1)[:, :, None, :])
        if bias is not None:
            second.bias.copy_(bias)
    assert torch.allclose(module(x), wanted, atol=1e-10)
