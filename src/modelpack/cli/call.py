"""One call of a command: where its store is, and how it speaks."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.cli.output import encode, out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from modelpack.events import Emit
    from modelpack.runs import Runs
    from modelpack.store import Store


DEFAULT_STORE = ".modelpack"


@dataclass(frozen=True)
class Call:
    """What every command is told.

    Attributes:
        root: The store's directory.
        json: Whether standard output holds JSON only.
        quiet: Whether only problems are told.
        verbose: Whether details are told too.
    """

    root: Path
    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def store(self) -> Store:
        """The store; it is not created by looking at it."""
        from modelpack.store import Store

        return Store(self.root)

    @property
    def runs(self) -> Runs:
        """The store's history."""
        from modelpack.runs import Runs

        return Runs(self.store)

    def typed(self, command: str) -> str:
        """Spell a command for the user to type, with the store where it is not found by itself."""
        usual = os.environ.get("MODELPACK_STORE", DEFAULT_STORE)
        return f"modelpack {command}" + ("" if str(self.root) == usual else f" --store {shlex.quote(str(self.root))}")

    def say(self, text: str) -> None:
        """Tell the user something beside the result, on standard error."""
        if not self.quiet and not self.json:
            print(text, file=sys.stderr)

    def result(self, document: Any, text: Callable[[], str]) -> None:
        """Write the result to standard output: as JSON, or as the text that is made of it."""
        out(encode(document, indent=2) if self.json else text())

    @contextlib.contextmanager
    def listen(self, *, stream: bool = False) -> Iterator[Emit]:
        """Give the function that shows events while work is done; `stream` writes them as JSON lines under `--json`.

        Meanwhile, what models, data and stages print goes to standard error: standard output holds results only.
        """
        from modelpack.cli.console import Lines, Silence, Stream

        results = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            if self.json:
                yield Stream(results) if stream else Silence()
            elif self.quiet:
                yield Silence(warnings=True)
            elif is_live():
                from modelpack.cli.live import Live

                with Live(verbose=self.verbose) as live:
                    yield live
            else:
                yield Lines(verbose=self.verbose)


def is_live() -> bool:
    """Whether standard error is a terminal that can redraw lines and the user lets us."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM", "dumb") == "dumb"
    return sys.stderr.isatty() and not plain
