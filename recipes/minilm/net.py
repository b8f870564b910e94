"""A BERT encoder in plain torch that turns a sentence into one vector, as all-MiniLM-L6-v2 does."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Layer(nn.Module):
    """Self-attention, then a two-layer perceptron; each is added to its input and normalised."""

    def __init__(self, width: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, epsilon)
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        self.outer_norm = nn.LayerNorm(width, epsilon)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape; `mask` (batch, 1, 1, tokens) is true where a token is."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.attended_norm(x + self.attended(mixed.transpose(1, 2).flatten(2)))
        return self.outer_norm(x + self.outer(functional.gelu(self.inner(x))))


class SentenceEncoder(nn.Module):
    """Embeds sentences so that those that mean nearly the same lie close together."""

    def __init__(
        self,
        *,
        layers: int = 6,
        width: int = 384,
        heads: int = 12,
        inner: int = 1536,
        words: int = 30522,
        longest: int = 512,
        epsilon: float = 1e-12,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Embedding(longest, width)
        self.norm = nn.LayerNorm(width, epsilon)
        self.layers = nn.ModuleList(Layer(width, heads, inner, epsilon) for _ in range(layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Embed a batch of tokenized sentences.

        Args:
            input_ids: Token numbers (batch, tokens), int64.
            attention_mask: 1 where a token is and 0 where padding is (batch, tokens), int64.

        Returns:
            `embedding` (batch, width): the mean over a sentence's tokens, scaled to length 1.
        """
        x = self.norm(self.words(input_ids) + self.positions.weight[: input_ids.shape[1]])
        mask = attention_mask[:, None, None, :] > 0
        for layer in self.layers:
            x = layer(x, mask)
        weight = attention_mask[:, :, None].to(x.dtype)
        mean = (x * weight).sum(1) / weight.sum(1).clamp(min=1)
        return {"embedding": functional.normalize(mean, dim=1)}


def build(**shape: int) -> nn.Module:
    """Make the encoder with fresh weights; `shape` changes the sizes, which are those of MiniLM-L6."""
    return SentenceEncoder(**shape)
