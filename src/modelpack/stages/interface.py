"""What clients of the served model send and get: images, sentences and names of classes instead of tensors."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from modelpack import canonical
from modelpack.artifact import MODEL_FILE, Kind
from modelpack.bind import InputPath
from modelpack.data import Preparation, Prepared
from modelpack.errors import StageError, UsageError
from modelpack.preparation import TOKENIZER, ImageSettings, TextSettings
from modelpack.server.preparation import ARRAYS
from modelpack.stage import DataRef, Job, Outside, StageConfig, stage

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence
    from typing import Self

    from modelpack.data import DataSource

FILE = "interface.json"


def _lines(value: InputPath) -> InputPath:
    names(value)
    return value


def names(file: InputPath) -> tuple[str, ...]:
    """Read names, one a line.

    Raises:
        ValueError: When the file cannot be read, or a line is blank.
    """
    try:
        lines = file.path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.path} cannot be read: {error}") from error
    blank = next((at for at, line in enumerate(lines, 1) if not line.strip()), None)
    if blank is not None or not lines:
        raise ValueError(f"{file.path}:{blank or 1}: a name is expected on every line")
    return tuple(line.strip() for line in lines)


class OutputConfig(BaseModel):
    """What is done with one output, along its last dimension."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    softmax: bool = Field(False, description="Turn scores into probabilities first.")
    top: int | None = Field(
        None, gt=0, description="Give so many of the largest values, largest first, and which classes they are."
    )
    labels: Annotated[InputPath, AfterValidator(_lines)] | tuple[str, ...] | None = Field(
        None,
        description="Names of the classes: a file with one a line, or a list; when absent, those of `data` or numbers.",
    )

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.labels is not None and self.top is None:
            raise ValueError("`labels` are the names of what `top` picks: say how many with `top:`")
        if not self.softmax and self.top is None:
            raise ValueError("it says nothing: set `softmax`, or `top`")
        return self

    def finish(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Say it in the words of the server; `classes` are names that data know."""
        given = names(self.labels) if isinstance(self.labels, InputPath) else self.labels
        known = classes if given is None else given
        return {"softmax": self.softmax, "top": self.top or 0, "labels": list(known) if self.top else []}


class ClientText(TextSettings):
    """How texts that clients send become numbers."""

    pair: bool = Field(False, description="Clients send two texts a row, `text` and `pair`, encoded together.")

    def preparation(self, inputs: Container[str]) -> Preparation:
        """Say how they are prepared for a model with these inputs."""
        arrays = [array for array in ARRAYS if array == ARRAYS[0] or self.name(array) in inputs]
        return Preparation({"text": {"text": self.told(arrays, together=self.pair)}}, {TOKENIZER: self.tokenizer.path})


class InterfaceConfig(StageConfig):
    """What clients send, and what becomes of the outputs."""

    data: DataRef | None = Field(
        None,
        description="Clients send what these data are made of, images or texts, which the server prepares as the data "
        "are prepared; they send tensors when absent.",
    )
    images: dict[str, ImageSettings] = Field(
        {},
        description="Clients send images, prepared like this, for these inputs of the model; where no `data` say it.",
    )
    text: ClientText | None = Field(None, description="Clients send texts, prepared like this; where no `data` say it.")
    outputs: dict[str, OutputConfig] = Field({}, description="What is done with outputs, by name.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.data is None and not (self.images or self.text or self.outputs):
            raise ValueError("it says nothing: name `data`, `images`, `text` or `outputs`")
        return self

    def preparations(self, source: DataSource | None, inputs: Mapping[str, Any]) -> Iterator[Preparation]:
        """Say how each kind of input is prepared, for a model whose signature has these inputs."""
        yield _preparation(self.data, source)
        for name, settings in self.images.items():
            yield Preparation({name: {"image": settings.told(inputs.get(name, {}).get("dtype", "float32"))}}, {})
        if self.text is not None:
            yield self.text.preparation(inputs)


def _preparation(name: str | None, source: DataSource | None) -> Preparation:
    """Ask data how they are prepared.

    Raises:
        UsageError: When they are arrays already.
    """
    if name is None:
        return Preparation({}, {})
    found = source.preparation() if isinstance(source, Prepared) else None
    if found is None:
        raise UsageError(
            f"the rows of '{name}' are arrays as they stand: there is nothing to prepare",
            then="name data of the kind image_folder or text, or leave `data` out",
        )
    return found


def _preflight(config: InterfaceConfig, outside: Outside) -> None:
    _preparation(config.data, outside.data.get(config.data or ""))


@stage(
    version=1,
    accepts={Kind.ONNX},
    produces=Kind.ONNX,
    needs=("pillow", "tokenizers"),
    marks={"finished"},
    refuses={"finished"},
    preflight=_preflight,
)
def interface(config: InterfaceConfig, job: Job) -> None:
    """Let clients send images or sentences and get names of classes; the server prepares as the data were prepared."""
    from modelpack.server import StartError
    from modelpack.server.interface import read
    from modelpack.server.settings import Settings
    from modelpack.server.signature import read as signature

    source, taken = job.data.get(config.data or ""), job.source.read_json("signature.json")["inputs"]
    prepared = _merged(list(config.preparations(source, taken)))
    for item in job.source.manifest.files:
        if item.name.startswith(MODEL_FILE[Kind.ONNX]) or item.name == "signature.json":
            shutil.copyfile(job.source.file(item.name), job.out / item.name)
    for name, path in prepared.files.items():
        shutil.copyfile(path, job.out / name)
    finishes = {name: output.finish(prepared.classes) for name, output in config.outputs.items()}
    content = {"schema": 1, "inputs": prepared.inputs, "outputs": finishes}
    (job.out / FILE).write_bytes(canonical.encode(content))
    try:
        found = read(job.out, signature(job.out / "signature.json"))
        assert found is not None, "it was just written"
        found.load(Settings())
    except StartError as error:
        raise StageError(
            str(error).replace(f"{job.out}/", ""),
            then="compare with the model's outputs; names that `labels` does not give are those of the data",
        ) from error
    job.result("interface", {"inputs": _shown(found.signature.inputs), "outputs": _shown(found.signature.outputs)})
    for role, tensors in (("send", found.signature.inputs), ("get", found.signature.outputs)):
        job.note(f"clients {role} {', '.join(f'{name} ({each.dtype})' for name, each in tensors.items())}")


def _merged(prepared: Sequence[Preparation]) -> Preparation:
    """Put several together.

    Raises:
        StageError: When two prepare the same.
    """
    names = [name for each in prepared for name in each.inputs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise StageError(f"'{twice}' is prepared twice", then="leave it to `data`, or to `images` and `text`")
    return Preparation(
        {name: entry for each in prepared for name, entry in each.inputs.items()},
        {name: path for each in prepared for name, path in each.files.items()},
        prepared[0].classes,
    )


def _shown(tensors: Any) -> dict[str, Any]:
    return {name: {"dtype": each.dtype, "shape": list(each.shape)} for name, each in tensors.items()}
