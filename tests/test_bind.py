"""What is said of settings that cannot be read, in words of the recipe and not of Python."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from modelpack.bind import Whole, bind
from modelpack.document import parse


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bits: Annotated[Literal[8, 4], Whole] = 4
    mode: Literal["slow", "fast"] = "slow"
    exact: bool = False
    share: float = 0.5
    rows: int = 1
    counted: Literal["auto"] | bool = "auto"
    names: tuple[str, ...] = ()
    kinds: tuple[Literal["Conv", "Gemm"], ...] | None = Field(None, min_length=1)


def said(text):
    node, problems = parse(text, "recipe.yaml")
    assert node is not None
    bind(node, Settings, problems, base=Path())
    return [(problem.message, problem.hint) for problem in problems]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("bits: 3", "'bits' cannot be '3'", "one of: 4, 8"),
        ("mode: zzz", "'mode' cannot be 'zzz'", "one of: fast, slow"),
        ("mode: fats", "'mode' cannot be 'fats'", "did you mean 'fast'?"),
        ("share: 12.5%", "'share' should be a valid number, unable to parse string as a number", "write 0.125"),
        ("share: half", "'share' should be a valid number, unable to parse string as a number", ""),
        ("rows: 10%", "'rows' should be a valid integer, unable to parse string as an integer", ""),
        ("exact: maybe", "'exact' should be true or false", ""),
        ("exact: 2", "'exact' should be true or false", ""),
        ("exact: [true]", "'exact' should be true or false", ""),
        ("counted: maybe", "'counted' cannot be 'maybe', or: 'counted' should be true or false", "one of: auto"),
        ("names: head", "'names' should be a list", "write [one, another]"),
        ("kinds: [Conf]", "'kinds' cannot be 'Conf'", "did you mean 'Conv'?"),
        ("kinds: []", "'kinds' should not be empty", "leave it out for the default"),
    ],
)
def test_each_mistake_is_told_once_with_what_to_write(text, message, hint):
    assert said(text) == [(message, hint)]
