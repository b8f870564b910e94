"""Nodes of a document → typed settings, with every problem at its place.

The type of a field decides how its text is read; `bind` reports all that is wrong at once. The types here are those
that only a recipe knows: files beside it, code beside it, free-form arguments.
"""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError
from pydantic_core import core_schema

from modelpack import canonical, usercode
from modelpack.document import Items, Node, Scalar, Table, core, data
from modelpack.errors import ModelpackError, Problem, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import ErrorDetails

Arguments = Annotated[dict[str, Any], BeforeValidator(core)]
"""Free-form values, read by the YAML 1.2 core rules because no type says better."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value) else value


Whole = BeforeValidator(_whole)
"""Marks a choice of whole numbers, `Annotated[Literal[8, 4], Whole]`, which pydantic would not read from text."""


class FromText:
    """Gives a class a pydantic schema that reads it from text.

    Attributes:
        wanted: What is expected, for the error about anything else.
        spelled: JSON Schema types that editors accept for it.
    """

    wanted: ClassVar[str] = "text is expected here"
    spelled: ClassVar[str | list[str]] = "string"

    @classmethod
    def read(cls, text: str, base: Path) -> Self:
        """Read it from what the user wrote.

        Args:
            text: Not blank.
            base: Directory that names are relative to.

        Raises:
            ValueError: When it makes no sense.
        """
        raise NotImplementedError

    @classmethod
    def _validate(cls, value: object, info: ValidationInfo) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str) or not value.strip():
            raise ValueError(cls.wanted)
        return cls.read(str(value), (info.context or {}).get("base", Path()))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            cls._validate, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": cls.spelled}


@dataclass(frozen=True)
class InputPath(FromText):
    """A file or directory that the user names, relative to the recipe; known by its content, not by its name.

    Attributes:
        path: Where it is.
        text: What the user wrote.
    """

    path: Path
    text: str

    @classmethod
    def read(cls, text: str, base: Path) -> Self:
        """Resolve it; a missing file is a ValueError."""
        path = base / Path(text).expanduser()
        if not path.exists():
            raise ValueError(f"no such file or directory: {path}")
        return cls(path, text)

    def digest(self) -> str:
        """Hash its content now."""
        return canonical.tree_digest(self.path)

    def canonical(self) -> object:
        """Stand for the content in every hash."""
        return {"sha256": self.digest()}


def _file(value: InputPath) -> InputPath:
    if not value.path.is_file():
        raise ValueError(f"{value.path} is a directory, a file is expected")
    return value


def _folder(value: InputPath) -> InputPath:
    if not value.path.is_dir():
        raise ValueError(f"{value.path} is a file, a directory is expected")
    return value


FilePath = Annotated[InputPath, AfterValidator(_file)]
FolderPath = Annotated[InputPath, AfterValidator(_folder)]


@dataclass(frozen=True)
class UserCode(FromText):
    """A Python callable that the user names; known by its source, not by its place.

    Attributes:
        reference: ``file.py:callable`` relative to `base`, or ``package.module:callable``.
        base: The recipe's directory.
    """

    reference: str
    base: Path

    @classmethod
    def read(cls, text: str, base: Path) -> Self:
        """Find its source without running it; missing or broken code is a ValueError."""
        code = cls(text, base)
        try:
            code.canonical()
        except ModelpackError as error:
            raise ValueError(": ".join(part for part in (error.where, error.what) if part)) from error
        return code

    def canonical(self) -> object:
        """Stand for the source in every hash."""
        return usercode.identity(self.reference, self.base)

    def load(self) -> Callable[..., Any]:
        """Import it; see `usercode.load`."""
        return usercode.load(self.reference, self.base)


def config_type(function: Callable[..., Any]) -> Any:
    """Read a plugin's config type from its function's first annotation, written as a name or as the type itself."""
    annotation = next(iter(function.__annotations__.values()))
    return function.__globals__[annotation] if isinstance(annotation, str) else annotation


M = TypeVar("M", bound=BaseModel)


def bind(node: Node, kind: type[M], problems: list[Problem], *, base: Path) -> M | None:
    """Read settings from a node.

    Args:
        node: A mapping, or nothing at all for all defaults.
        kind: The type that says how to read it.
        problems: Receives everything wrong, each at its place.
        base: Directory that paths and code are relative to.

    Returns:
        The settings, or None when there were problems.
    """
    if isinstance(node, Scalar) and node.null:
        value: object = {}
    elif isinstance(node, Table):
        value = data(node)
    else:
        problems.append(node.problem("settings are expected here: 'key: value' lines"))
        return None
    try:
        return kind.model_validate(value, context={"base": base})
    except ValidationError as error:
        found: dict[tuple[int, str], Problem] = {}
        details = error.errors(include_url=False)
        for detail in details:
            if detail["type"] == "too_short" and any(_inside(other, detail) for other in details):
                continue  # a list is counted without its wrong items, which are told anyway
            at, missing, problem = _problem(node, kind, detail)
            first = found.get((id(at), missing))
            if first is not None:  # members of a union each say what they would have taken
                problem = at.problem(f"{first.message}, or: {problem.message}", first.hint or problem.hint)
            found[id(at), missing] = problem
        problems += found.values()
        return None


def _share(node: Node, wrong: str) -> str:
    """Propose the fraction that a percentage means, where a number is wanted."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", node.text) if isinstance(node, Scalar) else None
    return f"write {float(found[1]) / 100:g}" if found and wrong == "float_parsing" else ""


def _inside(inner: ErrorDetails, outer: ErrorDetails) -> bool:
    place = outer["loc"]
    return len(inner["loc"]) > len(place) and inner["loc"][: len(place)] == place


def _problem(root: Node, kind: type[BaseModel], detail: ErrorDetails) -> tuple[Node, str, Problem]:
    node, key, missing = _locate(root, detail["loc"])
    name = f"'{key.text}'" if key is not None else "this"
    context = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return node, missing, node.problem(f"missing key '{missing}'")
        case "extra_forbidden":
            assert key is not None
            known = _fields_at(kind, detail["loc"][:-1])
            return key, "", key.problem(f"unknown key '{key.text}'", did_you_mean(key.text, known))
        case "literal_error" | "enum":
            expected = str(context.get("expected", ""))
            choices = [text or number for text, number in re.findall(r"'([^']*)'|(\d+)", expected)]
            word = node.text if isinstance(node, Scalar) else ""
            told = f"{name} cannot be '{word}'" if isinstance(node, Scalar) else f"{name} should be a single word"
            problem = node.problem(told, did_you_mean(word, choices))
        case "string_pattern_mismatch":
            problem = node.problem(f"{name} has characters that are not allowed", f"it must match {context['pattern']}")
        case "value_error":
            problem = node.problem(str(context["error"]))
        case "model_type":
            names = ", ".join(_fields_at(kind, detail["loc"]))
            problem = node.problem(f"{name} should be settings", f"write {{name: value}}, with names among {names}")
        case "tuple_type" | "list_type":
            problem = node.problem(f"{name} should be a list", "write [one, another]")
        case "bool_parsing" | "bool_type":
            problem = node.problem(f"{name} should be true or false")
        case "too_short" if detail["input"] in ([], ()):
            problem = node.problem(f"{name} should not be empty", "leave it out for the default")
        case _:
            said = detail["msg"].removeprefix("Input ")
            problem = node.problem(f"{name} {said[0].lower()}{said[1:]}", _share(node, detail["type"]))
    return node, "", problem


def _locate(root: Node, loc: tuple[int | str, ...]) -> tuple[Node, Scalar | None, str]:
    """Follow a pydantic location; parts that name members of a union lead nowhere and are passed over.

    Returns:
        The deepest node found, the key it stands under, and the last part that was not found.
    """
    node, key, missing = root, None, ""
    for part in loc:
        if isinstance(node, Table) and node.get(str(part)) is not None:
            key = node.key(str(part))
            node = typing.cast("Node", node.get(str(part)))
        elif isinstance(node, Items) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
        else:
            missing = str(part)
    return node, key, missing


def _fields_at(kind: Any, loc: tuple[int | str, ...]) -> list[str]:
    """List the keys that are known at a location, following nested settings and mappings of them."""
    for part in loc:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
            kind = kind.model_fields[str(part)].annotation
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        kind = next(
            (arm for arm in typing.get_args(kind) if isinstance(arm, type) and issubclass(arm, BaseModel)),
            kind,
        )
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []
