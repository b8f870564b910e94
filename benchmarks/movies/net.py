"""The MiniLM sentence encoder with a linear layer that tells good words about a movie from bad ones."""

from __future__ import annotations

from encoder import SentenceEncoder
from torch import Tensor, nn


class Classifier(nn.Module):
    """Says whether a sentence about a movie is meant well."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = SentenceEncoder()
        self.head = nn.Linear(384, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map token numbers and their mask, both (batch, tokens) int64, to one score per class (batch, classes)."""
        # Embeddings have length 1; scores of ordinary size need more.
        return self.head(16.0 * self.encoder(input_ids, attention_mask)["embedding"])


def build(classes: int = 2) -> nn.Module:
    """Make the network with fresh weights."""
    return Classifier(classes)
