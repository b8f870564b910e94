"""What all data sources share: the order of rows, batches, identity, and errors that name a file and a row.

A source says only how many rows there are and how to read some of them (`Reader`); `Rows` does the rest.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from modelpack import canonical
from modelpack.errors import MissingError, StageError, UsageError
from modelpack.usercode import minor_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from modelpack.data import Batch, Preparation, Source, SourceConfig


class Reader(Protocol):
    """Access to rows by their position in the file, from 0."""

    def __len__(self) -> int:
        """Number of rows in the file."""

    def read(self, rows: NDArray[np.intp]) -> Batch:
        """Read these rows, in this order, stacked along the first dimension."""


@dataclass(frozen=True)
class Columns:
    """A `Reader` over arrays that have one row each at every index of their first dimension."""

    arrays: Batch

    @classmethod
    def check(cls, arrays: Mapping[str, NDArray[Any]], where: str) -> Columns:
        """Take arrays that have equal first dimensions and hold plain values.

        Raises:
            StageError: When they do not, naming the array and what it is.
        """
        if not arrays:
            raise StageError("there are no arrays", where=where)
        for name, array in arrays.items():
            if array.dtype.hasobject or array.dtype.kind == "V":
                raise StageError(f"'{name}' holds {array.dtype}, numbers are expected", where=where)
            if array.ndim == 0:
                raise StageError(
                    f"'{name}' is a single value, an array with a first dimension of rows is expected", where=where
                )
        counts = {name: len(array) for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"'{name}' {count}" for name, count in counts.items())
            raise StageError(f"the arrays have different numbers of rows: {listed}", where=where)
        return cls(dict(arrays))

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, rows: NDArray[np.intp]) -> Batch:
        """Pick rows, in the machine's own byte order."""
        return {
            name: array[rows].astype(array.dtype.newbyteorder("="), copy=False) for name, array in self.arrays.items()
        }


@dataclass(frozen=True)
class Rows:
    """A data source made of a `Reader`: shuffled, limited and cut into batches.

    Attributes:
        plugin: The source plugin it comes from.
        config: Its settings.
        where: The file or directory, for messages.
        load: Makes the reader; called once, when the first row is wanted.
        facts: Canonical values that replace settings of the same name, or add to them, in the identity.
        prepares: Says how images or texts become rows; None where rows are arrays as they stand.
    """

    plugin: Source[Any]
    config: SourceConfig
    where: str
    load: Callable[[], Reader]
    facts: Callable[[], Mapping[str, object]] = field(default=dict)
    prepares: Callable[[], Preparation] | None = None

    @functools.cached_property
    def _reader(self) -> Reader:
        reader = self.load()
        if len(reader) == 0:
            raise StageError("there are no rows", where=self.where)
        return reader

    def __len__(self) -> int:
        count = len(self._reader)
        return count if self.config.limit is None else min(count, self.config.limit)

    def _order(self) -> NDArray[np.intp]:
        import numpy as np

        count, seed = len(self._reader), self.config.seed
        order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
        return order[: self.config.limit]

    def batches(self) -> Iterator[Batch]:
        """Read all rows once more, the last batch being shorter where they do not divide."""
        order = self._order()
        for start in range(0, len(order), self.config.batch):
            yield self._reader.read(order[start : start + self.config.batch])

    def preparation(self) -> Preparation | None:
        """Tell how images or texts become rows; None when the rows are arrays as they stand."""
        return self.prepares() if self.prepares else None

    def digest(self) -> str:
        """Hash the source's version, its settings with the bytes of the files they name, and what prepares the rows.

        The batch size counts: where one batch ends decides what training and calibration compute.

        Raises:
            UsageError: When a file has become unreadable.
        """
        settings = {name: getattr(self.config, name) for name in type(self.config).model_fields}
        try:
            return canonical.digest(
                {
                    "source": self.plugin.name,
                    "version": self.plugin.version,
                    "needs": {name: minor_version(name) for name in self.plugin.needs},
                    "settings": {**settings, **self.facts()},
                }
            )
        except OSError as error:
            raise UsageError(f"it cannot be read: {error.strerror}", where=str(error.filename)) from error


def place(path: object, row: int, column: str = "") -> str:
    """Name a row, given from 0 and shown from 1, and where it helps its column."""
    return f"{path}, row {row + 1}" + (f", column '{column}'" if column else "")


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a failing import into advice to install the extra that brings it.

    Raises:
        MissingError: When the package is absent or broken.
    """
    try:
        yield
    except ImportError as error:
        raise MissingError(
            f"a package that this data source needs is missing: {error}", then=f"pip install 'modelpack[{name}]'"
        ) from error
