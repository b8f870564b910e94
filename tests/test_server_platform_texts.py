"""Images and sentences in the words of the platforms: the same answers as from the server's own route."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interfaces import made, photos, pictures, reading, seeing, sentences
from modelpack.server.table import to_csv
from serving import JSON, Server, described

TEXTS = ["good film", "very very bad film"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("platforms")


@pytest.fixture(scope="module")
def images(root):
    return photos(root)


@pytest.fixture(scope="module")
def servers(root, images):
    """Two servers, as most platforms know one model: of images and of texts."""
    model = seeing(root / "a")
    settings = {"data": "v", "outputs": {"scores": {"softmax": True, "top": 2}}}
    colours = made(root / "1", model, settings, v=pictures(root, model))
    model = reading(root / "b")
    texts = made(root / "2", model, {"data": "v"}, v=sentences(root, model))
    running = {}
    for name, artifact in {"colours": colours, "texts": texts}.items():
        shutil.copytree(artifact.path, root / "served" / name)
        running[name] = Server(root / "served" / name, predict_route="/vertex")
    yield running
    for server in running.values():
        assert server.stop() == 0
        assert "ERROR" not in "".join(server.log)


def post(server, path, content, media="application/json", method="POST"):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    status, _, answer = server.ask(method, path, body, {"content-type": media} if media else {})
    assert status == 200, answer
    return json.loads(answer)


def expected(server, rows):
    return post(server, "/predict", {"instances": rows})["predictions"]


def text64(path):
    return base64.b64encode(path.read_bytes()).decode()


def test_images_are_base64_or_files_everywhere(servers, images):
    server, words = servers["colours"], [text64(path) for path in images[:3]]
    want = expected(server, words)
    wrapped, named = [{"b64": word} for word in words], [{"image": word} for word in words]
    for rows in (words, wrapped, named):
        assert post(server, "/v1/models/model:predict", {"instances": rows})["predictions"] == want
        assert post(server, "/invocations", {"instances": rows})["predictions"] == want
        assert post(server, "/vertex", {"instances": rows})["predictions"] == want
        assert post(server, "/score", {"data": rows}) == want
    frame = {"columns": ["image"], "data": [[word] for word in words]}
    assert post(server, "/invocations", {"dataframe_split": frame})["predictions"] == want
    media = "image/jpeg" if images[0].suffix == ".jpg" else "image/png"
    for path in ("/invocations", "/vertex", "/score"):
        assert post(server, path, images[0].read_bytes(), media)["predictions"] == want[:1]
    assert want[0]["scores_label"][0] == images[0].parent.name


def test_torchserve_takes_a_file_as_curl_sends_it(servers, images):
    want = expected(servers["colours"], [text64(images[0])])[0]
    for method, media in (("PUT", ""), ("POST", "application/octet-stream"), ("POST", "image/png")):
        path = "/predictions/model"
        assert post(servers["colours"], path, images[0].read_bytes(), media, method) == want
    assert post(servers["colours"], "/predictions/model/1", {"image": text64(images[0])}, method="PUT") == want
    want = expected(servers["texts"], TEXTS[:1])[0]
    assert post(servers["texts"], "/predictions/model", TEXTS[0].encode(), "", "PUT") == want
    assert post(servers["texts"], "/predictions/model", TEXTS[0]) == want


def test_cog_takes_one_image_or_text_by_itself(servers, images):
    want = expected(servers["colours"], [text64(images[0])])[0]
    for word in (text64(images[0]), f"data:image/png;base64,{text64(images[0])}"):
        assert post(servers["colours"], "/predictions", {"input": {"image": word}})["output"] == want
    assert (
        post(servers["texts"], "/predictions", {"input": {"text": TEXTS[0]}})["output"]
        == expected(servers["texts"], TEXTS[:1])[0]
    )
    several = post(servers["texts"], "/predictions", {"input": {"text": TEXTS}})["output"]
    assert several == post(servers["texts"], "/predict", {"inputs": {"text": TEXTS}})["outputs"]


def test_sentences_are_rows_lines_and_tables(servers):
    server = servers["texts"]
    want = expected(server, TEXTS)
    lines = "".join(json.dumps(text) + "\n" for text in TEXTS).encode()
    for content, media in (
        ({"dataframe_records": [{"text": text} for text in TEXTS]}, "application/json"),
        (lines, "application/jsonlines"),
        (("text\n" + "\n".join(TEXTS)).encode(), "text/csv"),
    ):
        assert post(server, "/invocations", content, media)["predictions"] == want
    assert post(server, "/invocations", TEXTS[0].encode(), "text/plain")["predictions"] == expected(server, TEXTS[:1])
    assert post(server, "/v1/models/model:predict", {"inputs": TEXTS})["outputs"]["ids_out"] == [
        row["ids_out"] for row in want
    ]


def test_tensorflow_servings_metadata_call_them_strings(servers):
    _, _, body = servers["colours"].ask("GET", "/v1/models/model/metadata")
    signature = json.loads(body)["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert (signature["inputs"]["image"]["dtype"], signature["outputs"]["scores_label"]["dtype"]) == ("DT_STRING",) * 2


@pytest.mark.parametrize(
    ("name", "path", "body", "media", "status", "message"),
    [
        ("colours", "/invocations", b"x", "text/plain", 415, "'image/jpeg'"),
        ("colours", "/invocations", b"x", "image/png", 400, "it is no image"),
        ("colours", "/invocations", b"x", "application/x-npy", 400, "carries numbers"),
        ("colours", "/predictions/model", b"x", "", 400, "it is no image"),
        ("colours", "/predictions/model", b'"?"', "application/json", 400, "is not base64"),
        ("colours", "/predictions", b'{"input": {"image": "data:,x"}}', "application/json", 400, "is not base64"),
        ("colours", "/v1/models/model:predict", b'{"instances": [{"b64": 3}]}', "", 400, "found a whole number"),
        ("texts", "/predictions/model", b"\xff", "", 400, "not UTF-8"),
        ("texts", "/v1/models/model:predict", b'{"instances": [{"b64": "AA=="}]}', "", 400, "found an object"),
    ],
)
def test_what_is_no_image_or_text_is_refused(servers, name, path, body, media, status, message):
    given_status, _, answer = servers[name].ask("POST", path, body, {"content-type": media} if media else {})
    assert given_status == status, answer
    assert re.search(message, answer.decode()), answer


def test_descriptions_take_them_too(servers, images):
    word = text64(images[0])
    for path, content in (
        ("/invocations", {"instances": [{"b64": word}, word]}),
        ("/v1/models/model:predict", {"inputs": {"image": [word]}}),
        ("/predictions", {"input": {"image": word}}),
        ("/predictions", {"input": {"image": [word]}}),
        ("/predictions/model", word),
    ):
        asked, answered = described(servers["colours"], path)
        asked.validate(content)
        answered.validate(post(servers["colours"], path, content))
    document = json.loads(servers["colours"].ask("GET", "/openapi.json", headers=JSON)[2])
    assert "image/jpeg" in document["paths"]["/invocations"]["post"]["requestBody"]["content"]


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 9)), min_size=1))
def test_a_table_of_texts_is_read_back_by_others(rows):
    texts = np.empty(len(rows), object)
    texts[:] = [text for text, _ in rows]
    written = to_csv({"a": texts, "b": np.array([number for _, number in rows])}, len(rows))
    found = list(csv.reader(io.StringIO(written.decode(), newline=""), strict=True))
    assert found == [[text, str(number)] for text, number in rows]
