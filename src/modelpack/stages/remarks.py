"""What several stages have to tell, in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.errors import listed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.training import Lesson, Settled, Trained
    from modelpack.stage import Job


def invented(names: set[str | None], job: Job) -> None:
    """Warn of rows to learn from or to be judged by that nobody has seen."""
    for name in sorted(job.synthetic & names):
        job.warn(f"'{name}' holds invented rows: what is learnt from them says little about real ones")


def size(module: Any, feed: Mapping[str, Any], job: Job) -> None:
    """Record how many parameters a model has, and how much work one row is.

    Args:
        module: The model.
        feed: Inputs of one call, on its device.
        job: Where it is told.
    """
    from modelpack.numerics import macs, models

    job.metric("parameters", models.parameter_count(module))
    job.metric("mac_count", macs.per_row(module, feed, job.inputs))


def statistics(settled: Settled, job: Job) -> None:
    """Record what became of the statistics of batch norms."""
    job.note(settled.told)
    if settled.norms:
        job.result("batch_norms", settled.to_json())


def training(trained: Trained, lesson: Lesson, job: Job) -> None:
    """Record how a training went, and the score that it ended with."""
    from modelpack.numerics import training as loop

    for text in loop.remarks(trained, lesson):
        job.note(text)
    if trained.unsteady:
        job.warn(f"the next run may end with other bits: the GPU has no repeatable way for {listed(trained.unsteady)}")
    job.result("history", trained.history)
    answers(lesson, job)
    for name, value in trained.figures.items():
        job.metric(name, value)


def answers(lesson: Lesson, job: Job) -> None:
    """Record what keeping the teacher's answers was good for."""
    from modelpack.numerics import distillation

    use = distillation.remembered(lesson)
    if use is not None and use.batches:
        job.result("teacher_cache", use.to_json())
        for text in use.remarks():
            (job.warn if use.failed else job.note)(text)


def zeros(job: Job) -> None:
    """Say whether the zeros of a sparse model are all in the one that was made of it: it is written in `job.out`."""
    from modelpack.numerics import zeros as zeroed

    sparsity = zeroed.read(job.source)
    if sparsity is None:
        return
    if (job.out / zeroed.NAME).exists():
        job.note(f"all {sparsity.zeros} zeros of the sparse model are still zero")
        return
    gone = zeroed.lost(sparsity, job.source, job.out)
    job.warn(f"the model is sparse no longer: {listed(gone)} changed shape or lost zeros")


def left_alone(reasons: Mapping[str, str], job: Job, how: str = "left alone") -> None:
    """Record the layers that stay as they were, and tell of them by reason.

    Args:
        reasons: Layer → why.
        job: Where it is told.
        how: What they are called.
    """
    job.result("left_alone", dict(reasons))
    for reason in sorted(set(reasons.values())):
        job.note(f"{how}: {listed(name for name, why in reasons.items() if why == reason)} ({reason})")


def layers(found: Sequence[Layer], job: Job, wanted: frozenset[str] = frozenset()) -> None:
    """Record how many layers are quantized, and tell of those that are not: a warning, unless all are `wanted` so."""
    from modelpack.numerics.quantization.layers import left_out

    quantized = sum(layer.quantized for layer in found)
    job.metric("quantizable_layers", len(found))
    job.metric("quantized_layers", quantized)
    job.result("layers", [layer.to_json() for layer in found])
    if quantized < len(found):
        tell = job.note if all(layer.quantized or layer.name in wanted for layer in found) else job.warn
        tell(left_out(found))
