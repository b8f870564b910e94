"""An image → an array: orientation, background, size, crop, channels and scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from . import each

if TYPE_CHECKING:
    import io
    from collections.abc import Sequence
    from pathlib import Path

    from . import Pixels

BACKGROUNDS = {"white": (255, 255, 255, 255), "grey": (128, 128, 128, 255), "black": (0, 0, 0, 255)}


def read(source: Path | io.BytesIO, settings: Pixels, dtype: str, *, formats: Sequence[str], most: float) -> np.ndarray:
    """Read one image as an array of `settings.shape`.

    Args:
        source: An encoded image; Pillow goes by its content.
        settings: What to make of it.
        dtype: Element type of the array.
        formats: What it may be, in Pillow's words.
        most: Pixels that it may have, as it comes and when it is resized.

    Raises:
        ValueError: When it is too large, smaller than the crop, or of a kind without a known range.
        Exception: What Pillow raises for a file that is no image, or a broken one.
    """
    with Image.open(source, formats=list(formats)) as image:
        if image.width * image.height > most:
            raise ValueError(f"it has {image.width}x{image.height} pixels, which exceeds limit {most:.0f}")
        return _numbers(_pixels(image, settings, most), settings, dtype)


def _pixels(image: Image.Image, settings: Pixels, most: float) -> np.ndarray:
    """Give height, width, channels, whole numbers from 0 to 255."""
    image.load()  # some formats know their kind of pixels only then
    ImageOps.exif_transpose(image, in_place=True)
    pixels = np.asarray(_cropped(_resized(_flattened(image, settings), settings, most), settings))
    if settings.channels == "grey":
        return pixels[..., None]
    return pixels[..., ::-1] if settings.channels == "BGR" else pixels


def _flattened(image: Image.Image, settings: Pixels) -> Image.Image:
    """Bring any kind of image to eight bits of RGB or grey, transparent parts on the background."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which turns almost every 16-bit image white.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ValueError(f"its pixels are of kind {image.mode}, which has no known range; save 8 or 16 bits")
    if image.has_transparency_data:
        over = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUNDS[settings.background]), over)
    wanted = "L" if settings.channels == "grey" else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _resized(image: Image.Image, settings: Pixels, most: float) -> Image.Image:
    if settings.size is None:
        return image
    width, height = image.size
    if isinstance(settings.size, int):
        shorter = min(width, height)
        wanted = (settings.size * width // shorter, settings.size * height // shorter)
    else:
        wanted = (settings.size[1], settings.size[0])
    if wanted[0] * wanted[1] > most:
        raise ValueError(f"it is {width}x{height} and would become {wanted[0]}x{wanted[1]}")
    method = Image.Resampling.BICUBIC if settings.resample == "bicubic" else Image.Resampling.BILINEAR
    return image if wanted == image.size else image.resize(wanted, method)


def _cropped(image: Image.Image, settings: Pixels) -> Image.Image:
    if settings.cut is None:
        return image
    (height, width), (wide, high) = settings.cut, image.size
    if height > high or width > wide:
        raise ValueError(f"it is {wide}x{high}, smaller than the crop {width}x{height}; set `size:`")
    left, top = round((wide - width) / 2), round((high - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _numbers(pixels: np.ndarray, settings: Pixels, dtype: str) -> np.ndarray:
    values: Any = pixels
    if not settings.raw:
        mean, std = np.array(each(settings.mean), np.float32), np.array(each(settings.std), np.float32)
        values = (pixels * np.float32(settings.scale) - mean) / std
    if settings.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values, dtype=dtype)
