"""Names as platforms take them."""

from __future__ import annotations

import re


def label(text: str, most: int = 63) -> str:
    """Make a name of lower-case letters, digits and hyphens that begins with a letter (RFC 1035, "label").

    >>> label("Lite0_int8.v2"), label("7zip"), label("..."), label("a" * 70)[-3:], len(label("a" * 70))
    ('lite0-int8-v2', 'model-7zip', 'model', 'aaa', 63)
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"
    name = name if name[0].isalpha() else f"model-{name}"
    return name[:most].rstrip("-")


def value(text: str) -> str:
    """Make the value of a label: letters, digits, dots, hyphens and underscores, at most 63.

    >>> value("1.0+cpu"), value("-x-"), value("")
    ('1.0-cpu', 'x', '')
    """
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("._-")
