"""The stage that splits layers into two smaller ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from modelpack.artifact import Kind
from modelpack.errors import listed
from modelpack.stage import DataRef, Job, StageConfig, stage
from modelpack.stages import remarks
from modelpack.stages.reading import Mask, reading

if TYPE_CHECKING:
    from modelpack.numerics.low_rank import Split


class LowRankConfig(StageConfig):
    """How much of what layers give is kept, and how they are split."""

    energy: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of each layer's energy to keep, such as 0.95: it decides each layer's rank.",
    )
    macs: float | None = Field(
        None, gt=0, lt=1, description="Or the fraction of the model's multiply-accumulates to keep; met within 2 %."
    )
    convolutions: Literal["auto", "channel", "spatial", "none"] = Field(
        "auto",
        description="What a convolution becomes: one with fewer channels and then a 1x1 layer (channel), a column and "
        "then a row of its kernel (spatial), whichever loses less (auto); or it is left alone (none).",
    )
    data: DataRef | None = Field(
        None, description="Rows on which layers shall give nearly the same; their weights are kept close if absent."
    )
    rows: int = Field(256, gt=0, description="How many rows are read, at most.")
    mask: Mask = "auto"
    keep: tuple[str, ...] = Field((), description="Glob patterns of module paths that must not change.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.energy is None) == (self.macs is None):
            raise ValueError("say how much to keep by one of energy and macs, such as `energy: 0.95`")
        stray = {"rows", "mask"} & self.model_fields_set
        if self.data is None and stray:
            raise ValueError(f"{min(stray)} is about data: name an entry of `data:`, or leave it out")
        return self


@stage(
    version=3,
    accepts={Kind.TORCH},
    produces=Kind.TORCH,
    needs=("torch",),
    owes=("unrecovered",),
    refuses={"quantized"},
    gauges=lambda _config: ("macs",),
)
def low_rank(config: LowRankConfig, job: Job) -> None:
    """Split layers into two smaller ones that together give nearly the same, where that is less work."""
    from modelpack.numerics import low_rank as numerics
    from modelpack.numerics import models
    from modelpack.numerics.pruning import kept

    module = models.load(job.source)
    feed = models.example(module, job.inputs, 2, job.seed, job.device)
    module = module.to(job.device)
    remarks.invented({config.data}, job)
    before = models.parameter_count(module)
    found = numerics.find(module, feed, kept(module, config.keep), config.convolutions)
    parts = numerics.decompose(
        module,
        found.layers,
        reading(config.data, config.mask, config.rows, job) if config.data is not None else None,
        lambda layers: job.track(layers, len(layers), "layers"),
    )
    made = numerics.split(module, feed, found, parts, energy=config.energy, keep_macs=config.macs)
    models.save(module, job.out, like=job.source)
    after = models.parameter_count(module)
    job.metric("macs", made.macs)
    remarks.size(module, feed, job)
    job.metric("parameters_kept", after / before)
    _report(made, job)
    remarks.zeros(job)


def _report(made: Split, job: Job) -> None:
    job.result("layers", made.table)
    names = [row["layer"] for row in made.table]
    job.note(f"split {len(names)} layer{'s' * (len(names) > 1)}: {listed(names)}")
    remarks.left_alone(made.left, job)
