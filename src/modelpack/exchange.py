"""Models that leave a store as OCI artifacts, and come back under the id that they had."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from modelpack import inspection
from modelpack.artifact import MANIFEST, Artifact, Kind, Manifest
from modelpack.container.bundle.place import copy
from modelpack.container.bundle.texts import Description
from modelpack.container.order import source_date
from modelpack.container.plan import kinds
from modelpack.disk import writing
from modelpack.errors import StageError, StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.container.blob import Blob
    from modelpack.container.bundle.found import Found
    from modelpack.store import Store

FORMATS = {Kind.ONNX: "onnx", Kind.TORCH: "safetensors"}
"""What the world calls the kinds of models."""
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8"}
_QUANTIZING = ("quantize", "qat")


def describe(store: Store, artifact: Artifact, name: str, version: str) -> Description:
    """Say of a model what an OCI artifact tells the world.

    Raises:
        StageError: When its ONNX file cannot be read.
        StoreError: When its weights cannot be read.
        UsageError: When SOURCE_DATE_EPOCH is no number of seconds.
    """
    inside = inspection.contents(artifact)
    tensors = inside.get("tensors", [])
    types = {_DTYPES.get(item["dtype"], item["dtype"].lower()) for item in tensors if item["dtype"][:1] in "FB"}
    names = {item.name for item in artifact.manifest.files}
    return Description(
        name=name,
        version=version,
        artifact=artifact.id,
        format=FORMATS[artifact.kind],
        parameters=inside.get("parameters", sum(item["elements"] for item in tensors)),
        precision=inside.get("precision", ",".join(sorted(types))),
        quantization=_quantization(store, artifact),
        inputs=tuple(sorted(kinds(artifact))) or ("other",),
        signature=artifact.read_json("signature.json") if "signature.json" in names else None,
        epoch=source_date() if os.environ.get("SOURCE_DATE_EPOCH") else None,
    )


def _quantization(store: Store, artifact: Artifact) -> str:
    """Name the method of the nearest step that quantized; empty where none is on the way."""
    for ancestor in inspection.lineage(store, artifact):
        if ancestor.stage in _QUANTIZING:
            settings = store.get(ancestor.id).manifest.work.get("config", {})
            return str(settings.get("method", ancestor.stage))
    return ""


def adopt(store: Store, found: Found) -> Artifact:
    """Bring a model into the store that was pushed out of one; it has the same id.

    No step takes it for its own result: a recipe that would make it still runs.

    Raises:
        StageError: When a byte differs from what its manifest says.
        StoreError: When the store cannot be written.
        UsageError: When another tool made it.
    """
    layers = {layer.name: layer.blob for layer in found.layers if not layer.kind.is_tar}
    if MANIFEST not in layers:
        raise UsageError(
            "this model did not come out of a store of modelpack", where=found.where, then="name a place with --output"
        )
    manifest = _truth(layers[MANIFEST], found.where)
    for item in manifest.files:
        blob = layers.get(item.name)
        if blob is None or (blob.size, blob.digest) != (item.size, f"sha256:{item.sha256}"):
            raise StageError(f"the file {item.name!r} is not the one that its manifest names", where=found.where)
    with store.locked(), store.draft() as draft:
        for item in manifest.files:
            with writing(draft.path):
                copy(layers[item.name], draft.path / item.name)
        return store.commit(draft, manifest.kind, manifest.work, manifest.record, cached=False)


def _truth(blob: Blob, where: str) -> Manifest:
    try:
        manifest = Manifest.decode(blob.read(), MANIFEST)
    except (StoreError, RecursionError) as error:
        raise StageError(f"its manifest.json is not what modelpack writes: {error}", where=where) from error
    work: Mapping[str, Any] = manifest.work
    above = [work.get("model") or "", *(work["steps"].values() if isinstance(work.get("steps"), dict) else [""])]
    whole = {"stage", "version", "config"} <= set(work) and all(isinstance(item, str) for item in above)
    if not whole or not manifest.kind.is_model:
        raise StageError("its manifest.json describes no model", where=where)
    return manifest
