"""YAML text → typed settings, with every problem at its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import core_schema

from modelpack import canonical, usercode
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
    from pydantic.json_schema import JsonSchemaValue


@dataclass(frozen=True)
class InputPath:
    """A file or directory that the user names, relative to the recipe; known by its content, not by its name.

    Attributes:
        path: Where it is.
        text: What the user wrote.
    """

    path: Path
    text: str

    def digest(self) -> str:
        """Hash its content now."""
        return canonical.tree_digest(self.path)

    def canonical(self) -> object:
        """Stand for the content in every hash."""
        return {"sha256": self.digest()}

    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> InputPath:
        if isinstance(value, InputPath):
            return value
        if not isinstance(value, str) or not value.strip():
            raise ValueError("a path is expected")
        base = (info.context or {}).get("base", Path())
        path = base / Path(value).expanduser()
        if not path.exists():
            raise ValueError(f"no such file or directory: {path}")
        return cls(path, value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Read it from text, relative to the ``base`` of the validation context."""
        return core_schema.with_info_plain_validator_function(cls._read)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Show editors a string."""
        return {"type": "string", "format": "path"}


@dataclass(frozen=True)
class UserCode:
    """A Python callable that the user names, ``file.py:callable`` or ``package.module:callable``; known by its code.

    Attributes:
        reference: What the user wrote.
        base: The recipe's directory, which file names are relative to.
    """

    reference: str
    base: Path

    def canonical(self) -> object:
        """Stand for the code in every hash."""
        return usercode.identity(self.reference, self.base)

    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> UserCode:
        if isinstance(value, UserCode):
            return value
        if not isinstance(value, str):
            raise ValueError("'file.py:callable' or 'package.module:callable' is expected")
        base = (info.context or {}).get("base", Path())
        try:
            usercode.identity(value, base)
        except UsageError as error:
            raise ValueError(f"{error.what}: {error.then}" if error.then else error.what) from error
        return cls(value, base)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Read it from text, relative to the ``base`` of the validation context."""
        return core_schema.with_info_plain_validator_function(cls._read)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Show editors a string."""
        return {"type": "string", "pattern": "^.+:[A-Za-z_][A-Za-z0-9_]*$"}


def config_type(function: Callable[..., Any]) -> Any:
    """Read a plugin's config type from its function's first annotation, written as a name or as the type itself."""
    annotation = next(iter(function.__annotations__.values()))
    return function.__globals__[annotation] if isinstance(annotation, str) else annotation
