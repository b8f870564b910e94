"""What clients send and get where that is not the model's own tensors: `interface.json` beside the model, as data.

It lists inputs that are images or texts, with the settings that prepare them, and what is done with outputs:

    {"schema": 1,
     "inputs": {"image": {"image": {"size": 256, …, "dtype": "float32"}},
                "text": {"text": {"tokenizer": "interface.tokenizer.json", "arrays": {"input_ids": "ids"}, …}}},
     "outputs": {"scores": {"softmax": true, "top": 5, "labels": ["cat", …]}}}
"""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from .answers import Finish
from .faults import StartError
from .preparation import Pixels, Tokens
from .readers import Images, Texts
from .signature import Signature, Tensor, quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from .settings import Settings

FILE = "interface.json"


class Reader(Protocol):
    """Turns what clients send into some of the model's inputs.

    Attributes:
        takes: What clients send.
        gives: Names of the model's inputs.
    """

    takes: tuple[Tensor, ...]
    gives: tuple[str, ...]

    def load(self, settings: Settings, workers: int = 1) -> None:
        """Load what it needs, and try it."""

    def read(self, feed: Mapping[str, np.ndarray], stopped: Any) -> dict[str, np.ndarray]:
        """Give tensors by the names in `gives`."""


class Interface:
    """A model's images, texts and classes.

    Args:
        inner: What the model itself takes and gives.
        readers: Each for some of its inputs.
        finishes: What is done with outputs, by name.

    Raises:
        ValueError: When they do not go together with the model or each other.
    """

    def __init__(self, inner: Signature, readers: tuple[Reader, ...], finishes: Mapping[str, Finish]) -> None:
        self.inner, self.readers, self.finishes = inner, readers, finishes
        self.signature = Signature(self._inputs(), self._outputs())

    @cached_property
    def prepares(self) -> bool:
        """Whether anything is done before the model runs."""
        return bool(self.readers)

    def _inputs(self) -> dict[str, Tensor]:
        owners = {name: reader for reader in self.readers for name in reader.gives}
        if len(owners) < sum(len(reader.gives) for reader in self.readers):
            raise ValueError("two of its inputs become the same input of the model")
        inputs: dict[str, Tensor] = {}
        for name, tensor in self.inner.inputs.items():
            for taken in owners[name].takes if name in owners else (tensor,):
                if inputs.setdefault(taken.name, taken) is not taken:
                    raise ValueError(f"two inputs are named {taken.name!r}")
        return inputs

    def _outputs(self) -> dict[str, Tensor]:
        if strange := sorted(set(self.finishes) - set(self.inner.outputs)):
            raise ValueError(f"the model has no output {quote(strange)}: its outputs are {quote(self.inner.outputs)}")
        outputs: dict[str, Tensor] = {}
        for name, tensor in self.inner.outputs.items():
            try:
                given = list(self.finishes[name].tensors(tensor)) if name in self.finishes else [tensor]
            except ValueError as error:
                raise ValueError(f"output {name!r}: {error}") from None
            for each in given:
                if each.name in outputs:
                    raise ValueError(f"two outputs are named {each.name!r}")
                outputs[each.name] = each
        return outputs

    def load(self, settings: Settings, workers: int = 1) -> None:
        """Load what prepares inputs in so many threads, and try it, so that the first client finds it ready.

        Raises:
            StartError: When a file or package is missing, or prepared inputs are not what the model takes.
        """
        for reader in self.readers:
            reader.load(settings, workers)

    def prepare(self, feed: Mapping[str, np.ndarray], stopped: Any) -> dict[str, np.ndarray]:
        """Turn what a client sent into what the model takes.

        Args:
            feed: Tensors that fit the interface's signature.
            stopped: Its `terminate` says when nobody waits any more.

        Raises:
            Invalid: When an image or a text cannot be used.
            Disconnected: When it was told to stop.
        """
        made = {name: array for name, array in feed.items() if name in self.inner.inputs}
        for reader in self.readers:
            made |= reader.read(feed, stopped)
        return {name: made[name] for name in self.inner.inputs}

    def finish(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Turn what the model gave into what the client gets."""
        given = iter(self.signature.outputs)
        finished: dict[str, np.ndarray] = {}
        for name, array in outputs.items():
            for made in self.finishes[name].arrays(array) if name in self.finishes else (array,):
                finished[next(given)] = made
        return finished


def read(folder: Path, inner: Signature) -> Interface | None:
    """Read the interface of a model; None where clients send and get the model's own tensors.

    Raises:
        StartError: When its file is not what this server knows, or does not fit the model.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StartError(f"{path} cannot be read: {error}") from None
    try:
        return _interface(content, folder, inner)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if type(error) is ValueError else repr(error)
        raise StartError(f"{path} does not fit: {reason}") from None


def _interface(content: Mapping[str, Any], folder: Path, inner: Signature) -> Interface:
    if content["schema"] != 1:
        raise ValueError(f"its schema is {content['schema']!r}, and this server knows 1")
    readers = tuple(_reader(name, entry, folder, inner) for name, entry in content["inputs"].items())
    finishes = {name: Finish(**_values(entry)) for name, entry in content["outputs"].items()}
    return Interface(inner, readers, finishes)


def _reader(name: str, entry: Mapping[str, Any], folder: Path, inner: Signature) -> Reader:
    ((kind, settings),) = entry.items()
    if kind == "image":
        known = _known(settings, Pixels)
        return Images(name, _input(name, inner), Pixels(**known))
    if kind == "text":
        arrays = {array: _input(given, inner) for array, given in settings["arrays"].items()}
        file = settings["tokenizer"]
        if file in (".", "..") or "/" in file:
            raise ValueError(f"the tokenizer {file!r} is not a file beside the model")
        return Texts(name, settings.get("pair"), folder / file, Tokens(**_known(settings, Tokens)), arrays)
    raise ValueError(f"input {name!r} is of the kind {kind!r}, and this server knows 'image' and 'text'")


def _known(settings: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    names = [item.name for item in fields(kind)]
    return _values({name: value for name, value in settings.items() if name in names})


def _values(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}


def _input(name: str, inner: Signature) -> Tensor:
    if name not in inner.inputs:
        raise ValueError(f"the model has no input {name!r}: its inputs are {quote(inner.inputs)}")
    tensor = inner.inputs[name]
    if not tensor.shape:
        raise ValueError(f"the model's input {name!r} has no rows")
    return tensor
