"""The scripts that make README's figures: their arithmetic, and the pages they write."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Import a benchmark as Python does when it is run: with its neighbours importable."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        found = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, found)
        spec.loader.exec_module(found)
        return found

    return load


def test_a_ratio_is_the_median_of_pairs_with_its_quartiles(module):
    assert module("table").ratio([2, 4, 6, 8, 30], [1, 2, 3, 4, 5]) == "2.00x (2.00 to 4.00)"


def test_a_page_and_its_data_tell_the_same_with_the_machine_and_the_command(module, tmp_path, monkeypatch, capsys):
    table = module("table")
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    table.write("speed", "Speed", [{"what": "a", "x": 1}, {"what": "b"}], ["How."], "python speed.py")
    page = (tmp_path / "results" / "speed.md").read_text()
    assert page.startswith("# Speed\n\n| what | x |\n| --- | --- |\n| a | 1 |\n| b |  |\n\nHow.\n\nMachine: ")
    assert page.endswith("Repeat with `python speed.py`.\n")
    assert capsys.readouterr().out.strip() == page.strip()
    data = json.loads((tmp_path / "results" / "speed.json").read_text())
    assert data["rows"] == [{"what": "a", "x": 1}, {"what": "b"}]
    assert data["machine"]["cores"] >= 1


def test_layers_are_named_and_weighed_packed_and_unpacked(module, tmp_path):
    blobs = {}

    def keep(data: bytes) -> str:
        blobs[hashlib.sha256(data).hexdigest()] = data
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def layer(size: int) -> bytes:
        with io.BytesIO() as stream:
            with tarfile.open(fileobj=stream, mode="w") as tar:
                entry = tarfile.TarInfo("file")
                entry.size = size
                tar.addfile(entry, io.BytesIO(bytes(size)))
            return stream.getvalue()

    small, large = gzip.compress(layer(3000), mtime=0), layer(70_000)
    history = [{"created_by": "base"}, {"created_by": "ENV", "empty_layer": True}, {"comment": "model"}]
    config = keep(json.dumps({"history": history}).encode())
    layers = [{"digest": keep(small)}, {"digest": keep(large)}]
    manifest = keep(json.dumps({"config": {"digest": config}, "layers": layers}).encode())
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        files = {f"blobs/sha256/{name}": data for name, data in blobs.items()}
        files["index.json"] = json.dumps({"manifests": [{"digest": manifest}]}).encode()
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    base, model = module("image").layers(tmp_path / "image.tar")
    assert (base["name"], base["unpacked"], base["packed"]) == ("base", 3000, len(small))
    assert (model["name"], model["unpacked"]) == ("model", 70_000)
    assert model["packed"] < 1000


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_committed_figures_say_where_they_were_measured_and_how_to_repeat_them(path):
    data = json.loads(path.read_text())
    script = data["command"].split()[1]
    assert (BENCHMARKS.parent / script).is_file()
    assert data["machine"]["processor"]
    assert path.with_suffix(".md").read_text().startswith(f"# {data['title']}\n")
