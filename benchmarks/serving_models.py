"""The models that servers are measured with: plain torch, random weights, written as `modelpack export` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

KEPT = Path(__file__).resolve().parents[1] / ".cache" / "serving" / "models"
SHAPES = {"narrow": (4,), "mlp": (784,), "wide": (512,), "resnet50": (3, 224, 224)}
"""Model → the shape of one row of its only input, `x`; its only output has one score per class."""


def ready(name: str) -> Path:
    """Give the folder of a model, made when it is not there."""
    folder = KEPT / name
    if not (folder / "signature.json").is_file():
        _write(name, folder)
    return folder


def row(name: str, seed: int = 0) -> np.ndarray:
    """Make up one row of a model's input."""
    return np.random.default_rng(seed).uniform(-1, 1, (1, *SHAPES[name])).astype(np.float32)


def _write(name: str, folder: Path) -> None:
    import torch

    from modelpack.numerics import onnxfile
    from modelpack.numerics.export import export
    from modelpack.tensors import TensorSpec

    torch.manual_seed(0)
    net = {"narrow": _narrow, "mlp": _mlp, "wide": _wide, "resnet50": _resnet50}[name]().eval()
    shape = ["batch", *SHAPES[name]]
    inputs = {"x": {"shape": shape, "dtype": "float32", "range": None}}
    with torch.no_grad():
        classes = net(torch.from_numpy(row(name))).shape[1]
    outputs = {"output": {"shape": ["batch", classes], "dtype": "float32"}}
    example = {"x": np.concatenate([row(name), row(name, 1)])}
    folder.mkdir(parents=True, exist_ok=True)
    exported = export(net, example, {"x": TensorSpec(shape=shape)}, outputs, 20)
    onnxfile.write(exported.model, folder)
    (folder / "signature.json").write_text(json.dumps({"inputs": inputs, "outputs": outputs}), encoding="utf-8")


def _narrow() -> nn.Module:
    """Make what takes rows that are written quickly."""
    from torch import nn

    return nn.Linear(4, 3)


def _mlp() -> nn.Module:
    """Make 0.8 MB that run in some 20 µs."""
    from torch import nn

    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def _wide() -> nn.Module:
    """Make 55 MB that each run reads from memory, whatever its rows."""
    from torch import nn

    layers = [nn.Linear(512, 2048), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(2048, 2048), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2048, 10))


def _resnet50() -> nn.Module:
    """Make ResNet-50 (arXiv 1512.03385, table 1) with the stride in the middle of a block, 102 MB."""
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, taken: int, width: int, stride: int) -> None:
            super().__init__()
            given = 4 * width
            self.body = nn.Sequential(
                *_unit(taken, width, 1), nn.ReLU(), *_unit(width, width, 3, stride), nn.ReLU(), *_unit(width, given, 1)
            )
            self.shortcut = nn.Sequential(*(_unit(taken, given, 1, stride) if taken != given or stride > 1 else ()))
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.body(x) + self.shortcut(x))

    layers: list[nn.Module] = [*_unit(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    taken = 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(count):
            layers.append(Bottleneck(taken, width, 2 if width > 64 and not block else 1))
            taken = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(taken, 1000))


def _unit(taken: int, given: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    from torch import nn

    return nn.Conv2d(taken, given, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(given)
