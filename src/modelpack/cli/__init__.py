"""The command line: its table of contents, and the one place that turns errors into exit codes.

::

    0 done · 1 a bug in modelpack · 2 usage or recipe · 3 a stage failed or a budget was not met
    4 something outside is missing · 5 the store is damaged or in use · 130 Ctrl-C · 143 SIGTERM
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from modelpack import __version__
from modelpack.cli import failures
from modelpack.cli.command import SETTINGS, Group

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

_EPILOG = """\
modelpack init                write a first recipe
modelpack check recipe.yaml   tell what is wrong with it
modelpack compress recipe.yaml
modelpack serve               try the result

Exit codes: 0 done; 1 a bug in modelpack; 2 usage or recipe; 3 a stage failed or
a budget was not met; 4 something is missing (CUDA, Docker, a package); 5 the
store is damaged or in use; 130 Ctrl-C.
"""

app = typer.Typer(
    name="modelpack",
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    epilog=_EPILOG,
    context_settings=SETTINGS,
)


def _version(value: bool) -> None:
    if value:
        print(f"modelpack {__version__}")
        raise typer.Exit


@app.callback()
def _modelpack(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Tell the version.")
    ] = False,
) -> None:
    """From a trained model to a small, fast, proven container."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: stop as if interrupted, so that everything is left in order."""


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # there is none when the caller closed it
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, _terminate)
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(given or ["--help"]))


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    if "_MODELPACK_COMPLETE" in os.environ:
        command.main(arguments, prog_name="modelpack")
    try:
        with command.make_context("modelpack", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except BaseException as error:  # noqa: BLE001 - the one handler: everything else becomes a message and a code
        return failures.report(error, arguments)
    return 0
