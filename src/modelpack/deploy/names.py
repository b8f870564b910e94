"""Names as platforms take them."""

from __future__ import annotations

import re

from modelpack.errors import UsageError


def label(text: str, most: int = 63) -> str:
    """Make a name of lower-case letters, digits and hyphens that begins with a letter (RFC 1035, "label").

    >>> label("Lite0_int8.v2"), label("7zip"), label("..."), label("a" * 70)[-3:], len(label("a" * 70))
    ('lite0-int8-v2', 'model-7zip', 'model', 'aaa', 63)
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"
    name = name if name[0].isalpha() else f"model-{name}"
    return name[:most].rstrip("-")


def chosen(name: str, model: str, most: int = 63) -> str:
    """Give the name that the user chose, as it is; one made of the model's name where they chose none.

    >>> chosen("", "Lite0_int8"), chosen("lite", "Lite0_int8")
    ('lite0-int8', 'lite')

    Raises:
        UsageError: For one that platforms do not take.
    """
    if name and label(name, most) != name:
        raise UsageError(
            f"'{name}' is no name there: at most {most} small letters, digits and hyphens, a letter first",
            where="--name",
            then=f"write {label(name, most)}",
        )
    return name or label(model, most)


def value(text: str) -> str:
    """Make the value of a label: letters, digits, dots, hyphens and underscores, at most 63.

    >>> value("1.0+cpu"), value("-x-"), value("")
    ('1.0-cpu', 'x', '')
    """
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("._-")
