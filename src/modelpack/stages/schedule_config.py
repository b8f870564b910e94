"""How a student is trained: the settings that all stages with a training loop have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from modelpack.stage import StageConfig

if TYPE_CHECKING:
    from modelpack.numerics.training import Schedule


class ScheduleConfig(StageConfig):
    """How long a student learns, and how fast."""

    epochs: int = Field(3, gt=0, description="Passes over the data, at most.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate.")
    schedule: Literal["cosine", "one_cycle", "linear", "constant"] = Field(
        "cosine", description="How the rate falls after it rose; constant: not at all."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Fraction of the steps in which the rate rises.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="What turns gradients into steps.")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="With `optimizer: sgd`, how much of a step the next one keeps."
    )
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of matrices.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0 for no limit.")
    accumulate: int = Field(
        1, gt=0, description="Batches of the data that make one step; as one batch of all their rows."
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="Judge and keep a moving average of the weights with this decay; 0 for none."
    )
    eval_every: int = Field(1, gt=0, description="With `eval_data`, epochs from one evaluation to the next.")
    patience: int | None = Field(
        None, gt=0, description="With `eval_data`, end after so many epochs without a better score; never if absent."
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="With several processes, what each holds of the model: all of it, or (fsdp) a part, for models too "
        "large for one device.",
    )

    @model_validator(mode="after")
    def _paced(self) -> Self:
        if "momentum" in self.model_fields_set and self.optimizer != "sgd":
            raise ValueError("`momentum` belongs to `optimizer: sgd`: write that, or leave it out")
        return self


class FloatScheduleConfig(ScheduleConfig):
    """How a student that does not round learns: the above, and how its steps are computed."""

    layer_decay: float = Field(
        1.0, gt=0, le=1, description="The rate of each layer as a fraction of that of the layer after it."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the forward pass; auto: bfloat16 or float16 on CUDA, float32 elsewhere."
    )
    checkpoint_activations: bool = Field(
        False,
        description="Compute activations of repeated blocks again instead of keeping them: less memory, more time.",
    )
    compile: bool = Field(False, description="Let torch.compile make kernels for the student: minutes, once a run.")


def schedule(config: ScheduleConfig) -> Schedule:
    """Give what the settings ask of the training loop."""
    from modelpack.numerics import training as loop

    asked = loop.Schedule(
        epochs=config.epochs,
        rate=config.lr,
        curve=config.schedule,
        warmup=config.warmup,
        optimizer=config.optimizer,
        momentum=config.momentum,
        decay=config.weight_decay,
        clip=config.clip,
        accumulate=config.accumulate,
        average=config.ema,
        patience=config.patience,
        every=config.eval_every,
        parallel=config.parallel,
        precision="float32",
    )
    if not isinstance(config, FloatScheduleConfig):
        return asked
    return replace(
        asked,
        layer_decay=config.layer_decay,
        precision=config.precision,
        recompute=config.checkpoint_activations,
        compile=config.compile,
    )
