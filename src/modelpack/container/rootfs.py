"""A small Debian base with Python, for machines without a registry: ``python -m modelpack.container.rootfs base.tar``.

mmdebstrap extracts the packages and nothing else: no shell's start-up files, no package manager's scripts are run. What
no server needs of them is left out. The same packages give the same bytes.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from modelpack.container import bytecode
from modelpack.container.base import host_platform
from modelpack.container.blob import Blob
from modelpack.container.layers import DIRECTORY_MODE, Entry, chunks, header
from modelpack.container.tarball import BLOCK, CHUNK, Hashing, TarMember, members
from modelpack.errors import MissingError, ModelpackError, StageError

SUITE = "bookworm"
MINOR = 11
"""Minor version of that release's Python 3."""
PACKAGES = ("python3", "ca-certificates", "libstdc++6", "base-files")
_LIBRARY = f"usr/lib/python3.{MINOR}/"
_EXCLUDED = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*",
    "/usr/share/perl5/*", "/usr/share/gdb/*", "/usr/share/bug/*", "/usr/lib/*/gconv/*",
    # programs, all but Python: a package manager, an archiver, openssl's command
    "/bin/*", "/sbin/*", "/usr/bin/*", "/usr/sbin/*",
    # of the standard library what needs a terminal or a teacher, tests, databases, and encodings of East Asia
    *(f"/usr/lib/python3.*/{name}" for name in (
        "test/*", "pydoc_data/*", "turtle.py", "curses/*", "dbm/*", "sqlite3/*", "lib-dynload/_curses*",
        "lib-dynload/readline.*", "lib-dynload/_dbm.*", "lib-dynload/_sqlite3.*", "lib-dynload/nis.*",
        "lib-dynload/_test*", "lib-dynload/_ctypes_test*", "lib-dynload/_xxtest*", "lib-dynload/xxlimited*",
        "lib-dynload/_codecs_*",
    )),
    # and the libraries that nothing else of it loads
    *(f"{root}/lib/*/{name}" for root in ("", "/usr") for name in (
        "libsqlite3.so*", "libdb-5*", "libreadline.so*", "libhistory.so*", "libncurses*", "libtinfo.so*", "libtic.so*",
        "libform*", "libmenu*", "libpanel*", "libexpatw*", "libnsl.so*", "libtirpc.so*", "libkrb5*", "libk5crypto*",
        "libgssapi_krb5*", "libkeyutils*", "libcom_err*", "krb5/*", "libzstd.so*", "libpcre2*", "libselinux*",
        "libacl.so*", "libattr.so*", "libmd.so*", "libmvec.so*", "ossl-modules/*", "engines-3/*", "libmemusage*",
        "libc_malloc_debug*",
    )),
)  # fmt: skip
_INCLUDED = ("/usr/bin/python3*",)
_HOOK = """
mkdir -p "$1/var/lib/dpkg/status.d"
for package in "$1"/var/cache/apt/archives/*.deb; do
    dpkg-deb --field "$package" > "$1/var/lib/dpkg/status.d/$(dpkg-deb --field "$package" Package)"
done
: > "$1/etc/hostname"
: > "$1/etc/resolv.conf"
"""
"""Keeps what packages say of themselves, for lists of what is in an image, and nothing of this machine's network."""


def make(output: Path, architecture: str, mirror: str = "") -> bool:
    """Make a rootfs.

    Args:
        output: The tar to write.
        architecture: Debian's name of it: ``amd64`` or ``arm64``; no emulation is needed.
        mirror: Debian mirror; the machine's own sources when empty.

    Returns:
        Whether byte code for the standard library is in it.

    Raises:
        MissingError: When mmdebstrap is not installed or its mirror does not answer.
        StageError: When it cannot be written.
    """
    if shutil.which("mmdebstrap") is None:
        raise MissingError("mmdebstrap is not installed", then="apt-get install mmdebstrap  (or `make system-deps`)")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        plain, finished = Path(folder) / "plain.tar", Path(folder) / "finished.tar"
        _bootstrap(plain, architecture, mirror)
        compiled = _compile(plain, finished)
        (finished if compiled else plain).replace(output)
    return compiled


def _bootstrap(output: Path, architecture: str, mirror: str) -> None:
    done = subprocess.run(
        [
            "mmdebstrap",
            "--variant=extract",
            f"--architectures={architecture}",
            f"--include={','.join(PACKAGES)}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
            *(f"--dpkgopt=path-include={pattern}" for pattern in _INCLUDED),
            f"--extract-hook={_HOOK}",
            SUITE,
            str(output),
            *([mirror] if mirror else []),
        ],
        env={**os.environ, "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "0")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = "\n  ".join(done.stderr.strip().splitlines()[-4:])
        raise MissingError("mmdebstrap failed; is a Debian mirror reachable?", then=reason)


def _compile(plain: Path, finished: Path) -> bool:
    """Append byte code for the standard library, so that a read-only container need not compile it at every start."""
    program = bytecode.interpreter(MINOR)
    if program is None:
        return False
    with plain.open("rb") as stream:
        found = list(members(Hashing(stream, str(plain)), str(plain)))
    sources = [_source(plain, item) for item in found if item.kind == "file" and _wanted(item.name)]
    entries = sorted(bytecode.compiled(sources, MINOR, program), key=lambda entry: entry.name)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    end = max(item.offset + item.size + -item.size % BLOCK for item in found)
    with plain.open("rb") as stream, finished.open("wb") as target:
        while end and (piece := stream.read(min(CHUNK, end))):
            target.write(piece)
            end -= len(piece)
        for folder in sorted({posixpath.dirname(entry.name) for entry in entries}):
            target.write(header(f"{folder}/", mode=DIRECTORY_MODE, kind=b"5", epoch=epoch))
        for piece in chunks(entries, epoch, parents=False):
            target.write(piece)
    return True


def _wanted(name: str) -> bool:
    return name.startswith(_LIBRARY) and name.endswith(".py") and "/test/" not in name and "/pydoc_data/" not in name


def _source(archive: Path, member: TarMember) -> Entry:
    return Entry(member.name, Blob(archive, member.size, member.offset))


def main(arguments: list[str] | None = None) -> int:
    """Make a rootfs from the command line; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m modelpack.container.rootfs", description=__doc__)
    parser.add_argument("output", type=Path, help="the tar to write")
    host = host_platform().rpartition("/")[2]
    parser.add_argument("--architecture", choices=("amd64", "arm64"), default=host, help="processor of the image")
    parser.add_argument("--mirror", default="", help="Debian mirror (default: the machine's own)")
    options = parser.parse_args(arguments)
    try:
        compiled = make(options.output, options.architecture, options.mirror)
    except OSError as error:
        failure: ModelpackError = StageError(f"cannot write: {error.strerror}", where=str(options.output))
    except ModelpackError as error:
        failure = error
    else:
        note = "" if compiled else f" (no python3.{MINOR} here compiles its library: containers start a second slower)"
        sys.stdout.write(f"{options.output}: {options.output.stat().st_size / 1e6:.0f} MB{note}\n")
        return 0
    sys.stderr.write(f"error: {failure}\n")
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main())
