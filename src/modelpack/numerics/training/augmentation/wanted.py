"""What an augmentation is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelpack.numerics.training.augmentation.tokens import Replaced


@dataclass(frozen=True)
class Wanted:
    """Which changes are made to rows, each by a random amount.

    Attributes:
        flip: Mirror every other image left to right.
        shift: Move up to this part of height and width.
        scale: Crop up to this part of height and width away, and enlarge what is left.
        rotate: Turn by up to this many degrees.
        brightness: Add up to this part of a channel's range.
        contrast: Strengthen or weaken by up to this part.
        cutout: Sides of the hole, in parts of the image's; 0 for none.
        mixup: Most that another row takes part.
        tokens: Which tokens are replaced; None for none.
        variants: How many versions of a row there are, one an epoch, in turn; 0 for a new one every epoch.
    """

    flip: bool = False
    shift: float = 0.0
    scale: float = 0.0
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    cutout: float = 0.0
    mixup: float = 0.0
    tokens: Replaced | None = None
    variants: int = 4

    @property
    def moves(self) -> bool:
        """Whether pixels change their places."""
        return bool(self.flip or self.shift or self.scale or self.rotate)

    @property
    def lights(self) -> bool:
        """Whether brightness or contrast change."""
        return bool(self.brightness or self.contrast)

    @property
    def images(self) -> bool:
        """Whether anything is wanted that only images have."""
        return self.moves or self.lights or self.cutout > 0
