"""Markup that cannot be broken into: text is escaped on its way in, unless it is markup already."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff]"
)
"""What HTML forbids, and what would turn the reading direction of the text around it."""

_VOID = frozenset({"meta", "br", "hr"})


class Markup(str):
    """A piece of HTML or SVG."""

    __slots__ = ()


Content: TypeAlias = "str | Markup | Iterable[Content] | None"
"""What may be inside an element: text, markup, several of these, or nothing."""


def element(name: str, /, *content: Content, **attributes: object) -> Markup:
    """Write an element.

    Args:
        name: Its name.
        content: What is inside.
        attributes: By name; ``class_`` is ``class``, ``_`` inside a name is ``-``, None and False leave one out, True
            gives it no value.

    >>> element("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def join(content: Content) -> Markup:
    """Put pieces one after another."""
    if content is None:
        return Markup()
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(escape(clean(content)))
    return Markup("".join(join(item) for item in content))


def clean(text: str) -> str:
    """Replace characters that HTML forbids or that hide what a text says, lone surrogates among them."""
    return _UNSEEN.sub("\ufffd", text).encode("utf-8", "replace").decode()


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(clean(str(value)))}"'
