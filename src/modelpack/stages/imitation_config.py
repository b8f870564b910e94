"""What of its teacher a student imitates: the settings that distill and recover have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from modelpack.errors import did_you_mean
from modelpack.stage import StageConfig
from modelpack.stages.reading import Mask

Distance = Literal["auto", "kl", "dkd", "mse", "cosine"]
AspectName = Literal["outputs", "features", "relations", "similarity"]


def _weights(value: object) -> object:
    named = dict.fromkeys(value, 1.0) if isinstance(value, (list, tuple)) and _words(value) else value
    known = get_args(AspectName)
    for word in named if isinstance(named, dict) else ():
        if word not in known:
            raise ValueError(f"'{word}' is nothing that can be imitated; {did_you_mean(str(word), known)}")
    return named


def _pairs(value: object) -> object:
    return {path: path for path in value} if isinstance(value, (list, tuple)) and _words(value) else value


def _words(value: Any) -> bool:
    return all(isinstance(item, str) for item in value)


Weights = Annotated[
    dict[AspectName, Annotated[float, Field(gt=0)]],
    Field(min_length=1),
    BeforeValidator(_weights, json_schema_input_type=dict[AspectName, float] | list[AspectName]),
]
"""Aspects and their weights; a list gives each the weight 1."""

Pairs = Annotated[dict[str, str], BeforeValidator(_pairs, json_schema_input_type=dict[str, str] | list[str])]
"""Paths in the student and in the teacher; a list names those that are equal in both."""


class DistanceConfig(StageConfig):
    """How outputs are compared."""

    distance: Distance | dict[str, Distance] = Field(
        "auto",
        description="How outputs are compared, or for each output how: kl (distributions over classes), dkd (decoupled "
        "kl), mse (relative to the teacher's spread), cosine; auto: kl where the truth is classes, else mse.",
    )
    temperature: float = Field(4.0, gt=0, description="Softens class probabilities before kl or dkd compares them.")
    mask: Mask = "auto"


class ImitationConfig(DistanceConfig):
    """What is compared."""

    imitate: Weights | None = Field(
        None,
        description="What the student imitates, as a list or with weights: outputs, features (of blocks), relations "
        "(of attention), similarity (of the rows of a batch); outputs if absent.",
    )
    features: Pairs = Field(
        {},
        description="Modules whose outputs are compared, `student: teacher`, or a list of equal paths; blocks are "
        "paired by depth and shape when absent.",
    )
    relations: Pairs = Field(
        {}, description="Modules of attention that are compared, likewise; the last of both models when absent."
    )

    @property
    def weights(self) -> dict[AspectName, float]:
        """What is imitated, with its weight."""
        return self.imitate or {"outputs": 1.0}

    @property
    def yielding(self) -> tuple[AspectName, ...]:
        """What gives way where the models have nothing that belongs together: features that nobody asked for."""
        return ("features",) if self.imitate is None else ()

    @model_validator(mode="after")
    def _used(self) -> Self:
        for name in ("features", "relations"):
            if getattr(self, name) and name not in self.weights:
                raise ValueError(f"`{name}` does nothing: add {name} to `imitate`, or leave it out")
        inside = sorted({"features", "relations"} & set(self.weights))
        if inside and getattr(self, "compile", False):
            raise ValueError(f"`compile` hides what {' and '.join(inside)} compare: leave one of them out")
        return self
