"""Errors as a user reads them: text or JSON, with an exit code."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

import typer

from modelpack.cli.output import PipeClosed, encode, out
from modelpack.errors import ModelpackError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

ISSUES = "this is a bug in modelpack: please report it with the text above"


def report(error: BaseException, arguments: Sequence[str]) -> int:
    """Tell what went wrong.

    Args:
        error: What was raised.
        arguments: The command line; it says whether JSON or details are wanted, even where it could not be read.

    Returns:
        The exit code.
    """
    if isinstance(error, PipeClosed):
        return 141
    body, code = _described(error)
    if isinstance(error, (SystemExit, GeneratorExit)):
        raise error
    if _asked(arguments, "--json"):
        try:
            out(encode({"error": body, "exit_code": code}))
        except PipeClosed:
            return 141
    if code == 1 or (_asked(arguments, "--verbose", "-v") and isinstance(error, Exception)):
        traceback.print_exception(error, file=sys.stderr)
    if not _asked(arguments, "--json"):
        print(_text(error, body), file=sys.stderr)
    return code


def _asked(arguments: Sequence[str], *options: str) -> bool:
    return any(option in arguments for option in options)


def _described(error: BaseException) -> tuple[dict[str, Any], int]:
    kind = type(error).__name__
    if isinstance(error, RecipeError):
        problems = [
            {
                "file": item.place.source,
                "line": item.place.line,
                "column": item.place.column,
                "message": item.message,
                "hint": item.hint,
            }
            for item in error.problems
        ]
        return {"type": kind, "message": f"{len(problems)} problems", "problems": problems}, error.exit_code
    if isinstance(error, ModelpackError):
        return {"type": kind, "message": error.what, "where": error.where, "then": error.then}, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        code = 143 if kind == "Terminated" else 130
        return {"type": "Interrupted", "message": "interrupted", "where": "", "then": KEPT}, code
    if isinstance(error, typer.Abort):
        return {"type": "Interrupted", "message": "interrupted", "where": "", "then": ""}, 130
    if hasattr(error, "format_message"):  # typer's own usage errors
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "modelpack"
        told = error.format_message().replace(": Value error, ", ": ")  # what checked it is no news to its user
        early = context is not None and context.parent is None and "option" in told
        then = (
            "options come after the command, as in `modelpack runs --json`" if early else f"`{path} --help` explains it"
        )
        body = {"type": "UsageError", "message": told.rstrip("."), "where": "", "then": then}
        return body, 2
    return {"type": kind, "message": str(error) or kind, "where": "", "then": ISSUES}, 1


KEPT = "finished steps are kept: the same command goes on from there"


def _text(error: BaseException, body: dict[str, Any]) -> str:
    if isinstance(error, RecipeError):
        count = len(error.problems)
        return f"{error}\n{count} problem{'s' * (count > 1)} found"
    where = f"{body['where']}: " if body["where"] else ""
    word = "" if body["type"] == "Interrupted" else "error: "
    then = f"\n  {body['then']}" if body["then"] else ""
    return f"{word}{where}{body['message']}{then}"
