"""What the workers of a server decide together, in memory that they share: what is asked, and what holds.

Texts are checked, so that half of one is never taken for the whole, whoever dies while writing it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib

from .faults import StartError

_TEXT, _REASON = 2**24, 4096  # bytes; pages that nothing is written to take no memory
_HEAD = struct.Struct("=QII")  # number of the change, length and checksum of the text


class Note:
    """A text in a piece of memory, with the number of the change that it belongs to.

    Args:
        size: Bytes of the piece.
    """

    def __init__(self, size: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, size))

    def write(self, number: int, text: bytes) -> None:
        """Replace what was there.

        Raises:
            StartError: When the text is too long.
        """
        if _HEAD.size + len(text) > len(self._memory):
            raise StartError(
                "these are more versions than workers can tell each other of: take some out of the directory"
            )
        _HEAD.pack_into(self._memory, 0, number, len(text), zlib.crc32(text, number))
        self._memory[_HEAD.size : _HEAD.size + len(text)] = text

    def read(self, number: int) -> bytes | None:
        """Give the text of a change; None where there is another's, or half of one."""
        found, length, check = _HEAD.unpack_from(self._memory)
        text = bytes(self._memory[_HEAD.size : _HEAD.size + length])
        return text if 0 < found == number and zlib.crc32(text, number) == check else None


class Minutes:
    """The numbers of what is asked and decided, and the texts of both; made before the workers are.

    Args:
        workers: How many there are.

    Attributes:
        asked: The number of the latest change that was asked for, from 1.
        leader: The process that asks for it; 0 when it no longer does.
        decided: The number of the change that holds.
        said: The number that each worker said yes to last, below zero where it said no.
        serving: The number of the change that each worker serves.
        reasons: Why each said no.
    """

    def __init__(self, workers: int) -> None:
        numbers: memoryview[float] = memoryview(mmap.mmap(-1, 8 * (3 + 2 * workers))).cast("d")
        self.asked, self.leader, self.decided = numbers[:1], numbers[1:2], numbers[2:3]
        self.said, self.serving = numbers[3 : 3 + workers], numbers[3 + workers :]
        self.reasons = [Note(_REASON) for _ in range(workers)]
        self._texts = (Note(_TEXT), Note(_TEXT))
        self._lock = os.memfd_create("changes") if workers > 1 else None

    def take(self, *, wait: bool = False) -> bool:
        """Take the one lock, if no other worker has it; the kernel takes it back from one that dies."""
        if self._lock is not None:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return False
        return True

    def release(self) -> None:
        """Let another worker take the lock."""
        if self._lock is not None:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def leave(self, worker: int) -> None:
        """Forget what a worker said that does not serve any more."""
        self.said[worker] = self.serving[worker] = 0.0

    def write(self, number: int, text: bytes) -> None:
        """Write down what is asked, and leave what holds.

        Raises:
            StartError: When it is too long.
        """
        holds = int(self.decided[0])
        next(note for note in self._texts if note.read(holds) is None).write(number, text)

    def read(self, number: int) -> bytes | None:
        """Give what a change was written down to be; None when another has taken its place."""
        return next((text for note in self._texts if (text := note.read(number)) is not None), None)

    def held(self) -> tuple[int, bytes]:
        """Give the number of what holds, and what it is."""
        while (text := self.read(number := int(self.decided[0]))) is None:
            continue  # it changes at this moment
        return number, text
