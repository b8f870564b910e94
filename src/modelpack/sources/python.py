"""Rows or batches made by the user's own function."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from modelpack.bind import Arguments, FilePath, UserCode
from modelpack.data import DataSource, SourceConfig, source
from modelpack.errors import ModelpackError, StageError
from modelpack.sources.rows import Columns, Rows

if TYPE_CHECKING:
    from modelpack.data import Batch
    from modelpack.tensors import TensorSpec


_END = object()


class PythonConfig(SourceConfig):
    """A function, what it is called with, and the files it reads."""

    callable: UserCode = Field(
        description="`file.py:function` or `package.module:function`; it returns a dict of arrays, or gives batches."
    )
    arguments: Arguments = Field(default_factory=dict, description="Keyword arguments for the function.")
    files: tuple[FilePath, ...] = Field(
        (), description="Files that the function reads; a change in one of them makes the data new."
    )


@source(version=1)
def python(config: PythonConfig, inputs: Mapping[str, TensorSpec]) -> DataSource:  # noqa: ARG001 the function knows
    """Whatever a Python function returns: a dict of arrays, or batches one by one."""
    return _Called(config)


@dataclass(frozen=True)
class _Called:
    """A function's result, seen as rows when it is a dict of arrays and as batches otherwise."""

    config: PythonConfig

    @property
    def _where(self) -> str:
        return self.config.callable.reference

    @functools.cached_property
    def _rows(self) -> Rows:
        return Rows(python, self.config, self._where, lambda: _columns(self._kept, self._where))

    @functools.cached_property
    def _kept(self) -> object:
        """The first result: kept, because arrays and lists of batches need not be made twice."""
        return self._call()

    def _call(self) -> object:
        function = self.config.callable.load()
        result = _guarded(lambda: function(**self.config.arguments), self._where)
        if not isinstance(result, (Mapping, Iterable)) or isinstance(result, (str, bytes)) or hasattr(result, "dtype"):
            raise StageError(
                f"it returned {_kind(result)}; a dict of arrays, or batches, are expected", where=self._where
            )
        return result

    def __len__(self) -> int:
        return len(self._rows) if isinstance(self._kept, Mapping) else 0

    def batches(self) -> Iterator[Batch]:
        """Give the rows in batches, or the function's own batches up to the limit."""
        if isinstance(self._kept, Mapping):
            yield from self._rows.batches()
            return
        for name in ("seed", "batch"):
            if name in self.config.model_fields_set and getattr(self.config, name) is not None:
                raise StageError(
                    f"`{name}` cannot apply: the function gives batches, not a dict of arrays",
                    where=self._where,
                    then=f"remove `{name}`, or return a dict of arrays",
                )
        yield from self._stream(self._source())

    def _source(self) -> Iterator[object]:
        """Begin anew: an iterator is spent after one reading, so that the function is called again."""
        result = self._call() if isinstance(self._kept, Iterator) else self._kept
        assert isinstance(result, Iterable)
        stream: Iterator[object] = _guarded(lambda: iter(result), self._where)
        return stream

    def _stream(self, stream: Iterator[object]) -> Iterator[Batch]:
        import numpy as np

        left, number = self.config.limit, 0
        while left is None or left > 0:
            item = _guarded(lambda: next(stream, _END), self._where)
            if item is _END:
                break
            number += 1
            batch = _columns(item, f"{self._where}, batch {number}")
            rows = np.arange(len(batch) if left is None else min(len(batch), left))
            left = None if left is None else left - len(rows)
            yield batch.read(rows)
        if number == 0:
            raise StageError("it gave no batch", where=self._where)

    def digest(self) -> str:
        """Hash the code, its arguments and the files it reads, without running it."""
        return self._rows.digest()


def _columns(found: object, where: str) -> Columns:
    """Take a dict of arrays, or of what numpy makes arrays of.

    Raises:
        StageError: For anything else, saying what came.
    """
    import numpy as np

    if not isinstance(found, Mapping):
        raise StageError(f"it gave {_kind(found)}, a dict of arrays is expected", where=where)
    arrays = {}
    for name, value in found.items():
        if not isinstance(name, str):
            raise StageError(f"the key {name!r} is {_kind(name)}, a name is expected", where=where)
        if isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
            arrays[name] = _guarded(lambda value=value: np.asarray(value), f"{where}, '{name}'")
        else:
            raise StageError(f"'{name}' is {_kind(value)}, an array is expected", where=where)
    return Columns.check(arrays, where)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _guarded(act: Any, where: str) -> Any:
    """Run the user's code, and tell at which of its lines it failed.

    Raises:
        StageError: With what it raised.
    """
    try:
        return act()
    except ModelpackError:
        raise
    except Exception as error:
        # The first two frames are this function and `act`; libraries below the user's code say less than its own line.
        frames = [frame for frame in traceback.extract_tb(error.__traceback__)[2:] if "-packages" not in frame.filename]
        at = f"it failed at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise StageError(f"{type(error).__name__}: {error}", where=where, then=at) from error
