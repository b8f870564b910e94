"""What a server says about its model: the card, the page, the API's description, the metrics."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import Server, linear, pair, whole

CARD = {
    "name": "digits <b>",
    "version": "7",
    "artifact": "7e" * 32,
    "precision": "int8",
    "description": "It reads & writes.",
    "metrics": {"accuracy": 0.98, "<script>": "</pre><script>alert(1)</script>"},
    "sizes": [1, 2],
    "signature": {"inputs": {"x": {"shape": ["batch", 4]}}},
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    folders = {make.__name__: make(root / make.__name__) for make in (linear, pair, whole)}
    folders |= {"one": linear(root / "one", 1), "two": linear(root / "two", 2)}
    (folders["linear"] / "card.json").write_text(json.dumps(CARD))
    running = {name: Server(folder) for name, folder in folders.items()}
    yield running
    for server in running.values():
        server.stop()


def test_the_card_is_json_with_every_key(servers):
    status, headers, body = servers["linear"].ask("GET", "/")
    card = json.loads(body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert card | CARD == card
    assert card["inputs"] == {"x": {"shape": ["batch", 4], "dtype": "float32"}}
    assert card["outputs"] == {"y": {"shape": ["batch", 3], "dtype": "float32"}}
    assert card["limits"]["max_rows"] == 4096
    assert "/predict" in card["routes"]


class Page(HTMLParser):
    """The tags, links and inline texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open, self.inline = [], [], [], {}
        self.handlers = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.inline[self.open[-1]] = self.inline.get(self.open[-1], "") + data


BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def test_browsers_get_a_page_of_which_only_what_its_policy_names_may_run(servers):
    status, headers, body = servers["linear"].ask("GET", "/", headers=BROWSER)
    assert (status, headers["content-type"], headers["vary"]) == (200, "text/html; charset=utf-8", "accept")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    page = Page(body.decode())
    assert page.open == []
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert page.handlers == []
    assert all(link.startswith("data:") for link in page.links)
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inline[tag].encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert policy.pop("connect-src") == "'self'"
    assert policy.pop("img-src") == "data: blob:"
    assert set(policy) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert set(policy.values()) == {"'none'"}


def test_the_page_is_the_same_for_every_model(servers):
    """So it tells nothing of the model to whoever has no token."""
    pages = {server.ask("GET", "/", headers=BROWSER)[2] for server in servers.values()}
    assert len(pages) == 1
    assert servers["linear"].ask("GET", "/card/nobody", headers=BROWSER)[0] == 404


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "text/html;q=0.1,application/json", "image/png", "text/html;q=x"]
)
def test_programs_get_json(servers, accept):
    assert servers["linear"].ask("GET", "/", headers={"accept": accept})[1]["content-type"] == "application/json"


def described(server):
    return json.loads(server.ask("GET", "/openapi.json")[2])


def validator(document, name):
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


GOOD = [
    ("linear", {"instances": [[1, 2, 3, 4]] * 3}),
    ("linear", {"inputs": {"x": [[1, 2, 3, 4]]}}),
    ("one", {"instances": [[1, 2, 3, 4]] * 3}),
    ("one", {"inputs": {"x": [[1, 2, 3, 4]] * 3}}),
    ("two", {"instances": [[1, 2, 3, 4]] * 2}),
    ("pair", {"instances": [{"ids": [1, 2], "mask": [True, False]}], "parameters": {}}),
    ("pair", {"inputs": {"ids": [[1, 2]], "mask": [[True, False]]}}),
    ("whole", {"inputs": {"x": [1, 2], "scale": 2.5}}),
]


@pytest.mark.parametrize(("name", "content"), GOOD)
def test_good_requests_and_their_answers_fit_the_schema(servers, name, content):
    document = described(servers[name])
    kinds = ("Rows", "RowAnswer") if "instances" in content else ("Columns", "ColumnAnswer")
    validator(document, kinds[0]).validate(content)
    status, answer = servers[name].predict(content)
    assert status == 200
    validator(document, kinds[1]).validate(answer)


BAD = [
    ("linear", "Rows", {"instances": [[1, 2, 3]]}),
    ("linear", "Rows", {"instances": []}),
    ("linear", "Rows", {"instances": [[1, 2, 3, "4"]]}),
    ("linear", "Columns", {"inputs": {"z": [[1, 2, 3, 4]]}}),
    ("two", "Rows", {"instances": [[1, 2, 3, 4]]}),
    ("pair", "Columns", {"inputs": {"ids": [[1000]], "mask": [[True]]}}),
    ("pair", "Columns", {"inputs": {"ids": [[1]], "mask": [[1]]}}),
    ("pair", "Rows", {"instances": [{"ids": [1]}]}),
]


@pytest.mark.parametrize(("name", "kind", "content"), BAD)
def test_what_the_schema_refuses_the_server_refuses_too(servers, name, kind, content):
    assert not validator(described(servers[name]), kind).is_valid(content)
    assert servers[name].predict(content)[0] == 400


def test_the_description_is_complete(servers):
    document = described(servers["linear"])
    assert document["openapi"] == "3.1.0"
    assert document["info"] == {"title": "digits <b>", "version": "7", "description": "It reads & writes."}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert servers["linear"].ask(method.upper(), path)[0] not in (404, 405)
            assert operation["operationId"]
    assert {"/openapi.json", "/metrics", "/v2", "/v2/models/digits%20%3Cb%3E/infer"} <= set(document["paths"])
    identities = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(identities) == len(set(identities))
    names = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert set(names) == set(document["components"]["schemas"])
    assert "Rows" not in described(servers["whole"])["components"]["schemas"]
    assert "null" in document["paths"]["/predict"]["post"]["description"]


def test_metrics_are_the_promised_families(servers):
    server = servers["linear"]
    server.predict({"instances": [[1, 2, 3, 4]] * 3})
    server.ask("GET", "/nowhere")
    text = server.ask("GET", "/metrics")[2].decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {
        "modelpack_requests", "modelpack_request_duration_seconds", "modelpack_inference_duration_seconds",
        "modelpack_queue_duration_seconds", "modelpack_batch_size", "modelpack_inflight_requests", "modelpack_queue_depth",
        "modelpack_model_info", "modelpack_ready", "modelpack_model_load_seconds", "process_resident_memory_bytes",
    } <= set(families)  # fmt: skip
    info = families["modelpack_model_info"].samples[0].labels
    assert info | {"model": "digits <b>", "version": "7", "digest": "7e" * 32, "precision": "int8"} == info
    assert server.metric("modelpack_batch_size_sum") >= 3
    assert server.metric("modelpack_ready") == 1
    assert server.metric('modelpack_requests_total{code="404",protocol="native",route="unknown"}') >= 1
    assert not any("_created" in sample.name for family in families.values() for sample in family.samples)


def test_a_tool_that_accepts_openmetrics_gets_it(servers):
    headers = servers["linear"].ask(
        "GET", "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
    )[1]
    assert headers["content-type"].startswith("application/openmetrics-text")
