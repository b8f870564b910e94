"""Plain data as YAML that people read: block style, with comments that say why beside the values.

Written here and not by PyYAML, which has no comments; PyYAML quotes what needs it and reads all of it back.
"""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from typing import Any

import yaml

_WIDTH = 110
_BARE = re.compile(r"[A-Za-z/][A-Za-z0-9_./@:=+,()'-]*(?: [A-Za-z0-9_./@:=+,()'-]+)*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""What some reader of YAML takes for something else than text."""


@dataclass(frozen=True)
class Said:
    """A value with the comment above it."""

    value: Any
    why: str


def said(why: str, value: Any) -> Said:
    """Put a comment above a value; an empty one is none."""
    return Said(value, why)


def bare(value: Any) -> Any:
    """Give data without their comments."""
    if isinstance(value, Said):
        return bare(value.value)
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items()}
    if isinstance(value, list):
        return [bare(item) for item in value]
    return value


def to_yaml(head: str, *documents: Any) -> str:
    """Write documents under a comment.

    >>> print(to_yaml("Why.", {"a": said("because", 1), "b": ["x", {"c": "no", "d": []}]}), end="")
    # Why.
    # because
    a: 1
    b:
      - x
      - c: "no"
        d: []
    """
    parts = ["\n".join(_lines(document)) for document in documents]
    return "".join(f"{line}\n" for line in _comment(head) if head) + "\n---\n".join(parts) + "\n"


def to_json(document: Any) -> str:
    """Write one document for people and programs."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _comment(text: str) -> list[str]:
    """Wrap a comment; its own line breaks stay."""
    plain = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    lines = [wrapped for line in plain.split("\n") for wrapped in textwrap.wrap(line, _WIDTH - 2) or [""]]
    return [f"# {line}".rstrip() for line in lines]


def _lines(value: Any) -> list[str]:
    """Write a value that is not beside its key."""
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in _entry(f"{_scalar(key)}:", item)]
    if isinstance(value, list) and value:
        return [line for item in value for line in _item(item)]
    return [_scalar(value)]


def _entry(key: str, value: Any) -> list[str]:
    if isinstance(value, Said):
        return [*_comment(value.why), *_entry(key, value.value)]
    if isinstance(value, (dict, list)) and value:
        return [key, *_indented(_lines(value))]
    if isinstance(value, str) and (block := _block(value)):
        return [f"{key} {block[0]}", *_indented(block[1:])]
    return [f"{key} {_scalar(value)}"]


def _item(value: Any) -> list[str]:
    if isinstance(value, Said):
        return [*_comment(value.why), *_item(value.value)]
    if isinstance(value, str) and (block := _block(value)):
        return [f"- {block[0]}", *_indented(block[1:])]
    lines = _lines(value)
    if isinstance(value, (dict, list)) and lines[0].startswith("#"):
        return ["-", *_indented(lines)]
    return [f"- {lines[0]}", *_indented(lines[1:])]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def _block(text: str) -> list[str]:
    """Write several lines as they are; nothing where that would not read back the same."""
    lines = text.removesuffix("\n").split("\n")
    plain = all(line.isprintable() and line == line.rstrip() for line in lines)
    if len(lines) < 2 or not plain or not lines[0] or lines[0][0] == " " or not lines[-1]:
        return []
    return ["|" if text.endswith("\n") else "|-", *lines]


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _BARE.fullmatch(value) and value.lower() not in _WORDS and ": " not in f"{value} ":
            return value
        return yaml.safe_dump(value, default_style='"', width=float("inf"), allow_unicode=True).rstrip("\n")
    text = json.dumps(value)
    if isinstance(value, float) and "." not in text:
        return text.replace("e", ".0e")  # to YAML 1.1 a number without a dot is text
    return text
