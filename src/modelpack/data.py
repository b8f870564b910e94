"""The border where data enters: batches of numpy arrays with a digest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from modelpack.bind import config_type
from modelpack.errors import MissingError
from modelpack.usercode import minor_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from modelpack.tensors import TensorSpec

    Batch = dict[str, NDArray[np.generic]]


class SourceConfig(BaseModel):
    """Settings that every data source has."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch: int = Field(32, gt=0, description="Rows per batch.")
    limit: int | None = Field(None, gt=0, description="Use only this many rows; all when absent.")
    seed: int | None = Field(None, ge=0, description="Shuffle with this seed before limiting; file order when absent.")


class DataSource(Protocol):
    """Rows of named tensors, read batch by batch.

    A batch is a dict of arrays with equal first dimensions: keys named like model inputs are fed to the model,
    `label` (or a step's `target:`) is the truth, others are for tasks that users write.
    """

    def __len__(self) -> int:
        """Number of rows `batches` gives in all; 0 when it is not known before reading."""

    def batches(self) -> Iterator[Batch]:
        """Read all rows once more, from the start, in the same order every time.

        Raises:
            StageError: For a file or row that cannot be read, naming it.
        """

    def digest(self) -> str:
        """Identity of the rows: changes whenever any of their bytes, their order or their preparation change."""


@dataclass(frozen=True)
class Preparation:
    """How what people have, images or texts, becomes rows: data that the server reads.

    Attributes:
        inputs: What clients send, by name → kind → settings; see `modelpack.server.interface`.
        files: Names in those settings → the files that they stand for.
        classes: Names of the classes in the order of the model's outputs; none where the settings do not say.
    """

    inputs: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Path]
    classes: tuple[str, ...] = ()


@runtime_checkable
class Prepared(DataSource, Protocol):
    """A source that can say how its rows are prepared."""

    def preparation(self) -> Preparation | None:
        """Tell how; None when the rows are arrays as they stand."""


C = TypeVar("C", bound=SourceConfig)


@dataclass(frozen=True)
class Source(Generic[C]):
    """A data source plugin: a function from its settings and the model's inputs to a `DataSource`.

    Attributes:
        open: The plugin's function. It checks what it can cheaply and raises `UsageError` for a wrong setting.
        config: Type of its settings.
        version: Raised by hand when the same settings begin to give other rows; part of every digest.
        needs: Distributions it imports, with the extra that brings each.
        synthetic: True when the rows are invented, which every report then says.
        summary: One sentence of help.
    """

    name: str
    open: Callable[[C, Mapping[str, TensorSpec]], DataSource]
    config: type[C]
    version: int
    needs: Mapping[str, str]
    synthetic: bool
    summary: str

    def require(self) -> None:
        """Check, without importing anything, that the distributions it needs are installed.

        Raises:
            MissingError: For one that is not, naming the extra that brings it.
        """
        for distribution, extra in self.needs.items():
            if minor_version(distribution) == "absent":
                raise MissingError(
                    f"the data source '{self.name}' needs {distribution}", then=f"pip install 'modelpack[{extra}]'"
                )


def source(
    *, version: int, needs: Mapping[str, str] | None = None, synthetic: bool = False
) -> Callable[[Callable[[Any, Mapping[str, TensorSpec]], DataSource]], Source[Any]]:
    """Declare a data source; its config type is read from the function's first annotation."""

    def declare(function: Callable[[Any, Mapping[str, TensorSpec]], DataSource]) -> Source[Any]:
        return Source(
            name=function.__name__,
            open=function,
            config=config_type(function),
            version=version,
            needs=dict(needs or {}),
            synthetic=synthetic,
            summary=(function.__doc__ or "").strip().split("\n")[0],
        )

    return declare
