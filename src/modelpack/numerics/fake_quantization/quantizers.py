"""Which values of a torch model are rounded, and to which grids, as data: ``quantizers.json``.

::

    opset         version of the ONNX operators that the model was traced for
    layers        [[ONNX value, parameter]]                 what the quantized layers multiply
    activations   {ONNX value: {"node", "readers", "grid"}}
    grids         {ONNX value: {"scale", "zero_point"}}     unsigned bytes, one grid for the whole tensor
    weights       {parameter: axis of its channels}

The weights themselves lie on their grids: signed bytes, the largest of a channel being 127 steps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelpack import canonical
from modelpack.numerics.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "quantizers.json"


@dataclass(frozen=True)
class Spot:
    """A rounded activation.

    Attributes:
        node: The node of the traced program that gives it.
        readers: Nodes that read the rounded values; None for every one.
        grid: The activation whose grid it is rounded to; itself unless it only moves another one's values.
    """

    node: str
    readers: tuple[str, ...] | None
    grid: str


@dataclass(frozen=True)
class Places:
    """What is rounded.

    Attributes:
        opset: Version of the operators that the program was traced for; names of nodes follow from it.
        layers: ONNX value and parameter of every quantized layer.
        activations: ONNX value → where it is.
        weights: Parameter → axis of its channels.
    """

    opset: int
    layers: tuple[tuple[str, str], ...]
    activations: Mapping[str, Spot]
    weights: Mapping[str, int]


@dataclass(frozen=True)
class Quantizers:
    """Where values are rounded, and how.

    Attributes:
        places: Where.
        grids: ONNX value → its grid of unsigned bytes.
    """

    places: Places
    grids: Mapping[str, Grid]

    def write(self, out: Path) -> None:
        """Write ``quantizers.json`` into an artifact's payload."""
        places = self.places
        body = {
            "opset": places.opset,
            "layers": [list(pair) for pair in places.layers],
            "activations": {
                name: {"node": spot.node, "readers": spot.readers and list(spot.readers), "grid": spot.grid}
                for name, spot in places.activations.items()
            },
            "grids": {
                name: {"scale": float(grid.scale), "zero_point": int(grid.zero_point)}
                for name, grid in self.grids.items()
            },
            "weights": dict(places.weights),
        }
        (out / NAME).write_bytes(canonical.encode(body))


def read(path: Path) -> Quantizers:
    """Read what `Quantizers.write` wrote."""
    body = json.loads(path.read_bytes())
    activations = {
        name: Spot(item["node"], None if item["readers"] is None else tuple(item["readers"]), item["grid"])
        for name, item in body["activations"].items()
    }
    return Quantizers(
        Places(body["opset"], tuple((value, path) for value, path in body["layers"]), activations, body["weights"]),
        {name: Grid(np.float32(item["scale"]), np.uint8(item["zero_point"])) for name, item in body["grids"].items()},
    )
