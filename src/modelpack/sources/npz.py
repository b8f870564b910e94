"""Arrays saved by numpy."""

from __future__ import annotations

import math
import zipfile
from typing import IO, TYPE_CHECKING, Any, Self

from pydantic import Field, field_validator, model_validator

from modelpack.bind import FilePath
from modelpack.data import DataSource, SourceConfig, source
from modelpack.errors import StageError, did_you_mean
from modelpack.sources.rows import Columns, Rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from pydantic import ValidationInfo

    from modelpack.bind import InputPath
    from modelpack.tensors import TensorSpec

_SUFFIX = ".npy"


def _members(path: Path) -> dict[str, int]:
    """List the arrays in an archive with their uncompressed sizes, from its directory alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise ValueError(f"{path} is not an .npz archive: {error}") from error
    entries = {entry.filename: entry.file_size for entry in listed}
    if len(entries) < len(listed):
        raise ValueError(f"{path} holds two arrays of one name")
    for name in entries:
        if not name.endswith(_SUFFIX):
            raise ValueError(f"{path} holds '{name}', which is not an array")
    return {name.removesuffix(_SUFFIX): size for name, size in entries.items()}


class NpzConfig(SourceConfig):
    """A .npz archive of arrays with one row each at every index, or one .npy array."""

    path: FilePath = Field(description="The .npz or .npy file; pickled objects in it are refused.")
    name: str | None = Field(
        None, min_length=1, description="Name of the array in a .npy file, such as the model's input."
    )
    rename: dict[str, str] = Field(
        default_factory=dict, description="Other names for arrays of a .npz file: name in the file → name in a batch."
    )
    memory: float = Field(8.0, gt=0, description="Refuse a .npz file whose arrays take more memory than this, in GiB.")

    @field_validator("path")
    @classmethod
    def _readable(cls, value: InputPath) -> InputPath:
        if value.path.suffix == ".npz":
            _members(value.path)
        elif value.path.suffix != _SUFFIX:
            raise ValueError(f"{value.path} is neither .npz nor .npy")
        return value

    @field_validator("rename")
    @classmethod
    def _renames(cls, rename: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        path = info.data.get("path")
        if path is None or not rename:
            return rename
        if path.path.suffix == _SUFFIX:
            raise ValueError("`rename` is for .npz files; a .npy file's array is named by `name`")
        known = _members(path.path)
        for name in rename:
            if name not in known:
                raise ValueError(f"the file has no array '{name}': {did_you_mean(name, known)}")
        names = [rename.get(name, name) for name in known]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two arrays would be named '{twice}'")
        return rename

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.path.path.suffix == _SUFFIX:
            if self.name is None:
                raise ValueError("a .npy file needs `name`, the key of its array in a batch")
            return self
        if self.name is not None:
            raise ValueError("`name` is for .npy files; use `rename` for the arrays of a .npz file")
        taken = sum(_members(self.path.path).values()) / 2**30
        if taken > self.memory:
            raise ValueError(
                f"the arrays of {self.path.path} take {taken:.1f} GiB, more than `memory: {self.memory:g}`"
            )
        return self


@source(version=1)
def npz(config: NpzConfig, inputs: Mapping[str, TensorSpec]) -> DataSource:  # noqa: ARG001 the names come from the file
    """Arrays from a .npz or .npy file."""
    path = config.path.path
    # How much memory is allowed changes no row.
    return Rows(npz, config, str(path), lambda: _load(config), lambda: {"memory": None})


def _load(config: NpzConfig) -> Columns:
    import numpy as np

    path = config.path.path
    try:
        if config.name is not None:
            return Columns.check({config.name: np.lib.format.open_memmap(path, mode="r")}, str(path))
        arrays = {}
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(_SUFFIX)
                with archive.open(entry) as stream:
                    _check_header(stream, entry.file_size, f"{path}, array '{name}'")
                with archive.open(entry) as stream:
                    arrays[config.rename.get(name, name)] = np.lib.format.read_array(stream, allow_pickle=False)
    except StageError:
        raise
    except Exception as error:
        raise StageError(f"it cannot be read: {error}", where=str(path)) from error
    return Columns.check(arrays, str(path))


def _check_header(stream: IO[bytes], size: int, where: str) -> None:
    """Compare the size that an array claims with the bytes that are there, before memory is set aside for it.

    Raises:
        StageError: When they differ, or for pickled objects.
    """
    shape, dtype = _header(stream)
    if dtype.hasobject:
        raise StageError("it holds pickled objects, which could run code when read", where=where, then="save numbers")
    if stream.tell() + math.prod(shape) * dtype.itemsize != size:
        raise StageError(f"it claims the shape {list(shape)}, for which its {size} bytes are not right", where=where)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    from numpy.lib import format as npy

    version = npy.read_magic(stream)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"format version {version} is not for plain arrays")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
