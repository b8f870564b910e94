"""A sealed directory and the truth about it.

``id = sha256(kind, work, files)``: what was asked and what came out. ``record`` holds circumstances (time, machine,
metrics); it is outside the id, so that the same work gives the same id everywhere, but inside ``checksum``, so that
an edit is noticed.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST = "manifest.json"
SCHEMA = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Kind(enum.StrEnum):
    """What an artifact holds."""

    TORCH = "torch"
    ONNX = "onnx"
    CALIBRATION = "calibration"
    IMAGE = "image"
    REPORT = "report"

    @property
    def is_model(self) -> bool:
        """Whether later steps read it without being told to."""
        return self in (Kind.TORCH, Kind.ONNX)


MODEL_FILE = {Kind.TORCH: "weights.safetensors", Kind.ONNX: "model.onnx"}
"""The file whose size counts as the model's size, by kind."""


@dataclass(frozen=True, order=True)
class File:
    """One payload file: its POSIX name relative to the artifact, its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.name)
        if not self.name or path.is_absolute() or ".." in path.parts or "\\" in self.name or str(path) != self.name:
            raise ValueError(f"not a relative POSIX name: {self.name!r}")
        if self.name == MANIFEST:
            raise ValueError(f"{MANIFEST} is the manifest's own name")


@dataclass(frozen=True)
class Manifest:
    """What an artifact is: kind, work asked for, files that came out, and the record of circumstances."""

    kind: Kind
    work: Mapping[str, Any]
    files: tuple[File, ...]
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identity of the work, known before it is done."""
        return canonical.digest(self.work)

    @property
    def id(self) -> str:
        """Identity of the work together with its result."""
        return hashlib.sha256(self.identity).hexdigest()

    @property
    def identity(self) -> bytes:
        """The bytes whose SHA-256 the id is: kind, work and files."""
        return canonical.encode({"kind": self.kind, "work": self.work, "files": self._files()})

    def _files(self) -> list[dict[str, Any]]:
        return [{"name": item.name, "size": item.size, "sha256": item.sha256} for item in self.files]

    def encode(self) -> bytes:
        """Give the exact bytes of ``manifest.json``; `decode` refuses any other spelling of them."""
        body = {
            "schema": SCHEMA,
            "id": self.id,
            "kind": self.kind,
            "work": dict(self.work),
            "files": self._files(),
            "record": dict(self.record),
        }
        return canonical.encode({**body, "checksum": canonical.digest(body)}) + b"\n"

    @classmethod
    def decode(cls, data: bytes, where: str) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            StoreError: When a byte differs from what `encode` would write.
        """
        try:
            body = json.loads(data)
            if body["schema"] != SCHEMA:
                raise StoreError(
                    f"the manifest has schema {body['schema']!r}, this modelpack reads {SCHEMA}",
                    where=where,
                    then="use the modelpack version that wrote it",
                )
            files = tuple(File(item["name"], item["size"], item["sha256"]) for item in body["files"])
            manifest = cls(Kind(body["kind"]), body["work"], files, body["record"])
            intact = manifest.encode() == data
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"the manifest cannot be read: {error}", where=where) from error
        if not intact:
            raise StoreError("the manifest was changed after it was written", where=where)
        return manifest


@dataclass(frozen=True)
class Artifact:
    """A committed artifact, read-only.

    Attributes:
        path: Its directory.
        manifest: Its truth.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: Path) -> Artifact:
        """Read an artifact's manifest, trusting the payload (see `verify`).

        Raises:
            StoreError: When the manifest is missing or was changed.
        """
        try:
            data = (path / MANIFEST).read_bytes()
        except OSError as error:
            raise StoreError(f"no artifact here: {error.strerror}", where=str(path)) from error
        return cls(path, Manifest.decode(data, str(path / MANIFEST)))

    @property
    def id(self) -> str:
        """The artifact's identity, 64 hexadecimal digits."""
        return self.manifest.id

    @property
    def kind(self) -> Kind:
        """What the artifact holds."""
        return self.manifest.kind

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The figures recorded while it was made."""
        metrics: Mapping[str, Any] = self.manifest.record.get("metrics", {})
        return metrics

    @property
    def model_bytes(self) -> int:
        """Size of the model itself in bytes (its weights or graph, external tensors included); 0 for other kinds."""
        main = MODEL_FILE.get(self.kind)
        return sum(item.size for item in self.manifest.files if main and item.name.startswith(main))

    def file(self, name: str) -> Path:
        """Give the path of a payload file.

        Raises:
            StoreError: When the artifact has no such file.
        """
        if not any(item.name == name for item in self.manifest.files):
            raise StoreError(f"the artifact has no file '{name}'", where=str(self.path))
        return self.path / name

    def read_json(self, name: str) -> Any:
        """Read a JSON payload file."""
        return json.loads(self.file(name).read_bytes())

    def verify(self) -> list[str]:
        """List what differs from the manifest: changed, missing and unknown files. Empty means intact."""
        problems = []
        if _SHA256.fullmatch(self.path.name) and self.path.name != self.id:
            problems.append(f"{self.path}: directory is named unlike its id {self.id}")
        known = {item.name: item for item in self.manifest.files}
        for name, item in known.items():
            path = self.path / name
            if path.is_symlink() or not path.is_file():
                problems.append(f"{path}: missing")
            elif path.stat().st_size != item.size or canonical.file_digest(path) != item.sha256:
                problems.append(f"{path}: changed")
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            if (path.is_symlink() or not path.is_dir()) and name not in known and name != MANIFEST:
                problems.append(f"{path}: not part of the artifact")
        return problems
