"""Texts → token numbers, by a tokenizer file; how far rows are filled and cut is said beside it, not in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from . import Tokens


class LongTextError(ValueError):
    """A text that has more tokens than a row may have, and must not be cut."""

    def __init__(self, row: int, count: int, length: int) -> None:
        super().__init__(f"the text has {count} tokens, more than `length: {length}`")
        self.row = row


def load(path: Path, settings: Tokens) -> Any:
    """Load a tokenizer, with these settings in place of those kept in its file.

    Raises:
        ImportError: Where the package `tokenizers` is absent.
        ValueError: When the file is none, has no token to fill rows with, or leaves no room for text.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ValueError(f"it is not a tokenizer file: {error}") from error
    special = tokenizer.num_special_tokens_to_add(settings.together)
    if settings.length <= special:
        raise ValueError(f"`length: {settings.length}` leaves no room for text beside {special} special tokens")
    kept = tokenizer.padding or {}
    token = kept.get("pad_token") or next(
        (name for name in ("[PAD]", "<pad>") if tokenizer.token_to_id(name) is not None), None
    )
    if token is None:
        raise ValueError(
            "the tokenizer has no token to fill rows with: add [PAD] or <pad>, or save it with its padding enabled"
        )
    tokenizer.no_truncation()
    if settings.truncation:
        tokenizer.enable_truncation(settings.length)
    tokenizer.enable_padding(
        direction=kept.get("direction", "right"),
        pad_token=token,
        pad_id=kept.get("pad_id", tokenizer.token_to_id(token)),
        pad_type_id=kept.get("pad_type_id", 0),
        length=settings.length if settings.padding == "max" else None,
    )
    return tokenizer


def encode(
    tokenizer: Any, texts: Sequence[str | tuple[str, str]], settings: Tokens, arrays: Iterable[str]
) -> dict[str, np.ndarray]:
    """Encode texts together, filled up to the same length; gives some of `preparation.ARRAYS`, int64, one row a text.

    Raises:
        LongTextError: For the first text that is too long and must not be cut.
    """
    found = tokenizer.encode_batch(list(texts))
    if not settings.truncation:
        for row, encoding in enumerate(found):
            if (count := sum(encoding.attention_mask)) > settings.length:
                raise LongTextError(row, count, settings.length)
    values = {
        "input_ids": lambda item: item.ids,
        "attention_mask": lambda item: item.attention_mask,
        "token_type_ids": lambda item: item.type_ids,
    }
    return {name: np.array([values[name](item) for item in found], np.int64) for name in arrays}
