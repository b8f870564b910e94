"""How far two distributions over classes are apart (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from modelpack.numerics.distillation import averages

if TYPE_CHECKING:
    from torch import Tensor


def classes(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compare logits ``[places, classes]`` of which one is right.

    The Kullback-Leibler divergence at a temperature, times its square, so that gradients keep their size.
    """
    apart = functional.kl_div(
        functional.log_softmax(student / temperature, 1),
        functional.log_softmax(teacher / temperature, 1),
        reduction="none",
        log_target=True,
    )
    return averages.mean(apart.sum(1)) * temperature**2


def labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compare logits of any shape, each of which says yes or no by itself."""
    wanted = (teacher / temperature).sigmoid()
    crossed = functional.binary_cross_entropy_with_logits(student / temperature, wanted)
    own = functional.binary_cross_entropy_with_logits(teacher / temperature, wanted)
    return (crossed - own) * temperature**2
