"""Rows and a loss, for the importances that ask what the loss would say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics.calling import call
from modelpack.numerics.distillation import tasks
from modelpack.numerics.distillation.question import Question
from modelpack.numerics.distillation.sensitivity import sensitivity
from modelpack.numerics.pruning.importance.gradients import Evidence
from modelpack.numerics.training.batches import TRUTH, apart, limited, split

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
    truth = split(data.labelled(), torch.device("cpu"))[1].get(TRUTH)
    if data.target is not None and truth is None:
        raise StageError(f"loss task needs the column '{data.target}', which the data lack", then="set target")
    task = None if truth is None else tasks.named(tasks.guess(truth))

    def loss(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        inputs, beside = apart(batch)
        outputs = call(module, inputs)
        if task is None:
            return sensitivity(outputs, directions)
        return task.loss(outputs, Question(inputs, beside))

    words = "the change of the outputs" if task is None else f"the task loss ({task.name}) on the labels"
    return Evidence(limited(data, limit, torch.device(device)), loss), words
