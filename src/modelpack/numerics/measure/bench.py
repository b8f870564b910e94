"""Speed, memory and size of models side by side; every ratio with the interval that holds it.

All subjects take turns in one process per number of threads, at one graph optimization level. Memory and load time
come from a fresh process for each subject.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelpack.device import machine
from modelpack.errors import StageError
from modelpack.numerics.measure import children, memory, statistics
from modelpack.numerics.measure.figures import BenchResult, Cell, Weight
from modelpack.numerics.measure.subjects import check_dimensions, drawn, sampled
from modelpack.numerics.rows import DYNAMIC_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelpack.numerics.measure.figures import Settings
    from modelpack.numerics.measure.subjects import Subject
    from modelpack.numerics.rows import Feed

Progress = Callable[[str, int, int], None]
"""Told a label, how much is done, and of how much."""


def measure(
    subjects: Sequence[Subject],
    settings: Settings,
    progress: Progress = lambda _label, _done, _total: None,
    data: Iterable[Mapping[str, NDArray[Any]]] | None = None,
) -> BenchResult:
    """Measure subjects side by side.

    Args:
        subjects: Models of different names.
        settings: How to measure.
        progress: Told how far it is.
        data: Batches; rows of the first one are fed. Inputs within the declared ranges when None.

    Raises:
        MissingError: When the device, or what measures its memory, was not obtained.
        StageError: When a subject cannot be loaded or run, or the settings do not fit the subjects.
    """
    _check(subjects, settings)
    notes = _notes(subjects, settings, sampled_inputs=data is None)
    batch = next(iter(data), None) if data is not None else None
    if data is not None and batch is None:
        raise StageError("the data gave no rows to measure with")
    with tempfile.TemporaryDirectory(prefix="modelpack-bench-") as place:
        feeds = [[_feed(Path(place), item, rows, settings, batch) for rows in settings.batches] for item in subjects]
        cells = _times(subjects, settings, feeds, progress)
        weights = []
        for done, (subject, paths) in enumerate(zip(subjects, feeds, strict=True)):
            progress("memory", done, len(subjects))
            weights.append(_weight(subject, settings, paths))
        progress("memory", len(subjects), len(subjects))
    if any(cell.rounds < settings.rounds for cell in cells):
        fewest = min(cell.rounds for cell in cells)
        notes.append(f"the limit of {settings.seconds:g} s ended a cell after {fewest} of {settings.rounds} rounds")
    return BenchResult(settings, machine(settings.device), tuple(weights), tuple(cells), tuple(notes))


def _check(subjects: Sequence[Subject], settings: Settings) -> None:
    names = [item.name for item in subjects]
    if not names or len(set(names)) < len(names):
        raise StageError(f"subjects need different names, these are: {', '.join(names) or 'none'}")
    if settings.reference and settings.reference not in names:
        raise StageError(f"the reference '{settings.reference}' is not among {', '.join(names)}")
    if settings.rounds < statistics.FEWEST_ROUNDS:
        raise StageError(f"{settings.rounds} rounds carry no claim; {statistics.FEWEST_ROUNDS} are the fewest")
    for item in subjects:
        item.check_rows(settings.batches)
    if settings.device != "cpu":
        memory.nvml()


def _notes(subjects: Sequence[Subject], settings: Settings, *, sampled_inputs: bool) -> list[str]:
    notes = []
    unsized = check_dimensions(subjects, settings.dimensions)
    if sampled_inputs and unsized:
        notes.append(f"no size was given for {', '.join(unsized)}: measured at {DYNAMIC_SIZE}")
    cores = machine(settings.device)["cores"]
    if cores and max(settings.threads) > cores:
        notes.append(f"{max(settings.threads)} threads were asked for on {cores} cores: they wait for each other")
    if len({item.kind for item in subjects}) > 1:
        notes.append("torch runs eagerly, onnxruntime an optimized graph: ratios across them compare runtimes as well")
    if settings.device != "cpu":
        notes.append("device memory counts every process; the clocks of the device were not locked")
    return notes


def _feed(
    place: Path, subject: Subject, rows: int, settings: Settings, batch: Mapping[str, NDArray[Any]] | None
) -> str:
    feed: Feed = (
        drawn(subject, batch, rows) if batch is not None else sampled(subject, rows, settings.seed, settings.dimensions)
    )
    path = place / f"{len(list(place.iterdir()))}.npz"
    np.savez(path, *feed.values())  # by position: an input may be called like a parameter of this function
    return str(path)


def _times(
    subjects: Sequence[Subject], settings: Settings, feeds: Sequence[Sequence[str]], progress: Progress
) -> list[Cell]:
    total = len(settings.threads) * len(settings.batches) * settings.rounds
    cells = []
    for turn, threads in enumerate(settings.threads):

        def advance(place: int, rounds: int, turn: int = turn, threads: int = threads) -> None:
            label = f"batch {settings.batches[place]}, {threads} thread{'s' if threads > 1 else ''}"
            progress(label, (turn * len(settings.batches) + place) * settings.rounds + rounds, total)

        request = {
            "do": "time",
            "subjects": [_body(item) for item in subjects],
            "feeds": list(zip(*feeds, strict=True)),
            "threads": threads,
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "warmup": settings.warmup,
            "device": settings.device,
            "level": settings.level,
        }
        for batch, found in zip(settings.batches, children.run(request, threads, advance), strict=True):
            cells += _cells(subjects, settings, found, batch, threads)
    return cells


def _cells(
    subjects: Sequence[Subject], settings: Settings, found: Sequence[Mapping[str, Any]], batch: int, threads: int
) -> list[Cell]:
    series = dict(zip((item.name for item in subjects), found, strict=True))
    cells = []
    for name, timings in series.items():
        ratio = None
        if settings.reference and name != settings.reference:
            ratio = statistics.ratio(series[settings.reference]["rounds"], timings["rounds"], settings.seed)
        cells.append(Cell(name, batch, threads, statistics.summary(timings["calls"]), len(timings["rounds"]), ratio))
    return cells


def _weight(subject: Subject, settings: Settings, paths: Sequence[str]) -> Weight:
    order = sorted(range(len(paths)), key=lambda place: settings.batches[place])
    threads = settings.threads[0]
    request = {
        "do": "weigh",
        "subject": _body(subject),
        "threads": threads,
        "device": settings.device,
        "level": settings.level,
        "feeds": [paths[place] for place in order],
    }
    found = children.run(request, threads)
    batches = [settings.batches[place] for place in order]
    return Weight(
        name=subject.name,
        id=subject.id,
        runtime="torch" if subject.kind == "torch" else "onnxruntime",
        size=subject.size,
        macs=found["macs"],
        load_ms=found["load_ms"],
        runtime_bytes=found["runtime_bytes"],
        peak_bytes=dict(zip(batches, found["peak_bytes"], strict=True)),
        device_bytes=dict(zip(batches, found["device_bytes"], strict=True)),
    )


def _body(subject: Subject) -> dict[str, Any]:
    inputs = {name: spec.model_dump(mode="json") for name, spec in subject.inputs.items()}
    return {**vars(subject), "path": str(subject.path.resolve()), "inputs": inputs}
