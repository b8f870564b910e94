"""A directory of images, with labels from subdirectories or from a CSV file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from modelpack import canonical
from modelpack.bind import FilePath, FolderPath
from modelpack.data import DataSource, Preparation, source
from modelpack.errors import StageError, UsageError, did_you_mean
from modelpack.sources import pixels
from modelpack.sources.labels import numbers
from modelpack.sources.pixels import SUFFIXES, PixelsConfig
from modelpack.sources.rows import Rows, place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from modelpack.data import Batch
    from modelpack.tensors import TensorSpec


class ImageFolderConfig(PixelsConfig):
    """A directory of images and what to make of each."""

    path: FolderPath = Field(description="Directory; its subdirectories are classes, in the order of their names.")
    labels: FilePath | None = Field(
        None, description="CSV file of image name and label, used instead of subdirectories; a header line may lead."
    )
    name: str | None = Field(
        None, min_length=1, description="Name of the images in a batch; the model's first 4-D input when absent."
    )


@dataclass(frozen=True)
class _Listing:
    """The images in row order, and each one's label; None where there are no labels at all."""

    files: tuple[Path, ...]
    labels: tuple[str, ...] | None


@source(version=1, needs={"pillow": "images"})
def image_folder(config: ImageFolderConfig, inputs: Mapping[str, TensorSpec]) -> DataSource:
    """Images below a directory, resized, cropped and scaled."""
    name = config.name or next((name for name, spec in inputs.items() if len(spec.shape) == 4), None)
    if name is None:
        raise UsageError("the model has no 4-D input for images", then="add `name:` with the input's name")
    spec = inputs.get(name)
    if spec is not None:
        _check_fit(config, name, spec)
    dtype = spec.dtype if spec is not None else "float32"
    _list(config)  # what is wrong with the names shows before anything runs

    def facts() -> dict[str, object]:
        listing = _list(config)
        # A picture counts by its bytes, its place in the order and its label; what else lies there does not.
        found = [canonical.file_digest(path) for path in listing.files]
        return {"path": found, "labels": listing.labels, "name": name, "dtype": dtype}

    return Rows(
        image_folder, config, str(config.path.path), lambda: _Images.open(config, name, spec), facts,
        lambda: _preparation(config, name, dtype),
    )  # fmt: skip


def _preparation(config: ImageFolderConfig, name: str, dtype: str) -> Preparation:
    """Say how one image becomes a row; directories name the classes where the settings do not."""
    listed = _list(config).labels if config.labels is None else None
    return Preparation({name: {"image": config.told(dtype)}}, {}, config.classes or tuple(sorted(set(listed or ()))))


def _check_fit(config: ImageFolderConfig, name: str, spec: TensorSpec) -> None:
    """Compare the rows to come with the model's input, as far as settings tell.

    Raises:
        UsageError: When they cannot fit.
    """
    given = config.pixels.shape
    fits = len(spec.shape) == 4 and all(
        made is None or isinstance(size, str) or made == size for made, size in zip(given, spec.shape[1:], strict=True)
    )
    if not fits:
        shown = ["any" if size is None else size for size in given]
        raise UsageError(
            f"images become {shown}, but the model's '{name}' takes {list(spec.shape[1:])}",
            then="set `size`, `crop`, `channels` and `layout` to fit",
        )
    if not spec.dtype.startswith("float") and not (config.pixels.raw and spec.dtype not in {"int8", "bool"}):
        raise UsageError(
            f"the model's '{name}' takes {spec.dtype}, which cannot hold scaled pixels",
            then="for plain values 0 to 255 set `scale: 1` and leave `mean` and `std` out",
        )


def _list(config: ImageFolderConfig) -> _Listing:
    """List the images and their labels in row order, reading names only.

    Raises:
        UsageError: When there are none, or names and labels do not go together.
    """
    try:
        if config.labels is not None:
            return _labelled(config.path.path, config.labels.path)
        return _by_directory(config.path.path, config.classes)
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}", where=str(error.filename)) from error


def _by_directory(root: Path, classes: Sequence[str] | None) -> _Listing:
    folders = sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    flat = _images(root)
    if flat and folders:
        raise UsageError(
            f"there are images beside the class directory '{folders[0]}'",
            where=str(root),
            then="move them into classes, or name a `labels:` file",
        )
    if not folders:
        if not flat:
            raise UsageError("there is no image", where=str(root), then=f"known are {' '.join(sorted(SUFFIXES))}")
        return _Listing(tuple(flat), None)
    files: list[Path] = []
    labels: list[str] = []
    for folder in folders:
        found = _images(root / folder, deep=True)
        if classes is not None and folder not in classes:
            hint = did_you_mean(folder, classes)
            raise UsageError(f"the directory '{folder}' is not among `classes`", where=str(root), then=hint)
        if not found:
            raise UsageError("the class directory holds no image", where=str(root / folder), then="remove or fill it")
        files += found
        labels += [folder] * len(found)
    return _Listing(tuple(files), tuple(labels))


def _images(folder: Path, *, deep: bool = False) -> list[Path]:
    """List the images in a directory, sorted by their POSIX names, hidden ones left out."""
    found = {
        path.relative_to(folder).as_posix(): path
        for path in (folder.rglob("*") if deep else folder.iterdir())
        if path.suffix.lower() in SUFFIXES and path.is_file()
    }
    return [path for name, path in sorted(found.items()) if not any(part.startswith(".") for part in name.split("/"))]


def _labelled(root: Path, table: Path) -> _Listing:
    """Read a file of image names and labels; its first line is a header when it names no file.

    Raises:
        UsageError: For a line that is not two values, or names no file.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            lines = [
                (number, line)
                for number, line in enumerate(csv.reader(stream, delimiter="\t" if table.suffix == ".tsv" else ","), 1)
                if line
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"it cannot be read: {error}", where=str(table)) from error
    if lines and not (root / lines[0][1][0]).is_file():
        del lines[0]
    for number, line in lines:
        if len(line) != 2:
            raise UsageError(
                f"an image name and a label are expected, not {len(line)} values", where=f"{table}:{number}"
            )
        if not (root / line[0]).is_file():
            raise UsageError(f"there is no image '{root / line[0]}'", where=f"{table}:{number}")
    if not lines:
        raise UsageError("it names no image", where=str(table))
    return _Listing(tuple(root / line[0] for _, line in lines), tuple(line[1] for _, line in lines))


@dataclass(frozen=True)
class _Images:
    """Images read and prepared one by one, in row order."""

    config: ImageFolderConfig
    name: str
    spec: TensorSpec | None
    files: tuple[Path, ...]
    labels: NDArray[Any] | None

    @classmethod
    def open(cls, config: ImageFolderConfig, name: str, spec: TensorSpec | None) -> _Images:
        """List the files and number the labels."""
        listing = _list(config)
        labels = None
        if listing.labels is not None and config.labels is not None:
            labels = numbers(listing.labels, config.classes, config.labels.path)
        elif listing.labels is not None:
            # Directories named 0, 3, 7 are classes 0, 1, 2 all the same.
            labels = numbers(listing.labels, config.classes or sorted(set(listing.labels)), config.path.path)
        return cls(config, name, spec, listing.files, labels)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: NDArray[np.intp]) -> Batch:
        """Read these images, and their labels where there are any."""
        import numpy as np

        images = [self._read(int(row)) for row in rows]
        for row, image in zip(rows, images, strict=True):
            self._check(image, images[0], place(self.files[row], int(row)))
        batch: Batch = {self.name: np.stack(images)}
        return batch if self.labels is None else {**batch, "label": self.labels[rows]}

    def _read(self, row: int) -> NDArray[Any]:
        dtype = self.spec.dtype if self.spec is not None else "float32"
        return pixels.read(self.files[row], self.config, dtype, place(self.files[row], row))

    def _check(self, image: NDArray[Any], first: NDArray[Any], where: str) -> None:
        wanted = self.spec.shape[1:] if self.spec is not None else first.shape
        fits = all(isinstance(size, str) or size == own for size, own in zip(wanted, image.shape, strict=True))
        if not fits or image.shape != first.shape:
            other = list(first.shape) if fits else list(wanted)
            raise StageError(
                f"the image is {list(image.shape)} where {other} is expected", where=where, then="set `size:`"
            )
