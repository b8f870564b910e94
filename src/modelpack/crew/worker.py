"""One of the processes that train a step together: ``python -m modelpack.crew.worker ORDER AGENT``.

torchrun starts it and says in its environment which worker it is. The first worker writes the result and the
checkpoints; the others write into directories that are thrown away.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack.artifact import Artifact
from modelpack.crew.lines import Writer, described
from modelpack.crew.order import Order
from modelpack.errors import ModelpackError
from modelpack.jobs import job
from modelpack.numerics.elastic import end_with

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from modelpack.events import Event
    from modelpack.stage import Job


def main() -> int:
    """Do one order."""
    end_with(int(sys.argv[2]), signal.SIGKILL)
    order = Order.read(Path(sys.argv[1]))
    rank = order.first + int(os.environ["LOCAL_RANK"])
    say = Writer(Path(order.notes), rank)

    def stop(number: int, _frame: FrameType | None) -> None:
        say(stopped=number)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    say(begun=int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    try:
        done = _train(order, rank, say)
    except Exception as error:  # noqa: BLE001 - told to the command, which raises it there
        if _left_alone(error):
            say(lost=" ".join(str(error).split())[:500])
        else:
            known = isinstance(error, (ModelpackError, OSError))
            say(error={**described(error), **({} if known else {"then": traceback.format_exc()})})
        sys.stdout.flush()
        os._exit(1)  # leaving in good order would wait for the others
    say(done={"metrics": done.metrics, "results": done.results, "warnings": done.warnings} if rank == 0 else {})
    return 0


def _train(order: Order, rank: int, say: Writer) -> Job:
    from modelpack.numerics import training
    from modelpack.numerics.training import crew

    device = order.place(rank)
    port, opens = int(os.environ["MASTER_PORT"]), os.environ["RANK"] == "0"
    meeting = (os.environ["MASTER_ADDR"], port, opens)
    with (
        _aloud(say if rank == 0 else None),
        crew.enrolled(rank, order.size, training.device(device), meeting, order.wait),
        tempfile.TemporaryDirectory(dir=order.notes) as spare,
    ):

        def emit(event: Event) -> None:
            if rank == 0:
                say(event=event.to_json())

        recipe, step = order.bound()
        out, scratch = (Path(order.out), Path(order.scratch)) if rank == 0 else (Path(spare, "out"), Path(spare))
        out.mkdir(exist_ok=True)
        _clear(out)
        current = job(
            recipe,
            step,
            {name: Artifact.load(Path(path)) for name, path in order.artifacts.items()},
            lambda name: recipe.data[name].open(recipe.inputs),
            out=out,
            scratch=scratch,
            shared=Path(order.shared),
            device=device,
            emit=emit,
        )
        step.stage.run(step.config, current)
        crew.compared([0])  # the result is whole only when every worker came to the end
    return current


def _left_alone(error: Exception) -> bool:
    try:
        from modelpack.numerics.training import crew
    except ImportError:
        return False
    return crew.lost(error)


@contextlib.contextmanager
def _aloud(say: Writer | None) -> Iterator[None]:
    """Send what the first worker's code prints to the command; that of the others would only repeat it."""
    if say is None:
        yield
        return
    voice = _Voice(say)
    with contextlib.redirect_stdout(voice), contextlib.redirect_stderr(voice):
        yield


class _Voice(io.TextIOBase):
    """A stream whose text becomes lines of a worker."""

    def __init__(self, say: Writer) -> None:
        self._say = say

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._say(print=text)
        return len(text)


def _clear(folder: Path) -> None:
    """Remove what a worker that was lost had begun to write."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    sys.exit(main())
