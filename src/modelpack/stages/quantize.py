"""Fewer bits per weight, and per activation where data say how large activations become."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from modelpack.artifact import Kind
from modelpack.errors import MissingError, StageError
from modelpack.stage import Assumption, Implied, Job, Outside, stage
from modelpack.stages import remarks
from modelpack.stages.quantize_config import QuantizeConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from modelpack.numerics.checks import Subject
    from modelpack.numerics.quantization.calibration.record import Calibration
    from modelpack.numerics.quantization.engine import Result
    from modelpack.numerics.quantization.settings import Budget, Evidence, Measure, Settings
    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec


def _preflight(config: QuantizeConfig, _outside: Outside) -> None:
    from importlib.util import find_spec

    if config.backend == "nncf" and find_spec("nncf") is None:
        raise MissingError("nncf is not installed", then="pip install 'modelpack[peers]'")


def _assumed(config: QuantizeConfig, device: str) -> Iterator[Assumption]:
    """Say which integers this machine wants, where no target is named."""
    if config.method == "static" and config.backend == "builtin" and config.target == "auto":
        from modelpack.numerics.quantization import hardware

        found = hardware.profile(config.target, device)
        yield Assumption("integers", found.integers, f"{found.reason} ({found.name} here)")


def _implied(config: QuantizeConfig) -> Implied | None:
    """Calibrate first, where no step did."""
    if config.method != "static" or config.backend != "builtin" or config.calibration is not None:
        return None
    settings = {
        "data": config.data,
        "rows": config.rows,
        "histograms": config.ranges != "minmax",
        "operators": [name for name in config.operators or () if name != "Gather"] or None,
        "equalize": config.equalize,
        "smooth": config.smooth,
    }
    return Implied("calibrate", settings, "calibration")


@stage(
    version=3,
    accepts={Kind.ONNX},
    produces=Kind.ONNX,
    needs=("onnx", "onnxruntime", "onnxconverter-common", "torch", "nncf"),
    marks={"quantized"},
    refuses={"quantized", "finished"},
    preflight=_preflight,
    implies=_implied,
    assumes=_assumed,
)
def quantize(config: QuantizeConfig, job: Job) -> None:
    """Store weights in 16, 8 or 4 bits, and compute with them; every layer left out is listed with the reason."""
    from modelpack.numerics import checks, onnxfile, prediction, rows
    from modelpack.numerics.quantization import engine

    inputs, _ = prediction.signature(job.source)
    before = onnxfile.read(job.source.file(onnxfile.NAME))
    _warn(config, job)
    evidence = _evidence(config, job, inputs)
    made = engine.quantize(before, _settings(config), evidence)
    after = made.outcome.model
    onnxfile.write(after, job.out)
    (job.out / "signature.json").write_bytes(job.source.file("signature.json").read_bytes())
    on_purpose = _on_purpose(made, config)
    _report(made, on_purpose, job)
    real = config.data is not None
    feeds = evidence.read("compare outputs", None) if real else rows.examples(None, inputs, 16, job.seed)
    _compare(engine.fidelity(before, after, feeds, inputs, job.device), before.graph.output[0].name, job)
    if config.verify:
        few = list(evidence.read("examine", 8)) if real else rows.examples(None, inputs, 8, job.seed)
        made_up = not real or config.data in job.synthetic
        subject = checks.Subject(after, inputs, few, before, job.device, made_up=made_up, left_out=on_purpose)
        _examine(subject, made, config, job)


def _settings(config: QuantizeConfig) -> Settings:
    """Hand on what was asked for, and choose what was left open."""
    from modelpack.numerics.quantization.settings import Settings

    chosen = {"rounding": config.rounding or _rounding(config), "budget": _budget(config)}
    names = [field.name for field in dataclasses.fields(Settings)]
    return Settings(**{name: chosen.get(name, getattr(config, name)) for name in names})


def _evidence(config: QuantizeConfig, job: Job, inputs: Mapping[str, TensorSpec]) -> Evidence:
    """Give the method its rows and its calibration."""
    from modelpack.numerics import rows
    from modelpack.numerics.quantization.settings import Evidence

    def read(label: str, limit: int | None) -> Iterator[Feed]:
        if config.data is None:
            return
        most = config.rows if limit is None else min(limit, config.rows)
        yield from job.track(rows.feeds(job.data[config.data].batches(), inputs, most), label=label)

    def labelled(label: str) -> Iterator[tuple[Feed, NDArray[np.generic]]]:
        assert config.data is not None
        assert config.budget is not None
        pairs = rows.labelled(job.data[config.data].batches(), inputs, config.rows, config.budget.labels)
        yield from job.track(pairs, label=label)

    def track(names: Sequence[str], label: str) -> Iterable[str]:
        return job.track(names, len(names), label)

    return Evidence(read, _calibration(config, job), job.seed, job.device, track, labelled, job.note)


def _compare(figures: Mapping[str, Mapping[str, float]], first: str, job: Job) -> None:
    """Record how close each output is to the float model's; the first one's figures are metrics."""
    job.result("fidelity", figures)
    for name in ("sqnr_db", "cosine", "agreement"):
        if name in figures[first]:
            job.metric(f"quantize_{name}", figures[first][name])


def _on_purpose(made: Result, config: QuantizeConfig) -> frozenset[str]:
    """Name the layers that are in float because the recipe wants it so."""
    from modelpack.numerics.quantization import layers

    others = [layer.name for layer in made.layers if config.operators and layer.operator not in config.operators]
    return frozenset({*made.outcome.kept, *layers.excluded(made.layers, config.exclude), *others})


def _examine(subject: Subject, made: Result, config: QuantizeConfig, job: Job) -> None:
    """Look for silent failures in the result; those of other projects' quantizers are shown as they are.

    Raises:
        StageError: When one is found.
    """
    from modelpack.numerics import checks
    from modelpack.numerics.quantization import layers

    # The method itself says which layers overflow, and every layer that was left out is listed with its reason.
    skip = {"saturation", *({"speed"} if config.allow_slower else ())}
    # Methods that keep activations in floats are chosen for their bytes.
    tolerated = {"coverage"} if config.method in ("static", "dynamic") else {"coverage", "speed"}
    if config.backend != "builtin":
        tolerated = set(checks.CHECKS)
    found = checks.examine(subject, skip=skip, track=lambda names: job.track(names, len(names), "examine"))
    job.result("checks", [item.to_json() for item in found])
    for text in checks.accept(found, tolerated, {"size": layers.left_out(made.layers), **_elsewhere(config)}):
        job.warn(text)


def _elsewhere(config: QuantizeConfig) -> dict[str, str]:
    """Say what helps where integers for other hardware than x86 are slow on this machine."""
    if config.target not in ("neon", "cuda"):
        return {}
    return {"speed": f"`target: {config.target}` is for other hardware: add `allow_slower: true`, and measure there"}


def _calibration(config: QuantizeConfig, job: Job) -> Calibration | None:
    """Read the calibration that the settings name.

    Raises:
        StageError: When it is damaged, or is another model's.
    """
    from modelpack.numerics.quantization.calibration import record

    if config.calibration is None:
        return None
    artifact = job.steps[config.calibration]
    found = record.read(artifact.file(record.FACTS), artifact.file(record.ARRAYS))
    if found.model != job.source.id:
        raise StageError(
            f"'{config.calibration}' calibrated another model than the one to quantize",
            where="calibration",
            then="let both steps read the same step, or leave `calibration:` out",
        )
    return found


def _budget(config: QuantizeConfig) -> Budget | None:
    """Read the one limit that the budget gives."""
    from modelpack.numerics.quantization.settings import Budget

    if config.budget is None:
        return None
    names: tuple[Measure, ...] = ("sqnr_db", "agreement", "accuracy_drop")
    given = ((name, getattr(config.budget, name)) for name in names)
    return next(Budget(name, limit) for name, limit in given if limit is not None)


def _rounding(config: QuantizeConfig) -> Literal["nearest", "hqq", "gptq"]:
    """Choose what fits the bits and the data."""
    if config.bits == 8:
        return "nearest"
    return "gptq" if config.data is not None else "hqq"


def _warn(config: QuantizeConfig, job: Job) -> None:
    if config.data in job.synthetic:
        job.warn(f"compared with the float model on made-up rows: '{config.data}' is random data")
    if config.data is None:
        job.warn("the quantized model was compared with the float one on made-up inputs; name real ones with `data:`")
    if config.method == "float16" and job.device == "cpu":
        job.warn("float16 halves the file, but most processors compute it slower than float32: meant for accelerators")
    if config.method == "dynamic":
        job.note("dynamic ranges span a whole batch: a row's outputs change a little with the rows beside it")


def _report(made: Result, on_purpose: frozenset[str], job: Job) -> None:
    """Say what the method has to tell, and which layers were quantized."""
    job.metric("quantize_shrink", made.shrunk)
    for name, figure in made.outcome.metrics.items():
        job.metric(name, figure)
    for name, value in made.outcome.results.items():
        job.result(name, value)
    for note in made.outcome.notes:
        job.note(note)
    for warning in made.outcome.warnings:
        job.warn(warning)
    remarks.layers(made.layers, job, on_purpose)
