"""What users name: a run, a step of it, an artifact, a file, rows of data.

``name`` is the current run of a recipe, ``name@7`` its seventh, ``name:export`` or ``name@7:export`` one step of
such a run, six or more hexadecimal digits an artifact, and a path an ONNX file: a word with a slash in it, or that ends
in ``.onnx``. Nothing at all is the current run of the recipe that succeeded last, and the bare name of a step is that
step of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from modelpack import onnx_header, recipe, registry
from modelpack.artifact import Kind
from modelpack.errors import StoreError, UsageError, did_you_mean
from modelpack.record import way
from modelpack.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modelpack.artifact import Artifact
    from modelpack.data import DataSource
    from modelpack.record import Run
    from modelpack.store import Store
    from modelpack.tensors import TensorSpec

_STEP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_DIGITS = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True)
class Subject:
    """What a user named; exactly one of `run`, `artifact` and `file` leads to it.

    Attributes:
        text: How to call it.
        run: A run, when no single artifact of it is meant.
        artifact: One artifact.
        file: A file outside the store.
        recipe: Name of the recipe it belongs to; empty when unknown.
    """

    text: str
    run: Run | None = None
    artifact: Artifact | None = None
    file: Path | None = None
    recipe: str = ""


def find(store: Store, text: str | None = None) -> Subject:
    """Find what a user named.

    Raises:
        UsageError: When there is no such thing, or the word fits several.
        StoreError: When it is damaged.
    """
    runs = Runs(store)
    if text is None:
        newest = runs.newest()
        return Subject(newest.name, run=newest, recipe=newest.recipe)
    if text.endswith(".onnx") or "/" in text:
        return _file(Path(text))
    reference, colon, step = text.partition(":")
    if _DIGITS.fullmatch(text) and text not in runs.recipes():
        artifact = store.get(text)
        return Subject(artifact.id[:12], artifact=artifact, recipe=artifact.manifest.record.get("name", ""))
    if text not in runs.recipes() and _STEP.fullmatch(text):
        newest = runs.newest()
        if any(item.id == text for item in newest.steps):
            return Subject(
                f"{newest.name}:{text}", artifact=store.get(newest.step(text).artifact), recipe=newest.recipe
            )
    run = runs.get(reference)
    if not colon:
        return Subject(run.name, run=run, recipe=run.recipe)
    return Subject(f"{run.name}:{step}", artifact=store.get(run.step(step).artifact), recipe=run.recipe)


def _file(path: Path) -> Subject:
    if path.is_dir():
        raise UsageError("this is a directory, a file is expected", where=str(path))
    if not path.is_file():
        raise UsageError("no such file", where=str(path))
    onnx_header.inputs(path)  # says what is wrong with a file that is none, as it does of a recipe's
    return Subject(str(path), file=path)


def model(store: Store, subject: Subject, kinds: Iterable[Kind] = (Kind.TORCH, Kind.ONNX)) -> Artifact:
    """Give the one model that is meant: the artifact named, or the last of these kinds on the way to a run's result.

    What stands beside that way counts where nothing of these kinds is on it.

    Raises:
        UsageError: When there is none.
        StoreError: When it is damaged.
    """
    wanted = set(kinds)
    told = " or ".join(sorted(wanted))
    if subject.artifact is not None:
        if subject.artifact.kind not in wanted:
            raise UsageError(f"this is of kind '{subject.artifact.kind}'; {told} is needed here", where=subject.text)
        return subject.artifact
    if subject.run is None:
        raise UsageError("this is a file; name a run or an artifact of the store", where=subject.text)
    steps = subject.run.steps
    for step in (*reversed(way(steps)), *reversed(steps)):
        if Kind(step.kind) in wanted:
            return store.get(step.artifact)
    then = "it ended before: " + subject.run.error if subject.run.error else "name another run"
    raise UsageError(f"this run made no {told} model", where=subject.text, then=then)


def intact(artifact: Artifact) -> Artifact:
    """Give an artifact back once its bytes were compared with its hashes.

    Raises:
        StoreError: When one differs.
    """
    if damage := artifact.verify():
        what = "the image" if artifact.kind is Kind.IMAGE else "the model"
        raise StoreError(f"{what} is damaged", where=damage[0], then="delete its directory and run the recipe again")
    return artifact


def data(text: str, inputs: Mapping[str, TensorSpec]) -> DataSource:
    """Open rows that a user names: ``rows.npz``, or ``recipe.yaml:NAME`` for an entry of a recipe's `data:`.

    Args:
        text: What was named.
        inputs: Inputs of the model that shall read them.

    Raises:
        UsageError: When there is no such thing.
        RecipeError: When the recipe is wrong.
    """
    path, colon, name = text.rpartition(":")
    if colon and path.endswith((".yaml", ".yml")):
        entries = recipe.load(Path(path)).data
        if name not in entries:
            raise UsageError(f"the recipe has no data '{name}'", where=path, then=did_you_mean(name, entries))
        return entries[name].open(inputs)
    if not text.endswith(".npz"):
        raise UsageError(
            "this names no rows",
            where=text,
            then="name a file rows.npz, or an entry of a recipe's data: recipe.yaml:NAME",
        )
    source = registry.sources().get("npz")
    try:
        config = source.config.model_validate({"path": text}, context={"base": Path.cwd()})
    except ValidationError as error:
        raise UsageError(str(error.errors()[0]["msg"]).removeprefix("Value error, "), where=text) from error
    return source.open(config, inputs)
