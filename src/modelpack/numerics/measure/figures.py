"""The figures of a bench as frozen data: settings, what models cost, how long they take, and where it was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.numerics.measure.statistics import Ratio, Summary


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        reference: Name of the subject that the others are compared with; no ratios when empty.
        batches: Rows per call.
        threads: Threads inside one operator.
        rounds: Turns of every subject.
        seconds: Time after which a cell (one batch size, one number of threads) begins no further round.
        warmup: Calls of every subject before the first round.
        dimensions: Sizes of dynamic dimensions other than the rows.
        device: ``cpu`` or ``cuda:N``.
        level: Graph optimization level of every onnxruntime session.
        seed: Seed of made-up inputs and of the bootstrap.
    """

    reference: str = ""
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    rounds: int = 50
    seconds: float = 10.0
    warmup: int = 3
    dimensions: Mapping[str, int] = field(default_factory=dict)
    device: str = "cpu"
    level: str = "all"
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Give the settings as JSON types."""
        return {**vars(self), "batches": [*self.batches], "threads": [*self.threads], "dimensions": {**self.dimensions}}


@dataclass(frozen=True)
class Weight:
    """What one subject costs besides time.

    Attributes:
        name: The subject.
        id: Its artifact; empty for a plain file.
        runtime: ``torch`` or ``onnxruntime``.
        size: Bytes on disk.
        macs: Multiply-accumulates of one row; None where they are not known.
        load_ms: Time to open it in a fresh process that has the runtime loaded.
        runtime_bytes: Resident bytes of that process before the model was opened.
        peak_bytes: The most that process ever held, by batch size.
        device_bytes: Device memory taken, by batch size; 0 on the CPU.
    """

    name: str
    id: str
    runtime: str
    size: int
    macs: int | None
    load_ms: float
    runtime_bytes: int
    peak_bytes: Mapping[int, int]
    device_bytes: Mapping[int, int]

    def to_json(self) -> dict[str, Any]:
        """Give the figures as JSON types."""
        by_batch = {
            key: {str(batch): value for batch, value in getattr(self, key).items()}
            for key in ("peak_bytes", "device_bytes")
        }
        return {**vars(self), **by_batch}


@dataclass(frozen=True)
class Cell:
    """One subject's time at one batch size and number of threads, and how it compares with the reference."""

    subject: str
    batch: int
    threads: int
    times: Summary
    rounds: int
    ratio: Ratio | None = None

    @property
    def rows_per_second(self) -> float:
        """Throughput of one stream of calls, from the median call."""
        return 1000 * self.batch / self.times.p50

    def to_json(self) -> dict[str, Any]:
        """Give the figures as one flat row."""
        return {
            "subject": self.subject,
            "batch": self.batch,
            "threads": self.threads,
            "rounds": self.rounds,
            **self.times.to_json(),
            "rows_per_second": self.rows_per_second,
            "ratio": self.ratio.to_json() if self.ratio is not None else None,
        }


@dataclass(frozen=True)
class BenchResult:
    """What was measured, where, and what the reader should know about it."""

    settings: Settings
    machine: Mapping[str, Any]
    weights: tuple[Weight, ...]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    def cell(self, subject: str, batch: int | None = None, threads: int | None = None) -> Cell:
        """Find a cell; the first batch size and number of threads where none is given.

        Raises:
            KeyError: When that was not measured.
        """
        for cell in self.cells:
            if cell.subject == subject and batch in (None, cell.batch) and threads in (None, cell.threads):
                return cell
        raise KeyError(f"'{subject}' was not measured at batch {batch}, threads {threads}")

    def to_json(self) -> dict[str, Any]:
        """Give everything as one JSON object."""
        return {
            "settings": self.settings.to_json(),
            "machine": dict(self.machine),
            "subjects": [item.to_json() for item in self.weights],
            "cells": [item.to_json() for item in self.cells],
            "notes": list(self.notes),
        }
