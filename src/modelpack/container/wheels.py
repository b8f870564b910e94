"""The distributions inside an image: locked by hash, resolved for the image's Python and platform, kept in a cache.

``wheels.json`` is the lock: for every distribution of ``server/requirements.txt`` the files that exist for each Python
and machine, with their SHA-256. ``python -m modelpack.container.wheels`` writes it anew after the requirements changed.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.container.tree import SUPPORTED
from modelpack.errors import MissingError, StageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from packaging.tags import Tag

LOCK = Path(__file__).with_name("wheels.json")
REQUIREMENTS = Path(__file__).parent.parent / "server" / "requirements.txt"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
CUDA = "nvidia-"
"""What the names of distributions begin with that hold CUDA's own libraries."""
_KINDS = {
    "image": ("pillow",),
    "text": ("tokenizers",),
    "grpc": ("grpcio", "protobuf", "typing-extensions"),
    "opentelemetry": (
        "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-semantic-conventions", "opentelemetry-proto",
        "opentelemetry-exporter-otlp-proto-http", "opentelemetry-exporter-otlp-proto-common",
        "opentelemetry-exporter-otlp-common", "opentelemetry-exporter-http-transport", "googleapis-common-protos",
        "protobuf", "typing-extensions", "requests", "certifi", "charset-normalizer", "idna", "urllib3",
    ),
    "cuda": (
        "onnxruntime-gpu", "nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cudnn-cu13",
        "nvidia-cufft", "nvidia-curand", "nvidia-nvjitlink",
    ),
}  # fmt: skip
OPTIONAL = {
    name: frozenset(kind for kind, names in _KINDS.items() if name in names)
    for name in itertools.chain.from_iterable(_KINDS.values())
}
"""Distributions only in images that need them, with what for: models that take images or texts, gRPC, OpenTelemetry,
CUDA."""
_REPLACED = {"onnxruntime": "cuda"}
"""Distributions that one of `OPTIONAL` stands in for."""
_ONLY = {"cuda": "amd64"}
"""Kinds whose distributions exist for one architecture."""
_NEWEST_GLIBC = 28
"""manylinux_2_28 is what the pinned onnxruntime is built for; every newer base runs it."""


@dataclass(frozen=True)
class Wheel:
    """One file to install: distribution, version, file name, SHA-256."""

    name: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Target:
    """What wheels must fit: minor version of CPython 3 and OCI architecture."""

    minor: int
    architecture: str

    @property
    def platforms(self) -> tuple[str, ...]:
        """Platform tags, best first."""
        machine = MACHINES[self.architecture]
        modern = [f"manylinux_2_{glibc}_{machine}" for glibc in range(_NEWEST_GLIBC, 4, -1)]
        return (*modern, *(f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1")))

    def tags(self) -> Iterator[Tag]:
        """Compatibility tags, best first."""
        from packaging import tags

        version, interpreter = (3, self.minor), f"cp3{self.minor}"
        yield from tags.cpython_tags(version, [interpreter], self.platforms)
        yield from tags.compatible_tags(version, interpreter, self.platforms)


def cache_directory() -> Path:
    """Give the directory for downloads: ``$XDG_CACHE_HOME/modelpack``, by default ``~/.cache/modelpack``.

    Raises:
        MissingError: When the user has no home directory.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "modelpack"
    except RuntimeError as error:
        raise MissingError(f"no place for downloads: {error}", then="set XDG_CACHE_HOME to a directory") from error


def requirements() -> dict[str, str]:
    """Read the pinned distributions, name → version."""
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text("utf-8").splitlines())
    return dict(line.split("==") for line in lines if line)


def select(target: Target, kinds: Collection[str] = ()) -> tuple[Wheel, ...]:
    """Choose from the lock the best file of every distribution that an image needs; `kinds` are of `OPTIONAL`.

    Raises:
        StageError: When a distribution has no file for the target.
    """
    from packaging.utils import parse_wheel_filename

    rank = {tag: position for position, tag in enumerate(target.tags())}
    chosen = []
    for item in json.loads(LOCK.read_bytes()):
        needs = OPTIONAL.get(item["name"])
        if (needs and not needs & set(kinds)) or _REPLACED.get(item["name"]) in kinds:
            continue
        ranked = sorted(
            (min(rank[tag] for tag in tags), file)
            for file in item["files"]
            if (tags := parse_wheel_filename(file)[3] & rank.keys())
        )
        if not ranked:
            raise StageError(
                f"{item['name']} {item['version']} has no wheel for Python 3.{target.minor} on {target.architecture}",
                then="choose a base with another Python",
            )
        file = ranked[0][1]
        chosen.append(Wheel(item["name"], item["version"], file, item["files"][file]))
    return tuple(chosen)


def resolve(target: Target, cache: Path, kinds: Collection[str] = (), *, offline: bool = False) -> dict[Wheel, Path]:
    """Give every wheel of the target as a file in the cache, downloading what is not there.

    Args:
        target: The image's Python and machine.
        cache: See `cache_directory`.
        kinds: What the image is for besides tensors by HTTP, of `OPTIONAL`.
        offline: Do not download.

    Raises:
        MissingError: When a wheel is neither in the cache nor to be had.
        StageError: When the lock has none for the target.
    """
    folder = cache / "wheels"
    files = {wheel: folder / wheel.sha256[:16] / wheel.file for wheel in select(target, kinds)}
    wanted = [wheel for wheel, path in files.items() if not _intact(path, wheel)]
    if wanted and offline:
        names = ", ".join(f"{wheel.name} {wheel.version}" for wheel in wanted)
        raise MissingError(
            f"not in the cache: {names}", where=str(folder), then="build once without --offline on this machine"
        )
    if wanted:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            _download(wanted, target, Path(draft))
            for wheel in wanted:
                files[wheel].parent.mkdir(exist_ok=True)
                (Path(draft) / wheel.file).replace(files[wheel])
    return files


def _intact(path: Path, wheel: Wheel) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == wheel.sha256


def _pip(command: Sequence[str], target: Target) -> subprocess.CompletedProcess[str]:
    platforms = [argument for name in target.platforms for argument in ("--platform", name)]
    return subprocess.run(
        [sys.executable, "-m", "pip", *command, "--no-deps", "--only-binary=:all:", "--no-input", "--quiet",
         "--disable-pip-version-check", "--implementation=cp", f"--python-version=3.{target.minor}", *platforms],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def _download(wanted: Sequence[Wheel], target: Target, folder: Path) -> None:
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{item.name}=={item.version} --hash=sha256:{item.sha256}\n" for item in wanted))
    done = _pip(["download", "--require-hashes", f"--requirement={pins}", f"--dest={folder}"], target)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip exited with {done.returncode}"
        raise MissingError(
            f"the image's wheels could not be downloaded: {reason}",
            then="check pip's index (pip config list), or fill the cache on another machine and use --offline",
        )
    for wheel in wanted:
        if not _intact(folder / wheel.file, wheel):
            raise StageError(f"pip brought another file than the lock names for {wheel.name}", where=wheel.file)


@functools.cache
def digest() -> str:
    """Give the identity of the lock."""
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def lock() -> list[dict[str, Any]]:
    """Ask pip's index which files exist for the pinned requirements, for every supported Python and machine.

    Raises:
        MissingError: When pip cannot resolve one.
    """
    files: dict[str, dict[str, str]] = {name: {} for name in requirements()}
    for target in (Target(minor, architecture) for minor in SUPPORTED for architecture in MACHINES):
        with tempfile.TemporaryDirectory() as folder:
            report, pins = Path(folder) / "report.json", Path(folder) / "pins.txt"
            pins.write_text(
                "".join(f"{name}=={version}\n" for name, version in requirements().items() if _made(name, target))
            )
            done = _pip(
                ["install", "--dry-run", "--ignore-installed", f"--target={folder}/none", f"--report={report}",
                 f"--requirement={pins}"], target,
            )  # fmt: skip
            if done.returncode:
                raise MissingError(f"pip could not resolve the requirements for {target}", where=done.stderr.strip())
            for item in json.loads(report.read_bytes())["install"]:
                name = item["metadata"]["name"].lower().replace("_", "-")
                info = item["download_info"]
                files[name][info["url"].rpartition("/")[2]] = info["archive_info"]["hashes"]["sha256"]
    return [
        {"name": name, "version": version, "files": dict(sorted(files[name].items()))}
        for name, version in sorted(requirements().items())
    ]


def _made(name: str, target: Target) -> bool:
    """Tell whether a distribution exists for an architecture."""
    return all(_ONLY.get(kind, target.architecture) == target.architecture for kind in OPTIONAL.get(name, ()))


if __name__ == "__main__":
    draft = LOCK.with_suffix(".new")
    draft.write_text(json.dumps(lock(), indent=1) + "\n", encoding="utf-8")
    shutil.move(draft, LOCK)
