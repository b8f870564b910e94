"""What this machine offers and what is missing: looked up, never guessed, and without changing anything."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelpack import __version__, device
from modelpack.errors import ModelpackError

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGES = (
    "torch", "torch-pruning", "torchmetrics", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy",
)  # fmt: skip
EXTRAS = {
    "cpu": "onnxruntime for processors: measuring, quantizing and serving",
    "cuda": "onnxruntime for NVIDIA GPUs, and their memory in benchmarks",
    "images": "the data source image_folder",
    "tables": "Parquet and CSV files in the data source table",
    "text": "the data source text, with tokenizers",
    "slim": "the tool onnxslim of the stage optimize",
    "peers": "backend nncf of the stage quantize, and what benchmarks compare with",
    "serve": "modelpack serve, the image's server on this machine",
}
"""What each optional extra brings."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        topic: What it belongs to, such as ``processor``.
        name: What was looked at.
        found: What is there; empty when nothing is.
        then: What to do where something is missing, or what follows from it.
        ok: False where something that modelpack can use is missing.
    """

    topic: str
    name: str
    found: str
    then: str = ""
    ok: bool = True

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        return asdict(self)


def examine(registry: str | None = None) -> list[Finding]:
    """Look at everything.

    Args:
        registry: An image, such as ``python:3.11-slim``, to ask its registry for; none is asked when absent.
    """
    found = [*_versions(), *_processor(), *_devices(), *_docker(), *_extras()]
    return found + ([_registry(registry)] if registry else [])


def _versions() -> list[Finding]:
    found = [
        Finding("versions", "modelpack", __version__),
        Finding("versions", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    runtimes = ("onnxruntime", "onnxruntime-gpu")
    for name in PACKAGES:
        version = _version(name)
        if version or name not in runtimes:
            found.append(Finding("versions", name, version, "" if version else f"pip install {name}", bool(version)))
    if not any(_version(name) for name in runtimes):
        found.append(Finding("versions", "onnxruntime", "", "pip install 'modelpack[cpu]'", ok=False))
    return found


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> list[Finding]:
    known = device.processor()
    flags = set(known["flags"])
    fast = flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
    cores = str(device.machine("cpu")["cores"])
    then = "int8 runs fast here" if fast else "no VNNI or AMX: int8 may be no faster than float32 here; bench tells"
    return [
        Finding("processor", "name", known["name"]),
        Finding("processor", "cores", cores),
        Finding("processor", "int8 instructions", ", ".join(sorted(fast)), then, bool(fast)),
    ]


def _devices() -> list[Finding]:
    lacks = device.cuda_lacks()
    count = device.cuda_devices()
    found = [Finding("devices", "CUDA", f"{count} usable" if not lacks else "", "; ".join(lacks), not lacks)]
    try:
        from modelpack.numerics import runtime
        from modelpack.numerics.quantization import hardware
    except (ImportError, ModelpackError) as error:
        return [*found, Finding("devices", "onnxruntime providers", "", str(error), ok=False)]
    target = hardware.profile("auto", "cpu")
    return [
        *found,
        Finding("devices", "onnxruntime providers", ", ".join(runtime.available())),
        Finding("devices", "quantization target", target.name, target.reason),
    ]


def _docker() -> list[Finding]:
    from modelpack.container import engine

    then = "only `builder: docker` and loading images need one"
    try:
        with engine.engine() as client:
            version = str(client.version()["Version"])
        found = Finding("images", "Docker engine", version)
    except ModelpackError as error:
        found = Finding("images", "Docker engine", "", f"{error.what.partition(':')[0]}; {then}", ok=False)
    tool = shutil.which("mmdebstrap") or ""
    hint = "" if tool else "makes a base image without a registry: apt-get install mmdebstrap"
    return [found, Finding("images", "mmdebstrap", tool, hint, bool(tool))]


def _registry(image: str) -> Finding:
    from modelpack.container import registry
    from modelpack.container.http import Registry
    from modelpack.container.reference import ImageName

    try:
        name = ImageName.parse(image)
        with Registry(name) as connection:
            registry.manifest(connection, name.digest or name.tag)
    except ModelpackError as error:
        return Finding("images", f"registry for {image}", "", error.what, ok=False)
    return Finding("images", f"registry for {image}", f"{name.registry} answers and has it")


def _extras() -> list[Finding]:
    found = []
    wanted = _requirements(importlib.metadata.requires("modelpack") or ())
    for extra, what in EXTRAS.items():
        missing = [name for name in wanted.get(extra, []) if not _version(name)]
        then = f"{what}: pip install 'modelpack[{extra}]'" if missing else what
        found.append(Finding("extras", extra, "" if missing else "installed", then, not missing))
    return found


def _requirements(lines: Iterable[str]) -> dict[str, list[str]]:
    """Sort a distribution's requirements by the extra that asks for them."""
    wanted: dict[str, list[str]] = {}
    for line in lines:
        name = _NAME.match(line)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        if name and extra:
            wanted.setdefault(extra[1], []).append(name[0])
    return wanted
