"""What the workers of a step are told: everything that makes a `Job` in another process, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack import recipe as recipes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.recipe import Recipe
    from modelpack.steps import Step


@dataclass(frozen=True)
class Order:
    """One step for the workers of one host.

    Attributes:
        path: The recipe's file; names in it are relative to its directory.
        text: The recipe, word for word.
        overrides: ``--set`` values.
        step: Id of the step.
        artifacts: Directory of each artifact that it reads or names, by the id of its step.
        out: Directory for the result, on the host that leads; empty elsewhere.
        scratch: Directory of checkpoints, on the host that leads; empty elsewhere.
        shared: Directory of what all steps share, on this host.
        notes: Directory where each worker writes its lines.
        device: ``cpu`` or ``cuda:N``, the first worker's.
        first: Rank of this host's first worker.
        size: How many workers all hosts have together.
        wait: Seconds that a worker waits for the others.
    """

    path: str
    text: str
    overrides: tuple[str, ...]
    step: str
    artifacts: Mapping[str, str]
    out: str
    scratch: str
    shared: str
    notes: str
    device: str
    first: int
    size: int
    wait: float

    def encode(self) -> str:
        """Give it as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(path: Path) -> Order:
        """Read what `encode` gave, from a file."""
        body = json.loads(path.read_text())
        return Order(**{**body, "overrides": tuple(body["overrides"])})

    def bound(self) -> tuple[Recipe, Step]:
        """Read the recipe again, and give it with the step.

        Raises:
            RecipeError: When something that the recipe names has changed since it was read first.
        """
        recipe = recipes.parse(self.text, Path(self.path), self.overrides)
        return recipe, next(step for step in recipe.steps if step.id == self.step)

    def place(self, rank: int) -> str:
        """Give the device of a worker by its rank: on CUDA, each of this host's workers has one of its own."""
        kind, colon, number = self.device.partition(":")
        return f"{kind}:{int(number or 0) + rank - self.first}" if colon else kind
