"""The recipes that ship and their scripts are well written."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from cooking import FASHION, RECIPES, module, run

EVERY = sorted(RECIPES.glob("[!.]*.yaml"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_readme_names_every_recipe():
    page = (RECIPES.parent / "README.md").read_text()
    assert {f"recipes/{path.name}" for path in EVERY} == set(
        re.findall(r"^\| `(recipes/\S+\.yaml)` \|", page, re.MULTILINE)
    )


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_a_recipe_begins_with_its_schema_and_says_what_it_needs_and_how_long_it_takes(path):
    first, *rest = path.read_text().splitlines()
    assert first == "# yaml-language-server: $schema=recipe.schema.json"
    comment = "\n".join(line for line in rest if line.startswith("#"))
    for word in ("# Needs:", f"# Run:    modelpack compress recipes/{path.name}", "# Takes:"):
        assert word in comment


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_a_recipe_is_what_its_schema_describes(path):
    schema = json.loads((RECIPES / "recipe.schema.json").read_text())
    written = yaml.safe_load(path.read_text())
    jsonschema.validate(written, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**written, "stages": [{"exprot": None}]}, schema)


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_the_files_a_recipe_names_are_there_or_one_of_its_scripts_makes_them(path):
    makes = {"fashion": "train.py", "lite0": "prepare.py", "minilm": "prepare.py", "passages": "prepare.py"}
    for name in re.findall(
        r"[\w/.-]+/[\w/.-]+\.(?:py|safetensors|json|txt|csv)\b", path.read_text().split("name:", 1)[1]
    ):
        if name.startswith("/"):
            continue
        folder, *inner = name.split("/")
        assert (RECIPES / name).is_file() or (inner[0] == "data" and (RECIPES / folder / makes[folder]).is_file())


def test_what_is_generated_from_the_code_is_current():
    for path, content in module("docs.py").files().items():
        assert path.read_text() == content, f"{path.name} is out of date: make docs"


def test_the_page_on_quantization_describes_every_check():
    from modelpack.numerics.checks import CHECKS

    page = (RECIPES.parent / "docs" / "quantization.md").read_text()
    section = page.partition("## What is checked afterwards")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(CHECKS)


def test_digits_are_always_split_in_the_same_way_and_no_row_is_on_both_sides():
    data = module("digits/data.py")
    train, test = data.train(), data.test()
    assert train["image"].shape == (1200, 1, 8, 8)
    assert train["image"].dtype == np.float32
    assert (train["image"].min(), train["image"].max()) == (0, 1)
    assert test["label"].shape == (597,)
    assert np.array_equal(test["image"], data.test()["image"])
    rows = {row.tobytes() for row in train["image"]}
    assert not any(row.tobytes() in rows for row in test["image"])


def test_the_committed_digits_weights_are_as_accurate_as_promised_and_small():
    weights = RECIPES / "digits" / "digits.safetensors"
    assert weights.stat().st_size < 500_000
    net = module("digits/net.py").build().eval()
    net.load_state_dict(load_file(weights))
    rows = module("digits/data.py").test()
    with torch.inference_mode():
        right = net(torch.from_numpy(rows["image"])).argmax(1).numpy() == rows["label"]
    assert right.mean() >= 0.975


def test_training_digits_lowers_the_loss_and_writes_weights_that_fit(tmp_path):
    written = run(RECIPES / "digits" / "train.py", "--epochs", "3", "--output", tmp_path / "few.safetensors")
    net = module("digits/net.py").build()
    net.load_state_dict(load_file(tmp_path / "few.safetensors"))
    assert float(re.search(r"test accuracy (0\.\d+)", written.stdout)[1]) > 0.8


def test_an_idx_file_is_read_by_its_header_and_anything_else_is_refused(tmp_path):
    data = module("fashion/data.py")
    pixels = np.arange(7 * 28 * 28, dtype=np.uint32).astype(np.uint8)
    header = b"\0\0\x08\x03" + np.array([7, 28, 28], ">i4").tobytes()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x07" + bytes(range(7))))
    rows = data.rows("t10k", slice(None), tmp_path)
    assert np.array_equal(rows["image"].reshape(-1), pixels.astype(np.float32) / 255)
    assert rows["label"].tolist() == list(range(7))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x0d\x01\0\0\0\x07" + bytes(28)))
    with pytest.raises(ValueError, match="no IDX file of bytes"):
        data.rows("t10k", slice(None), tmp_path)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        data.rows("train", slice(None), tmp_path)


@pytest.mark.fashion
@pytest.mark.skipif(not FASHION.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_fashion_rows_are_split_into_training_validation_and_test():
    data = module("fashion/data.py")
    train, validation, test = data.train(), data.validation(), data.test()
    assert [len(part["label"]) for part in (train, validation, test)] == [55_000, 5_000, 10_000]
    assert np.bincount(test["label"]).tolist() == [1000] * 10
    assert train["image"].shape[1:] == (1, 28, 28)


def stamp(path: Path, *, photo: bool) -> None:
    """Draw an object with a transparent ground, in many colours or in one."""
    pixels = np.zeros((40, 60, 4), np.uint8)
    inside = pixels[10:30, 10:50]
    inside[..., :3] = np.random.default_rng(0).integers(0, 256, (20, 40, 3)) if photo else 99
    inside[..., 3] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_stamps_become_photos_on_white_with_their_class_beside_them(tmp_path):
    prepare = module("lite0/prepare.py")
    stamps, output = tmp_path / "stamps", tmp_path / "data"
    output.mkdir()
    for name, photo in {
        "animals/birds/hen.png": True,  # class 8
        "animals/cow.png": True,
        "animals/drawn.png": False,
        "animals/cartoon/cow.png": True,
    }.items():
        stamp(stamps / name, photo=photo)
    assert prepare.photos(stamps, output) == (1, 1)
    assert (output / "labels.csv").read_text() == "image,label\nanimals-birds-hen.png,8\n"
    assert [path.name for path in (output / "calibration").iterdir()] == ["animals-cow.png"]
    with Image.open(output / "test" / "animals-birds-hen.png") as image:
        assert (image.mode, image.size) == ("RGB", (69, 69))
        assert image.getpixel((0, 0)) == image.getpixel((34, 18)) == (255, 255, 255)
        assert image.getpixel((34, 34)) != (255, 255, 255)


def test_every_label_is_an_imagenet_class():
    labels = module("lite0/labels.py").CLASSES
    assert len(labels) > 100
    assert all(0 <= label < 1000 for label in labels.values())


def test_the_sentence_encoder_is_blind_to_padding_and_its_vectors_have_length_one():
    torch.manual_seed(0)
    net = module("minilm/net.py").build(layers=2, width=24, heads=3, inner=48, words=50, longest=16).eval()
    ids = torch.randint(1, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.inference_mode():
        padded = net(ids, mask)["embedding"]
        alone = net(ids[1:, :4], mask[1:, :4])["embedding"]
        other = net(ids[1:], torch.ones_like(mask[1:]))["embedding"]
    torch.testing.assert_close(padded[1:], alone)
    torch.testing.assert_close(padded.norm(dim=1), torch.ones(2))
    assert (padded[1:] - other).abs().max() > 1e-3


def test_tensors_of_a_bert_checkpoint_get_the_names_of_the_network():
    net = module("minilm/net.py").build(layers=2, width=8, heads=2, inner=16, words=11, longest=5)
    tensors = {
        "embeddings.word_embeddings.weight": torch.rand(11, 8),
        "embeddings.position_embeddings.weight": torch.rand(5, 8),
        "embeddings.token_type_embeddings.weight": torch.rand(2, 8),
        "embeddings.position_ids": torch.arange(5)[None],
        "pooler.dense.weight": torch.rand(8, 8),
    }
    parts = {"attention.self.query": (8, 8), "attention.self.key": (8, 8), "attention.self.value": (8, 8)}
    parts |= {"attention.output.dense": (8, 8), "intermediate.dense": (16, 8), "output.dense": (8, 16)}
    for name, shape in parts.items():
        for number in range(2):
            tensors[f"encoder.layer.{number}.{name}.weight"] = torch.rand(shape)
            tensors[f"encoder.layer.{number}.{name}.bias"] = torch.rand(shape[0])
    for name in ("embeddings", "encoder.layer.0.output", "encoder.layer.1.output"):
        tensors |= {f"{name}.LayerNorm.{kind}": torch.rand(8) for kind in ("weight", "bias")}
    for number in range(2):
        tensors |= {f"encoder.layer.{number}.attention.output.LayerNorm.{k}": torch.rand(8) for k in ("weight", "bias")}
    renamed = module("minilm/prepare.py").renamed(tensors)
    net.load_state_dict(renamed)
    query = "encoder.layer.1.attention.self.query.weight"
    assert torch.equal(net.layers[1].query.weight, tensors[query])
    assert torch.equal(net.layers[0].attended_norm.bias, tensors["encoder.layer.0.attention.output.LayerNorm.bias"])
    types = tensors["embeddings.token_type_embeddings.weight"][0]
    assert torch.equal(net.positions.weight, tensors["embeddings.position_embeddings.weight"] + types)


def test_weights_and_network_of_fashion_fit_each_other(tmp_path):
    net = module("fashion/net.py").build()
    save_file(net.state_dict(), tmp_path / "fresh.safetensors")
    assert sum(value.numel() for value in net.parameters()) == pytest.approx(175_000, rel=0.02)
    with torch.inference_mode():
        assert net.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
