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
    """What one layer can become: with ranks ascending, then whole (rank 0); costs are shares of all layers' work."""

    ranks: tuple[int, ...]
    costs: Tensor
    lost: Tensor

    def best(self, price: float) -> int:
        """Give the place of the choice with the least loss and price."""
        return int((self.lost + price * self.costs).argmin())


def by_energy(
    layers: Sequence[Layer], lost: Mapping[str, Tensor], energy: float, round_to: int
) -> tuple[dict[str, int], dict[str, str]]:
    """Choose ranks that keep a share of each layer's energy.

    Args:
        layers: Which can be split.
        lost: Layer → share of its energy that is lost with 0, 1, 2, … channels.
        energy: Share that stays, 0 < energy < 1.
        round_to: Ranks are raised to a multiple of this where that still pays.

    Returns:
        Ranks by layer, and the layers that stay whole with their reasons.
    """
    ranks, left = {}, {}
    for layer in layers:
        rank = max(1, int((lost[layer.path] > 1 - energy).sum()))
        if rank > layer.most:
            left[layer.path] = (
                f"it would need {rank} channels between its halves, and more than {layer.most} do not pay"
            )
            continue
        rounded = math.ceil(rank / round_to) * round_to
        ranks[layer.path] = rounded if rounded <= layer.most else rank
    return ranks, left


def by_cost(layers: Sequence[Layer], lost: Mapping[str, Tensor], budget: float, round_to: int) -> dict[str, int]:
    """Choose ranks so that the layers' work is at most `budget` and nearly as much, and the energy lost is least.

    Args:
        layers: Which can be split.
        lost: Layer → share of its energy that is lost with 0, 1, 2, … channels.
        budget: Multiply-accumulates of all these layers, afterwards.
        round_to: Ranks are multiples of this, in layers where twice as much would pay.

    Returns:
        Ranks by layer, those absent staying whole; the least possible where even that exceeds the budget.
    """
    total = sum(layer.cost for layer in layers)
    choices = [_choices(layer, lost[layer.path], total, round_to) for layer in layers]
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
    chosen = {layer.path: choice.ranks[place] for layer, choice, place in zip(layers, choices, places, strict=True)}
    return {path: rank for path, rank in chosen.items() if rank}


def _choices(layer: Layer, lost: Tensor, total: int, round_to: int) -> _Choices:
    step = round_to if layer.most >= 2 * round_to else 1
    ranks = range(step, layer.most + 1, step)
    costs = [*(layer.rank_cost * rank / total for rank in ranks), layer.cost / total]
    losses = torch.cat([lost.cpu()[list(ranks)], torch.zeros(1, dtype=torch.float64)])
    return _Choices((*ranks, 0), torch.tensor(costs, dtype=torch.float64), losses)


def _spent(choices: Sequence[_Choices], places: list[int], rest: float) -> list[int]:
    """Give out what is left of a budget, each time where a unit of work buys back most."""
    places = list(places)
    while True:
        best, bought = 0.0, None
        for number, (choice, place) in enumerate(zip(choices, places, strict=True)):
            more = choice.costs[place + 1 :] - choice.costs[place]
            worth = (choice.lost[place] - choice.lost[place + 1 :]) / more
            worth = worth.masked_fill(more > rest, 0)
            if len(worth) and float(worth.max()) > best:
                further = int(worth.argmax())
                best, bought = float(worth[further]), (number, place + 1 + further, float(more[further]))
        if bought is None:
            return places
        number, further, spent = bought
        places[number] = further
        rest -= spent
