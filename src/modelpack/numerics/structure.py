"""Changes of a module's tree, as data: layers left out, blocks passed by, matrices split in two.

``structure.json`` lists them in the order in which they were made; loading makes them again on what the factory builds,
before attributes and tensors are put in. The operations are a closed set that names modules by their paths and builds
torch's own layers only, so that a hostile file can at worst fail to load. A module carries the list of what was done
to it, which copies take along and `models.save` writes down.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import nn

from modelpack import canonical
from modelpack.errors import StageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "structure.json"
RECORD = "_modelpack_structure"
"""Attribute of a root module that holds what was done to its tree."""

CONTAINERS = (nn.Sequential, nn.ModuleList)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FACTORED = (nn.Linear, *CONVOLUTIONS)
"""Layers that can be split, and their subclasses, as far as these do nothing else with their weights."""

Form = Literal["channel", "spatial"]
"""How a layer is split: into fewer channels and then a 1×1 layer (Zhang et al. 2015, arXiv 1505.06798), or into a
column of its kernel and then a row (Jaderberg et al. 2014, arXiv 1405.3866)."""

M = TypeVar("M", bound=nn.Module)


class _Operation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Drop(_Operation):
    """Some items of a Sequential or ModuleList are left out; numbered items that stay are numbered anew."""

    operation: Literal["drop"] = "drop"
    path: str
    items: tuple[str, ...] = Field(min_length=1)

    def make(self, module: nn.Module) -> None:
        """Change a module's tree in place."""
        container = _at(module, self.path)
        if not isinstance(container, CONTAINERS):
            raise _refused(self.path, f"is no Sequential or ModuleList but a {type(container).__name__}")
        present = container._modules  # noqa: SLF001  the only way that keeps the names of named items
        unknown = set(self.items) - present.keys()
        if unknown or len(set(self.items)) < len(self.items):
            raise _refused(self.path, f"has no items {', '.join(sorted(unknown or self.items))} to leave out once")
        left = [(name, item) for name, item in present.items() if name not in self.items]
        if list(present) == [str(place) for place in range(len(present))]:
            left = [(str(place), item) for place, (_, item) in enumerate(left)]
        present.clear()
        present.update(left)


class Bypass(_Operation):
    """A block is replaced by one that gives what it gets."""

    operation: Literal["bypass"] = "bypass"
    path: str

    def make(self, module: nn.Module) -> None:
        """Change a module's tree in place."""
        _replace(module, self.path, nn.Identity())


class Factor(_Operation):
    """A linear or convolutional layer is replaced by two that follow each other with `rank` channels between them."""

    operation: Literal["factor"] = "factor"
    path: str
    form: Form = "channel"
    rank: int = Field(gt=0)

    def make(self, module: nn.Module) -> None:
        """Change a module's tree in place; the weights of the new layers are not set."""
        layer = _at(module, self.path)
        reason = unfit(layer, self.form)
        if reason:
            raise _refused(self.path, f"cannot be split: {reason}")
        if self.rank > full_rank(layer, self.form):
            raise _refused(self.path, f"cannot be split with {self.rank} channels between: it has fewer")
        _replace(module, self.path, halves(layer, self.form, self.rank))


Operation = Drop | Bypass | Factor
_LIST: TypeAdapter[list[Operation]] = TypeAdapter(list[Annotated[Operation, Field(discriminator="operation")]])


def made(module: nn.Module) -> tuple[Operation, ...]:
    """List what was done to a module's tree since its factory built it."""
    found: tuple[Operation, ...] = getattr(module, RECORD, ())
    return found


def change(module: nn.Module, operations: Iterable[Operation]) -> None:
    """Change a module's tree in place, one operation after the other, and keep them in its record.

    Raises:
        StageError: When an operation names what is not there, or what it cannot change.
    """
    for operation in operations:
        operation.make(module)
        setattr(module, RECORD, (*made(module), operation))


def encode(operations: Iterable[Operation]) -> bytes:
    """Give the bytes of ``structure.json``."""
    return canonical.encode(list(operations))


def decode(data: bytes) -> list[Operation]:
    """Read ``structure.json``.

    Raises:
        StageError: When it holds anything but known operations.
    """
    try:
        return _LIST.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StageError(f"no list of known changes: {place or 'the file'}: {first['msg']}", where=NAME) from error


def light(module: M) -> M:
    """Copy a module's tree while both go on sharing their tensors, for trials that change no tensor.

    Raises:
        StageError: When Python cannot copy it.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    try:
        return copy.deepcopy(module, shared)
    except Exception as error:
        raise StageError(f"the model cannot be copied: {type(error).__name__}: {error}") from error


def unfit(layer: nn.Module, form: Form) -> str:
    """Say why a layer cannot be split; empty when it can."""
    if not isinstance(layer, FACTORED):
        return f"a layer of the type {type(layer).__name__}"
    if "weight" not in layer._parameters or layer._forward_pre_hooks or layer._forward_hooks:  # noqa: SLF001
        return "its weights are computed, or its outputs are changed, by code of their own"
    if getattr(layer, "groups", 1) != 1:
        return "its channels are in groups"
    if form == "spatial" and (type(layer) is not nn.Conv2d or 1 in layer.kernel_size):
        return "it has no kernel of several rows and columns, or code of its own"
    return ""


def full_rank(layer: nn.Module, form: Form) -> int:
    """Give the channels between the halves with which nothing is lost."""
    shape = layer.get_parameter("weight").shape
    if form == "channel":
        return min(shape[0], shape[1:].numel())
    return min(shape[1] * shape[2], shape[0] * shape[3])


def halves(layer: Any, form: Form, rank: int) -> nn.Sequential:
    """Make the two layers that stand for one, with `rank` channels between; their weights are not set."""
    # Made without memory first, so that the weights, which are put in later, draw no random numbers.
    like: dict[str, Any] = {"device": "meta", "dtype": layer.weight.dtype}
    biased, device = layer.bias is not None, layer.weight.device
    if form == "spatial":
        column, row = _lines(layer)
        like["padding_mode"] = layer.padding_mode
        first = nn.Conv2d(layer.in_channels, rank, **column, bias=False, **like).to_empty(device=device)
        second: Any = nn.Conv2d(rank, layer.out_channels, **row, bias=biased, **like)
    elif isinstance(layer, nn.Linear):
        first = _fewer(layer, "out_features", rank)
        second = nn.Linear(rank, layer.out_features, bias=biased, **like)
    else:
        kind = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
        first = _fewer(layer, "out_channels", rank)
        second = kind(rank, layer.out_channels, 1, bias=biased, **like)
    second = second.to_empty(device=device)
    for new in (first.weight, second.weight, second.bias):
        if new is not None:
            new.requires_grad_(layer.weight.requires_grad)
    return nn.Sequential(first, second).train(layer.training)


def _fewer(layer: Any, outputs: str, rank: int) -> Any:
    """Copy a layer with fewer outputs and no bias, and with all that a subclass of it does to its inputs."""
    copied = light(layer)
    setattr(copied, outputs, rank)
    copied.weight = nn.Parameter(layer.weight.new_empty((rank, *layer.weight.shape[1:])))
    copied.bias = None
    return copied


def _lines(layer: nn.Conv2d) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the kernel, stride, padding and dilation of a column and of a row of a convolution."""
    column: dict[str, Any] = {}
    row: dict[str, Any] = {}
    for name, neutral in {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}.items():
        value = getattr(layer, name)
        alike = isinstance(value, str)  # padding "same" and "valid" are texts, and hold for both
        column[name] = value if alike else (value[0], neutral)
        row[name] = value if alike else (neutral, value[1])
    return column, row


def _at(module: nn.Module, path: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(module.named_modules(remove_duplicate=False))
    if path not in modules:
        raise StageError(f"the model has no module '{path}'", where=NAME, then=did_you_mean(path, modules))
    return modules[path]


def _replace(module: nn.Module, path: str, new: nn.Module) -> None:
    old = _at(module, path)
    if not path or sum(child is old for _, child in module.named_modules(remove_duplicate=False)) > 1:
        raise _refused(path, "is used at several places, or is the whole model, and cannot be replaced")
    owner, _, name = path.rpartition(".")
    setattr(_at(module, owner), name, new)


def _refused(path: str, what: str) -> StageError:
    return StageError(what, where=f"module '{path}'", then="change another module, or leave this one as it is")
