"""How long the server waits for what clients send."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
_NEAR = 1e-3  # seconds; what a timer may be early


class Patience:
    """Ends waits that take too long; they all may take equally long, so that one timer does for all of them.

    A timer of its own, as `asyncio.timeout` starts it, would cost a small request more than reading its tensors.

    Args:
        seconds: How long each may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: dict[asyncio.Task[Any], float] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, work: Awaitable[T]) -> T:
        """Wait for something in the current task.

        Raises:
            TimeoutError: When it took too long.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        self._since[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._look)
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._since or task.uncancel():  # somebody else cancelled it
                raise
            raise TimeoutError from None
        finally:
            self._since.pop(task, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._since:
            task, since = next(iter(self._since.items()))
            if (left := since + self.seconds - loop.time()) > _NEAR:
                self._timer = loop.call_later(left, self._look)
                return
            del self._since[task]
            task.cancel()


class Deadline:
    """A time that is often set anew: one timer looks at the earliest of those that were asked for, and then again.

    Args:
        late: Is called when the time that was set last has come.
    """

    def __init__(self, late: Callable[[], None]) -> None:
        self._late, self._loop = late, asyncio.get_running_loop()
        self._when = self._looks = inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Begin to wait so long from now."""
        self._when = self._loop.time() + seconds
        if self._when < self._looks:
            self._look_at(self._when)

    def clear(self) -> None:
        """Wait for nothing."""
        self._when = inf

    def drop(self) -> None:
        """End for ever, and let go of what would be called."""
        self._cancel()
        del self._late

    def _look_at(self, when: float) -> None:
        self._cancel()
        self._timer, self._looks = self._loop.call_at(when, self._look), when

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer, self._looks = None, inf
        if self._when - self._loop.time() <= _NEAR:
            self._when = inf
            self._late()
        elif self._when < inf:
            self._look_at(self._when)
