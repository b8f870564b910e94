"""What people have → what models take: an image or a text becomes tensors, and the settings that say how.

Data sources and the server use the same code, so that a model meets the same numbers, bit for bit, in training, in
calibration and in answers. The settings stand here alone, because they are read where nothing is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ARRAYS", "Pixels", "Tokens"]

ARRAYS = ("input_ids", "attention_mask", "token_type_ids")
"""What a text becomes; a model takes the first, and perhaps the others."""


@dataclass(frozen=True)
class Pixels:
    """How an image becomes numbers; the settings of the data source `image_folder`, which describes them."""

    size: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    resample: str = "bilinear"
    channels: str = "RGB"
    background: str = "white"
    scale: float = 1 / 255
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    layout: str = "NCHW"

    @property
    def depth(self) -> int:
        """Number of channels."""
        return 1 if self.channels == "grey" else 3

    @property
    def raw(self) -> bool:
        """Whether pixel values stay whole numbers from 0 to 255."""
        return self.scale == 1 and not any(each(self.mean)) and set(each(self.std)) == {1.0}

    @property
    def cut(self) -> tuple[int, int] | None:
        """Height and width after cropping; None when the images keep their own."""
        return pair(self.crop if self.crop is not None else self.size)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of one row, None where it is the image's own."""
        height, width = self.cut or (None, None)
        return (self.depth, height, width) if self.layout == "NCHW" else (height, width, self.depth)


@dataclass(frozen=True)
class Tokens:
    """How texts become token numbers; the settings of the data source `text`, which describes them.

    Attributes:
        length: Largest number of tokens a row has.
        truncation: Whether longer texts are cut; they are errors otherwise.
        padding: `longest` fills rows up to the longest of those encoded together, `max` up to `length`.
        together: Whether a row is encoded from two texts.
    """

    length: int
    truncation: bool = True
    padding: str = "longest"
    together: bool = False


def each(value: float | tuple[float, ...]) -> tuple[float, ...]:
    """Give the values of a setting that is one number, or one a channel."""
    return value if isinstance(value, tuple) else (value,)


def pair(value: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Give height and width of a setting that is one side, or both."""
    return (value, value) if isinstance(value, int) else value
