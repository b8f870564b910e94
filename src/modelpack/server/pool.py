"""A few threads that run the model, and the bounded queue before them."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .faults import Disconnected, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

_log = logging.getLogger("modelpack.server")


class Job:
    """One inference: its inputs, its future, and when it was queued, started and done (seconds, perf_counter)."""

    __slots__ = ("done", "feed", "future", "gone", "options", "over", "queued", "started")

    def __init__(self, feed: Mapping[str, np.ndarray], options: Any, gone: Callable[[], bool]) -> None:
        self.feed, self.options, self.gone = feed, options, gone
        self.future: asyncio.Future[dict[str, np.ndarray]] = asyncio.get_running_loop().create_future()
        self.queued, self.started, self.done, self.over = perf_counter(), 0.0, 0.0, False

    def expire(self) -> None:
        """Give up: the deadline has passed, so the answer is 504 and a run under way is told to stop."""
        self.abandon()
        if not self.future.done():
            where = "while running" if self.started else "while waiting in the queue"
            self.future.set_exception(Refused(504, f"the deadline passed {where}"))

    def abandon(self) -> None:
        """Stop caring about the result."""
        self.over = True
        self.options.terminate = True


class Pool:
    """Runs jobs in `workers` threads; at most `limit` more may wait.

    Args:
        work: Runs one job's inputs with its options.
        options: Makes the options of one run.
    """

    def __init__(
        self,
        work: Callable[[Mapping[str, np.ndarray], Any], dict[str, np.ndarray]],
        options: Callable[[], Any],
        workers: int,
        limit: int,
    ) -> None:
        self._work, self._options, self._limit = work, options, limit
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._unfinished = 0
        self._threads = [threading.Thread(target=self._serve, name=f"run-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait for a thread."""
        return max(0, self._unfinished - len(self._threads))

    async def run(self, feed: Mapping[str, np.ndarray], deadline: float, gone: Callable[[], bool]) -> tuple[Job, Any]:
        """Run one inference, or refuse it at once when the queue is full.

        Args:
            feed: Checked inputs.
            deadline: When to give up, by the event loop's clock.
            gone: Tells, from any thread, whether the client has left; then the run is skipped.

        Raises:
            Refused: 429 when the queue is full, 504 when the deadline passes.
            Disconnected: When the client left before the run began.
        """
        if self._unfinished >= self._limit + len(self._threads):
            raise Refused(429, f"{self._limit} requests wait already: try again later", retry_after="1")
        job = Job(feed, self._options(), gone)
        self._unfinished += 1
        self._queue.put(job)
        timer = self._loop.call_at(deadline, job.expire)
        try:
            return job, await job.future
        except asyncio.CancelledError:
            job.abandon()
            raise
        finally:
            timer.cancel()

    def close(self, seconds: float) -> None:
        """Let the threads end after what is queued, waiting at most this long."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(seconds)

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            job.started = perf_counter()
            result: dict[str, np.ndarray] | None = None
            error: BaseException | None = None
            try:
                if job.over or job.gone():
                    error = Disconnected()
                else:
                    result = self._work(job.feed, job.options)
            except BaseException as caught:  # noqa: BLE001 - it is raised again where the job is awaited
                error = caught
            job.done = perf_counter()
            try:
                self._loop.call_soon_threadsafe(self._finish, job, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _finish(self, job: Job, result: dict[str, np.ndarray] | None, error: BaseException | None) -> None:
        self._unfinished -= 1
        if job.future.done():
            return
        if error is not None:
            job.future.set_exception(error)
        elif result is not None:
            job.future.set_result(result)
