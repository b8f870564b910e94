"""Laws that every source follows: order, limit, batches, identity, and what it may import."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modelpack import engine, recipe
from modelpack.errors import MissingError, StageError, UsageError
from modelpack.events import StepStarted
from modelpack.sources.image_folder import image_folder
from modelpack.sources.npz import npz
from modelpack.sources.python import python
from modelpack.sources.random import random
from modelpack.sources.rows import Columns, Rows
from modelpack.sources.table import table
from modelpack.sources.text import text
from modelpack.store import Store
from sources import opened, read, rows, spec
from tiny import lines


def numbered(count: int, **settings) -> Rows:
    config = random.config(**settings)
    return Rows(random, config, "numbers", lambda: Columns({"x": np.arange(count)}))


@given(st.integers(1, 60), st.integers(1, 70), st.none() | st.integers(1, 70), st.none() | st.integers(0, 2**40))
def test_rows_do_not_depend_on_the_batch_and_limit_takes_the_first(count, batch, limit, seed):
    whole = rows(numbered(count, seed=seed))["x"]
    assert sorted(whole) == list(range(count))
    source = numbered(count, seed=seed, limit=limit, batch=batch)
    cut = list(source.batches())
    assert np.concatenate([part["x"] for part in cut]).tolist() == whole[:limit].tolist()
    assert all(len(part["x"]) == batch for part in cut[:-1])
    assert len(source) == sum(len(part["x"]) for part in cut)
    again = [part["x"].tolist() for part in source.batches()]
    assert again == [part["x"].tolist() for part in cut]


def test_order_is_the_file_s_without_a_seed_and_another_with_each():
    assert rows(numbered(50))["x"].tolist() == list(range(50))
    first, second = rows(numbered(50, seed=0))["x"].tolist(), rows(numbered(50, seed=1))["x"].tolist()
    assert first != list(range(50))
    assert first != second


def test_no_rows_is_an_error():
    with pytest.raises(StageError, match="no rows"):
        list(numbered(0).batches())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no arrays"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, "'x' 3, 'y' 4"),
        ({"x": np.zeros(())}, "single value"),
        ({"x": np.array([{}], dtype=object)}, "object"),
        ({"x": np.zeros(2, dtype=[("a", "f4")])}, "numbers are expected"),
    ],
)
def test_columns_refuse_what_is_no_rows(arrays, message):
    with pytest.raises(StageError, match=message):
        Columns.check(arrays, "here")


def test_columns_come_in_native_byte_order():
    batch = Columns({"x": np.arange(4, dtype=">f4")}).read(np.array([2, 0]))
    assert batch["x"].dtype == np.float32
    assert batch["x"].dtype.isnative
    assert batch["x"].tolist() == [2, 0]


def build(root):
    """Write data for every source, and give each one's settings and the file whose bytes count."""
    np.savez(root / "a.npz", x=np.arange(6, dtype=np.float32))
    np.save(root / "a.npy", np.arange(6, dtype=np.float32))
    for name in ("cat", "dog"):
        (root / "photos" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (8, 8), (index * 90, 50, 50)).save(root / "photos" / name / f"{index}.png")
    (root / "t.csv").write_text("a,b\n1,2\n3,4\n")
    (root / "t.txt").write_text("one two\nthree\n")
    words = {"[PAD]": 0, "[UNK]": 1, "one": 2, "two": 3, "three": 4}
    (root / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {"type": "Whitespace"},
                "post_processor": None,
                "decoder": None,
                "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
            }
        )
    )
    (root / "rows.py").write_text("import numpy as np\ndef make(n=2):\n    return {'x': np.arange(n)}\n")
    (root / "extra.bin").write_bytes(b"extra")
    return {
        "npz": (npz, {"path": "a.npz"}, "a.npz"),
        "npy": (npz, {"path": "a.npy", "name": "x"}, "a.npy"),
        "image_folder": (image_folder, {"path": "photos", "size": 4}, "photos/dog/1.png"),
        "table": (table, {"path": "t.csv", "columns": {"x": ["a", "b"]}}, "t.csv"),
        "text": (text, {"path": "t.txt", "tokenizer": "tokenizer.json"}, "t.txt"),
        "tokenizer": (text, {"path": "t.txt", "tokenizer": "tokenizer.json"}, "tokenizer.json"),
        "python": (python, {"callable": "rows.py:make"}, "rows.py"),
        "python files": (python, {"callable": "rows.py:make", "files": ["extra.bin"]}, "extra.bin"),
    }


KINDS = ["npz", "npy", "image_folder", "table", "text", "tokenizer", "python", "python files"]
INPUTS = {"image": spec("batch", 3, 4, 4), "input_ids": spec("batch", "sequence", dtype="int64")}


@pytest.mark.parametrize("kind", KINDS)
def test_digest_follows_the_bytes_and_nothing_else(tmp_path, kind):
    plugin, settings, counted = build(tmp_path)[kind]
    first = opened(plugin, tmp_path, settings, INPUTS).digest()
    file = tmp_path / counted
    os.utime(file, (1, 1))
    (tmp_path / "unrelated.txt").write_text("noise")
    (tmp_path / "photos" / "README.md").write_text("noise")
    assert opened(plugin, tmp_path, settings, INPUTS).digest() == first
    content = bytearray(file.read_bytes())
    at = {"npz": 200, "python": content.find(b"2")}.get(kind, -1)
    content[at] ^= 1
    file.write_bytes(content)
    assert opened(plugin, tmp_path, settings, INPUTS).digest() != first


@pytest.mark.parametrize("kind", KINDS)
def test_digest_follows_order_and_preparation(tmp_path, kind):
    plugin, settings, _ = build(tmp_path)[kind]
    variants = [{}, {"limit": 1}, {"seed": 1}, {"seed": 2}, {"batch": 7}]
    found = {opened(plugin, tmp_path, {**settings, **more}, INPUTS).digest() for more in variants}
    assert len(found) == len(variants)


@pytest.mark.parametrize("kind", ["npz", "table", "text", "python files"])
def test_a_file_that_is_gone_is_named(tmp_path, kind):
    plugin, settings, counted = build(tmp_path)[kind]
    source = opened(plugin, tmp_path, settings, INPUTS)
    (tmp_path / counted).unlink()
    with pytest.raises(UsageError, match=rf"{counted}: it cannot be read: No such file"):
        source.digest()


@pytest.mark.parametrize("kind", KINDS)
def test_digest_follows_the_source_version(tmp_path, kind, monkeypatch):
    plugin, settings, _ = build(tmp_path)[kind]
    first = opened(plugin, tmp_path, settings, INPUTS).digest()
    monkeypatch.setitem(vars(plugin), "version", plugin.version + 1)
    assert opened(plugin, tmp_path, settings, INPUTS).digest() != first


@pytest.mark.parametrize("kind", KINDS)
def test_moving_everything_elsewhere_keeps_the_digest(tmp_path, kind):
    found = set()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        plugin, settings, _ = build(tmp_path / name)[kind]
        found.add(opened(plugin, tmp_path / name, settings, INPUTS).digest())
    if kind == "npz":  # zip archives keep the time, so that two of them differ
        return
    assert len(found) == 1


def test_digest_and_settings_import_nothing_heavy(tmp_path):
    settings = {name: (plugin.name, given) for name, (plugin, given, _) in build(tmp_path).items()}
    code = f"""
import importlib, pathlib, sys
from modelpack.tensors import TensorSpec
inputs = {{"image": TensorSpec(shape=("n", 3, 4, 4)), "input_ids": TensorSpec(shape=("n", "s"), dtype="int64")}}
settings = {settings!r}
settings["random"] = ("random", {{"dimensions": {{"s": 3}}}})
for name, given in settings.values():
    plugin = getattr(importlib.import_module("modelpack.sources." + name), name)
    config = plugin.config.model_validate(given, context={{"base": pathlib.Path({str(tmp_path)!r})}})
    plugin.open(config, inputs).digest()
heavy = {{"numpy", "PIL", "pyarrow", "tokenizers", "torch", "onnx"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [("image_folder", "PIL", "images"), ("table", "pyarrow", "tables"), ("text", "tokenizers", "text")],
)
def test_a_missing_package_names_its_extra_when_imported(tmp_path, monkeypatch, kind, package, extra):
    plugin, settings, _ = build(tmp_path)[kind]
    assert list(plugin.needs.values()) == [extra]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingError, match=rf"pip install 'modelpack\[{extra}\]'"):
        read(plugin, tmp_path, settings, INPUTS)


@pytest.mark.usefixtures("tiny")
def test_a_missing_package_is_found_before_the_first_stage_unless_all_is_done(folder, monkeypatch):
    def run(events):
        desk = engine.open_desk(recipe.load(folder / "recipe.yaml", ()), Store(folder / "store"), "cpu")
        return engine.run(desk, events.append)

    monkeypatch.setitem(vars(lines), "needs", {"no-such-distribution": "images"})
    events = []
    with pytest.raises(MissingError, match=r"'lines' needs no-such-distribution\n.*modelpack\[images\]"):
        run(events)
    assert not any(isinstance(event, StepStarted) for event in events)
    monkeypatch.setitem(vars(lines), "needs", {"numpy": "images"})
    run(events)
    monkeypatch.setitem(vars(lines), "needs", {"no-such-distribution": "images"})
    assert run(events).status == "succeeded"
