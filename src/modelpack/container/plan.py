"""What is in an image and how it runs: pure values, the same for every builder."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack.artifact import MODEL_FILE, Kind
from modelpack.container import bytecode, install
from modelpack.container.layers import Entry, Layer, layer
from modelpack.container.wheels import CUDA
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.artifact import Artifact
    from modelpack.container.base import Base
    from modelpack.container.wheels import Wheel

ROOT = "opt/modelpack"
SITE = f"{ROOT}/site-packages"
SERVER = f"{ROOT}/server"
MODEL = f"{ROOT}/model"
PACKAGE = "modelpack_server"
USER = "65532:65532"
PORT, GRPC_PORT = 8080, 8081
SERVER_SOURCES = Path(__file__).parent.parent / "server"
INTERFACE = "interface."
"""What the names of files begin with that say what clients send and get."""
_NOT_SHIPPED = ("requirements.txt", "py.typed")


@dataclass(frozen=True)
class Healthcheck:
    """How an engine asks the container whether it is well; times in seconds."""

    command: tuple[str, ...]
    interval: int = 10
    timeout: int = 3
    start_period: int = 60
    retries: int = 3


@dataclass(frozen=True)
class ImageContents:
    """An image without its base.

    Attributes:
        layers: Lowest first: ``cuda`` where there is one, ``wheels``, ``server``, ``model``, so that what changes most
            often lies on top.
        entrypoint: Command in exec form; no shell is needed.
        env: Environment added to the base's.
        labels: Labels added to the base's.
        healthcheck: See there.
        user: Numeric ``uid:gid``.
        ports: Ports it listens on, ``8080/tcp``.
        workdir: Working directory.
        stop_signal: What asks it to drain and leave.
        created: Its date, RFC 3339.
    """

    layers: tuple[Layer, ...]
    entrypoint: tuple[str, ...]
    env: Mapping[str, str]
    labels: Mapping[str, str]
    healthcheck: Healthcheck
    created: str
    user: str = USER
    ports: tuple[str, ...] = (f"{PORT}/tcp",)
    workdir: str = "/"
    stop_signal: str = "SIGTERM"


@dataclass(frozen=True)
class Title:
    """How an image presents itself.

    Attributes:
        name: The model's name.
        version: Its version, as in the tag.
        artifact: Id of the artifact inside.
        epoch: Date of the image and everything in it, seconds since 1970.
        labels: More labels, which win over the computed ones.
    """

    name: str
    version: str
    artifact: str
    epoch: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


def contents(
    artifact: Artifact,
    card: bytes,
    title: Title,
    *,
    base: Base,
    wheels: Mapping[Wheel, Path],
    program: str | None,
    grpc: bool = False,
    device: str = "cpu",
) -> ImageContents:
    """Decide everything about an image.

    Args:
        artifact: An ONNX artifact.
        card: The model card, see `card`.
        title: Names and date.
        base: What it stands on.
        wheels: The server's distributions, wheel → file.
        program: Interpreter of this machine that compiles for the image's Python; None leaves byte code out.
        grpc: Whether it listens for gRPC too.
        device: ``cpu`` or ``cuda``.

    Raises:
        StageError: When the artifact is not ONNX, or compiling fails.
    """
    apart = {wheel: path for wheel, path in wheels.items() if wheel.name.startswith(CUDA)}
    rest = {wheel: path for wheel, path in wheels.items() if wheel not in apart}
    site, server = install.entries(rest, SITE), [Entry(name, path) for name, path in server_files()]
    if program is not None:
        compiled = bytecode.compiled([*site, *server], base.python.minor, program)
        site += [entry for entry in compiled if entry.name.startswith(f"{SITE}/")]
        server += [entry for entry in compiled if entry.name.startswith(f"{SERVER}/")]
    command = (base.python.path, "-m", PACKAGE, "--model", f"/{MODEL}")
    return ImageContents(
        layers=(
            *([layer("cuda", install.entries(apart, SITE), title.epoch)] if apart else []),
            layer("wheels", site, title.epoch),
            layer("server", server, title.epoch),
            layer("model", model_entries(artifact, card), title.epoch),
        ),
        entrypoint=command,
        env=ENV | ({"MODELPACK_GRPC_PORT": str(GRPC_PORT)} if grpc else {}) | (CUDA_ENV if device == "cuda" else {}),
        labels=labels(title, base),
        healthcheck=Healthcheck((*command, "--healthcheck")),
        created=timestamp(title.epoch),
        ports=tuple(f"{port}/tcp" for port in ([PORT, GRPC_PORT] if grpc else [PORT])),
    )


ENV = {
    "MODELPACK_MODEL": f"/{MODEL}",
    # onnxruntime wheels report home unless this is set before they are imported
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONPATH": f"/{SERVER}:/{SITE}",
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
}
"""What the server needs of its environment; the base's other variables stay."""
CUDA_ENV = {
    "MODELPACK_DEVICE": "cuda",
    # what NVIDIA's container runtime brings into the container: every card, and the driver's libraries for computing
    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    "NVIDIA_VISIBLE_DEVICES": "all",
}


def timestamp(epoch: int) -> str:
    """Write a date as images do.

    >>> timestamp(0)
    '1970-01-01T00:00:00Z'
    """
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def labels(title: Title, base: Base) -> dict[str, str]:
    """Describe an image in the words of the OCI image specification (annotations, "pre-defined keys")."""
    standard = {
        "title": title.name,
        "version": title.version,
        "revision": title.artifact,
        "created": timestamp(title.epoch),
        "base.name": base.ref.label,
        "base.digest": base.digest,
    }
    return {**{f"org.opencontainers.image.{key}": value for key, value in standard.items()}, **title.labels}


def model_entries(artifact: Artifact, card: bytes) -> list[Entry]:
    """List the files of the model layer.

    Raises:
        StageError: When the artifact is not ONNX.
    """
    if artifact.kind is not Kind.ONNX:
        raise StageError(
            f"an image serves ONNX, this artifact is {artifact.kind}", then="add an export step before build"
        )
    parts = (MODEL_FILE[Kind.ONNX], INTERFACE)
    names = [item.name for item in artifact.manifest.files if item.name.startswith(parts)]
    files = [Entry(f"{MODEL}/{name}", artifact.file(name)) for name in (*names, "signature.json")]
    return [*files, Entry(f"{MODEL}/card.json", card)]


def kinds(artifact: Artifact) -> frozenset[str]:
    """List the kinds of inputs that clients of a model send besides tensors: ``image``, ``text``."""
    name = f"{INTERFACE}json"
    if name not in {item.name for item in artifact.manifest.files}:
        return frozenset()
    return frozenset(kind for entry in artifact.read_json(name)["inputs"].values() for kind in entry)


def server_files() -> list[tuple[str, Path]]:
    """List the files of the server's package: name in the image, and where it is here."""
    return [
        (f"{SERVER}/{PACKAGE}/{path.relative_to(SERVER_SOURCES).as_posix()}", path)
        for path in sorted(SERVER_SOURCES.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.name not in _NOT_SHIPPED
    ]
