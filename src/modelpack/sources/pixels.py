"""An image file → an array; the settings are here, the arithmetic is in `modelpack.server.preparation.images`."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from modelpack.errors import StageError
from modelpack.server.preparation import Pixels, each, pair
from modelpack.sources.labels import LabelledConfig
from modelpack.sources.rows import extra

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Side = Annotated[int, Field(gt=0)]
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"})
# Pillow goes by content, and some of its formats start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")


class PixelsConfig(LabelledConfig):
    """How an image becomes numbers."""

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


def read(path: Path, config: PixelsConfig, dtype: str, where: str) -> NDArray[Any]:
    """Read one image as an array of `config.pixels.shape`.

    Raises:
        StageError: When the file is no image, is broken, too large (Pillow's limit) or smaller than the crop.
        MissingError: When Pillow is absent.
    """
    with extra("images"):
        from PIL import Image

        from modelpack.server.preparation import images
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            known = [name for name in FORMATS if name in Image.OPEN]
            most = Image.MAX_IMAGE_PIXELS or math.inf
            return images.read(path, config.pixels, dtype, formats=known, most=most)
    except Exception as error:
        raise StageError(f"the image cannot be used: {error}", where=where) from error
