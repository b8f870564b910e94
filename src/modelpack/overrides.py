"""``--set dotted.path=value``: one value of a recipe, replaced before it is bound and so checked like the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack import document, registry
from modelpack.document import Items, Node, Scalar, Table
from modelpack.errors import Place, Problem, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence


def override(root: Table, text: str, source: str, problems: list[Problem], keys: Sequence[str]) -> Table:
    """Put one ``dotted.path=value`` into a recipe's tree.

    Args:
        root: The tree.
        text: What the user typed.
        source: Name for places, such as ``--set:1``.
        problems: Receives what is wrong with it.
        keys: The keys a recipe may have at its top.

    Returns:
        A changed copy, or the same tree when there was a problem.
    """
    path, equals, value_text = text.partition("=")
    place = Scalar(Place(source, 1, 1), text, max(1, len(path)), path)
    value, found = document.parse(value_text, source)
    problems += found
    if found:
        return root
    if not equals or not path:
        problems.append(place.problem("write dotted.path=value", "for example stages.prune.macs=0.5"))
        return root
    blank = Scalar(place.place, text, 1, "")
    first = path.partition(".")[0]
    if first not in keys:
        problems.append(place.problem(f"unknown key '{first}'", did_you_mean(first, keys)))
        return root
    try:
        changed = _put(root, path.split("."), _shift(value, len(path) + 1, text) if value else blank, place)
    except LookupError as error:
        problems.append(place.problem(*error.args))
        return root
    assert isinstance(changed, Table)
    return changed


def _shift(node: Node, columns: int, line: str) -> Node:
    """Move a node parsed from the part after ``=`` to where it stands in the whole option."""
    place = Place(node.place.source, node.place.line, node.place.column + (columns if node.place.line == 1 else 0))
    if isinstance(node, Table):
        pairs = tuple((_shift(key, columns, line), _shift(value, columns, line)) for key, value in node)
        return Table(place, line, node.length, pairs)  # type: ignore[arg-type]
    if isinstance(node, Items):
        return Items(place, line, node.length, tuple(_shift(item, columns, line) for item in node.items))
    assert isinstance(node, Scalar)
    return Scalar(place, line, node.length, node.text, node.quoted)


def _put(node: Node, parts: list[str], value: Node, at: Scalar, depth: int = 0) -> Node:
    """Give a copy of the tree with one value replaced; steps are named by id or stage, data by entry."""
    if not parts:
        return value
    part, rest = parts[0], parts[1:]
    if isinstance(node, Items):
        names = [_step_names(item) for item in node.items]
        for index, known in enumerate(names):
            if part in known:
                item = _put_settings(node.items[index], rest, value, at, depth)
                items = (*node.items[:index], item, *node.items[index + 1 :])
                return Items(node.place, node.line, node.length, items)
        flat = [name for known in names for name in known]
        raise LookupError(f"no step is named '{part}'", did_you_mean(part, flat))
    if isinstance(node, Scalar) and node.null:
        node = Table(node.place, node.line, node.length)
    if not isinstance(node, Table):
        raise LookupError(f"'{part}' cannot be set inside a plain value")  # noqa: TRY004 - caught as a user's mistake
    key = Scalar(at.place, at.line, at.length, part)
    inner = node.get(part)
    empty: Node = Scalar(at.place, at.line, at.length, "")
    if depth == 1 and rest and inner is not None and isinstance(inner, Table) and len(inner.entries) == 1:
        plugin = inner.entries[0][0].text  # `data.train.limit` reaches through the one plugin of the entry
        if rest[0] != plugin and plugin in registry.sources():
            rest = [plugin, *rest]
    return node.put(key, _put(inner or empty, rest, value, at, depth + 1))


def _put_settings(item: Node, rest: list[str], value: Node, at: Scalar, depth: int) -> Node:
    if isinstance(item, Scalar):  # `- export` without settings
        item = Table(item.place, item.line, item.length, ((item, Scalar(item.place, item.line, 1, "")),))
    assert isinstance(item, Table)
    if rest and rest[0] in ("from", "id"):
        return _put(item, rest, value, at, depth + 2)
    stage = next(key.text for key, _ in item if key.text not in ("from", "id"))
    return _put(item, [stage, *rest], value, at, depth + 2)


def _step_names(item: Node) -> list[str]:
    if isinstance(item, Scalar):
        return [item.text]
    if not isinstance(item, Table):
        return []
    given = item.get("id")
    return [given.text] if isinstance(given, Scalar) else [key.text for key, _ in item if key.text != "from"]
