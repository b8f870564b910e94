"""An image file → an array; the settings are here, the arithmetic is in `modelpack.server.preparation.images`."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from modelpack.errors import StageError
from modelpack.preparation import ImageSettings
from modelpack.sources.labels import LabelledConfig
from modelpack.sources.rows import extra

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"})
# Pillow goes by content, and some of its formats start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")


class PixelsConfig(LabelledConfig, ImageSettings):
    """How an image becomes numbers."""


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
