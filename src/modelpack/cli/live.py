"""What happens during a run, drawn by rich on a terminal: finished steps above, the running one below them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from modelpack.cli.console import Pace, sentence
from modelpack.events import Event, Note, Progress, RunStarted, StepFinished, StepStarted

if TYPE_CHECKING:
    from types import TracebackType


class Live:
    """Shows events on standard error; what was printed stays, the last line moves."""

    def __init__(self, *, verbose: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._verbose, self._pace = verbose, Pace()
        self._bars = Bars(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[pace]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task, self._label = self._bars.add_task("", total=None, pace="", visible=False), ""

    def _begin(self, label: str, total: int) -> None:
        self._bars.remove_task(self._task)
        self._label = label
        self._task = self._bars.add_task(label, total=total or None, pace="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Progress):
            label = f"{event.step}: {event.label}" if event.label else event.step
            if label != self._label:  # a task cannot lose its total, so that other work gets another task
                self._begin(label, event.total)
            self._bars.update(self._task, completed=event.done, pace=self._pace.of(event))
            return
        if isinstance(event, StepStarted):
            self._begin(event.step, 0)
        elif isinstance(event, StepFinished):
            self._bars.update(self._task, visible=False)
            self._label = ""
        text = sentence(event, verbose=self._verbose)
        if text:
            self._bars.console.print(text, style=_style(event), markup=False, soft_wrap=True)


def _style(event: Event) -> str:
    match event:
        case RunStarted():
            return "bold"
        case StepFinished():
            return "green"
        case Note(warning=True):
            return "yellow"
        case StepStarted() | Note():
            return "dim"
    return ""
