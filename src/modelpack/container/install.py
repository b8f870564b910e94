"""Wheels → the files of a layer: unpacked as an installer would, without what serving never touches."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from typing import TYPE_CHECKING

from modelpack.container import elf
from modelpack.container.layers import Entry, Member
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from modelpack.container.wheels import Wheel

UNUSED = frozenset({"flatbuffers", "packaging"})
"""Declared by onnxruntime for its tools; inference imports none of them."""

_TRIM = (
    # type stubs, sources of compiled modules, headers and static libraries
    "*.pyi", "*.pyx", "*.pxd", "*.pxi", "*.c", "*.h", "*.a", "*.pc", "*/py.typed",
    "*/tests/*", "*/test/*", "numpy/_pyinstaller/*", "numpy/f2py/*", "numpy/distutils/*", "numpy/_core/include/*",
    "numpy/_core/_simd.*", "numpy/_core/*_tests.*",
    # the engine's second copy: Python uses the one inside the binding module
    "onnxruntime/capi/libonnxruntime.so*",
    "onnxruntime/tools/*", "onnxruntime/transformers/*", "onnxruntime/quantization/*", "onnxruntime/datasets/*",
    "onnxruntime/backend/*", "onnxruntime/training/*",
    # of Pillow what opens formats that the server refuses, writes text, prints colours and draws in windows
    "PIL/_avif*", "PIL/_imagingft*", "PIL/_imagingcms*", "PIL/_imagingtk*", "pillow.libs/libavif*",
    "pillow.libs/libfreetype*", "pillow.libs/libharfbuzz*", "pillow.libs/libbrotli*", "pillow.libs/libpng16*",
    "pillow.libs/liblcms2*",
    # of CUDA what only compilers and linkers read, and of onnxruntime for it what TensorRT would need
    "nvidia/*/include/*", "nvidia/*/lib/libnvblas.*", "nvidia/*/lib/libcufftw.*", "nvidia/*/lib/cmake/*",
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
    "uvloop/_testbase.py", "prometheus_client/aiohttp/*", "prometheus_client/django/*", "prometheus_client/twisted/*",
    # written by whoever installs, or about how; never the same twice
    "*.dist-info/RECORD*", "*.dist-info/INSTALLER", "*.dist-info/REQUESTED", "*.dist-info/direct_url.json",
    "*.dist-info/entry_points.txt",
)  # fmt: skip
_LIBRARY = re.compile(r"(?!nvidia/|onnxruntime/capi/libonnxruntime_providers_cuda).*\.so(\.|$)")
"""What is trimmed; what holds programs for graphics cards is read by more than the loader, and stays whole."""
_TRIMMED = re.compile("|".join(fnmatch.translate(pattern) for pattern in _TRIM))


def kept(name: str) -> bool:
    """Tell whether serving may need an installed file.

    >>> kept("numpy/_core/numeric.py"), kept("numpy/_core/tests/test_numeric.py")
    (True, False)
    """
    return not _TRIMMED.match(name)


def entries(files: Mapping[Wheel, Path], root: str) -> list[Entry]:
    """List what installing some wheels puts below a directory of the image.

    Args:
        files: Wheel → its file.
        root: Directory in the image, without the leading slash.

    Raises:
        StageError: When a file is no valid wheel, or two bring the same name.
    """
    found: dict[str, Entry] = {}
    for wheel, path in files.items():
        if wheel.name in UNUSED:
            continue
        for name, member in _contents(path):
            if not kept(name):
                continue
            place = posixpath.join(root, name)
            if place in found:
                raise StageError(f"two wheels bring '{name}'", where=wheel.file)
            found[place] = Entry(place, elf.trimmed(member) if _LIBRARY.match(name) else member)
    return list(found.values())


def _contents(path: Path) -> Iterable[tuple[str, Member]]:
    """Pair the files of a wheel with their names below site-packages; scripts, headers and data are left out."""
    import zipfile

    from installer.exceptions import InstallerError
    from installer.sources import WheelFile

    try:
        with WheelFile.open(path) as wheel:
            wheel.validate_record(validate_contents=False)  # the file's hash is in the lock
            data = wheel.data_dir
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.infolist() if not item.is_dir()]
    except (InstallerError, ValueError, zipfile.BadZipFile) as error:
        raise StageError(f"not a valid wheel: {error}", where=str(path)) from error
    for item in members:
        name = item.filename
        if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise StageError(f"'{name}' is compressed in a way that installers need not know", where=str(path))
        deflated = item.compress_type == zipfile.ZIP_DEFLATED
        member = Member(path, name, item.file_size, item.header_offset, item.compress_size, deflated)
        scheme, _, below = name.removeprefix(f"{data}/").partition("/")
        if not name.startswith(f"{data}/"):
            yield name, member
        elif scheme in ("purelib", "platlib"):
            yield below, member
