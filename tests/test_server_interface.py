"""Images, sentences and names of classes over the wire: the same numbers as in training, and nothing else gets in."""

from __future__ import annotations

import base64
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import numpy as np
import pytest
import tritonclient.http as triton

from interfaces import encoded, made, objects, photos, pictures, reading, seeing, sentences
from serving import JSON, Server
from sources import rows

OUTPUTS = {"scores": {"softmax": True, "top": 2}}
TEXTS = ["good film", "very very bad film", "odd"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("interface")


@pytest.fixture(scope="module")
def images(root):
    return photos(root)


@pytest.fixture(scope="module")
def data(root, images):
    """What training saw: the rows of the data source."""
    return rows(pictures(root, seeing(root / "data")))["image"]


@pytest.fixture(scope="module")
def tokens(root):
    return rows(sentences(root, reading(root / "data2")))


@pytest.fixture(scope="module")
def server(root, images):
    models = {}
    model = seeing(root / "a")
    models["colours"] = made(root / "1", model, {"data": "v", "outputs": OUTPUTS}, v=pictures(root, model))
    models["plain"] = made(root / "2", model, {"outputs": {"scores": {"top": 1}}})
    model = reading(root / "b")
    models["texts"] = made(root / "3", model, {"data": "v"}, v=sentences(root, model))
    models["strict"] = made(root / "4", model, {"data": "v"}, v=sentences(root, model, truncation=False, length=4))
    models["pairs"] = made(root / "5", model, {"data": "v"}, v=sentences(root, model, pair="other"))
    for name, artifact in models.items():
        shutil.copytree(artifact.path, root / "models" / name)
    with Server(root / "models", max_pixels=5000, max_text=200, max_body=200_000) as running:
        yield running
        assert running.stop() == 0
    assert "ERROR" not in "".join(running.log)


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as asking:
        yield asking


def ask(server, model, content):
    status, _, body = server.ask("POST", f"/predict/{model}", json.dumps(content), JSON)
    return status, json.loads(body)


def text64(path):
    return base64.b64encode(path.read_bytes()).decode()


def test_the_served_image_is_bit_for_bit_what_training_saw(client, images, data):
    sent = triton.InferInput("image", [len(images)], "BYTES")
    sent.set_data_from_numpy(objects([path.read_bytes() for path in images]))
    result = client.infer("colours", [sent])
    assert result.as_numpy("pixels").tobytes() == data.tobytes()


def test_served_tokens_are_what_training_saw(client, tokens):
    for binary in (True, False):
        sent = triton.InferInput("text", [3], "BYTES")
        sent.set_data_from_numpy(objects([text.encode() for text in TEXTS]), binary_data=binary)
        result = client.infer("texts", [sent])
        for name, array in tokens.items():
            assert result.as_numpy(f"{name}_out").tobytes() == array.tobytes()


def test_a_file_is_a_request(server, images):
    for path in images:
        media = "image/jpeg" if path.suffix == ".jpg" else "image/png"
        status, headers, body = server.ask("POST", "/predict/colours", path.read_bytes(), {"content-type": media})
        answer = json.loads(body)
        assert status == 200, answer
        (row,) = answer["predictions"]
        assert row["scores_label"][0] == path.parent.name
        assert row["scores"][0] > row["scores"][1] > 0
        assert "prepare;dur=" in headers["server-timing"]


@pytest.mark.parametrize("wrap", [lambda word: word, lambda word: {"b64": word}, lambda word: {"image": word}])
def test_images_in_json_are_base64(server, images, wrap):
    status, answer = ask(server, "colours", {"instances": [wrap(text64(path)) for path in images]})
    assert status == 200, answer
    assert [row["scores_label"][0] for row in answer["predictions"]] == [path.parent.name for path in images]
    status, answer = ask(server, "colours", {"inputs": {"image": [text64(path) for path in images]}})
    assert [labels[0] for labels in answer["outputs"]["scores_label"]] == [path.parent.name for path in images]


def test_clients_at_once_get_each_their_own(server, images, tokens):
    def one(at):
        path, text = images[at % len(images)], at % len(TEXTS)
        media = "image/jpeg" if path.suffix == ".jpg" else "image/png"
        picture = server.ask("POST", "/predict/colours", path.read_bytes(), {"content-type": media})
        sentence = server.ask("POST", "/predict/texts", TEXTS[text], {"content-type": "text/plain"})
        label = json.loads(picture[2])["predictions"][0]["scores_label"][0]
        ids = json.loads(sentence[2])["predictions"][0]["ids_out"]
        length = int(tokens["attention_mask"][text].sum())
        return label == path.parent.name and ids == tokens["ids"][text][:length].tolist()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(48)))


def test_a_sentence_is_a_request(server, tokens):
    status, _, body = server.ask("POST", "/predict/texts", b"good film", {"content-type": "text/plain; charset=utf-8"})
    assert status == 200, body
    (row,) = json.loads(body)["predictions"]
    assert row["ids_out"] == [2, 4, 6, 3]
    for content in ({"instances": TEXTS}, {"instances": [{"text": text} for text in TEXTS]}):
        status, answer = ask(server, "texts", content)
        assert [row["ids_out"] for row in answer["predictions"]] == tokens["ids"].tolist()
    table = "text\n" + "\n".join(TEXTS)
    status, _, body = server.ask("POST", "/predict/texts", table, {"content-type": "text/csv"})
    assert [row["ids_out"] for row in json.loads(body)["predictions"]] == tokens["ids"].tolist()


def test_pairs_are_two_inputs(server):
    status, answer = ask(server, "pairs", {"inputs": {"text": ["good film"], "pair": ["bad"]}})
    assert (status, answer["outputs"]["ids_out"]) == (200, [[2, 4, 6, 3, 5, 3]])
    assert answer["outputs"]["token_type_ids_out"] == [[0, 0, 0, 0, 1, 1]]


def test_without_labels_numbers_say_which(server):
    pixels = np.zeros((1, 3, 8, 8), "float32")
    pixels[0, 1] = 2
    status, answer = ask(server, "plain", {"inputs": {"image": pixels.tolist()}})
    assert (status, answer["outputs"]["scores"], answer["outputs"]["scores_index"]) == (200, [[2.0]], [[1]])


@pytest.mark.parametrize(
    ("model", "body", "media", "message"),
    [
        ("colours", b"hello", "image/png", "image 0: it cannot be used: it is no image of JPEG, PNG"),
        ("colours", b"", "image/png", "it is no image"),
        ("colours", encoded()[:40], "image/png", "it cannot be used"),
        ("colours", encoded(kind="TIFF"), "image/png", "it is no image"),
        ("colours", encoded(kind="EPS"), "image/jpeg", "it is no image"),
        ("colours", encoded(kind="PPM"), "image/jpeg", "it is no image"),
        ("colours", encoded((80, 80)), "image/png", "80x80 pixels, which exceeds limit 5000"),
        ("colours", encoded((1, 2000)), "image/png", "1x2000 and would become 10x20000"),
        ("colours", {"instances": ["?"]}, "", r"the string at \[0\] is not base64"),
        ("colours", {"instances": [7]}, "", r"expected a string in base64, found a whole number at \[0\]"),
        ("colours", {"instances": [[""]]}, "", "found an array"),
        ("colours", {"instances": [{"b64": 3}]}, "", "found a whole number"),
        ("colours", {"instances": [{"b64": "", "more": 1}]}, "", "unknown input 'b64'"),
        ("texts", b"\xff", "text/plain", "text 0 is not UTF-8"),
        ("texts", b"x" * 201, "text/plain", "201 characters, and the limit for one request is 200"),
        ("texts", {"instances": [None]}, "", r"expected a string, found null at \[0\]"),
        ("strict", {"instances": ["good", "very very bad film"]}, "", "text 1: the text has 6 tokens, more than"),
        ("pairs", {"inputs": {"text": ["a"], "pair": []}}, "", "'batch' is 1 in input 'text' but 0"),
        ("pairs", {"inputs": {"text": ["a"], "pair": ["a", "b"]}}, "", "'batch' is 1 in input 'text' but 2"),
        ("pairs", {"instances": [{"text": "a"}]}, "", "input 'pair' is missing"),
        ("texts", b"other\na\n", "text/csv", "the first line must name the inputs 'text'"),
    ],
)
def test_what_cannot_be_used_is_400_with_the_place(server, model, body, media, message):
    content = json.dumps(body) if isinstance(body, dict) else body
    status, _, answer = server.ask(
        "POST", f"/predict/{model}", content, {"content-type": media or JSON["content-type"]}
    )
    assert status == 400, answer
    assert re.search(message, json.loads(answer)["error"]), answer


@pytest.mark.parametrize(
    ("model", "media"), [("colours", "text/plain"), ("texts", "image/png"), ("texts", "application/x-npy")]
)
def test_other_forms_are_415(server, model, media):
    status, _, body = server.ask("POST", f"/predict/{model}", b"x", {"content-type": media})
    assert status == 415
    assert ("image/jpeg" if model == "colours" else "text/plain") in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datatype": "FP32"}, "the datatype is 'FP32', expected 'BYTES'"),
        ({"data": [1]}, "expected a string, found a whole number"),
        ({"shape": [2]}, "takes 2 values, got 1"),
    ],
)
def test_wrong_tensors_of_texts_are_400(server, change, message):
    entry = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]} | change
    status, _, body = server.ask("POST", "/v2/models/texts/infer", json.dumps({"inputs": [entry]}))
    assert (status, message in json.loads(body)["error"]) == (400, True), body


def test_labels_are_texts_in_both_forms_of_v2(client, images):
    for binary in (True, False):
        sent = triton.InferInput("image", [1], "BYTES")
        sent.set_data_from_numpy(objects([images[0].read_bytes()]))
        asked = triton.InferRequestedOutput("scores_label", binary_data=binary)
        label = client.infer("colours", [sent], outputs=[asked]).as_numpy("scores_label")[0, 0]
        assert label in (b"blue", "blue")
    metadata = client.get_model_metadata("colours")
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    named = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in metadata["outputs"]}
    assert named["scores"] == ("FP32", [-1, 2])
    assert named["scores_label"] == ("BYTES", [-1, 2])
    assert client.get_model_config("texts")["input"][0]["data_type"] == "TYPE_STRING"


def test_requests_and_answers_fit_the_description(server, images):
    document = json.loads(server.ask("GET", "/openapi.json")[2])
    operation = document["paths"]["/predict/colours"]["post"]
    assert "image/jpeg" in operation["requestBody"]["content"]
    assert "application/x-npy" not in operation["requestBody"]["content"]

    def validator(content):
        schema = content["application/json"]["schema"] | {"components": document["components"]}
        return jsonschema.Draft202012Validator(schema)

    asked = validator(operation["requestBody"]["content"])
    good = {"instances": [text64(images[0]), {"b64": text64(images[1])}]}
    asked.validate(good)
    assert not asked.is_valid({"instances": [[1.0]]})
    status, answer = ask(server, "colours", good)
    assert status == 200
    validator(operation["responses"]["200"]["content"]).validate(answer)
