"""One version of one model: its files, its session, its queue, and what it has done."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from . import interface as interfaces
from .faults import Disconnected, Failed, Fault, Invalid, StartError, Unready
from .signature import read
from .statistics import Statistics
from .tensors import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

    from .batching import Pool, Run
    from .engine import Engine
    from .settings import Settings
    from .statistics import Ledger


class Answer(NamedTuple):
    """What the model gave, for how many rows, and how long the request waited, ran and was prepared (seconds)."""

    outputs: Mapping[str, np.ndarray]
    rows: int
    queued: float
    ran: float
    prepared: float = 0.0


class Model:
    """A model that is served; `infer` is the one way to ask it, whatever the protocol.

    Args:
        folder: Holds `model.onnx` and `signature.json`, perhaps `interface.json` with what it names, and `card.json`
            when `card` is None.
        settings: Limits.
        ledger: Where it counts what it does.
        name: What it is called.
        version: Its version.
        card: What else is known about it.
        observe: Is told of every run.

    Raises:
        StartError: When the folder has no readable signature or card, or an interface that does not fit.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        ledger: Ledger,
        *,
        name: str,
        version: str,
        card: Mapping[str, Any] | None = None,
        observe: Callable[[Run], None] = lambda _run: None,
    ) -> None:
        self.folder, self._settings, self._observe = folder, settings, observe
        self.stamp = stamp(folder)
        self._inner = read(folder / "signature.json")
        self._interface = interfaces.read(folder, self._inner)
        self.signature = self._interface.signature if self._interface else self._inner
        self.name, self.version = name, version
        self.card = {**(read_card(folder) if card is None else card), "name": name, "version": version}
        self.statistics = Statistics(ledger, name, version, self.stamp)
        self.seconds = 0.0  # loading and warm-up
        self.users = 0  # requests that hold it
        self.engine: Engine | None = None
        self._pool: Pool | None = None
        self._desk: Pool | None = None  # where requests are prepared
        self._retired = False

    @property
    def ready(self) -> bool:
        """Whether it is loaded."""
        return self._pool is not None

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return sum(pool.waiting for pool in (self._desk, self._pool) if pool)

    async def load(self) -> None:
        """Load and warm up in a thread.

        Raises:
            StartError: When the model cannot be served.
        """
        began = perf_counter()
        engine = self.engine = await asyncio.to_thread(self._build)
        from .batching import Pool
        from .engine import stoppable

        self._pool = Pool(
            self._work(engine), stoppable,
            workers=self._settings.concurrency, limit=self._settings.queue, rows=engine.batch,
            short=engine.steady, observe=self._ran,
        )  # fmt: skip
        if self._interface and self._interface.prepares:
            workers, limit = self._preparing(engine), self._settings.queue
            self._desk = Pool(self._interface.prepare, _Options, workers=workers, limit=limit)
        self.seconds = perf_counter() - began

    def _build(self) -> Engine:
        from .engine import Engine

        settings = self._settings
        engine = Engine(self.folder / "model.onnx", self._inner, settings.threads, settings.max_batch, settings.device)
        engine.warm_up()
        if self._interface:
            self._interface.load(settings, self._preparing(engine))
        return engine

    def _preparing(self, engine: Engine) -> int:
        """Count the threads that prepare requests."""
        return max(self._settings.concurrency, engine.threads)

    def _work(self, engine: Engine) -> Callable[[Mapping[str, np.ndarray], Any], dict[str, np.ndarray]]:
        """Give what one run does: the model, and what its outputs become."""
        if (interface := self._interface) is None:
            return engine.run
        return lambda feed, options: interface.finish(engine.run(feed, options))

    def _ran(self, run: Run) -> None:
        self.statistics.ran(run)
        self._observe(run)

    async def infer(self, feed: Mapping[str, np.ndarray], deadline: float, gone: Callable[[], bool]) -> Answer:
        """Run the model on tensors by name.

        Args:
            feed: Inputs of any element type that the model's can hold.
            deadline: When to give up, by the event loop's clock.
            gone: Tells, from any thread, whether the client has left; then the run is skipped.

        Raises:
            Invalid: When the tensors are not what the model takes.
            Unready: While it loads.
            Full: When too many requests wait.
            Late: When the deadline passes.
            Failed: When the model fails; the cause is chained.
            Disconnected: When the client left before the run began.
        """
        if self._pool is None:
            raise Unready("the server is loading its model")
        fitted, rows = fit(feed, self.signature, self._settings.max_rows)
        began, waited, prepared = perf_counter(), 0.0, 0.0
        try:
            if self._desk is not None:
                waited, run, made = await self._desk.run(fitted, rows, deadline, gone)
                prepared = run.ended - run.started
                fitted, rows = fit(made, self._inner, self._settings.max_rows)
            queued, run, outputs = await self._pool.run(fitted, rows, deadline, gone)
        except (Invalid, Disconnected):
            raise
        except Fault:
            self.statistics.failed(perf_counter() - began)
            raise
        except Exception as error:
            self.statistics.failed(perf_counter() - began)
            raise Failed("the model failed on this request") from error
        queued += waited
        self.statistics.answered(queued, perf_counter() - began)
        return Answer(outputs, rows, queued, run.ended - run.started, prepared)

    def retire(self) -> None:
        """End when the last request that holds it is answered."""
        self._retired = True
        self._end()

    def __enter__(self) -> Self:
        """Hold it for one request: it outlives its own replacement until then."""
        self.users += 1
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it."""
        self.users -= 1
        self._end()

    def _end(self) -> None:
        if self._retired and not self.users:
            self.close(0.0)

    def close(self, seconds: float) -> None:
        """End its threads, waiting at most this long for each."""
        for pool in (self._desk, self._pool):
            if pool is not None:
                pool.close(seconds)
        self._desk = self._pool = self.engine = None


class _Options:
    """What tells a preparation to stop."""

    terminate = False


Stamp = tuple[tuple[int, int, int], ...]


def stamp(folder: Path, only: str = "") -> Stamp:
    """Tell one state of the files in a folder, or of only one of them, from another without reading them."""
    files = folder.iterdir() if folder.is_dir() else ()
    found = sorted(path for path in files if path.is_file() and only in ("", path.name))
    return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in (path.stat() for path in found))


def alike(one: Stamp, other: Stamp) -> bool:
    """Say whether two processes saw the same files; some mounts number them anew for each who looks."""
    return [each[1:] for each in one] == [each[1:] for each in other]


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of a folder; empty when there is none.

    Raises:
        StartError: When it is no JSON object.
    """
    path = folder / "card.json"
    try:
        card = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StartError(f"the model card {path} cannot be read: {error}") from None
    if not isinstance(card, dict):
        raise StartError(f"the model card {path} is not a JSON object")
    return card
