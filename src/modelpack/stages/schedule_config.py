"""How a student is trained: the settings that all stages with a training loop have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from modelpack.stage import StageConfig

if TYPE_CHECKING:
    from modelpack.numerics.training import Schedule


class ScheduleConfig(StageConfig):
    """How long a student learns, and how fast."""

    epochs: int = Field(3, gt=0, description="Passes over the data.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Fraction of the steps in which the rate rises.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of matrices.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0 for no limit.")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="With several processes, what each holds of the model: all of it, or (fsdp) a part, for models too "
        "large for one device.",
    )


class FloatScheduleConfig(ScheduleConfig):
    """How long a student that does not round learns, how fast, and in which precision."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the forward pass; auto: bfloat16 or float16 on CUDA, float32 elsewhere."
    )


def schedule(config: ScheduleConfig) -> Schedule:
    """Give what the settings ask of the training loop."""
    from modelpack.numerics import training as loop

    return loop.Schedule(
        epochs=config.epochs,
        rate=config.lr,
        warmup=config.warmup,
        decay=config.weight_decay,
        clip=config.clip,
        parallel=config.parallel,
        precision=config.precision if isinstance(config, FloatScheduleConfig) else "float32",
    )
