"""Where in a model a layer is: its repeated blocks, and how deep each parameter lies."""

from __future__ import annotations

from collections import Counter

from torch import nn

_TRANSPARENT = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Find the blocks that a model repeats, by path, in the order in which they were made.

    A block is an outermost module with parts of its own whose class the model has more than once: a layer of an
    encoder, a residual block. Containers count for nothing: what they hold does.
    """
    seen = Counter(type(part) for part in module.modules() if _made_of_parts(part))
    found: dict[str, nn.Module] = {}

    def visit(part: nn.Module, path: str) -> None:
        for name, child in part.named_children():
            inner = f"{path}.{name}" if path else name
            if seen[type(child)] > 1:
                found[inner] = child
            else:
                visit(child, inner)

    visit(module, "")
    return found


def _made_of_parts(part: nn.Module) -> bool:
    return (
        type(part) not in _TRANSPARENT and any(True for _ in part.children()) and any(True for _ in part.parameters())
    )


def depths(module: nn.Module) -> dict[str, int]:
    """Number the layers in which parameters lie, by the parameters' names; 0 is the first layer.

    A block that the model repeats is one layer; what is not in one is a layer for every module with parameters of its
    own, except that everything before the first block, such as embeddings, is layer 0. The order is that in which
    the model made its modules.
    """
    repeated = blocks(module)
    found: dict[str, int] = {}
    layers: dict[str, int] = {}
    for name, _ in module.named_parameters():
        owner = name.rpartition(".")[0]
        block = next((path for path in repeated if owner == path or owner.startswith(f"{path}.")), None)
        before = bool(repeated) and block is None and not any(path in layers for path in repeated)
        layer = block if block is not None else "" if before else owner
        found[name] = layers.setdefault(layer, len(layers))
    return found
