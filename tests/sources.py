"""What the tests of data sources share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from modelpack.bind import bind
from modelpack.data import DataSource, Source
from modelpack.document import parse
from modelpack.tensors import TensorSpec


def spec(*shape: int | str, dtype: str = "float32", **more: Any) -> TensorSpec:
    return TensorSpec(shape=shape, dtype=dtype, **more)


def opened(
    plugin: Source[Any], base: Path, settings: dict[str, Any], inputs: dict[str, TensorSpec] | None = None
) -> DataSource:
    """Open a source with settings that are values already."""
    return plugin.open(plugin.config.model_validate(settings, context={"base": base}), inputs or {})


def rows(source: DataSource) -> dict[str, np.ndarray]:
    """Join all batches."""
    batches = list(source.batches())
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def read(plugin: Source[Any], base: Path, settings: dict[str, Any], inputs: dict[str, TensorSpec] | None = None):
    return rows(opened(plugin, base, settings, inputs))


def problems(plugin: Source[Any], base: Path, text: str) -> list[str]:
    """Bind settings written as YAML, and give what is wrong, each with its line and column."""
    node, found = parse(text, "data.yaml")
    assert node is not None
    bind(node, plugin.config, found, base=base)
    return [f"{item.place.line}:{item.place.column} {item.message} {item.hint}".strip() for item in found]


def bound(plugin: Source[Any], base: Path, text: str) -> Any:
    """Bind settings written as YAML, which must be right."""
    node, found = parse(text, "data.yaml")
    assert node is not None
    config = bind(node, plugin.config, found, base=base)
    assert not found, found
    return config
