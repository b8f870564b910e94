"""The stage `interface`: what it accepts, what it records, and what an image of it holds."""

from __future__ import annotations

import json
import shutil
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from pydantic import ValidationError

from image_support import little_wheels, rootfs
from interfaces import PIXELS, made, photos, pictures, reading, seeing, sentences
from modelpack import engine, recipe
from modelpack.container import build as container
from modelpack.container import install, plan, wheels
from modelpack.errors import RecipeError, StageError, UsageError
from modelpack.events import Note
from modelpack.stage import Outside
from modelpack.stages.build import build
from modelpack.stages.interface import InterfaceConfig, interface
from modelpack.store import Store
from support import Rows, run_stage

__all__ = ["little_wheels", "rootfs"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "name `data`, `images`, `text` or `outputs`"),
        ({"images": {"x": {"size": 8, "crop": 9}}}, r"`crop` \[9, 9\] does not fit"),
        ({"text": {"tokenizer": "none.json"}}, "no such file"),
        ({"outputs": {"y": {}}}, "set `softmax`, or `top`"),
        ({"outputs": {"y": {"top": 0}}}, "greater than 0"),
        ({"outputs": {"y": {"softmax": True, "labels": ["a"]}}}, "say how many with `top:`"),
        ({"outputs": {"y": {"top": 1, "labels": "none.txt"}}}, "no such file"),
        ({"outputs": {"y": {"top": 1, "labels": "blank.txt"}}}, r"blank\.txt:2: a name is expected"),
        ({"outputs": {"y": {"top": 1, "labels": "empty.txt"}}}, r"empty\.txt:1: a name is expected"),
        ({"outputs": {"y": {"tops": 1}}}, "tops"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, reason):
    (tmp_path / "blank.txt").write_text("a\n\nb\n")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValidationError, match=reason):
        InterfaceConfig.model_validate(settings, context={"base": tmp_path})


def test_the_model_stays_and_what_data_know_is_recorded(tmp_path):
    model = seeing(tmp_path)
    photos(tmp_path)
    after = made(
        tmp_path,
        model,
        {"data": "val", "outputs": {"scores": {"softmax": True, "top": 2}}},
        val=pictures(tmp_path, model),
    )
    for name in ("model.onnx", "signature.json"):
        assert after.file(name).read_bytes() == model.file(name).read_bytes()
    content = after.read_json("interface.json")
    assert content["inputs"]["image"]["image"] == {
        "size": 10, "crop": 8, "resample": "bicubic", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
        "scale": 1 / 255, "channels": "RGB", "background": "white", "layout": "NCHW", "dtype": "float32",
    }  # fmt: skip
    assert content["outputs"] == {"scores": {"softmax": True, "top": 2, "labels": ["blue", "green", "red"]}}
    assert after.manifest.record["results"]["interface"]["inputs"] == {"image": {"dtype": "bytes", "shape": ["batch"]}}
    assert plan.kinds(after) == {"image"}
    assert plan.kinds(model) == frozenset()


def test_a_tokenizer_goes_along_and_labels_may_be_a_file(tmp_path):
    model = reading(tmp_path)
    after = made(tmp_path, model, {"data": "val"}, val=sentences(tmp_path, model, pair="other"))
    assert after.file("interface.tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    settings = after.read_json("interface.json")["inputs"]["text"]["text"]
    assert settings["arrays"] == {name: name.replace("input_", "") for name in
                                  ("input_ids", "attention_mask", "token_type_ids")}  # fmt: skip
    assert (settings["pair"], settings["together"], settings["length"]) == ("pair", True, 128)
    (tmp_path / "labels.txt").write_text("niedrig\nmittel\nhöchste\n", encoding="utf-8")
    seen = seeing(tmp_path / "other")
    after = made(tmp_path, seen, {"outputs": {"scores": {"top": 1, "labels": "labels.txt"}}})
    assert after.read_json("interface.json")["outputs"]["scores"]["labels"] == ["niedrig", "mittel", "höchste"]


def test_settings_in_the_recipe_record_what_data_would(tmp_path):
    model = seeing(tmp_path)
    photos(tmp_path)
    (from_data, from_recipe) = (
        made(tmp_path, model, settings, val=pictures(tmp_path, model)).file("interface.json").read_bytes()
        for settings in ({"data": "val"}, {"images": {"image": PIXELS}})
    )
    assert from_data == from_recipe
    model = reading(tmp_path / "texts")
    data = sentences(tmp_path, model, pair="other")
    own = {"tokenizer": "tokenizer.json", "rename": {"input_ids": "ids"}, "pair": True}
    (from_data, from_recipe) = (
        made(tmp_path, model, settings, val=data) for settings in ({"data": "val"}, {"text": own})
    )
    assert [(item.name, item.sha256) for item in from_data.manifest.files] == [
        (item.name, item.sha256) for item in from_recipe.manifest.files
    ]
    with pytest.raises(StageError, match="'text' is prepared twice"):
        made(tmp_path, model, {"data": "val", "text": own}, val=data)
    with pytest.raises(StageError, match="the model has no input 'input_ids'"):
        made(tmp_path, model, {"text": {**own, "rename": {}}})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"images": {"picture": PIXELS}}, "no input 'picture'"),
        (
            {"images": {"image": {"size": 9}}},
            r"images become \[3, 9, 9\], and the model's 'image' takes \[batch, 3, 8, 8\]",
        ),
        ({"outputs": {"other": {"top": 1}}}, "no output 'other': its outputs are 'pixels', 'scores'"),
        ({"outputs": {"scores": {"top": 4}}}, "output 'scores': 4 of 3 classes"),
        ({"outputs": {"scores": {"top": 1, "labels": ["a", "b"]}}}, "2 labels for 3 classes"),
    ],
)
def test_what_does_not_fit_the_model_is_said_at_once(tmp_path, settings, reason):
    with pytest.raises(StageError, match=reason) as caught:
        made(tmp_path, seeing(tmp_path), settings)
    assert str(tmp_path) not in caught.value.what


def test_data_that_are_arrays_already_are_refused_before_anything_runs(tmp_path):
    config = InterfaceConfig.model_validate({"data": "val"})
    source = Rows({"image": np.zeros((1, 3, 8, 8), "float32")})
    with pytest.raises(UsageError, match="the rows of 'val' are arrays as they stand"):
        interface.preflight(config, Outside("cpu", {"val": source}))


def test_a_data_set_that_knows_other_classes_is_no_source_of_names(tmp_path):
    photos(tmp_path)
    model = seeing(tmp_path, classes=2)
    with pytest.raises(StageError, match="3 labels for 2 classes"):
        made(tmp_path, model, {"data": "val", "outputs": {"scores": {"top": 1}}}, val=pictures(tmp_path, model))


def test_an_image_holds_the_interface_beside_the_model(tmp_path, rootfs, little_wheels):
    model = reading(tmp_path)
    after = made(tmp_path, model, {"data": "val"}, val=sentences(tmp_path, model))
    names = {entry.name.rpartition("/")[2] for entry in plan.model_entries(after, b"{}")}
    assert names == {"model.onnx", "signature.json", "card.json", "interface.json", "interface.tokenizer.json"}
    image = run_stage(tmp_path, build, {"base": "rootfs:base.tar"}, model=after, base=tmp_path)
    assert image.metrics["image_size"] > 0


def test_what_opens_refused_formats_stays_out_of_images():
    kept = ("PIL/_imaging.cpython-311-x86_64-linux-gnu.so", "PIL/_webp.cpython-311-x86_64-linux-gnu.so",
            "pillow.libs/libjpeg-6dc8d115.so.62.4.0", "tokenizers/tokenizers.abi3.so")  # fmt: skip
    assert all(install.kept(name) for name in kept)
    for name in ("PIL/_avif.abi3.so", "PIL/_imagingft.abi3.so", "pillow.libs/libavif-c6062d5f.so.16.4.2"):
        assert not install.kept(name)
    lock = {item["name"]: item["version"] for item in json.loads(wheels.LOCK.read_bytes())}
    assert set(wheels.OPTIONAL) <= set(lock)


RECIPE = """
name: colours
model: {onnx: seeing.onnx}
data:
  val: {image_folder: {path: photos, size: 10, crop: 8}}
stages:
"""


def test_a_recipe_records_it_and_refuses_it_before_what_would_drop_it(tmp_path):
    photos(tmp_path)
    shutil.copy(seeing(tmp_path).file("model.onnx"), tmp_path / "seeing.onnx")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{RECIPE}  - interface: {{data: val, outputs: {{scores: {{top: 1}}}}}}\n  - optimize:\n")
    with pytest.raises(RecipeError, match="'optimize' cannot work on a finished model"):
        recipe.load(path, ())
    path.write_text(f"{RECIPE}  - interface: {{data: val, outputs: {{scores: {{top: 1}}}}}}\n")
    desk = engine.open_desk(recipe.load(path, ()), Store(tmp_path / "store"), "cpu")
    notes = []
    done = engine.run(desk, lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    assert done.status == "succeeded"
    assert notes == [
        "clients send image (bytes)",
        "clients get scores (float32), scores_label (string), pixels (float32)",
    ]
    shutil.rmtree(tmp_path / "photos" / "red")
    path.write_text(f"{RECIPE}  - interface: {{data: val, outputs: {{scores: {{top: 1}}}}}}\n")
    desk = engine.open_desk(recipe.load(path, ()), Store(tmp_path / "store"), "cpu")
    with pytest.raises(StageError, match="2 labels for 3 classes") as caught:
        engine.run(desk, lambda _event: None)
    assert "those of the data" in caught.value.then


def test_another_version_in_the_image_than_here_is_said(monkeypatch):
    told = []
    for pin in ("1.2.3", metadata.version("pillow")):
        monkeypatch.setattr(wheels, "requirements", lambda pin=pin: {"pillow": pin})
        container._compare("pillow", told.append)
    (said,) = told
    assert said.startswith("the image has pillow 1.2.3 and this machine ")
    assert said.endswith("pip install pillow==1.2.3")


def test_the_extras_allow_what_images_hold():
    """Who installs modelpack now prepares data by the versions that images have."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    for extra, name in (("images", "pillow"), ("text", "tokenizers")):
        (line,) = [Requirement(text) for text in project["optional-dependencies"][extra]]
        assert line.name == name
        assert line.specifier.contains(wheels.requirements()[name])
