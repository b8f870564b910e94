"""Blocks that a model can do without: which they are, and that the model stays what it was without them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import nets
from layered import GREY, IDS, Bert, BertLayer, Half, made, paths, resnet
from modelpack.errors import StageError
from modelpack.numerics import structure
from modelpack.numerics.calling import call, outline
from modelpack.numerics.pruning import blocks, depth

torch.set_num_threads(1)


def test_the_layers_of_a_bert_are_found_and_their_counter_follows():
    bert = made(Bert)
    found = blocks.find(bert, IDS)
    assert paths(found) == [f"encoder.layer.{number}" for number in range(4)]
    smaller = depth.thinned(bert, IDS, [0, 3])
    assert (smaller.encoder.num_hidden_layers, smaller.encoder.width, len(smaller.encoder.layer)) == (2, 4, 2)
    assert (bert.encoder.num_hidden_layers, len(bert.encoder.layer)) == (4, 4)
    hidden, ones = bert.embeddings(IDS["ids"]), torch.ones(8)
    by_hand = bert.encoder.layer[3](bert.encoder.layer[0](hidden, ones)[0], ones)[0]
    assert torch.equal(call(smaller, IDS)["last_hidden_state"], by_hand)


def test_residual_blocks_are_found_in_stages_and_those_that_change_shape_stay():
    found = blocks.find(made(resnet), GREY)
    assert paths(found) == ["1.0", "1.1", "1.2", "2.1", "2.2"]
    named = blocks.find(made(nets.cnn), {"image": torch.rand(2, 1, 16, 16)})
    assert paths(named) == ["block1", "block2", "block3"]
    assert paths(blocks.find(made(nets.torch_encoder), {"tokens": torch.rand(2, 5, 16)})) == [
        "encoder.layers.0",
        "encoder.layers.1",
    ]


def test_layers_that_only_keep_the_shape_are_no_blocks():
    """Without a way around its weights, nothing of a layer's input would be known behind it."""
    plain = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
    found = blocks.find(plain.eval(), {"x": torch.rand(2, 4)})
    assert found.blocks == ()
    with pytest.raises(StageError, match="no blocks that it can do without"):
        depth.shallower(plain, {"x": torch.rand(2, 4)}, [], share=0.5)


class Shared(nn.Module):
    """Two stacks that one attribute counts, so that leaving a layer of either out would shorten both."""

    def __init__(self):
        super().__init__()
        self.layers = 3
        self.one = nn.ModuleList(Half(8) for _ in range(3))
        self.two = nn.ModuleList(Half(8) for _ in range(3))
        self.last = nn.ModuleList(Half(8) for _ in range(2))

    def forward(self, x):
        for number in range(self.layers):
            x = self.one[number](x)
        for number in range(self.layers):
            x = self.two[number](x)
        for layer in self.last:
            x = layer(x)
        return x


def test_a_counter_of_two_stacks_keeps_both_whole():
    found = blocks.find(made(Shared), {"x": torch.rand(2, 8)})
    assert paths(found) == ["last.0", "last.1"]
    assert "would not call" in found.left["one.0"] or "fails without it" in found.left["one.0"]


def test_why_a_layer_is_no_block_is_told():
    with pytest.raises(StageError, match=r"no block matches '2\.0'") as caught:
        depth.shallower(made(resnet), GREY, [GREY], drop=["2.0"])
    assert "'2.0' must stay: its output has not the shape of its input" in caught.value.then
    assert caught.value.then.endswith("the blocks are 1.0, 1.1, 1.2, 2.1, 2.2")


def test_a_block_that_must_stay_is_named_with_its_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Half(8), BertLayer(8)

        def forward(self, x):
            return self.two(self.one(x))[0]

    odd = made(Odd)
    found = blocks.find(odd, {"x": torch.rand(2, 3, 8)})
    assert paths(found) == ["one", "two.output"]
    assert "fails without it (TypeError)" in found.left["two.attention"]
    with pytest.raises(StageError, match=r"no block matches 'two\.attention'") as caught:
        depth.shallower(odd, {"x": torch.rand(2, 3, 8)}, [], drop=["two.attention"])
    assert "'two.attention' must stay: the model fails" in caught.value.then


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), factory=st.sampled_from(["resnet", "bert", "cnn", "encoder"]))
def test_any_choice_of_blocks_gives_outputs_of_the_same_form(data, factory):
    net, feed = {
        "resnet": (made(resnet), GREY),
        "bert": (made(Bert), IDS),
        "cnn": (made(nets.cnn), {"image": torch.rand(2, 1, 16, 16)}),
        "encoder": (made(nets.encoder), {"input_ids": IDS["ids"], "attention_mask": torch.ones_like(IDS["ids"])}),
    }[factory]
    found = blocks.find(net, feed).blocks
    gone = data.draw(st.lists(st.sampled_from(found), unique=True, min_size=1, max_size=len(found) - 1))
    smaller = blocks.without(net, gone)
    assert outline(smaller, feed) == outline(net, feed)
    rebuilt = structure.light(net)
    structure.change(rebuilt, structure.made(smaller))
    assert {name for name, _ in rebuilt.named_parameters()} == {name for name, _ in smaller.named_parameters()}
    expected = sum(p.numel() for p in net.parameters()) - sum(
        p.numel() for block in gone for p in net.get_submodule(block.path).parameters()
    )
    assert sum(p.numel() for p in smaller.parameters()) == expected
