"""What the tests of images share: bases made by hand, small wheels, a sealed ONNX artifact, engines and registries."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelpack import canonical
from modelpack.artifact import Artifact, Kind
from modelpack.container import wheels
from modelpack.store import Store

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(60)
PYTHON = {
    "usr/bin/python3.11": (0o755, ELF),
    "usr/lib/python3.11/asyncio/__init__.py": (0o644, b""),
    "usr/lib/x86_64-linux-gnu/libstdc++.so.6": (0o644, b"\x7fELF"),
}
"""Files of the smallest base that is accepted."""


def tar_of(files: dict[str, tuple[int, bytes] | str], **member: str) -> bytes:
    """Write a tar as tools in the wild do; a string is a symlink's target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, what in files.items():
            info = tarfile.TarInfo(name)
            info.mtime, info.uname = 1234567890, "builder"
            if isinstance(what, str):
                info.type, info.linkname = tarfile.SYMTYPE, what
                archive.addfile(info)
            else:
                info.mode, info.size = what[0], len(what[1])
                archive.addfile(info, io.BytesIO(what[1]))
    return buffer.getvalue()


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def zipped(data: bytes) -> bytes:
    """Compress without the time of day, which `gzip.compress` writes."""
    return gzip.compress(data, mtime=0)


def image_files(layers: list[bytes], *, compress=None, env=(), architecture="amd64", **config) -> dict[str, bytes]:
    """Write an image as the files of an OCI layout that is a docker archive as well."""
    stored = [compress(item) if compress else item for item in layers]
    settings = canonical.encode(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": list(env), **config},
            "rootfs": {"type": "layers", "diff_ids": [sha(item) for item in layers]},
        }
    )
    manifest = canonical.encode(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"digest": sha(settings), "size": len(settings)},
            "layers": [{"digest": sha(item), "size": len(item)} for item in stored],
        }
    )
    blobs = {f"blobs/sha256/{sha(data)[7:]}": data for data in (settings, manifest, *stored)}
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": sha(manifest),
                "size": len(manifest),
                "platform": {"os": "linux", "architecture": architecture},
                "annotations": {"org.opencontainers.image.ref.name": "one"},
            }
        ],
    }
    docker = [
        {
            "Config": f"blobs/sha256/{sha(settings)[7:]}",
            "RepoTags": ["tiny:one"],
            "Layers": [f"blobs/sha256/{sha(item)[7:]}" for item in stored],
        }
    ]
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps(index).encode(),
        "manifest.json": json.dumps(docker).encode(),
        **blobs,
    }


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def archive_of(files: dict[str, bytes]) -> bytes:
    return tar_of({name: (0o644, data) for name, data in files.items()})


def wheel(folder: Path, name: str, files: dict[str, bytes], tag: str = "py3-none-any") -> tuple[str, str]:
    """Write a valid wheel; gives its file name and SHA-256."""
    info = f"{name}-1.0.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    lines = io.StringIO()
    rows = csv.writer(lines)
    for path, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow([path, f"sha256={digest}", len(data)])
    rows.writerow([f"{info}/RECORD", "", ""])
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in {**content, f"{info}/RECORD": lines.getvalue().encode()}.items():
            archive.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), data)
    return path.name, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def little_wheels(tmp_path, monkeypatch):
    """Replace the lock by one with two small distributions that are already in the cache."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    draft = tmp_path / "wheels"
    draft.mkdir()
    files = {
        "alpha": {"alpha/__init__.py": b"VALUE = 7\n", "alpha/tests/test_a.py": b"", "alpha/x.pyi": b""},
        "beta": {"beta.py": b"import alpha\n", "beta-1.0.data/scripts/run": b"#!python\n"},
    }
    locked = []
    for name, content in files.items():
        file, digest = wheel(draft, name, content)
        place = cache / "modelpack" / "wheels" / digest[:16] / file
        place.parent.mkdir(parents=True)
        shutil.move(draft / file, place)
        locked.append({"name": name, "version": "1.0", "files": {file: digest}})
    lock = tmp_path / "wheels.json"
    lock.write_text(json.dumps(locked))
    monkeypatch.setattr(wheels, "LOCK", lock)
    wheels.digest.cache_clear()
    yield cache / "modelpack"
    wheels.digest.cache_clear()


@pytest.fixture
def rootfs(tmp_path):
    """A base that is accepted, as a rootfs."""
    path = tmp_path / "base.tar"
    path.write_bytes(tar_of(PYTHON))
    return path


def onnx_artifact(root: Path, seed: int = 0) -> Artifact:
    """Seal a small model: three classes from four numbers."""
    weight = np.random.default_rng(seed).standard_normal((4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    signature = {
        "inputs": {"x": {"shape": ["batch", 4], "dtype": "float32", "range": None}},
        "outputs": {"scores": {"shape": ["batch", 3], "dtype": "float32"}},
    }
    store = Store(root / "models")
    store.prepare()
    with store.draft() as draft:
        onnx.save(model, draft.path / "model.onnx")
        (draft.path / "signature.json").write_bytes(canonical.encode(signature))
        return store.commit(draft, Kind.ONNX, {"stage": "planted", "seed": seed}, {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def program(command: list[str], log: Path, ready, seconds: float = 30, **options):
    """Run a program until the block ends; `ready` says when it can be used. Yields None where it cannot start."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
        try:
            end = time.monotonic() + seconds
            while process.poll() is None and not ready() and time.monotonic() < end:
                time.sleep(0.1)
            yield process if process.poll() is None and ready() else None
        finally:
            process.terminate()
            process.wait(30)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def dockerd(tmp_path_factory):
    """A Docker engine of the test's own, without network; skips with the reason where there can be none."""
    if missing := [name for name in ("dockerd", "docker") if shutil.which(name) is None]:
        pytest.skip(f"needs {' and '.join(missing)} (apt-get install docker.io)")
    if os.geteuid() != 0:
        pytest.skip("needs root to start dockerd")
    root = Path("/tmp") / f"mp-docker-{os.getpid()}"  # a socket's path must be short
    log = tmp_path_factory.mktemp("dockerd") / "log"
    host = f"unix://{root}/docker.sock"

    def ready():
        done = subprocess.run(["docker", f"--host={host}", "version"], capture_output=True, check=False)
        return done.returncode == 0

    for driver in ("overlay2", "vfs"):  # the first is faster, the second works on every file system
        root.mkdir()
        command = ["dockerd", f"--storage-driver={driver}", "--iptables=false", "--ip6tables=false", "--bridge=none",
                   f"--data-root={root}/data", f"--exec-root={root}/exec", f"--pidfile={root}/pid", f"--host={host}"]  # fmt: skip
        with program(command, log, ready) as process:
            if process is not None:
                yield host
        for name in (root / "exec" / "netns").glob("*"):  # an engine leaves its network's name mounted
            subprocess.run(["umount", "--lazy", str(name)], check=False)
        shutil.rmtree(root, ignore_errors=True)
        if process is not None:
            return
    pytest.skip(f"dockerd does not start: {log.read_text(errors='replace')[-300:]}")


@pytest.fixture(scope="session")
def debian(tmp_path_factory):
    """A real base from mmdebstrap; skips where there is none or no mirror answers."""
    from modelpack.container import rootfs
    from modelpack.errors import MissingError

    path = tmp_path_factory.mktemp("debian") / "base.tar"
    try:
        rootfs.make(path, "amd64")
    except MissingError as error:
        pytest.skip(f"no rootfs: {error}")
    return path


@pytest.fixture
def registry(tmp_path):
    """A real registry on loopback; gives host:port. Skips where docker-registry is missing."""
    from registries import debian_registry

    with debian_registry(tmp_path / "registry") as host:
        yield host
