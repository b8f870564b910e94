"""How fast the model is, and how much faster than another step's."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelpack import canonical
from modelpack.artifact import Artifact, Kind
from modelpack.stage import DataRef, Job, Outside, StageConfig, StepRef, stage

Count = Annotated[int, Field(gt=0)]


class BenchConfig(StageConfig):
    """What to compare with, and at which settings."""

    against: StepRef | None = Field(None, description="Step to compare with, such as `export`.")
    batch: tuple[Count, ...] = Field((1,), min_length=1, description="Rows per call; the first gives the metrics.")
    threads: tuple[Count, ...] = Field(
        (1,), min_length=1, description="Threads inside one operator; the first gives the metrics."
    )
    rounds: int = Field(50, ge=10, description="Turns of each model; models take turns, so that noise meets both.")
    seconds: float = Field(
        10.0, gt=0, description="Time after which a batch size begins no further round, once there are 10."
    )
    warmup: int = Field(3, ge=1, description="Calls of each model before the first round.")
    data: DataRef | None = Field(
        None, description="Data whose first rows are fed; values within the declared ranges when absent."
    )
    dimensions: dict[str, Count] = Field(
        default_factory=dict, description="Sizes of named dimensions other than the rows, such as sequence: 128."
    )


def gauges(config: BenchConfig) -> set[str]:
    """Name the budget lines that these settings measure."""
    return {"latency_ms"} | ({"speedup"} if config.against is not None else set())


def preflight(_config: BenchConfig, outside: Outside) -> None:
    """See that device memory can be measured where a device is asked for."""
    if outside.device != "cpu":
        from modelpack.numerics.measure import memory

        memory.nvml()


@stage(
    version=1,
    accepts={Kind.TORCH, Kind.ONNX},
    produces=Kind.REPORT,
    needs=("torch", "onnxruntime", "numpy"),
    machine=True,
    gauges=gauges,
    preflight=preflight,
)
def bench(config: BenchConfig, job: Job) -> None:
    """Measure latency, throughput, memory and load time; against another model in interleaved rounds."""
    from modelpack.events import Progress
    from modelpack.numerics.measure import bench as engine
    from modelpack.numerics.measure.figures import Settings
    from modelpack.numerics.measure.subjects import Subject

    reference = job.steps[config.against] if config.against is not None else None
    name = _name(job.source, config.against)
    subjects = [Subject.of(job.source, name)]
    if reference is not None and config.against is not None:
        subjects.append(Subject.of(reference, config.against))
    settings = Settings(
        reference=config.against or "",
        batches=config.batch,
        threads=config.threads,
        rounds=config.rounds,
        seconds=config.seconds,
        warmup=config.warmup,
        dimensions=config.dimensions,
        device=job.device,
        seed=job.seed,
    )
    found = engine.measure(
        subjects,
        settings,
        lambda label, done, total: job.emit(Progress(job.step, label, done, total)),
        job.data[config.data].batches() if config.data is not None else None,
    )
    for text in found.notes:
        job.warn(text)
    cell = found.cell(name)
    job.metric("latency_ms", cell.times.p50)
    job.metric("rows_per_second", cell.rows_per_second)
    if cell.ratio is not None:
        job.note(f"against {config.against}: {cell.ratio.sentence()}")
        job.metric("latency_ms_reference", found.cell(settings.reference).times.p50)
        job.metric("speedup", cell.ratio.claim)
    job.result("bench", found.to_json())
    asked = {"model": job.source.id, "against": reference.id if reference is not None else None}
    (job.out / "bench.json").write_bytes(canonical.encode({**asked, "settings": config}))


def _name(artifact: Artifact, taken: str | None) -> str:
    """Call a model after the stage that made it, unlike its reference."""
    name = str(artifact.manifest.work.get("stage", "model"))
    return f"{name} (this)" if name == taken else name
