"""Stages and a source without numerics, so that the spine is tested alone and in milliseconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import Field

from modelpack import registry
from modelpack.artifact import Kind
from modelpack.bind import Arguments, InputPath
from modelpack.data import Source, SourceConfig, source
from modelpack.errors import MissingError, StageError
from modelpack.stage import DataRef, Job, Stage, StageConfig, StepRef, TorchRef, stage
from modelpack.tensors import TensorSpec


class ModelConfig(StageConfig):
    """A model that is a text file."""

    weights: InputPath = Field(description="The weights.")
    inputs: dict[str, TensorSpec] = Field({}, description="Inputs.")
    arguments: Arguments = Field({}, description="Arguments.")


@stage(version=1, accepts=(), produces=Kind.TORCH, inputs=lambda config: config.inputs)
def model(config: ModelConfig, job: Job) -> None:
    """Bring a text in."""
    (job.out / "weights.safetensors").write_bytes(config.weights.path.read_bytes())


class OnnxModelConfig(StageConfig):
    """A model that is another text file."""

    onnx: InputPath = Field(description="The file.")


@stage(version=1, accepts=(), produces=Kind.ONNX)
def onnx_model(config: OnnxModelConfig, job: Job) -> None:
    """Bring a text in as the other kind."""
    (job.out / "model.onnx").write_bytes(config.onnx.path.read_bytes())


class ShrinkConfig(StageConfig):
    """How much to keep."""

    keep: float = Field(0.5, gt=0, le=1, description="Fraction to keep.")
    fail: bool = Field(False, description="Fail on purpose.")
    data: DataRef | None = Field(None, description="Data.")


def _shrink_preflight(config: ShrinkConfig, outside: Any) -> None:
    if outside.device != "cpu":
        raise MissingError("shrink needs a CPU")


@stage(
    version=1, accepts={Kind.TORCH}, produces=Kind.TORCH, owes={"unrecovered"}, preflight=_shrink_preflight,
    needs=("pydantic",),
)  # fmt: skip
def shrink(config: ShrinkConfig, job: Job) -> None:
    """Keep a part of the text."""
    text = job.source.file("weights.safetensors").read_bytes()
    (job.out / "weights.safetensors").write_bytes(text[: round(len(text) * config.keep)])
    if config.fail:
        raise StageError("failed on purpose", then="say `fail: false`")
    job.metric("macs", config.keep)
    job.warn("shrunk")


class HealConfig(StageConfig):
    """Whom to learn from."""

    teacher: TorchRef = Field("model", description="A torch step.")


@stage(version=1, accepts={Kind.TORCH}, produces=Kind.TORCH, pays={"unrecovered"})
def heal(config: HealConfig, job: Job) -> None:
    """Pay the debt."""
    assert config.teacher in job.steps
    (job.out / "weights.safetensors").write_bytes(job.source.file("weights.safetensors").read_bytes())
    for _ in job.track(range(3), 3, "epochs"):
        pass


class ConvertConfig(StageConfig):
    """Nothing to set but a level."""

    level: int = Field(1, description="Level.")


@stage(version=1, accepts={Kind.TORCH}, produces=Kind.ONNX)
def convert(config: ConvertConfig, job: Job) -> None:
    """Make it the other kind."""
    (job.out / "model.onnx").write_bytes(job.source.file("weights.safetensors").read_bytes())


@stage(version=1, accepts={Kind.ONNX}, produces=Kind.ONNX, marks={"squeezed"})
def squeeze(config: ConvertConfig, job: Job) -> None:
    """Mark it."""
    (job.out / "model.onnx").write_bytes(job.source.file("model.onnx").read_bytes()[:4])


@stage(version=1, accepts={Kind.ONNX}, produces=Kind.ONNX, refuses={"squeezed"})
def polish(config: ConvertConfig, job: Job) -> None:
    """Refuse what is marked."""
    (job.out / "model.onnx").write_bytes(job.source.file("model.onnx").read_bytes())


class ScoreConfig(StageConfig):
    """What to say."""

    accuracy: float = Field(0.9, description="What to report.")
    against: StepRef | None = Field(None, description="Another step.")
    data: DataRef | None = Field(None, description="Data.")


@stage(
    version=1, accepts={Kind.TORCH, Kind.ONNX}, produces=Kind.REPORT, machine=True,
    gauges=lambda config: {"accuracy", *({"speedup"} if config.against else ())},
)  # fmt: skip
def score(config: ScoreConfig, job: Job) -> None:
    """Report what the settings say."""
    (job.out / "asked.json").write_text(json.dumps(config.accuracy))
    job.metric("accuracy", config.accuracy)
    if config.against:
        job.metric("speedup", 2.0)


EFFECTS: list[str] = []


@stage(
    version=1, accepts={Kind.ONNX}, produces=Kind.IMAGE, named=True,
    effect=lambda _config, artifact, job: EFFECTS.append(f"{job.step} {artifact.id}"),
)  # fmt: skip
def pack(config: ConvertConfig, job: Job) -> None:
    """Package it."""
    (job.out / "image.tar").write_bytes(job.name.encode() + job.source.file("model.onnx").read_bytes())


class LinesConfig(SourceConfig):
    """Lines of a file."""

    path: InputPath = Field(description="The file.")


@dataclass(frozen=True)
class Lines:
    config: LinesConfig

    def __len__(self) -> int:
        return len(self.config.path.path.read_text().splitlines())

    def batches(self):
        yield {}

    def digest(self) -> str:
        return self.config.path.digest()


@source(version=1)
def lines(config: LinesConfig, inputs: Any) -> Lines:
    """Read lines."""
    return Lines(config)


@dataclass(frozen=True)
class Here:
    """An entry point whose plugin is already here."""

    name: str
    plugin: Any
    dist: Any = None

    @property
    def value(self) -> str:
        return f"tiny:{self.name}"

    def load(self) -> Any:
        return self.plugin


STAGES = (model, onnx_model, shrink, heal, convert, squeeze, polish, score, pack)


@pytest.fixture
def tiny(monkeypatch):
    """Replace every plugin by the ones above."""
    stages = registry.discover("stages", Stage, [Here(item.name, item) for item in STAGES])
    sources = registry.discover("sources", Source, [Here("lines", lines)])
    monkeypatch.setattr(registry, "stages", lambda: stages)
    monkeypatch.setattr(registry, "sources", lambda: sources)
    EFFECTS.clear()
    return stages


RECIPE = """\
name: tiny
model:
  weights: weights.txt
  inputs: {x: {shape: [batch, 2]}}
data:
  train: {lines: {path: train.txt}}
budget: {accuracy: 0.5, size: 50%}
stages:
  - shrink: {keep: 0.5, data: train}
  - heal: {teacher: model}
  - convert:
  - score: {against: model}
  - pack:
"""


@pytest.fixture
def folder(tmp_path):
    """A directory with a sound recipe and the files it names."""
    (tmp_path / "weights.txt").write_text("w" * 40)
    (tmp_path / "train.txt").write_text("one\ntwo\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path
