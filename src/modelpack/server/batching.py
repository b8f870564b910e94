"""Natural batching: an idle thread takes a request at once; what arrives while it runs goes together into its next run.

No timer, so an idle server answers as fast as without batching, and a busy one pays the cost of a run once for many
requests. Requests share a run when their inputs agree in every dimension but the rows. A run that is shorter than
handing it to a thread and back is made at once, in the event loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import Disconnected, Full, Late

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Tensors = Mapping[str, np.ndarray]
    Shapes = tuple[tuple[int, ...], ...]


_SHORT = 150e-6  # seconds
_SHAPES = 256  # that are remembered


class Run:
    """One run of the model for one request or several; times in seconds by `perf_counter`.

    Attributes:
        rows: Of all its requests.
        requests: How many there are.
        options: Setting their `terminate` ends it from another thread; None for what nobody can stop.
        jobs: What may still be given up of it.
        started: When it began.
        joined: When the inputs of its requests were joined.
        ended: When the model had run.
        split: When the outputs were split.
    """

    __slots__ = ("ended", "jobs", "joined", "options", "requests", "rows", "split", "started")

    def __init__(self, rows: int, requests: int, options: Any) -> None:
        self.rows, self.requests, self.options = rows, requests, options
        self.jobs: Sequence[Job] = ()
        self.started = self.joined = self.ended = self.split = 0.0


class Job:
    """One request's inputs, which wait for a thread, its future answer, and the run that it became part of."""

    __slots__ = ("feed", "future", "gone", "over", "queued", "rows", "run", "shapes")

    def __init__(
        self,
        feed: Tensors,
        rows: int,
        shapes: Shapes,
        gone: Callable[[], bool],
        future: asyncio.Future[tuple[Run, dict[str, np.ndarray]]],
    ) -> None:
        self.feed, self.rows, self.shapes, self.gone, self.future = feed, rows, shapes, gone, future
        self.queued, self.over = perf_counter(), False
        self.run: Run | None = None

    @property
    def key(self) -> list[tuple[int, ...]]:
        """What jobs of one run have in common."""
        return [shape[1:] for shape in self.shapes]

    def expire(self) -> None:
        """Give up: the deadline has passed, and a run that nobody else waits for is told to stop."""
        self.abandon()
        if not self.future.done():
            self.future.set_exception(
                Late(f"the deadline passed while {'running' if self.run else 'waiting in the queue'}")
            )

    def abandon(self) -> None:
        """Stop caring about the result."""
        self.over = True
        if self.run is not None and all(job.over for job in self.run.jobs):
            self.run.options.terminate = True


class Pool:
    """Runs jobs in `workers` threads; at most `limit` more may wait.

    Args:
        work: Runs one feed with the options of one run.
        options: Makes the options of one run; setting their `terminate` ends it from another thread.
        workers: Runs at once.
        limit: Jobs that may wait.
        rows: The most rows that jobs may have together to share a run; 1 never joins jobs.
        short: Whether inputs of equal shapes take equally long, so that short runs can be foreseen.
        observe: Is told of every run that ended well, in the event loop's thread.
    """

    def __init__(
        self,
        work: Callable[[Tensors, Any], dict[str, np.ndarray]],
        options: Callable[[], Any],
        *,
        workers: int,
        limit: int,
        rows: int = 1,
        short: bool = False,
        observe: Callable[[Run], None] = lambda _run: None,
    ) -> None:
        self._work, self._options, self._observe = work, options, observe
        self._workers, self._limit, self._rows = workers, limit, rows
        self._short = short
        self._means: dict[Shapes, float] = {}  # seconds of a run for one request, by its shapes
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()
        self._busy = 0
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one for each job; False ends a thread
        self._loop = asyncio.get_running_loop()
        self._threads = [threading.Thread(target=self._serve, name=f"run-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait for a thread."""
        return len(self._jobs)

    @property
    def busy(self) -> int:
        """How many threads have a run."""
        return self._busy

    async def run(
        self, feed: Tensors, rows: int, deadline: float, gone: Callable[[], bool]
    ) -> tuple[float, Run, dict[str, np.ndarray]]:
        """Run one inference, or refuse it at once when the queue is full.

        Args:
            feed: Checked inputs.
            rows: Size of their first dimension.
            deadline: When to give up, by the event loop's clock.
            gone: Tells, from any thread, whether the client has left; then the run is skipped.

        Returns:
            How long it waited (seconds), the run, and its outputs.

        Raises:
            Full: When the queue is full.
            Late: When the deadline passes.
            Disconnected: When the client left before the run began.
        """
        shapes = tuple([array.shape for array in feed.values()])
        if self._short and not self._busy and not self._jobs and self._means.get(shapes, inf) < _SHORT:
            return self._at_once(feed, rows, shapes)
        job = Job(feed, rows, shapes, gone, self._loop.create_future())
        with self._lock:
            if len(self._jobs) >= self._limit + self._workers - self._busy:
                raise Full(f"{self._limit} requests wait already: try again later")
            self._jobs.append(job)
        self._tokens.put(True)
        timer = self._loop.call_at(deadline, job.expire)
        try:
            run, outputs = await job.future
        except asyncio.CancelledError:
            job.abandon()
            raise
        finally:
            timer.cancel()
        return run.started - job.queued, run, outputs

    def _at_once(self, feed: Tensors, rows: int, shapes: Shapes) -> tuple[float, Run, dict[str, np.ndarray]]:
        run = Run(rows, 1, None)
        run.started = run.joined = perf_counter()
        outputs = self._work(feed, None)
        run.ended = run.split = perf_counter()
        self._learn(shapes, run)
        self._observe(run)
        return 0.0, run, outputs

    def _learn(self, shapes: Shapes, run: Run) -> None:
        """Note how long a run took; a shape that is new begins above what counts as short."""
        if len(self._means) >= _SHAPES and shapes not in self._means:
            self._means.clear()
        mean = self._means.get(shapes, 2 * _SHORT)
        took = min(run.ended - run.started, 4 * _SHORT)  # one that the machine interrupted is no rule
        self._means[shapes] = mean + (took - mean) / 8

    def close(self, seconds: float) -> None:
        """Let the threads end after what is queued, waiting at most this long for each."""
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            thread.join(seconds)

    def _serve(self) -> None:
        while self._tokens.get():
            with self._lock:
                jobs = self._take()
                self._busy += bool(jobs)
            if not jobs:  # they went with an earlier run
                continue
            try:
                self._perform(jobs)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            finally:
                with self._lock:
                    self._busy -= 1

    def _take(self) -> list[Job]:
        """Take the oldest job, and those behind it that fit into its run."""
        if not self._jobs:
            return []
        first = self._jobs.popleft()
        taken, rows = [first], first.rows
        if self._rows > 1:
            left: deque[Job] = deque()
            for job in self._jobs:
                if job.key == first.key and rows + job.rows <= self._rows:
                    taken.append(job)
                    rows += job.rows
                else:
                    left.append(job)
            self._jobs = left
        return taken

    def _perform(self, jobs: list[Job]) -> None:
        wanted = [job for job in jobs if not (job.over or job.gone())]
        if len(wanted) < len(jobs):
            left = [job for job in jobs if job not in wanted]
            self._loop.call_soon_threadsafe(self._fail, left, Disconnected())
        if not wanted:
            return
        run = Run(sum(job.rows for job in wanted), len(wanted), self._options())
        run.jobs = wanted
        for job in wanted:
            job.run = run
        if all(job.over for job in wanted):  # given up since they were looked at, when there was no run to stop yet
            run.options.terminate = True
        run.started = perf_counter()
        try:
            parts = self._compute(run, wanted)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the job is awaited
            if len(wanted) == 1:
                self._loop.call_soon_threadsafe(self._fail, wanted, error)
                return
            for job in wanted:  # one job's values must not fail the others
                self._perform([job])
            return
        self._loop.call_soon_threadsafe(self._finish, run, parts)

    def _compute(self, run: Run, jobs: Sequence[Job]) -> list[dict[str, np.ndarray]]:
        feeds = [job.feed for job in jobs]
        feed = (
            feeds[0] if len(feeds) == 1 else {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}
        )
        run.joined = perf_counter()
        outputs = self._work(feed, run.options)
        run.ended = perf_counter()
        parts = [outputs] if len(feeds) == 1 else _split(outputs, [job.rows for job in jobs])
        run.split = perf_counter()
        return parts

    def _finish(self, run: Run, parts: list[dict[str, np.ndarray]]) -> None:
        if self._short and run.requests == 1:
            self._learn(run.jobs[0].shapes, run)
        self._observe(run)
        jobs, run.jobs = run.jobs, ()  # a run that held them for ever would leave its tensors to the garbage collector
        for job, part in zip(jobs, parts, strict=True):
            if not job.future.done():
                job.future.set_result((run, part))

    def _fail(self, jobs: list[Job], error: BaseException) -> None:
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(error)


def _split(outputs: Tensors, rows: list[int]) -> list[dict[str, np.ndarray]]:
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != sum(rows):
            raise ValueError(f"output {name!r} has shape {array.shape} for {sum(rows)} rows")
    bounds = np.cumsum(rows)[:-1]
    each = {name: np.split(array, bounds) for name, array in outputs.items()}
    return [dict(zip(each, parts, strict=True)) for parts in zip(*each.values(), strict=True)]
