"""Settings by which an image or a text becomes a row: of data sources, and of what clients of a served model send."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modelpack.bind import FilePath
from modelpack.errors import did_you_mean
from modelpack.server.preparation import ARRAYS, Pixels, Tokens, each, pair

if TYPE_CHECKING:
    from collections.abc import Iterable

Side = Annotated[int, Field(gt=0)]
TOKENIZER = "interface.tokenizer.json"
"""What a model's artifact calls the tokenizer of its clients' texts."""


class ImageSettings(BaseModel):
    """How an image becomes numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: Side | tuple[Side, Side] | None = Field(
        None, description="Resize: one number for the shorter side, or [height, width]; not resized when absent."
    )
    crop: Side | tuple[Side, Side] | None = Field(
        None, description="Then cut this square, or [height, width], from the centre; as `size` when absent."
    )
    resample: Literal["bilinear", "bicubic"] = Field("bilinear", description="How resizing interpolates.")
    channels: Literal["RGB", "BGR", "grey"] = Field("RGB", description="Channels and their order.")
    background: Literal["white", "grey", "black"] = Field("white", description="What transparent pixels lie on.")
    scale: float = Field(1 / 255, gt=0, description="Multiplies the pixel values 0 to 255, first.")
    mean: float | tuple[float, ...] = Field(0.0, description="Subtracted after scaling, one or one a channel.")
    std: float | tuple[float, ...] = Field(1.0, description="Divided by, last, one or one a channel.")
    layout: Literal["NCHW", "NHWC"] = Field("NCHW", description="Whether channels come before or after the pixels.")

    @property
    def pixels(self) -> Pixels:
        """The same settings, as the server has them too."""
        return Pixels(**{item.name: getattr(self, item.name) for item in dataclasses.fields(Pixels)})

    def told(self, dtype: str) -> dict[str, Any]:
        """Say it in the words of the server, for a model's input of an element type."""
        return {**dataclasses.asdict(self.pixels), "dtype": dtype}

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        for name in ("mean", "std"):
            values = each(getattr(self, name))
            if len(values) not in {1, self.pixels.depth}:
                raise ValueError(f"`{name}` has {len(values)} values for {self.pixels.depth} channels")
        if 0.0 in each(self.std):
            raise ValueError("`std` divides, so it cannot be 0")
        size, crop = pair(self.size), pair(self.crop)
        if size is not None and crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
            raise ValueError(f"`crop` {list(crop)} does not fit into `size` {list(size)}")
        return self


class TextSettings(BaseModel):
    """How a text becomes token numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tokenizer: FilePath = Field(description="The model's tokenizer.json, as the `tokenizers` library writes it.")
    length: int = Field(128, gt=0, description="Largest number of tokens a row has.")
    truncation: bool = Field(True, description="Whether longer texts are cut; they are errors otherwise.")
    padding: Literal["longest", "max"] = Field(
        "longest", description="Fill rows up to the longest of their batch, or always up to `length`."
    )
    rename: dict[str, str] = Field(
        default_factory=dict, description="The model's own names: input_ids, attention_mask, token_type_ids → name."
    )

    @field_validator("rename")
    @classmethod
    def _renames(cls, rename: dict[str, str]) -> dict[str, str]:
        for array in rename:
            if array not in ARRAYS:
                raise ValueError(f"there is no array '{array}' to rename: {did_you_mean(array, ARRAYS)}")
        return rename

    def name(self, array: str) -> str:
        """Give the model's name of one of `ARRAYS`."""
        return self.rename.get(array, array)

    def encoding(self, *, together: bool) -> Tokens:
        """The same settings, as the server has them too, for one text a row or two."""
        return Tokens(self.length, self.truncation, self.padding, together)

    def told(self, arrays: Iterable[str], *, together: bool) -> dict[str, Any]:
        """Say it in the words of the server, for a model that takes some of `ARRAYS`."""
        return {
            **dataclasses.asdict(self.encoding(together=together)),
            "tokenizer": TOKENIZER,
            "arrays": {array: self.name(array) for array in arrays},
            "pair": "pair" if together else None,
        }
