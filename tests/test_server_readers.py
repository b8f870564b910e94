"""What stands between requests and models, without a server: readers, finishes, and the file that records both."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from interfaces import encoded, made, objects, reading, sentences
from modelpack.server import readers
from modelpack.server.answers import Finish, softmax
from modelpack.server.faults import Disconnected, Invalid, StartError
from modelpack.server.interface import Interface, read
from modelpack.server.preparation import Pixels, Tokens
from modelpack.server.readers import Images, Texts
from modelpack.server.settings import Settings
from modelpack.server.signature import Signature, Tensor
from modelpack.server.signature import read as signature
from modelpack.server.texts import from_prefixed, to_prefixed
from serving import linear
from test_sources_text import tokenizer


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read"),
        ({"schema": 2, "inputs": {}, "outputs": {}}, "its schema is 2"),
        ({"schema": 1, "inputs": {"x": {"sound": {}}}, "outputs": {}}, "'sound', and this server knows 'image'"),
        ({"schema": 1, "inputs": {"x": {"image": {}}}, "outputs": {}}, "images become .* takes"),
        ({"schema": 1, "inputs": {"z": {"image": {}}}, "outputs": {}}, "no input 'z'"),
        (
            {"schema": 1, "inputs": {"t": {"text": {"arrays": {}, "tokenizer": "../x"}}}, "outputs": {}},
            "'../x' is not a file",
        ),
        ({"schema": 1, "inputs": {}, "outputs": {"y": {"top": "x"}}}, "does not fit"),
        ({"schema": 1, "inputs": {}, "outputs": {"y": {"run": "x"}}}, "does not fit"),
        ({"schema": 1, "inputs": []}, "does not fit"),
    ],
)
def test_an_interface_that_does_not_fit_is_a_reason_not_to_start(tmp_path, content, message):
    folder = linear(tmp_path)
    (folder / "interface.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(StartError, match=message):
        read(folder, signature(folder / "signature.json"))


@given(arrays.arrays(np.float32, (3, 5), elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.integers(1, 5))
def test_top_takes_the_largest_and_softmax_keeps_their_order(scores, top):
    values, index = Finish(top=top).arrays(scores)
    np.testing.assert_array_equal(values, -np.sort(-scores, axis=-1)[:, :top])
    np.testing.assert_array_equal(np.take_along_axis(scores, index, -1), values)
    shares = softmax(scores)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-5)
    first = np.argmax(scores, -1)[:, None]
    np.testing.assert_array_equal(np.take_along_axis(shares, first, -1)[:, 0], shares.max(-1))


@given(st.lists(st.text(max_size=5), max_size=5), st.binary(max_size=8), st.integers(0, 6))
def test_texts_survive_their_binary_form_and_damage_is_refused(texts, extra, cut):
    tensor = Tensor("t", ("n",), "string")
    array = np.empty(len(texts), object)
    array[:] = texts
    data = to_prefixed(array)
    assert from_prefixed(memoryview(data), (len(texts),), tensor).tolist() == texts
    damaged = data[: len(data) - cut] + extra
    if damaged != data:
        try:
            found = from_prefixed(memoryview(damaged), (len(texts),), tensor)
        except Invalid:
            return
        assert to_prefixed(found) == damaged


def test_a_length_beyond_the_data_is_refused():
    data = memoryview(struct.pack("<I", 2**32 - 1) + b"abc")
    with pytest.raises(Invalid, match="reaches beyond"):
        from_prefixed(data, (1,), Tensor("t", ("n",), "bytes"))
    with pytest.raises(Invalid, match="takes more than"):
        from_prefixed(data, (2**40,), Tensor("t", ("n",), "bytes"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@given(st.data())
def test_any_damage_to_an_image_is_refused_or_read(kind, data):
    reader = Images("x", Tensor("x", ("n", 3, 4, 4), "float32"), Pixels(size=4))
    reader.load(Settings(max_pixels=1000))
    body = bytearray(encoded(kind=kind))
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=4)):
        body[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 20))
    with warnings.catch_warnings(action="ignore"):  # Pillow tells of damage that it can read over
        try:
            made = reader.read({"x": objects([bytes(body[: len(body) - cut])])}, SimpleNamespace(terminate=False))
        except Invalid:
            event("refused")
        else:
            assert made["x"].shape == (1, 3, 4, 4)


def test_a_reader_that_nobody_waits_for_stops():
    reader = Images("x", Tensor("x", ("n", 3, 4, 4), "float32"), Pixels(size=4))
    reader.load(Settings())
    with pytest.raises(Disconnected):
        reader.read({"x": objects([encoded()])}, SimpleNamespace(terminate=True))


def test_images_of_a_request_have_room_together_when_they_are_prepared():
    reader = Images("x", Tensor("x", ("n", 3, "h", "w"), "float32"), Pixels())
    reader.load(Settings(max_pixels=2000))
    one = encoded((30, 30))
    assert reader.read({"x": objects([one] * 2)}, SimpleNamespace(terminate=False))["x"].shape == (2, 3, 30, 30)
    with pytest.raises(Invalid, match="3 images, and 2 of this size are the most in a request"):
        reader.read({"x": objects([one] * 3)}, SimpleNamespace(terminate=False))
    with pytest.raises(Invalid, match=r"image 1 becomes \[3, 10, 10\], image 0 \[3, 30, 30\]"):
        reader.read({"x": objects([one, encoded()])}, SimpleNamespace(terminate=False))


def test_a_container_with_little_memory_takes_smaller_images(monkeypatch, caplog):
    monkeypatch.setattr(readers, "free", lambda: 16 * 2 * 900)
    reader = Images("x", Tensor("x", ("n", 3, 4, 4), "float32"), Pixels(size=4))
    with caplog.at_level("WARNING", "modelpack.server"):
        reader.load(Settings(), workers=2)
    assert "images may have 900 pixels, for which there is memory" in caplog.text
    assert reader.read({"x": objects([encoded((30, 30))])}, SimpleNamespace(terminate=False))["x"].shape == (1, 3, 4, 4)
    with pytest.raises(Invalid, match="31x30 pixels, which exceeds limit 900"):
        reader.read({"x": objects([encoded((31, 30))])}, SimpleNamespace(terminate=False))


def test_whole_numbers_hold_no_scaled_pixels():
    tensor = Tensor("x", ("n", 3, 4, 4), "uint8")
    with pytest.raises(ValueError, match="'x' takes uint8, which cannot hold scaled pixels"):
        Images("x", tensor, Pixels(size=4))
    reader = Images("x", tensor, Pixels(size=4, scale=1.0))
    reader.load(Settings())
    assert reader.read({"x": objects([encoded()])}, SimpleNamespace(terminate=False))["x"].dtype == np.uint8


def test_other_inputs_pass_beside_images():
    inner = Signature(
        {"scale": Tensor("scale", ("n",), "float32"), "x": Tensor("x", ("n", 3, 4, 4), "float32")},
        {"y": Tensor("y", ("n",), "float32")},
    )
    interface = Interface(inner, (Images("x", inner.inputs["x"], Pixels(size=4)),), {})
    interface.load(Settings())
    assert {name: each.dtype for name, each in interface.signature.inputs.items()} == {"scale": "float32", "x": "bytes"}
    feed = {"x": objects([encoded()]), "scale": np.float32([2])}
    made_of = interface.prepare(feed, SimpleNamespace(terminate=False))
    assert [list(made_of), made_of["scale"].tolist(), made_of["x"].shape] == [["scale", "x"], [2], (1, 3, 4, 4)]
    with pytest.raises(ValueError, match="become the same input"):
        Interface(inner, (*interface.readers, *interface.readers), {})


def test_what_is_prepared_must_be_what_the_model_takes(tmp_path):
    artifact = made(tmp_path, model := reading(tmp_path, 8), {"data": "v"},
                    v=sentences(tmp_path, model, padding="max", length=8))  # fmt: skip
    content = artifact.read_json("interface.json")
    content["inputs"]["text"]["text"]["length"] = 9
    folder = tmp_path / "changed"
    shutil.copytree(artifact.path, folder)
    (folder / "interface.json").chmod(0o644)
    (folder / "interface.json").write_text(json.dumps(content))
    found = read(folder, signature(folder / "signature.json"))
    with pytest.raises(StartError, match=r"input 'attention_mask': expected shape \[batch, 8\], got \[1, 9\]"):
        found.load(Settings())
    (folder / "interface.tokenizer.json").unlink()
    with pytest.raises(StartError, match="not a tokenizer file"):
        found.load(Settings())


def test_a_missing_package_is_a_reason_not_to_start(tmp_path, monkeypatch):
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    texts = Texts("t", None, tmp_path / "tokenizer.json", Tokens(8), {"input_ids": Tensor("ids", ("n", "s"), "int64")})
    images = Images("x", Tensor("x", ("n", 3, 4, 4), "float32"), Pixels(size=4))
    for reader, package, name in ((images, "PIL", "Pillow"), (texts, "tokenizers", "the package tokenizers")):
        reader.load(Settings())
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(StartError, match=f"and {name} is not here"):
            reader.load(Settings())
