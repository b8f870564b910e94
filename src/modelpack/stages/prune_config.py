"""How the stage `prune` is told what to remove."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from modelpack.stage import DataRef, StageConfig
from modelpack.stages import prune_schedule as schedules
from modelpack.stages.reading import Mask

TARGETS = ("macs", "params", "size", "latency")
"""Settings of which one says how small the model shall be."""

JUDGED = ("taylor", "fisher")
"""Importances that read data."""

CHANNELS = ("importance", "scope", "loss", "target", "round_to", "sensitivity", "refit", "mask")
"""Settings that say nothing about whole blocks."""

Share = Annotated[float, Field(gt=0, le=1)]


class PruneConfig(StageConfig):
    """How much to remove, and how to choose it."""

    macs: Share | None = Field(None, description="Fraction of multiply-accumulates to keep; met within 2 %.")
    params: Share | None = Field(None, description="Fraction of parameters to keep; met within 2 %.")
    size: Share | None = Field(None, description="Fraction of the weights' bytes to keep; met within 2 %.")
    latency: Share | None = Field(
        None,
        description="Fraction to keep of the time that the model takes in onnxruntime, one row on one thread of this "
        "machine, on the first row of `data` where it is named; met within 5 %, by exports that are measured.",
    )
    depth: Share | None = Field(
        None,
        description="Fraction of the layers or blocks to keep, of those that the model can do without; the others go "
        "whole, those first whose absence changes the outputs least for what it saves.",
    )
    cost: Literal["macs", "latency"] = Field(
        "macs",
        description="What leaving a layer or block out saves, for depth: multiply-accumulates, or time in onnxruntime "
        "on this machine, measured once.",
    )
    drop: tuple[str, ...] = Field((), description="Glob patterns of layers or blocks that go, whatever they do.")
    importance: Literal["l1", "l2", "bn_scale", "fpgm", "lamp", "taylor", "fisher", "random"] = Field(
        "l2",
        description="What makes a channel worth keeping. By its weights: their size (l1, l2), the same against all "
        "that are no smaller (lamp), their distance from the others' (fpgm), batch-norm scales (bn_scale). By what "
        "the loss would lose, which reads data: taylor (first order), fisher (second order). random: a control.",
    )
    scope: Literal["global", "layer", "isomorphic"] = Field(
        "global",
        description="Where the least important are looked for: among all; in each group of layers, so that every one "
        "loses the same share; or among groups of the same structure.",
    )
    data: DataRef | None = Field(None, description="Rows for importance taylor and fisher, for refit, and for depth.")
    loss: Literal["outputs", "task"] = Field(
        "outputs",
        description="What importance taylor and fisher judge: the change of the outputs, or of the loss against the "
        "truth, whose slopes say little about a model that fits its data well.",
    )
    target: str = Field("label", description="Column of the truth, for loss task.")
    rows: int = Field(
        512,
        gt=0,
        description="Rows that importance taylor and fisher, refit, or depth, read: the first ones, so that data whose "
        "classes follow one another want a `seed`.",
    )
    keep: tuple[str, ...] = Field((), description="Glob patterns of module paths that must not change.")
    round_to: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Channels that stay in a layer are a multiple of this; auto: of 16, the block that kernels compute "
        "at once, or of a half, a quarter, … of it where the target cannot be met otherwise, in narrow layers first.",
    )
    refit: bool | None = Field(
        None,
        description="Fit the layers that lose inputs to what they gave before, by least squares on rows of `data`, "
        "without labels; true if absent and `data` are named.",
    )
    mask: Mask = "auto"
    sensitivity: int = Field(
        0,
        ge=0,
        description="Rows of `data` on which each group of layers is measured alone with 10 to 75 % of its channels "
        "gone: accuracy where they have classes under `target`, else closeness of the outputs; 0: not measured.",
    )

    schedule: schedules.GradualConfig | None = Field(
        None,
        description="Prune in several steps, and heal the model after each on `data`: by the unpruned model's outputs, "
        "and by the truth too with `loss: task`.",
    )

    @property
    def refits(self) -> bool:
        """Whether the layers that lose inputs are fitted anew."""
        if self.depth is not None or self.drop:
            return False
        return self.data is not None if self.refit is None else self.refit

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        whole = "depth" if self.depth is not None else "drop" if self.drop else ""
        if len(given) + bool(whole) != 1:
            told = f"not {' and '.join([*given, *([whole] if whole else [])])}" if given else "such as `macs: 0.5`"
            raise ValueError(f"say how much to keep by one of {', '.join(TARGETS)}, depth, {told}")
        stray = [name for name in CHANNELS if whole and name in self.model_fields_set]
        if stray:
            raise ValueError(f"{stray[0]} is about channels: a step with depth or drop removes whole blocks")
        readers = {f"importance {self.importance}": self.importance in JUDGED, "refit": self.refit}
        reader = next((name for name, reads in readers.items() if reads), "sensitivity" if self.sensitivity else "")
        if reader and self.data is None:
            raise ValueError(f"{reader} needs data: name an entry of `data:`")
        return self

    @model_validator(mode="after")
    def _used(self) -> Self:
        judged, whole = self.importance in JUDGED, self.depth is not None or bool(self.drop)
        users = {
            "data": judged or whole or self.refits or self.sensitivity or self.schedule or self.latency,
            "rows": judged or whole or self.refits,
            "loss": judged or self.schedule,
        }
        for name, used in users.items():
            if name in self.model_fields_set and getattr(self, name) is not None and not used:
                ways = "taylor or fisher" if name == "loss" else "taylor, fisher or refit"
                raise ValueError(f"`{name}` does nothing with importance {self.importance}: take {ways}")
        if "mask" in self.model_fields_set and not (self.refits or self.schedule):
            raise ValueError("`mask` does nothing without refit, or a schedule")
        if "target" in self.model_fields_set and self.loss != "task" and not self.sensitivity:
            raise ValueError("`target` does nothing without loss task, or sensitivity")
        if "cost" in self.model_fields_set and self.depth is None:
            raise ValueError("`cost` is that of layers or blocks: it does nothing without depth")
        return self

    @model_validator(mode="after")
    def _heals(self) -> Self:
        if self.schedule is None:
            return self
        if self.data is None:
            raise ValueError("schedule needs data to heal the model on: name an entry of `data:`")
        for name in ("depth", "drop"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} leaves blocks out at once: put it in a step of its own before the one with `schedule`"
                )
        if self.sensitivity:
            raise ValueError("sensitivity is that of the unpruned model: measure it in a step without `schedule`")
        return self
