"""Several processes over one listening socket: started, told what signals ask for, and replaced when they die."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from . import logs
from .board import Board, Seat
from .cpus import available
from .faults import StartError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from .settings import Settings

_DEATHS, _WITHIN = 5, 60.0  # so many within so many seconds are too many
_PAUSE = 2.0  # seconds before a worker that cannot start tries again
_GRACE = 5.0  # seconds after its time to drain in which a worker must have ended
_HOPELESS, _BROKEN = 1, 70  # exit codes of a worker that cannot start, and of one that failed
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger("modelpack.server")


class Workers:
    """The process that starts workers and answers no request itself.

    All inherit one socket that was bound before, so that what waits to be accepted is lost with none of them. Nothing
    that starts threads is imported here: a process with threads cannot be forked safely.

    Args:
        settings: How many workers, and their limits; they share the processors out.
        listener: The socket.
        card: What is known about the model of a directory that is one model; None reads its `card.json`.
    """

    def __init__(self, settings: Settings, listener: socket.socket, card: Mapping[str, Any] | None) -> None:
        share = max(1, available() // settings.workers)
        self._settings = dataclasses.replace(settings, threads=settings.threads or share)
        self._listener, self._card = listener, card
        self._board = Board(settings.workers)
        self._numbers: dict[int, int] = {}  # by process
        self._deaths: list[float] = []
        self._pausing: dict[int, float] = {}  # when workers that could not start try again
        self._stopped = 0  # the signal that asked for the end
        self._killing: list[float] = []  # when those that are still there are killed
        self._failure: StartError | None = None
        self._alive = self._faults = (-1, -1)
        self._said = b""  # by workers that could not start

    def run(self) -> int:
        """Serve until a signal.

        Returns:
            0 after SIGTERM, 130 after Ctrl-C.

        Raises:
            StartError: When the workers cannot start, or die again and again.
        """
        heard = {*_STOPPING, signal.SIGCHLD} | (set() if os.isatty(0) else {signal.SIGHUP})
        before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
        self._alive, self._faults = os.pipe(), os.pipe()
        os.set_blocking(self._faults[0], False)
        try:
            for number in range(self._settings.workers):
                self._start(number, late=False)
            while self._numbers:
                self._hear(_wait(heard, min([*self._pausing.values(), *self._killing], default=None)))
        finally:
            for end in (*self._alive, *self._faults):
                os.close(end)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self._failure:
            raise self._failure
        _log.info("stopped")
        return 130 if self._stopped == signal.SIGINT else 0

    def _start(self, number: int, *, late: bool) -> None:
        process = os.fork()
        if not process:
            self._work(Seat(self._board, number, self._alive[0], late))
        self._numbers[process] = number

    def _work(self, seat: Seat) -> None:
        """Be a worker, to the end of the process. Signals wait until they are listened to."""
        code = _BROKEN
        try:
            os.setpgid(0, 0)  # Ctrl-C is for the process that started it, which passes it on
            os.close(self._alive[1])
            seat.board.join(seat.number)
            logs.begin(self._settings, worker=seat.number)
            from .launch import launch

            code = launch(self._settings, self._listener, self._card, seat)
        except StartError as error:
            os.write(self._faults[1], str(error).encode()[:4000] + b"\0")
            code = _HOPELESS
        except BaseException:  # noqa: BLE001 - the process ends here, whatever the reason
            _log.exception("the worker failed")
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _hear(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._tell(number)
        elif number in _STOPPING:
            self._stop(number)
        elif not number and self._stopped:
            self._killing = []
            self._tell(signal.SIGKILL)
        elif not number:
            self._try_again()
        self._bury()

    def _tell(self, number: int) -> None:
        for process in self._numbers:
            os.kill(process, number)

    def _stop(self, number: int) -> None:
        """Let the workers drain and start none any more; asked again, they end at once."""
        if not self._stopped:
            self._stopped = number
            self._listener.close()  # theirs stay open until each has answered what waited in it
            self._pausing = {}
            self._killing = [time.monotonic() + self._settings.drain_delay + self._settings.drain_timeout + _GRACE]
        self._tell(number)

    def _bury(self) -> None:
        """Look which processes have ended; the first one of a container inherits those that are nobody's, too."""
        while self._numbers:
            process, status, usage = os.wait4(-1, os.WNOHANG)
            if not process:
                return
            if (number := self._numbers.pop(process, None)) is None:
                continue
            self._board.spent[0] += usage.ru_utime + usage.ru_stime
            self._board.leave(number)
            if not self._stopped:
                self._replace(number, os.waitstatus_to_exitcode(status))

    def _replace(self, number: int, code: int) -> None:
        now = time.monotonic()
        if code == _HOPELESS:
            reason = self._read() or _reason(code)
            if not (self._deaths and self._numbers):  # at the start, or when nobody serves any more
                self._end(reason)
                return
            _log.error("worker %d cannot start, and tries again: %s", number, reason)
            self._pausing[number] = now + _PAUSE
            return
        reason = _reason(code)
        self._deaths = [*(each for each in self._deaths if now - each < _WITHIN), now]
        self._board.deaths[0] += 1
        _log.error("worker %d died: %s", number, reason)
        if len(self._deaths) >= _DEATHS:
            self._end(f"{_DEATHS} workers died within {_WITHIN:.0f} seconds, the last one so: {reason}")
        else:
            self._start(number, late=True)

    def _read(self) -> str:
        """Give why one worker could not start; each has written its reason with a zero behind it, or nothing at all."""
        with contextlib.suppress(BlockingIOError):
            self._said += os.read(self._faults[0], 2**16)
        said, _, self._said = self._said.partition(b"\0")
        return said.decode("utf-8", "replace")

    def _try_again(self) -> None:
        due = [number for number, when in self._pausing.items() if when <= time.monotonic()]
        for number in due:
            del self._pausing[number]
            self._start(number, late=True)

    def _end(self, reason: str) -> None:
        self._failure = StartError(reason)
        self._stop(signal.SIGTERM)


def _wait(signals: set[signal.Signals], until: float | None) -> int:
    """Wait for one of the signals and give it, or 0 when the time has come."""
    if until is None:
        return signal.sigwait(signals)
    found = signal.sigtimedwait(signals, max(0.0, until - time.monotonic()))
    return found.si_signo if found else 0


def _reason(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
