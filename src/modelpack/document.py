"""YAML text → nodes that remember where they stand.

Scalars stay text: what ``1.10`` or ``no`` means is decided by the type of the field it is bound to, never here.
Aliases are followed within limits; tags, merge keys, complex keys and duplicate keys are refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import yaml

from modelpack.errors import Place, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_CORE_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "merge", "value")
}
MAX_NODES = 20_000
MAX_DEPTH = 40
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Node:
    """A value in a document, at its place.

    Attributes:
        place: Where it starts.
        line: The source line, for display.
        length: Characters it takes on that line.
    """

    place: Place
    line: str
    length: int

    def problem(self, message: str, hint: str = "") -> Problem:
        """Say that something is wrong here."""
        return Problem(self.place, message, self.line, self.length, hint)


@dataclass(frozen=True)
class Scalar(Node):
    """Text; `quoted` when the author wrote quotes or a block, so that it can only be a string."""

    text: str = ""
    quoted: bool = False

    @property
    def null(self) -> bool:
        """Whether it stands for nothing at all."""
        return not self.quoted and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Items(Node):
    """A sequence."""

    items: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Table(Node):
    """A mapping with distinct keys in the author's order."""

    entries: tuple[tuple[Scalar, Node], ...] = ()

    def __iter__(self) -> Iterator[tuple[Scalar, Node]]:
        return iter(self.entries)

    def get(self, key: str) -> Node | None:
        """Give the value of a key."""
        return next((value for name, value in self.entries if name.text == key), None)

    def key(self, key: str) -> Scalar | None:
        """Give the node of a key itself."""
        return next((name for name, _ in self.entries if name.text == key), None)

    def put(self, key: Scalar, value: Node) -> Table:
        """Give a copy with one entry replaced or added."""
        if self.key(key.text) is None:
            return replace(self, entries=(*self.entries, (key, value)))
        entries = tuple((name, value if name.text == key.text else old) for name, old in self.entries)
        return replace(self, entries=entries)


@dataclass
class _Reader:
    source: str
    lines: list[str]
    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    def at(self, mark: yaml.Mark) -> tuple[Place, str]:
        line = self.lines[mark.line] if mark.line < len(self.lines) else ""
        return Place(self.source, mark.line + 1, mark.column + 1), line

    def read(self, node: yaml.Node, depth: int = 0) -> Node:
        place, line = self.at(node.start_mark)
        same_line = node.end_mark.line == node.start_mark.line
        end = node.end_mark.column if same_line else len(line.rstrip())
        base = Node(place, line, max(1, end - node.start_mark.column))
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise _TooMuch(base)
        if node.tag not in _CORE_TAGS:
            self.problems.append(base.problem(f"tags such as '{node.tag}' are not allowed in a recipe"))
        if isinstance(node, yaml.MappingNode):
            return Table(place, line, base.length, self._entries(node, depth))
        if isinstance(node, yaml.SequenceNode):
            return Items(place, line, base.length, tuple(self.read(item, depth + 1) for item in node.value))
        quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
        return Scalar(place, line, base.length, node.value, quoted)

    def _entries(self, node: yaml.MappingNode, depth: int) -> tuple[tuple[Scalar, Node], ...]:
        entries: dict[str, tuple[Scalar, Node]] = {}
        for key_node, value_node in node.value:
            key = self.read(key_node, depth + 1)
            value = self.read(value_node, depth + 1)
            if not isinstance(key, Scalar):
                self.problems.append(key.problem("a key must be a word"))
            elif key.text == "<<" and not key.quoted:
                self.problems.append(key.problem("merge keys are not allowed in a recipe"))
            elif key.text in entries:
                first = entries[key.text][0].place
                self.problems.append(key.problem(f"duplicate key '{key.text}'", f"first given in line {first.line}"))
            else:
                entries[key.text] = (key, value)
        return tuple(entries.values())


class _TooMuch(Exception):  # noqa: N818 - a signal inside this module, never an error the user sees
    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node


def parse(text: str, source: str) -> tuple[Node | None, list[Problem]]:
    """Read a document.

    Args:
        text: YAML 1.1 syntax as PyYAML reads it.
        source: Name shown in places.

    Returns:
        The root node, or None when the text cannot be read at all or is empty, and every problem found.
    """
    lines = text.splitlines() or [""]
    start = Node(Place(source, 1, 1), lines[0], 1)
    if len(text.encode(errors="replace")) > MAX_BYTES:
        return None, [start.problem(f"the document is larger than {MAX_BYTES:,} bytes")]
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reader = _Reader(source, lines)
        place, line = reader.at(mark) if mark else (start.place, start.line)
        return None, [Problem(place, f"not valid YAML: {error.problem or error.context}", line)]
    except yaml.reader.ReaderError as error:  # not a MarkedYAMLError: its position is an offset into the text
        before = text[: error.position].split("\n")
        place = Place(source, len(before), len(before[-1]) + 1)
        return None, [Problem(place, f"not valid YAML: {error.reason}", before[-1])]
    except RecursionError:
        return None, [start.problem("the document is nested too deeply")]
    except ValueError as error:  # PyYAML converts \U escapes beyond Unicode with chr()
        return None, [start.problem(f"not valid YAML: {error}")]
    if root is None:
        return None, []
    reader = _Reader(source, lines)
    try:
        return reader.read(root), reader.problems
    except _TooMuch as excess:
        return None, [excess.node.problem("the document expands to too many or too deeply nested values")]


class Plain(str):
    """Text that was written without quotes; free-form fields read it by the YAML 1.2 core rules."""

    __slots__ = ()


def data(node: Node) -> object:
    """Give a node as dicts, lists, None and text; unquoted text as `Plain`."""
    if isinstance(node, Table):
        return {key.text: data(value) for key, value in node}
    if isinstance(node, Items):
        return [data(item) for item in node.items]
    assert isinstance(node, Scalar)
    if node.null:
        return None
    return node.text if node.quoted else Plain(node.text)


def core(value: object) -> object:
    """Read free-form text by the YAML 1.2 core rules: numbers, ``true`` and ``false``; quoted text stays text.

    >>> core([Plain("1e-3"), Plain("no"), Plain("0x1F"), Plain("true"), "12"])
    [0.001, 'no', 31, True, '12']

    Raises:
        ValueError: For a number beyond all floats.
    """
    if isinstance(value, dict):
        return {str(key): core(item) for key, item in value.items()}
    if isinstance(value, list):
        return [core(item) for item in value]
    if not isinstance(value, Plain):
        return value
    text = str(value)
    if text.lower() in ("true", "false") and text in (text.lower(), text.title(), text.upper()):
        return text.lower() == "true"
    for prefix, base in (("0x", 16), ("0o", 8)):
        if text.startswith(prefix):
            try:
                return int(text[2:], base)
            except ValueError:
                return text
    return text if "_" in text or text.strip() != text else _number(text)


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if isinstance(number, float) and not any(char.isdigit() for char in text):
            return text  # "nan" and "inf" are words here; YAML spells them .nan and .inf
        if isinstance(number, float) and math.isinf(number):
            raise ValueError(f"{text[:40]} is larger than any number; quote it if it is text")
        return number
    return text


def quote(text: str) -> str:
    """Spell any text as one YAML scalar."""
    return json.dumps(text, ensure_ascii=False)
