"""What reads images and texts from a request's tensors, within limits; nothing in them is ever executed."""

from __future__ import annotations

import io
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import Disconnected, Invalid, StartError
from .memory import free
from .signature import Signature, Tensor
from .tensors import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .preparation import Pixels, Tokens
    from .settings import Settings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What a client's image may be; Pillow goes by content, never by a name or a header."""
_BYTES = 16  # of memory that a pixel takes at most while an image is decoded: four layers of a transparent one
_log = logging.getLogger("modelpack.server")


class Images:
    """Images for one input of the model, one a row.

    Args:
        name: What clients call it.
        tensor: The model's input.
        pixels: How an image becomes a row of it.
    """

    def __init__(self, name: str, tensor: Tensor, pixels: Pixels) -> None:
        self.takes: tuple[Tensor, ...] = (Tensor(name, tensor.shape[:1], "bytes"),)
        self.gives: tuple[str, ...] = (tensor.name,)
        self._tensor, self._pixels, self._most = tensor, pixels, 0
        self._read: Callable[..., np.ndarray] | None = None
        shape = pixels.shape
        fits = len(tensor.shape) == 4 and all(
            made is None or isinstance(size, str) or made == size
            for made, size in zip(shape, tensor.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(f"images become {list(shape)}, and the model's {tensor.name!r} takes {tensor.wanted}")
        if not tensor.dtype.startswith("float") and not (pixels.raw and tensor.dtype not in ("int8", "bool")):
            raise ValueError(f"the model's {tensor.name!r} takes {tensor.dtype}, which cannot hold scaled pixels")

    def load(self, settings: Settings, workers: int = 1) -> None:
        """Import Pillow, see how large an image may be in so many threads at once, and prepare a grey one.

        Raises:
            StartError: When it is absent, or what it gives is not what the model takes.
        """
        try:
            from PIL import Image, WebPImagePlugin  # noqa: F401 - the plugin makes its format known

            from .preparation.images import read
        except ImportError as error:
            raise StartError(f"this model takes images, and Pillow is not here: {error}") from None
        self._read, self._most = read, min(settings.max_pixels, free() // (_BYTES * workers))
        if self._most < settings.max_pixels:
            _log.warning("images may have %d pixels, for which there is memory", self._most)
        sizes = [size if isinstance(size, int) else 32 for size in self._pixels.shape]
        height, width = sizes[1:] if self._pixels.layout == "NCHW" else sizes[:2]
        stream = io.BytesIO()
        Image.new("RGB", (width, height), (128, 128, 128)).save(stream, "JPEG")
        _try(self, stream.getvalue(), [self._tensor])

    def read(self, feed: Mapping[str, np.ndarray], stopped: Any) -> dict[str, np.ndarray]:
        """Prepare every image.

        Raises:
            Invalid: When one is no image, too large, or another size than the first.
            Disconnected: When nobody waits any more.
        """
        name = self.takes[0].name
        values, rows = feed[name], []
        for at, value in enumerate(values):
            if stopped.terminate:
                raise Disconnected
            rows.append(self._one(value, f"input {name!r}, image {at}"))
            if rows[at].shape != rows[0].shape:
                raise Invalid(
                    f"input {name!r}: image {at} becomes {list(rows[at].shape)}, image 0 {list(rows[0].shape)}"
                )
            if not at and len(values) * rows[0].size > self._most * self._pixels.depth:
                room = self._most * self._pixels.depth // rows[0].size
                raise Invalid(
                    f"input {name!r}: {len(values)} images, and {room} of this size are the most in a request"
                )
        return {self._tensor.name: np.stack(rows)}

    def _one(self, value: bytes, place: str) -> np.ndarray:
        assert self._read is not None, "a model is loaded before it is asked"
        try:
            return self._read(io.BytesIO(value), self._pixels, self._tensor.dtype, formats=FORMATS, most=self._most)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything for bytes that are no image
            raise Invalid(f"{place}: it cannot be used: {_reason(error)}") from None


class Texts:
    """Texts, or pairs of them, that become token numbers in one or several inputs of the model.

    Args:
        name: What clients call them.
        pair: What they call the second text of each row; None where there is one a row.
        path: The tokenizer file.
        tokens: How a text becomes a row.
        arrays: `input_ids` and its companions → the model's inputs.
    """

    def __init__(self, name: str, pair: str | None, path: Path, tokens: Tokens, arrays: Mapping[str, Tensor]) -> None:
        rows = next(iter(arrays.values())).shape[:1]
        self.takes: tuple[Tensor, ...] = tuple(Tensor(each, rows, "string") for each in (name, pair) if each)
        self.gives: tuple[str, ...] = tuple(tensor.name for tensor in arrays.values())
        self._path, self._tokens, self._arrays, self._most = path, tokens, arrays, 0
        self._tokenizer: Any = None

    def load(self, settings: Settings, _workers: int = 1) -> None:
        """Load the tokenizer and prepare a text.

        Raises:
            StartError: When it cannot be loaded, or what it gives is not what the model takes.
        """
        from .preparation import tokens

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would not heed the container's quota
        try:
            self._tokenizer = tokens.load(self._path, self._tokens)
        except ImportError as error:
            raise StartError(f"this model takes texts, and the package tokenizers is not here: {error}") from None
        except ValueError as error:
            raise StartError(f"{self._path}: {error}") from None
        self._most = settings.max_text
        _try(self, "a", list(self._arrays.values()))

    def read(self, feed: Mapping[str, np.ndarray], _stopped: Any) -> dict[str, np.ndarray]:
        """Prepare all texts together.

        Raises:
            Invalid: When there are too many characters, or a text has too many tokens and must not be cut.
        """
        from .preparation import tokens

        columns = [feed[tensor.name].tolist() for tensor in self.takes]
        name = self.takes[0].name
        if (size := sum(len(text) for column in columns for text in column)) > self._most:
            raise Invalid(f"input {name!r}: {size} characters, and the limit for one request is {self._most}")
        if len({len(column) for column in columns}) > 1:
            raise Invalid(f"input {name!r} has {len(columns[0])} rows, {self.takes[1].name!r} {len(columns[1])}")
        texts = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        try:
            made = tokens.encode(self._tokenizer, texts, self._tokens, self._arrays)
        except tokens.LongTextError as error:
            raise Invalid(f"input {name!r}, text {error.row}: {error}") from None
        return {self._arrays[array].name: values for array, values in made.items()}


class _Going:
    terminate = False


def _try(reader: Images | Texts, sample: str | bytes, tensors: Sequence[Tensor]) -> None:
    """Prepare a sample in every row that there must be, and compare it with what the model takes."""
    rows = tensors[0].shape[0]
    count = rows if isinstance(rows, int) else 1
    feed = {tensor.name: np.array([sample] * count, object) for tensor in reader.takes}
    try:
        fit(reader.read(feed, _Going), Signature({tensor.name: tensor for tensor in tensors}, {}), count)
    except Invalid as fault:
        raise StartError(f"what is prepared is not what the model takes: {fault.message}") from None


def _reason(error: Exception) -> str:
    """Keep what Pillow says, without the addresses of objects."""
    text = str(error)
    return (
        "it is no image of " + ", ".join(FORMATS) if "cannot identify" in text else text[:200] or type(error).__name__
    )
