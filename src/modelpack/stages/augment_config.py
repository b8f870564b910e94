"""How rows are changed on their way to training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from modelpack.numerics.training.augmentation import Augmentation
    from modelpack.numerics.training.batches import Rows


class TokensConfig(BaseModel):
    """Which tokens of a text are replaced."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input: str = Field("input_ids", description="The input that holds token ids.")
    share: float = Field(0.15, gt=0, le=1, description="Part of the tokens that is replaced.")
    by: int | None = Field(None, description="The id put there, such as that of [MASK]; others of the row if absent.")
    keep: tuple[int, ...] = Field((), description="Ids that stay, such as those of padding and of marks.")


class AugmentConfig(BaseModel):
    """Changes of each row, by amounts that follow from the seed and the row itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    flip: bool = Field(False, description="Mirror every other image left to right.")
    shift: float = Field(0.0, ge=0, le=0.5, description="Move by up to this part of height and width.")
    scale: float = Field(0.0, ge=0, lt=1, description="Crop up to this part of height and width away, and enlarge.")
    rotate: float = Field(0.0, ge=0, le=180, description="Turn by up to this many degrees.")
    brightness: float = Field(0.0, ge=0, le=1, description="Add up to this part of a channel's range.")
    contrast: float = Field(0.0, ge=0, lt=1, description="Strengthen or weaken by up to this part.")
    cutout: float = Field(0.0, ge=0, lt=1, description="Sides of a hole, in parts of the image's.")
    mixup: float = Field(0.0, ge=0, le=0.5, description="Mix in up to this part of another row; only without truth.")
    tokens: TokensConfig | None = Field(None, description="For texts: which tokens are replaced.")
    variants: int = Field(
        4, ge=0, description="Versions of a row, one an epoch in turn; 0: new ones every epoch, and no teacher's cache."
    )

    @model_validator(mode="after")
    def _changes(self) -> Self:
        if not any(getattr(self, name) for name in type(self).model_fields if name != "variants"):
            raise ValueError("nothing is changed: set flip, shift, scale, mixup or another one, or leave `augment` out")
        return self


def augmentation(config: AugmentConfig, data: Rows, seed: int) -> Augmentation:
    """Give what the settings ask for."""
    from modelpack.numerics.training import augmentation as room

    plain = config.model_dump()
    tokens = room.Replaced(**plain.pop("tokens")) if config.tokens is not None else None
    return room.Augmentation(room.Wanted(**{**plain, "tokens": tokens}), data, seed)
