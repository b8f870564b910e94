"""Other libraries' chatter, kept off the user's terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's printing, warnings and logs off the terminal; its errors are raised as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Terminal:
    """Where output goes now, for items that a silenced library pulls later: what making them shows is shown."""

    def __init__(self) -> None:
        self.out, self.errors = sys.stdout, sys.stderr

    def passing(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items through, each made while output goes to the terminal again."""
        rest = iter(items)
        while True:
            with contextlib.redirect_stdout(self.out), contextlib.redirect_stderr(self.errors):
                try:
                    item = next(rest)
                except StopIteration:
                    return
            yield item
