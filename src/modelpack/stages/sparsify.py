"""The stage that makes single weights zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from modelpack.artifact import Kind
from modelpack.quantities import size
from modelpack.stage import DataRef, Job, StageConfig, stage
from modelpack.stages import remarks
from modelpack.stages.reading import Mask, reading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.numerics.sparsity import Way
    from modelpack.numerics.zeros import Sparsity

_RATIO = 0.5
_LONGEST = 64
_WEIGHTS = "weights.safetensors"


class SparsifyConfig(StageConfig):
    """How many weights become zero, where, and how they are chosen."""

    method: Literal["magnitude", "wanda", "sparsegpt"] = Field(
        "magnitude",
        description="What makes a weight worth keeping: its size (magnitude), its size times that of its input "
        "(wanda), or what its output loses after the others made up for it (sparsegpt). The last two read data.",
    )
    ratio: float | None = Field(None, gt=0, lt=1, description="Fraction of zeros; 0.5 if absent.")
    pattern: str | None = Field(
        None, description="N:M, such as 2:4: of each M consecutive inputs N stay; anywhere if absent."
    )
    scope: Literal["layer", "global"] = Field(
        "layer", description="With magnitude, whether each layer has the ratio, or all layers together."
    )
    data: DataRef | None = Field(None, description="Rows for wanda, sparsegpt and refit.")
    rows: int = Field(512, gt=0, description="How many rows are read, at most.")
    mask: Mask = "auto"
    refit: bool | None = Field(
        None,
        description="Afterwards fit the weights that stay to what the layer gave before, by least squares on the rows; "
        "true if absent and data are named. False leaves the methods as they were published.",
    )
    damping: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Where weights that stay change: share of the mean square of a layer's inputs that is added to "
        "each, against chance.",
    )
    exclude: tuple[str, ...] = Field((), description="Glob patterns of module paths that stay dense.")
    head: bool = Field(False, description="Also the layers that give the model's outputs; embeddings are never sparse.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pattern is not None:
            _parsed(self.pattern)
            if self.ratio is not None:
                raise ValueError("`pattern` says how many weights stay: leave out `ratio`")
        if self.scope == "global" and (self.method != "magnitude" or self.pattern is not None):
            raise ValueError("`scope: global` belongs to `method: magnitude` without a pattern")
        if self.data is None and (self.method != "magnitude" or self.refit):
            wants = f"method {self.method}" if self.method != "magnitude" else "refit"
            raise ValueError(f"{wants} needs data: name an entry of `data:`")
        if self.data is not None and self.method == "magnitude" and not self.refits:
            raise ValueError("method magnitude reads data for `refit` alone: leave `data` out")
        if "damping" in self.model_fields_set and not (self.method == "sparsegpt" or self.refits):
            raise ValueError("`damping` is for weights that stay and change: by `method: sparsegpt`, or by `refit`")
        return self

    @property
    def refits(self) -> bool:
        """Whether the weights that stay are fitted anew."""
        return self.data is not None if self.refit is None else self.refit


def _parsed(text: str) -> tuple[int, int]:
    """Read ``N:M``."""
    keep, _, of = text.partition(":")
    if not (keep.isdecimal() and of.isdecimal() and 0 < int(keep) < int(of) <= _LONGEST):
        raise ValueError(f"'{text}' is no pattern: write N:M such as 2:4, where N of each M inputs stay, 0 < N < M")
    return int(keep), int(of)


@stage(version=3, accepts={Kind.TORCH}, produces=Kind.TORCH, needs=("torch",), refuses={"quantized"})
def sparsify(config: SparsifyConfig, job: Job) -> None:
    """Make single weights zero, the least important first: smaller when compressed, not faster on this runtime."""
    from modelpack.numerics import models, sparsity, zeros

    module = models.load(job.source)
    outermost = () if config.head else sparsity.heads.find(module, models.example(module, job.inputs, 2, job.seed))
    way = _way(config)
    found = sparsity.layers.find(module, config.exclude, outermost, way.pattern, seen=way.reads)
    module = module.to(job.device)
    remarks.invented({config.data}, job)
    made, left = sparsity.sparsify(
        module,
        found,
        way,
        reading(config.data, config.mask, config.rows, job) if config.data is not None else None,
        lambda layers: job.track(layers, len(layers), "layers"),
    )
    models.save(module, job.out, like=job.source)
    zeros.write(made, job.out)
    _report(made, left, {layer.name: layer.weight.numel() for layer in found.layers}, job)


def _way(config: SparsifyConfig) -> Way:
    from modelpack.numerics.sparsity import Pattern, Way

    pattern = Pattern(*_parsed(config.pattern)) if config.pattern is not None else None
    ratio = pattern.ratio if pattern is not None else config.ratio or _RATIO
    return Way(config.method, ratio, pattern, config.scope == "global", config.refits, config.damping)


def _report(made: Sparsity, left: Mapping[str, str], sizes: Mapping[str, int], job: Job) -> None:
    """Say what became zero, and what that is good for."""
    from modelpack.numerics.sparsity import compressed

    before, after = (compressed.size(path) for path in (job.source.file(_WEIGHTS), job.out / _WEIGHTS))
    share = made.zeros / sum(sizes[name] for name in made.layers)
    job.metric("sparsity", share)
    job.metric("source_compressed", before)
    job.metric("model_compressed", after)
    job.result(
        "layers",
        [
            {"layer": name.removesuffix(".weight"), "weights": sizes[name], "zeros": zeros}
            for name, zeros in made.layers.items()
        ],
    )
    told = (
        f"{share:.1%} of the weights of {len(made.layers)} layer{'s' * (len(made.layers) > 1)} are zero: "
        f"smaller only when compressed (zlib level {compressed.LEVEL}: {size(before)} → {size(after)}); "
        "no speed on this runtime"
    )
    job.note(told)
    job.result("sparsity", {"zeros": made.zeros, "told": told})
    remarks.left_alone(left, job, "left dense")
