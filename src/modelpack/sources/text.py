"""Lines of text, turned into token numbers by a local tokenizer file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from modelpack.bind import FilePath
from modelpack.data import DataSource, Preparation, source
from modelpack.errors import StageError, UsageError
from modelpack.preparation import TOKENIZER, TextSettings
from modelpack.server.preparation import ARRAYS
from modelpack.sources import documents
from modelpack.sources.labels import LabelledConfig, numbers
from modelpack.sources.rows import Rows, extra, place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from modelpack.bind import InputPath
    from modelpack.data import Batch
    from modelpack.server.preparation import Tokens
    from modelpack.tensors import TensorSpec


class TextConfig(LabelledConfig, TextSettings):
    """Where the texts are and how they become numbers."""

    path: FilePath = Field(
        description="A .txt file with one text a line (blank lines are passed over), .csv, .tsv or .jsonl."
    )
    column: str | None = Field(None, description="Column or key of the text; for all but .txt files.")
    pair: str | None = Field(None, description="Column or key of a second text.")
    pairing: Literal["together", "apart"] = Field(
        "together",
        description="Whether both texts are encoded together in one row, or each in a row of its own, the two with the "
        "same number in `pair` and the same label.",
    )
    label: str | None = Field(None, description="Column or key of the truth: numbers, or names of classes.")

    @field_validator("path")
    @classmethod
    def _known(cls, value: InputPath) -> InputPath:
        if value.path.suffix not in documents.SUFFIXES:
            raise ValueError(f"{value.path} is none of {', '.join(documents.SUFFIXES)}")
        return value

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        names = [name for name in (self.column, self.pair, self.label) if name is not None]
        if self.path.path.suffix == ".txt":
            if names:
                raise ValueError(
                    "`column`, `pair` and `label` are for .csv, .tsv and .jsonl files; a .txt file has only lines"
                )
        elif self.column is None:
            raise ValueError(f"`column` must say where in {self.path.path} the text is")
        else:
            documents.check_header(self.path.path, names)
        return self

    @property
    def tokens(self) -> Tokens:
        """The settings that prepare a text, or two together, as the server has them too."""
        return self.encoding(together=self.pair is not None and self.pairing == "together")


@source(version=1, needs={"tokenizers": "text"})
def text(config: TextConfig, inputs: Mapping[str, TensorSpec]) -> DataSource:
    """Texts as token numbers, with an attention mask."""
    taken = {array: inputs[config.name(array)] for array in ARRAYS if config.name(array) in inputs}
    if "input_ids" not in taken:
        raise UsageError(
            f"the model has no input '{config.name('input_ids')}' for the tokens; it has {', '.join(inputs) or 'none'}",
            then="add `rename: {input_ids: …}` with the input's name",
        )
    for array, spec in taken.items():
        _check_fit(config, config.name(array), spec)
    dtypes = {array: spec.dtype for array, spec in taken.items()}
    return Rows(
        text, config, str(config.path.path), lambda: _Texts.open(config, dtypes), lambda: {"inputs": dtypes},
        lambda: _preparation(config, dtypes),
    )  # fmt: skip


def _preparation(config: TextConfig, arrays: Iterable[str]) -> Preparation:
    """Say how one text, or two together, becomes a row."""
    told = config.told(arrays, together=config.tokens.together)
    return Preparation({"text": {"text": told}}, {TOKENIZER: config.tokenizer.path}, config.classes or ())


def _check_fit(config: TextConfig, name: str, spec: TensorSpec) -> None:
    """Compare the rows to come with the model's input.

    Raises:
        UsageError: When they cannot fit.
    """
    if len(spec.shape) != 2 or spec.dtype not in {"int32", "int64"}:
        raise UsageError(f"the model's '{name}' takes {spec.dtype} {list(spec.shape)}, not rows of token numbers")
    fixed = spec.shape[1]
    if isinstance(fixed, int) and (config.length != fixed or config.padding != "max"):
        raise UsageError(
            f"the model's '{name}' takes exactly {fixed} tokens", then=f"set `length: {fixed}` and `padding: max`"
        )


@dataclass(frozen=True)
class _Texts:
    """Texts in memory, tokenized when read."""

    config: TextConfig
    dtypes: Mapping[str, str]
    texts: Sequence[documents.Text]
    labels: NDArray[Any] | None
    tokenizer: Tokenizer

    @classmethod
    def open(cls, config: TextConfig, dtypes: Mapping[str, str]) -> _Texts:
        """Read the texts and the tokenizer."""
        path = config.path.path
        texts = documents.read(path, config.column, config.pair, config.label)
        labels = None
        if config.label is not None:
            labels = numbers([text.label for text in texts], config.classes, path, config.label)
        return cls(config, dtypes, texts, labels, _tokenizer(config))

    @property
    def _sides(self) -> int:
        """Rows that each text, or pair of texts, gives."""
        return 2 if self.config.pair is not None and self.config.pairing == "apart" else 1

    def __len__(self) -> int:
        return len(self.texts) * self._sides

    def _text(self, row: int) -> str | tuple[str, str]:
        text = self.texts[row // self._sides]
        if text.second is None:
            return text.first
        return text.both[row % 2] if self._sides == 2 else text.both

    def read(self, rows: NDArray[np.intp]) -> Batch:
        """Tokenize these texts together, filled up to the same length."""
        import numpy as np

        from modelpack.server.preparation import tokens

        texts = [self._text(int(row)) for row in rows]
        try:
            found = tokens.encode(self.tokenizer, texts, self.config.tokens, self.dtypes)
        except tokens.LongTextError as error:
            raise StageError(
                str(error),
                where=place(self.config.path.path, int(rows[error.row]) // self._sides),
                then="raise `length`, or allow `truncation: true`",
            ) from error
        batch: Batch = {self.config.name(array): found[array].astype(dtype) for array, dtype in self.dtypes.items()}
        if self._sides == 2:
            batch["pair"] = (rows // 2).astype(np.int64)
        return batch if self.labels is None else {**batch, "label": self.labels[rows // self._sides]}


def _tokenizer(config: TextConfig) -> Tokenizer:
    """Load the tokenizer, with the recipe's padding and truncation in place of those kept in its file."""
    from modelpack.server.preparation import tokens

    path = config.tokenizer.path
    try:
        with extra("text"):
            tokenizer: Tokenizer = tokens.load(path, config.tokens)
    except ValueError as error:
        raise StageError(str(error), where=str(path)) from error
    return tokenizer
