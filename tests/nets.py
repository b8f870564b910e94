"""Small networks that stand for the shapes of real ones; each is a factory beside the recipes of the tests."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """An inverted residual block: expand, depthwise, project, add."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        inner = width * expansion
        self.expand = nn.Conv2d(width, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.project = nn.Conv2d(inner, width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)

    def forward(self, x):
        y = functional.relu6(self.norm1(self.expand(x)))
        y = functional.relu6(self.norm2(self.depthwise(y)))
        return x + self.norm3(self.project(y))


class Cnn(nn.Module):
    def __init__(self, width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block1 = Residual(width)
        self.block2 = Residual(width)
        self.down = nn.Conv2d(width, width * 2, 3, stride=2, padding=1)
        self.block3 = Residual(width * 2)
        self.head = nn.Linear(width * 2, classes)

    def forward(self, image):
        x = functional.relu(self.norm(self.stem(image)))
        x = self.block2(self.block1(x))
        x = self.block3(functional.relu(self.down(x)))
        return self.head(x.mean((2, 3)))


def cnn(width: int = 16, classes: int = 10, channels: int = 1) -> nn.Module:
    """A CNN with batch norm, residual and depthwise convolutions."""
    return _settled(Cnn(width, classes, channels))


def _settled(module: nn.Module) -> nn.Module:
    """Give batch norms statistics of their own, so that a mistake in them shows."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.2, 1.2)
    return module


class Attention(nn.Module):
    """Self-attention with separate query, key and value layers, as BERT has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_size = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x, mask):
        def split(y):
            return y.view(y.shape[0], y.shape[1], self.num_heads, self.head_size).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(-1, -2) / self.head_size**0.5
        scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e4)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2)
        return self.out(mixed.reshape(x.shape[0], x.shape[1], self.num_heads * self.head_size))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x, mask):
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.fc2(functional.gelu(self.fc1(x))))


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, layers: int, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(64, width)
        self.register_buffer("position_ids", torch.arange(64)[None], persistent=False)
        self.layers = nn.ModuleList([EncoderLayer(width, heads, hidden) for _ in range(layers)])
        self.classifier = nn.Linear(width, classes)

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids) + self.positions(self.position_ids[:, : input_ids.shape[1]])
        for layer in self.layers:
            x = layer(x, attention_mask)
        weight = attention_mask[..., None].to(x.dtype)
        pooled = (x * weight).sum(1) / weight.sum(1).clamp(min=1)
        return {"logits": self.classifier(pooled), "embedding": pooled}


def encoder(
    width: int = 32, heads: int = 4, hidden: int = 64, layers: int = 2, vocabulary: int = 50, classes: int = 5
) -> nn.Module:
    """A transformer encoder with two inputs and a dict of two outputs."""
    return Encoder(width, heads, hidden, layers, vocabulary, classes)


class TorchEncoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, width * 2, batch_first=True, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, tokens):
        return self.head(self.encoder(tokens).mean(1))


def torch_encoder(width: int = 16) -> nn.Module:
    """torch's own encoder layers, whose query, key and value share one matrix."""
    return TorchEncoder(width)


class Grouped(nn.Module):
    """Grouped and transposed convolutions, two inputs, a tuple of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 32)
        self.down = nn.Conv2d(32, 24, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(24, 16, 2, stride=2)
        self.mask = nn.Conv2d(16, 1, 1)
        self.side = nn.Linear(3, 24)
        self.score = nn.Linear(24, 2)

    def forward(self, picture, extra):
        x = functional.relu(self.norm(self.grouped(functional.relu(self.first(picture)))))
        x = functional.relu(self.down(x))
        hidden = x.mean((2, 3)) + functional.relu(self.side(extra))
        return self.mask(functional.relu(self.up(x))), self.score(hidden)


def grouped() -> nn.Module:
    """A small U-shaped net of unusual layers."""
    return Grouped()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(6, 12)
        self.gru = nn.GRU(12, 10, num_layers=2, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(20, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, series):
        states, last = self.gru(functional.relu(self.before(series)))
        return self.head(functional.relu(self.hidden(states[:, -1]))), last


def recurrent() -> nn.Module:
    """A bidirectional GRU between linear layers."""
    return Recurrent()


class Tied(nn.Module):
    """An autoencoder over tokens whose embedding and output layer share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.inner = nn.Linear(8, 16)
        self.outer = nn.Linear(16, 8)
        self.decoder = nn.Linear(8, 20, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, ids):
        return self.decoder(self.outer(functional.gelu(self.inner(self.embedding(ids)))))


def tied() -> nn.Module:
    """A net with tied weights."""
    return Tied()


class Dense(nn.Module):
    """Every layer reads what all before it made; the last one reads every place of it."""

    def __init__(self, layers: int, growth: int) -> None:
        super().__init__()
        widths = [growth * (number + 1) for number in range(layers)]
        self.stem = nn.Conv2d(1, growth, 3, stride=4, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.layers = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1, bias=False) for width in widths)
        self.hidden = nn.Linear((widths[-1] + growth) * 16, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, image):
        made = [self.stem(image)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            made.append(layer(functional.relu(norm(torch.cat(made, 1)))))
        return self.head(functional.relu(self.hidden(torch.cat(made, 1).flatten(1))))


def dense(layers: int = 3, growth: int = 8) -> nn.Module:
    """A densely connected CNN."""
    return _settled(Dense(layers, growth))


class Causal(nn.Module):
    """Attention as decoders have it: what must not be seen is hidden by the least float, as a constant and by a mask."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.words = nn.Embedding(50, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 5)
        future = torch.full((1, length, length), torch.finfo(torch.float32).min).triu(1)
        self.register_buffer("future", future, persistent=False)

    def forward(self, input_ids, attention_mask):
        x, length = self.words(input_ids), input_ids.shape[1]
        scores = self.query(x) @ self.key(x).transpose(-1, -2) + self.future[:, :length, :length]
        least = torch.tensor(torch.finfo(torch.float32).min)
        absent = (1.0 - attention_mask.to(x.dtype)) * least
        shares = torch.max(scores + absent[:, None, :], least).softmax(-1)
        return self.head(shares @ self.value(x))


def causal(width: int = 32, length: int = 64) -> nn.Module:
    """One layer of attention to what came before."""
    return Causal(width, length)


class Vectors(nn.Module):
    """Numbers in, a batch norm that sees one value a channel and row, numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


def vectors() -> nn.Module:
    """A small perceptron with a batch norm."""
    return Vectors()


IMAGE = {"image": {"shape": ["batch", 1, 16, 16]}}
TOKENS = {
    "input_ids": {"shape": ["batch", "sequence"], "dtype": "int64", "range": [0, 49]},
    "attention_mask": {"shape": ["batch", "sequence"], "dtype": "int64", "range": [1, 1]},
}
PICTURE = {"picture": {"shape": ["batch", 4, "height", "width"]}, "extra": {"shape": ["batch", 3]}}
SERIES = {"series": {"shape": ["batch", "time", 6]}}
