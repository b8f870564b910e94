"""An image file → an array: orientation, background, size, crop, channels and scale."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from modelpack.errors import StageError
from modelpack.sources.labels import LabelledConfig
from modelpack.sources.rows import extra

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Side = Annotated[int, Field(gt=0)]
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"})
# Pillow goes by content, and some of its formats start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
BACKGROUNDS = {"white": (255, 255, 255, 255), "grey": (128, 128, 128, 255), "black": (0, 0, 0, 255)}


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
    def depth(self) -> int:
        """Number of channels."""
        return 1 if self.channels == "grey" else 3

    @property
    def raw(self) -> bool:
        """Whether pixel values stay whole numbers from 0 to 255."""
        return self.scale == 1 and not any(_each(self.mean)) and set(_each(self.std)) == {1.0}

    @property
    def cut(self) -> tuple[int, int] | None:
        """Height and width after cropping; None when the images keep their own."""
        return _pair(self.crop if self.crop is not None else self.size)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of one row, None where it is the image's own."""
        height, width = self.cut or (None, None)
        return (self.depth, height, width) if self.layout == "NCHW" else (height, width, self.depth)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        for name in ("mean", "std"):
            values = _each(getattr(self, name))
            if len(values) not in {1, self.depth}:
                raise ValueError(f"`{name}` has {len(values)} values for {self.depth} channels")
        if 0.0 in _each(self.std):
            raise ValueError("`std` divides, so it cannot be 0")
        size, crop = _pair(self.size), _pair(self.crop)
        if size is not None and crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
            raise ValueError(f"`crop` {list(crop)} does not fit into `size` {list(size)}")
        return self


def _each(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _pair(value: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (value, value) if isinstance(value, int) else value


def read(path: Path, config: PixelsConfig, dtype: str, where: str) -> NDArray[Any]:
    """Read one image as an array of `config.shape`.

    Raises:
        StageError: When the file is no image, is broken, too large (Pillow's limit) or smaller than the crop.
        MissingError: When Pillow is absent.
    """
    with extra("images"):
        from PIL import Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                pixels = _pixels(image, config)
    except Exception as error:
        raise StageError(f"the image cannot be used: {error}", where=where) from error
    return _numbers(pixels, config, dtype)


def _pixels(image: Image.Image, config: PixelsConfig) -> NDArray[np.uint8]:
    """Give height, width, channels, whole numbers from 0 to 255."""
    import numpy as np
    from PIL import ImageOps

    image = _cropped(_resized(_flattened(ImageOps.exif_transpose(image), config), config), config)
    pixels = np.asarray(image)
    if config.channels == "grey":
        return pixels[..., None]
    return pixels[..., ::-1] if config.channels == "BGR" else pixels


def _flattened(image: Image.Image, config: PixelsConfig) -> Image.Image:
    """Bring any kind of image to eight bits of RGB or grey, transparent parts on the background."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        import numpy as np

        # Pillow's own conversion clips at 255, which turns almost every 16-bit image white.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ValueError(f"its pixels are of kind {image.mode}, which has no known range; save 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUNDS[config.background]), image)
    return image.convert("L" if config.channels == "grey" else "RGB")


def _resized(image: Image.Image, config: PixelsConfig) -> Image.Image:
    from PIL import Image

    if config.size is None:
        return image
    width, height = image.size
    if isinstance(config.size, int):
        shorter = min(width, height)
        wanted = (config.size * width // shorter, config.size * height // shorter)
    else:
        wanted = (config.size[1], config.size[0])
    if wanted[0] * wanted[1] > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise ValueError(f"it is {width}x{height} and would become {wanted[0]}x{wanted[1]}")
    method = Image.Resampling.BICUBIC if config.resample == "bicubic" else Image.Resampling.BILINEAR
    return image if wanted == image.size else image.resize(wanted, method)


def _cropped(image: Image.Image, config: PixelsConfig) -> Image.Image:
    if config.cut is None:
        return image
    (height, width), (wide, high) = config.cut, image.size
    if height > high or width > wide:
        raise ValueError(f"it is {wide}x{high}, smaller than the crop {width}x{height}; set `size:`")
    left, top = round((wide - width) / 2), round((high - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _numbers(pixels: NDArray[np.uint8], config: PixelsConfig, dtype: str) -> NDArray[Any]:
    import numpy as np

    values: NDArray[Any] = pixels
    if not config.raw:
        mean, std = np.array(_each(config.mean), np.float32), np.array(_each(config.std), np.float32)
        values = (pixels * np.float32(config.scale) - mean) / std
    if config.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values, dtype=dtype)
