"""What is inside: an artifact's ancestors, its layers, and how large each is."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelpack.artifact import Artifact, Kind
from modelpack.errors import ModelpackError, StoreError
from modelpack.runs import parents

if TYPE_CHECKING:
    from pathlib import Path

    from modelpack.store import Store

_MOST_HEADER = 100_000_000


@dataclass(frozen=True)
class Ancestor:
    """One artifact that another was made from.

    Attributes:
        depth: Steps away; 0 is the artifact itself.
        id: Its id.
        stage: What made it; empty when the store no longer has it.
        kind: What it holds.
        recipe: The recipe that it was first made by.
    """

    depth: int
    id: str
    stage: str = ""
    kind: str = ""
    recipe: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        return asdict(self)


def lineage(store: Store, artifact: Artifact) -> list[Ancestor]:
    """List an artifact and all that it was made from, the nearest first, each once."""
    found: dict[str, Ancestor] = {}
    queue = [(0, artifact.id)]
    while queue:
        depth, identity = queue.pop(0)
        if identity in found:
            continue
        try:
            item = store.get(identity)
        except ModelpackError:
            found[identity] = Ancestor(depth, identity)
            continue
        stage, name = str(item.manifest.work["stage"]), str(item.manifest.record.get("name", ""))
        found[identity] = Ancestor(depth, identity, stage, item.kind.value, name)
        queue += [(depth + 1, parent) for parent in parents(item)]
    return list(found.values())


def past(store: Store, artifact: Artifact) -> list[Artifact]:
    """Tell where an artifact comes from: itself, what it was made from, the nearest first, and reports on it by stage.

    What the store no longer has is left out.
    """
    known = {path.name: path for path in store.artifacts()}
    line = [item.id for item in lineage(store, artifact) if item.id in known and item.stage]
    reports = []
    for path in known.values():
        with contextlib.suppress(StoreError):  # a damaged one tells nothing; `verify` names it
            found = Artifact.load(path)
            if found.kind is Kind.REPORT and found.manifest.work.get("model") == artifact.id:
                reports.append(found)
    reports.sort(key=lambda item: (item.manifest.work["stage"], item.id))
    return [*(Artifact.load(known[identity]) for identity in line), *reports]


def contents(artifact: Artifact) -> dict[str, Any]:
    """Describe the model in an artifact: an ONNX graph's facts, or a torch model's tensors; nothing for other kinds.

    Raises:
        StoreError: When its weights cannot be read.
        StageError: When its ONNX file cannot be read.
    """
    if artifact.kind is Kind.ONNX:
        return onnx_file(artifact.file("model.onnx"))
    if artifact.kind is Kind.TORCH:
        layers = tensors(artifact.file("weights.safetensors"))
        model = artifact.read_json("model.json")
        return {"factory": model.get("factory", ""), "tensors": layers}
    return {}


def onnx_file(path: Path) -> dict[str, Any]:
    """Describe an ONNX file.

    Raises:
        StageError: When it cannot be read.
    """
    from modelpack.numerics import graph, onnxfile

    return graph.facts(onnxfile.read(path)).to_json()


def tensors(path: Path) -> list[dict[str, Any]]:
    """List the tensors of a safetensors file from its header alone: name, shape, dtype, elements, bytes.

    Raises:
        StoreError: When it is no such file.
    """
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, _MOST_HEADER)))
        return [
            {
                "name": name,
                "shape": item["shape"],
                "dtype": item["dtype"],
                "elements": math.prod(item["shape"]),
                "bytes": item["data_offsets"][1] - item["data_offsets"][0],
            }
            for name, item in sorted(header.items())
            if name != "__metadata__"
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise StoreError(f"the weights cannot be read: {error}", where=str(path)) from error
