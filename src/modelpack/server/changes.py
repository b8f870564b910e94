"""One change of what is served at a time, made in all workers or in none of them.

Nobody stands above the workers: the one that a client asks leads, the others follow.

1. The leader takes the lock that all share.
2. It loads what shall be served beside what is served, writes it down with a new number, and asks.
3. Each follower prepares the same, and says yes to that number, or why not.
4. When all that live have said yes, the leader decides: one number is set, and the change has happened. When one has
   said no, the leader takes the question back, and all drop what they prepared.
5. Each serves what it prepared, and says so. Only then does the client get its answer, and another worker the lock.

Whoever dies is waited for no longer. If it led, it has decided or it has not: the lock is free again, and followers see
that nobody asks any more. Whoever starts begins with what is decided, is waited for from its first moment on, and does
afterwards what was decided in that moment; if it cannot, it ends and is started again. Whoever drains takes part.

Source: the two-phase commit of Gray, "Notes on Data Base Operating Systems", 1978.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from .faults import Invalid, StartError, Unready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .board import Board

T = TypeVar("T")
_IDLE, _BUSY = 0.1, 0.01  # seconds between two looks
_SILENT = 10.0  # seconds after which a worker that says nothing is held up, and answers nobody
_log = logging.getLogger("modelpack.server")


class Party(Protocol[T]):
    """What is changed."""

    async def prepare(self, text: bytes) -> T:
        """Get ready to serve what a text describes, and serve on as before.

        Raises:
            StartError: When it cannot be served.
        """
        ...

    def serve(self, prepared: T) -> None:
        """Serve it from now on."""
        ...

    def drop(self, prepared: T) -> None:
        """Let go of it: it will not be served."""
        ...


class Changes:
    """What one worker does in changes: it leads some, and follows in others.

    Args:
        board: What all workers share.
        worker: The number of this one, from 0.

    Attributes:
        still: Is held while something is prepared here.
    """

    def __init__(self, board: Board, worker: int = 0) -> None:
        self._board, self._minutes, self._worker = board, board.minutes, worker
        self._heard = 0  # the latest question that was heard here
        self._first = asyncio.Lock()  # what the shared lock is not: one between tasks of this process
        self.still = asyncio.Lock()

    def begin(self, first: Callable[[], bytes]) -> bytes:
        """Give what is decided; `first` says it where nobody has."""
        minutes = self._minutes
        if not minutes.decided[0]:
            minutes.take(wait=True)
            try:
                if not minutes.decided[0]:
                    minutes.write(1, first())
                    minutes.asked[0] = minutes.decided[0] = 1.0
            finally:
                minutes.release()
        self._heard, text = minutes.held()
        minutes.serving[self._worker] = self._heard
        return text

    @asynccontextmanager
    async def turn(self, party: Party[T]) -> AsyncIterator[None]:
        """Be the only one that changes anything, and begin with what is decided."""
        async with self._first:
            while not self._minutes.take():
                await asyncio.sleep(_BUSY)
            try:
                async with self.still:
                    await self._catch_up(party)
                    yield
            finally:
                self._minutes.release()

    async def ask(self, text: bytes) -> None:
        """Ask all others to prepare a change; then it may be decided, until this task waits for anything else.

        Raises:
            Invalid: When one of them cannot.
            Unready: When one of them is held up.
            StartError: When the text is too long.
        """
        minutes, number = self._minutes, int(self._minutes.asked[0]) + 1
        minutes.write(number, text)
        self._heard = number
        minutes.leader[0] = os.getpid()
        minutes.asked[0] = number
        try:
            while waiting := [each for each in self._others() if minutes.said[each] != number]:
                self._hear(number, waiting)
                await asyncio.sleep(_BUSY)
        except BaseException:  # the client has left, too
            minutes.leader[0] = 0.0
            raise

    def _others(self) -> list[int]:
        """Give the workers that live, but this one."""
        processes = self._board.processes
        return [each for each in range(self._board.workers) if processes[each] and each != self._worker]

    def _hear(self, number: int, waiting: list[int]) -> None:
        for each in waiting:
            if self._minutes.said[each] == -number:
                reason = (self._minutes.reasons[each].read(number) or b"").decode("utf-8", "replace")
                raise Invalid(f"nothing has changed, since worker {each} could not take part: {reason}")
            if self._silent(each):
                raise Unready(f"nothing has changed, since worker {each} is held up")

    def _silent(self, worker: int) -> bool:
        return time.monotonic() - self._board.seen[worker] > _SILENT

    def decide(self) -> None:
        """Let what was asked for hold from now on."""
        self._minutes.decided[0] = self._minutes.serving[self._worker] = self._heard

    async def settle(self) -> None:
        """Wait until all serve what was decided, but those that are held up and answer nobody."""
        serving = self._minutes.serving
        while any(serving[each] < self._heard and not self._silent(each) for each in self._others()):
            await asyncio.sleep(_BUSY)

    async def follow(self, party: Party[T]) -> None:
        """Do what the others decide, as long as this worker lives.

        Raises:
            StartError: When what they have decided cannot be served here.
        """
        while True:
            if self._minutes.asked[0] > self._heard or self._behind:
                async with self.still:
                    await self._take_part(party)
                    await self._catch_up(party)
            await asyncio.sleep(_IDLE)

    @property
    def _behind(self) -> bool:
        return self._minutes.decided[0] > self._minutes.serving[self._worker]

    async def _take_part(self, party: Party[T]) -> None:
        minutes, number = self._minutes, int(self._minutes.asked[0])
        text = minutes.read(number) if number > self._heard and self._open(number) else None
        if text is None:  # nobody asks any more, or it is not all to be seen yet
            return
        self._heard = number
        try:
            prepared = await party.prepare(text)
        except StartError as error:
            self._refuse(number, str(error))
            return
        except Exception:  # noqa: BLE001 - this worker serves on, whatever it was
            _log.exception("a change of what is served failed")
            self._refuse(number, "it failed, as its log says")
            return
        minutes.said[self._worker] = number
        while self._open(number):
            await asyncio.sleep(_BUSY)
        if minutes.decided[0] == number:
            party.serve(prepared)
            minutes.serving[self._worker] = number
        else:
            party.drop(prepared)

    def _refuse(self, number: int, reason: str) -> None:
        self._minutes.reasons[self._worker].write(number, reason.encode("utf-8", "replace")[:2000])
        self._minutes.said[self._worker] = -number

    def _open(self, number: int) -> bool:
        """Say whether a question waits for its decision, and somebody is there to decide."""
        minutes = self._minutes
        asking = minutes.asked[0] == number and minutes.leader[0] and minutes.leader[0] in self._board.processes
        return bool(asking) and minutes.decided[0] < number

    async def _catch_up(self, party: Party[T]) -> None:
        """Do what was decided while this worker began, and could not be asked."""
        while self._behind:
            number, text = self._minutes.held()
            party.serve(await party.prepare(text))
            self._minutes.serving[self._worker] = number
