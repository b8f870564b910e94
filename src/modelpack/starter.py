"""The first recipe of a new user: commented, and right."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack import onnx_header, registry
from modelpack.document import quote
from modelpack.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA_FILE = "recipe.schema.json"


@dataclass(frozen=True)
class Wish:
    """What the user told of a model.

    Attributes:
        factory: ``file.py:callable`` or ``package.module:callable``; empty with `onnx`.
        weights: The checkpoint; empty for the factory's own weights.
        onnx: An ONNX file in place of a factory.
        inputs: ``name=shape[:dtype]`` each, such as ``image=batch,3,224,224``.
        data: ``name=source:path`` each, such as ``train=npz:train.npz``; ``random`` needs no path.
        name: What the recipe's runs are called; the file's name when empty.
    """

    factory: str = ""
    weights: str = ""
    onnx: str = ""
    inputs: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    name: str = ""


def write(wish: Wish, output: Path) -> str:
    """Put a wish into the text of a recipe.

    Paths in the wish are relative to the working directory; those in the recipe to the recipe's directory.

    Args:
        wish: What the user told.
        output: Where the recipe will be.

    Raises:
        UsageError: For a wish that no recipe can hold.
    """
    if bool(wish.factory) == bool(wish.onnx):
        raise UsageError("a recipe needs a model", then="give --factory file.py:callable, or --onnx FILE")
    if wish.factory and not wish.inputs:
        raise UsageError("a torch model needs its inputs", then="give --input name=batch,3,224,224 for each")
    if wish.onnx and not wish.inputs:
        wish = replace(wish, inputs=_known(wish.onnx))
    data = _data(wish.data, output.parent)
    head = f"name: {quote(wish.name)}\n\n" if wish.name else ""
    return "\n".join(
        [
            f"# yaml-language-server: $schema={SCHEMA_FILE}",
            "# Every key is explained by `modelpack stages` and `modelpack stages NAME`.",
            f"# Try it:  modelpack check {output}",
            f"#          modelpack compress {output}",
            "",
            f"{head}{_model(wish, output.parent)}",
            "",
            *data.lines,
            "",
            *_budget(data),
            "",
            *_stages(wish, data),
            "",
        ]
    )


def _known(path: str) -> tuple[str, ...]:
    """Read the inputs of an ONNX file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError("no such file", where=path)
    inputs = onnx_header.inputs(file)
    return tuple(f"{name}={','.join(map(str, spec.shape))}:{spec.dtype}" for name, spec in inputs.items())


def _model(wish: Wish, base: Path) -> str:
    lines = ["model:"]
    if wish.onnx:
        lines.append(f"  onnx: {quote(_relative(wish.onnx, base))}")
    else:
        file, colon, name = wish.factory.rpartition(":")
        factory = f"{_relative(file, base)}:{name}" if colon and file.endswith(".py") else wish.factory
        lines += [
            "  # What builds the model: a callable in a file beside this one, or package.module:callable.",
            f"  factory: {quote(factory)}",
        ]
        if wish.weights:
            lines.append(f"  weights: {quote(_relative(wish.weights, base))}")
    if wish.inputs:
        lines += ["  # A dimension with a name, such as batch, may have any size.", "  inputs:"]
        lines += [f"    {_input(text)}" for text in wish.inputs]
    return "\n".join(lines)


def _input(text: str) -> str:
    """Put ``name=batch,3,224,224:float32`` into YAML."""
    name, equals, rest = text.partition("=")
    shape, _, dtype = rest.partition(":")
    sizes = [size.strip() for size in shape.split(",") if size.strip()]
    if not name or not equals or not all(size.isdigit() or size.isidentifier() for size in sizes):
        raise UsageError(
            f"'{text}' is no input", where="--input", then="write name=batch,3,224,224 or ids=batch,128:int64"
        )
    kind = f", dtype: {dtype}" if dtype else ""
    return f"{name}: {{shape: [{', '.join(sizes)}]{kind}}}"


@dataclass(frozen=True)
class _Data:
    """The data section, and the name of the entry to calibrate with and of that to measure on."""

    lines: tuple[str, ...]
    calibration: str
    test: str
    labelled: bool


def _data(texts: Sequence[str], base: Path) -> _Data:
    if not texts:
        lines = (
            "data:",
            "  # Invented values, enough for a first try. `modelpack sources` lists how to read real data.",
            "  sample: {random: {rows: 64}}",
        )
        return _Data(lines, "sample", "sample", labelled=False)
    written, names = ["data:"], []
    for text in texts:
        name, equals, rest = text.partition("=")
        source, _, place = rest.partition(":")
        if not name or not equals or not source:
            raise UsageError(
                f"'{text}' is no data", where="--data", then="write name=source:path, such as test=npz:test.npz"
            )
        known = registry.sources().names()
        if source not in known:
            raise UsageError(f"no source is named '{source}'", where="--data", then=did_you_mean(source, known))
        key = "callable" if source == "python" else "path"
        settings = f" {{{key}: {quote(_relative(place, base))}}}" if place else ""
        written.append(f"  {name}: {{{source}:{settings}}}" if settings else f"  {name}: {source}")
        names.append((name, source))
    labelled = names[-1][1] != "random"
    return _Data(tuple(written), names[0][0], names[-1][0], labelled)


def _budget(data: _Data) -> list[str]:
    gate = "  # accuracy_drop: 0.01   # at most one point; needs `metrics: [accuracy]` in evaluate"
    return [
        "# Gates: checked as soon as they are measured; unmet, the run ends with code 3 and nothing is packaged.",
        "budget:",
        "  size: 30%",
        *([gate] if data.labelled else []),
    ]


def _stages(wish: Wish, data: _Data) -> list[str]:
    torch = [
        "  # Pruning and distillation come before the export; both need data of yours:",
        f"  # - prune: {{macs: 0.7, importance: taylor, data: {data.calibration}}}",
        f"  # - distill: {{teacher: model, data: {data.calibration}, epochs: 3}}",
        f"  - export: {{data: {data.calibration}}}" if data.labelled else "  - export:",
    ]
    reference = "model" if wish.onnx else "export"
    return [
        "stages:",
        *([] if wish.onnx else torch),
        f"  - quantize: {{method: static, data: {data.calibration}}}",
        "  # Without labels the two models' answers are compared; with them, add `metrics: [accuracy]`.",
        f"  - evaluate: {{data: {data.test}, against: {reference}}}",
        f"  - bench: {{against: {reference}, batch: [1, 8]}}",
        "  # - build:            # the container image; `modelpack build` makes it from a finished run too",
    ]


def _relative(text: str, base: Path) -> str:
    """Say a path that the user typed in the working directory as the recipe must say it."""
    if not text or os.path.isabs(text):  # noqa: PTH117 - text that the user wrote, kept as text
        return text
    return os.path.relpath(text, base or ".").replace(os.sep, "/")
