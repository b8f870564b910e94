"""Choices among whole numbers, which recipes can only spell as text."""

import typing
from typing import Annotated

import pytest
from pydantic import TypeAdapter, ValidationError

from modelpack import registry
from modelpack.stages.quantize_config import QuantizeConfig


def choices():
    """Every field of a stage that takes one of some whole numbers, with those."""
    for stage in registry.stages().names():
        config = registry.stages().get(stage).config
        for name, field in config.model_fields.items():
            allowed = [value for value in typing.get_args(field.annotation) if isinstance(value, int)]
            if allowed:
                yield config, name, allowed


def test_every_choice_of_whole_numbers_can_be_written_in_a_recipe():
    seen = set()
    for config, name, allowed in choices():
        field = config.model_fields[name]
        read = TypeAdapter(Annotated[field.annotation, *field.metadata])
        assert [read.validate_python(str(value)) for value in allowed] == allowed, f"{config.__name__}.{name}"
        seen.add(name)
    assert {"bits", "group"} <= seen


@pytest.mark.parametrize("text", ["5", "4.0", "four", "", "-4", "4" * 30])
def test_other_text_is_still_refused(text):
    with pytest.raises(ValidationError, match="bits"):
        QuantizeConfig(method="weight_only", bits=text)
