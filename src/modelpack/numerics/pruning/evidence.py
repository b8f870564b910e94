"""Rows and a loss, for the importances that ask what the loss would say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics.calling import call
from modelpack.numerics.distillation import losses
from modelpack.numerics.distillation.losses import Goal
from modelpack.numerics.pruning.importance.gradients import Evidence
from modelpack.numerics.training.batches import TRUTH, limited, split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.numerics.training.batches import Rows


def gather(data: Rows, limit: int, device: str | torch.device, seed: int) -> tuple[Evidence, str]:
    """Judge by the task loss where the data bring a target, else by the change of the outputs.

    Args:
        data: Inputs and, where its target is set, the truth.
        limit: Rows to read at most.
        device: Where the model is.
        seed: Of the random directions in which outputs are judged.

    Returns:
        What importance needs, and in words what is judged.

    Raises:
        StageError: When the data hold no rows, or lack their target.
    """
    directions = torch.Generator().manual_seed(seed)
    _, truth = split(data.labelled(), torch.device("cpu"))
    if data.target is not None and truth is None:
        raise StageError(f"loss task needs the column '{data.target}', which the data lack", then="set target")
    goal = Goal(losses.task_for(truth))

    def loss(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        outputs = call(module, {name: value for name, value in batch.items() if name != TRUTH})
        if goal.task == "none":
            return losses.sensitivity(outputs, directions)
        return losses.task_loss(outputs, batch[TRUTH], goal)

    judged = {"none": "the change of the outputs"}
    words = judged.get(goal.task, f"the task loss ({goal.task}) on the labels")
    return Evidence(limited(data, limit, torch.device(device)), loss), words
