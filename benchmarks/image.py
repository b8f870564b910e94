"""What an image weighs, layer by layer, and what the same model takes with other servers' dependencies.

Usage: ``python benchmarks/image.py ARCHIVE.tar [--keep-rivals] [--store DIR --base REF]``

The archive is what ``modelpack build --output ARCHIVE.tar`` writes. Rivals are installed with pip into an empty
directory, which takes some minutes and a gigabyte of disk. With a store and a base its newest model is built into
images under new names, and timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path
from typing import IO, Any

from table import RESULTS, write

RIVALS = {
    "pip install onnxruntime numpy": ("onnxruntime", "numpy"),
    "BentoML and onnxruntime": ("bentoml", "onnxruntime"),
    "MLflow and onnxruntime": ("mlflow", "onnxruntime"),
    "LitServe and onnxruntime": ("litserve", "onnxruntime"),
}
MEGABYTE = 1e6


def blob(archive: tarfile.TarFile, digest: str) -> IO[bytes]:
    """Open a blob of an OCI layout by its digest."""
    found = archive.extractfile(f"blobs/{digest.replace(':', '/')}")
    assert found is not None
    return found


def document(archive: tarfile.TarFile, name: str) -> Any:
    """Read a JSON file of the archive."""
    found = archive.extractfile(name)
    assert found is not None
    return json.load(found)


def unpacked(stream: IO[bytes]) -> int:
    """Count the bytes of the files in a layer, compressed or not."""
    with tarfile.open(fileobj=stream, mode="r:*") as layer:
        return sum(member.size for member in layer)


def packed(stream: IO[bytes]) -> int:
    """Count the bytes of a layer as a registry would send it: gzipped."""
    start = stream.read(2)
    if start == b"\x1f\x8b":
        return stream.seek(0, 2)
    stream.seek(0)
    squeeze, total = zlib.compressobj(6, zlib.DEFLATED, 31), 0
    while chunk := stream.read(1 << 20):
        total += len(squeeze.compress(chunk))
    return total + len(squeeze.flush())


def layers(path: Path) -> list[dict[str, Any]]:
    """List an archive's layers from the base up: name, bytes of its files, bytes gzipped."""
    with tarfile.open(path) as archive:
        index = document(archive, "index.json")
        manifest = json.load(blob(archive, index["manifests"][0]["digest"]))
        config = json.load(blob(archive, manifest["config"]["digest"]))
        told = [entry for entry in config.get("history", []) if not entry.get("empty_layer")]
        names = [entry.get("comment") or entry.get("created_by", "") for entry in told]
        return [
            {
                "name": names[number] if number < len(names) else f"layer {number + 1}",
                "unpacked": unpacked(blob(archive, layer["digest"])),
                "packed": packed(blob(archive, layer["digest"])),
            }
            for number, layer in enumerate(manifest["layers"])
        ]


def installed(packages: tuple[str, ...]) -> int:
    """Install packages with all they depend on into an empty directory, and count its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", folder, *packages]
        subprocess.run(command, check=True)
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())


def rivals(keep: bool) -> dict[str, float]:
    """Measure what the rivals take in megabytes, or take it from the last results."""
    if not keep:
        return {name: installed(packages) / MEGABYTE for name, packages in RIVALS.items()}
    rows = json.loads((RESULTS / "image.json").read_text("utf-8"))["rows"]
    known = {row["what"]: float(row["unpacked"].removesuffix(" MB")) for row in rows}
    return {name: known[name] for name in RIVALS if name in known}


def building(store: Path, base: str, rounds: int = 5) -> str:
    """Build images under new names, everything else being in the cache; tells the least and the median of the times."""
    clock, processor = [], []
    for turn in range(rounds + 1):
        command = ["build", "--store", str(store), "--base", base, "--tag", f"timed:{time.time_ns()}", "--quiet"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "modelpack", *command], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if turn:  # the first fills the cache
            clock.append(time.perf_counter() - began)
            processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return (
        f"`modelpack build` from a warm cache took {min(clock):.1f} s at least and {statistics.median(clock):.1f} s in "
        f"the median of {rounds}, {statistics.median(processor):.1f} s of CPU time."
    )


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--keep-rivals", action="store_true", help="take the rivals' sizes from the last results")
    parser.add_argument("--store", type=Path, help="with a base: where the model is that is built again and timed")
    parser.add_argument("--base", default="", help="what images stand on that are timed")
    options = parser.parse_args()
    found = layers(options.archive)
    rows = [
        {
            "what": f"layer: {layer['name']}",
            "unpacked": f"{layer['unpacked'] / MEGABYTE:.1f} MB",
            "gzipped": f"{layer['packed'] / MEGABYTE:.1f} MB",
            "against ours": "",
        }
        for layer in found
    ]
    ours = sum(layer["unpacked"] for layer in found[1:])
    for name, part in (("whole image", found), ("ours: all above the base", found[1:])):
        rows.append(
            {
                "what": name,
                "unpacked": f"{sum(layer['unpacked'] for layer in part) / MEGABYTE:.1f} MB",
                "gzipped": f"{sum(layer['packed'] for layer in part) / MEGABYTE:.1f} MB",
                "against ours": "1.0x" if part is not found else "",
            }
        )
    for name, size in rivals(options.keep_rivals).items():
        rows.append(
            {
                "what": name,
                "unpacked": f"{size:.1f} MB",
                "gzipped": "",
                "against ours": f"{size * MEGABYTE / ours:.1f}x",
            }
        )
    note = (
        "Unpacked: bytes of the files. Ours is the server with its wheels, compiled to bytecode to start at once, "
        "and the quickstart's model, above the base image. The others are what pip installs for the same Python, not "
        "compiled, before any model or server code, and without a base."
    )
    notes = [note, building(options.store, options.base)] if options.store else [note]
    write("image", "The image", rows, notes, "python benchmarks/image.py image.tar")


if __name__ == "__main__":
    main()
