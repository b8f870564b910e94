"""Networks of layers and blocks, as transformers and residual networks have them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from modelpack.numerics.randomness import seeded


class Half(nn.Module):
    """One half of a BERT layer: something added to its input, then normalised."""

    def __init__(self, width):
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, hidden_states, attention_mask=None):
        mixed = hidden_states if attention_mask is None else hidden_states * attention_mask
        return self.norm(hidden_states + self.dense(mixed))


class BertLayer(nn.Module):
    """As in transformers: keywords in, a tuple out."""

    def __init__(self, width):
        super().__init__()
        self.attention, self.output = Half(width), Half(width)

    def forward(self, hidden_states, attention_mask=None, output_attentions=False):
        hidden = self.output(functional.gelu(self.attention(hidden_states, attention_mask)))
        return (hidden, attention_mask) if output_attentions else (hidden,)


class BertEncoder(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.num_hidden_layers, self.width = layers, layers  # a width that happens to be the number of layers
        self.layer = nn.ModuleList(BertLayer(width) for _ in range(layers))

    def forward(self, hidden_states, attention_mask):
        for number in range(self.num_hidden_layers):
            hidden_states = self.layer[number](hidden_states=hidden_states, attention_mask=attention_mask)[0]
        return {"last_hidden_state": hidden_states}


class Bert(nn.Module):
    def __init__(self, layers=4):
        super().__init__()
        self.embeddings, self.encoder = nn.Embedding(20, 8), BertEncoder(8, layers)

    def forward(self, ids):
        return self.encoder(self.embeddings(ids), torch.ones(8))


class Basic(nn.Module):
    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None if stride == 1 else nn.Sequential(nn.Conv2d(inputs, width, 1, stride))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + shortcut)


def resnet(blocks_a_stage=2):
    """A network with stages in a Sequential of Sequentials."""
    stages, width = [], 4
    for stage in range(2):
        items = [Basic(width, 4 * (stage + 1), stage + 1)]
        items += [Basic(4 * (stage + 1), 4 * (stage + 1)) for _ in range(blocks_a_stage)]
        stages.append(nn.Sequential(*items))
        width = 4 * (stage + 1)
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


IDS = {"ids": torch.arange(12).view(2, 6)}
GREY = {"x": torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)}


def made(factory, *arguments):
    with seeded(0):
        return factory(*arguments).eval()


def paths(found):
    return [block.path for block in found.blocks]
