"""How many channels stay between the halves of each layer.

By energy each layer keeps the fewest channels that lose no more than asked for. By multiply-accumulates the layers
share a budget so that the sum of the energies they lose, each relative to its own, is least: with a price on work,
every layer takes its cheapest choice, and the price is bisected until the budget is met (Shoham and Gersho 1988,
doi 10.1109/29.90373); what is left of the budget is given out where it buys most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from modelpack.numerics.low_rank.layers import Layer

_HALVINGS = 60
_DEAREST = 1e12
"""A price of work at which no loss matters."""


@dataclass(frozen=True)
class _Choices:
    """What one layer can become: split in some way with some rank, or whole; costs are shares of all layers' work."""

    ways: tuple[tuple[Layer, int] | None, ...]
    costs: Tensor
    lost: Tensor

    def best(self, price: float) -> int:
        """Give the place of the choice with the least loss and price."""
        return int((self.lost + price * self.costs).argmin())


def by_energy(
    layers: Sequence[Layer], lost: Mapping[Layer, Tensor], energy: float, round_to: int
) -> tuple[dict[Layer, int], dict[str, str]]:
    """Choose ranks that keep a share of each layer's energy, in the way that is least work.

    Args:
        layers: Which can be split.
        lost: Layer → share of its energy that is lost with 0, 1, 2, … channels.
        energy: Share that stays, 0 < energy < 1.
        round_to: Ranks are raised to a multiple of this where that still pays.

    Returns:
        Ranks by layer, and the paths of those that stay whole with their reasons.
    """
    chosen: dict[str, tuple[Layer, int]] = {}
    left: dict[str, str] = {}
    for layer in layers:
        rank = max(1, int((lost[layer] > 1 - energy).sum()))
        if rank > layer.most:
            left[layer.path] = f"it would need {rank} channels between its halves; more than {layer.most} do not pay"
            continue
        rounded = math.ceil(rank / round_to) * round_to
        rank = rounded if rounded <= layer.most else rank
        other = chosen.get(layer.path)
        if other is None or layer.rank_cost * rank < other[0].rank_cost * other[1]:
            chosen[layer.path] = (layer, rank)
    return dict(chosen.values()), {path: reason for path, reason in left.items() if path not in chosen}


def by_cost(layers: Sequence[Layer], lost: Mapping[Layer, Tensor], budget: float, round_to: int) -> dict[Layer, int]:
    """Choose ranks so that the layers' work is at most `budget` and nearly as much, and the energy lost is least.

    Args:
        layers: Which can be split.
        lost: Layer → share of its energy that is lost with 0, 1, 2, … channels.
        budget: Multiply-accumulates of all these layers, afterwards.
        round_to: Ranks are multiples of this, in layers where twice as much would pay.

    Returns:
        Ranks by layer, those absent staying whole; the least possible where even that exceeds the budget.
    """
    paths: dict[str, list[Layer]] = {}
    for layer in layers:
        paths.setdefault(layer.path, []).append(layer)
    total = sum(ways[0].cost for ways in paths.values())
    choices = [_choices(ways, lost, total, round_to) for ways in paths.values()]
    room = budget / max(1, total)

    def taken(price: float) -> list[int]:
        return [choice.best(price) for choice in choices]

    def cost(places: Sequence[int]) -> float:
        return sum(float(choice.costs[place]) for choice, place in zip(choices, places, strict=True))

    low, high = 0.0, 1.0
    while cost(taken(high)) > room and high < _DEAREST:
        high *= 16
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(taken(middle)) <= room else (middle, high)
    places = _spent(choices, taken(high), room - cost(taken(high)))
    return dict(way for choice, place in zip(choices, places, strict=True) if (way := choice.ways[place]) is not None)


def _choices(ways: Sequence[Layer], lost: Mapping[Layer, Tensor], total: int, round_to: int) -> _Choices:
    found: list[tuple[Layer, int] | None] = [None]
    costs, losses = [ways[0].cost / total], [0.0]
    for layer in ways:
        step = round_to if layer.most >= 2 * round_to else 1
        ranks = range(step, layer.most + 1, step)
        found += [(layer, rank) for rank in ranks]
        costs += [layer.rank_cost * rank / total for rank in ranks]
        losses += lost[layer][list(ranks)].tolist()
    return _Choices(tuple(found), torch.tensor(costs, dtype=torch.float64), torch.tensor(losses, dtype=torch.float64))


def _spent(choices: Sequence[_Choices], places: list[int], rest: float) -> list[int]:
    """Give out what is left of a budget, each time where a unit of work buys back most."""
    places = list(places)
    while True:
        best, bought = 0.0, None
        for number, (choice, place) in enumerate(zip(choices, places, strict=True)):
            more = choice.costs - choice.costs[place]
            worth = ((choice.lost[place] - choice.lost) / more).masked_fill((more <= 0) | (more > rest), 0)
            further = int(worth.argmax())
            if float(worth[further]) > best:
                best, bought = float(worth[further]), (number, further, float(more[further]))
        if bought is None:
            return places
        number, further, spent = bought
        places[number] = further
        rest -= spent
