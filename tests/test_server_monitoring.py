"""The dashboard and the alerts that are shipped, read by the Prometheus that Debian has, from a server that works."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from itertools import combinations
from pathlib import Path

import pytest
import yaml

import modelpack.server
from certificates import Authority
from serving import JSON, Server, linear

FOLDER = Path(modelpack.server.__file__).parent / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
ALERTS = FOLDER / "alerts.yml"
RULES = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
TOKEN = "what-prometheus-shows-0123456789"
CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [ALERTS]
scrape_configs:
  - job_name: models
    scheme: https
    tls_config: {ca_file: AUTHORITY}
    authorization: {credentials_file: FOLDER/token}
    static_configs: [{targets: ["127.0.0.1:PORT"]}]
"""


def needs(name):
    program = shutil.which(name)
    if program is None:
        pytest.skip("needs Debian's prometheus")
    return program


class Prometheus:
    """Debian's Prometheus, which scrapes one server by TLS."""

    def __init__(self, folder: Path, target: int, authority: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (folder / "token").write_text(TOKEN)
        config = CONFIG
        for word, value in {"ALERTS": ALERTS, "FOLDER": folder, "PORT": target, "AUTHORITY": authority}.items():
            config = config.replace(word, str(value))
        (folder / "prometheus.yml").write_text(config)
        command = [
            needs("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=error",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)

    def get(self, path: str, **query: str):
        address = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> list:
        return self.get("query", query=expression)["result"]

    def wait_for(self, expression: str) -> None:
        """Wait until an expression gives something."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self.process.poll() is None, "prometheus ended"
            try:
                if self.value(expression):
                    return
            except OSError:  # it is starting
                pass
            time.sleep(0.2)
        raise AssertionError(f"waited in vain for {expression}: {self.get('targets')}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(tmp_path_factory, authority):
    shown = authority.issue("server")
    settings = {"workers": 2, "token": TOKEN, "tls_cert": shown.path, "tls_key": shown.key}
    with Server(linear(tmp_path_factory.mktemp("model")), trusting=authority.trusted(), **settings) as server:
        yield server


def traffic(server: Server) -> None:
    headers = JSON | {"authorization": f"Bearer {TOKEN}"}
    for body, path in [('{"instances": [[1, 2, 3, 4]]}', "/predict"), ("{}", "/predict"), ("{}", "/nowhere")]:
        server.ask("POST", path, body, headers)


@pytest.fixture(scope="module")
def prometheus(server, authority, tmp_path_factory):
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), server.port, authority.path)
    try:
        traffic(server)
        running.wait_for('modelpack_requests_total{route="/predict"} offset 2s')
        traffic(server)
        running.wait_for('sum(rate(modelpack_requests_total{route="/predict"}[30s])) > 0')
        running.wait_for("sum(rate(modelpack_batch_size_count[30s])) > 0")
        yield running
    finally:
        running.stop()


def filled(expression: str) -> str:
    for name, value in {"$__rate_interval": "30s", "$job": ".*", "$instance": ".*"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


@pytest.mark.prometheus
def test_every_expression_of_the_dashboard_gives_something(prometheus):
    assert len(EXPRESSIONS) > 20
    empty = [expression for expression in EXPRESSIONS if not prometheus.value(filled(expression))]
    assert empty == []
    ready, workers = (prometheus.value(filled(expression))[0]["value"][1] for expression in EXPRESSIONS[:2])
    assert (ready, workers) == ("1", "2")


@pytest.mark.prometheus
def test_every_variable_of_the_dashboard_has_values(prometheus):
    for variable in DASHBOARD["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
        assert prometheus.get(f"label/{label}/values", **{"match[]": filled(metric)})


@pytest.mark.prometheus
def test_every_alert_is_evaluated_and_none_fires_for_a_server_that_is_well(prometheus):
    end = time.monotonic() + 30
    while True:
        rules = prometheus.get("rules")["groups"][0]["rules"]
        if all(rule["health"] == "ok" for rule in rules) or time.monotonic() > end:
            break
        time.sleep(0.2)
    assert [(rule["name"], rule["health"], rule.get("lastError")) for rule in rules] == [
        (rule["alert"], "ok", None) for rule in RULES
    ]
    assert {rule["name"] for rule in rules if rule["state"] == "firing"} == set()


@pytest.mark.prometheus
def test_the_metrics_are_well_named(server):
    text = server.ask("GET", "/metrics", headers={"authorization": f"Bearer {TOKEN}"})[2]
    done = subprocess.run([needs("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    named = {"job": "models", "instance": "a:8080"} | labels
    inner = ", ".join(f'{key}="{value}"' for key, value in named.items())
    return {"series": f"{name}{{{inner}}}", "values": values}


def requests(code: str, values: str, route: str = "/predict") -> dict[str, str]:
    return series("modelpack_requests_total", values, code=code, route=route, protocol="native")


READY = series("modelpack_ready", "1+0x60")
MEAN = ["modelpack_inference_duration_seconds", "modelpack_queue_duration_seconds"]
MODEL = {"model": "m", "digest": "d", "precision": "int8", "ort_version": "1"}
CERTIFICATE, DAY = "modelpack_tls_certificate_end_seconds", 86400
SITUATIONS = {
    "nothing is wrong": ([READY, requests("200", "0+600x60"), requests("503", "0+600x60", "/readyz")], set()),
    "a few of many fail": ([READY, requests("200", "0+600x60"), requests("500", "0+1x60")], set()),
    "nobody is there": ([requests("200", "0+600x60")], {"ModelpackAbsent"}),
    "it loads for ever": ([series("modelpack_ready", "0+0x60")], {"ModelpackNotReady"}),
    "the model fails": ([READY, requests("200", "0+600x60"), requests("500", "0+60x60")], {"ModelpackFailing"}),
    "probes hide nothing": (
        [READY, requests("200", "0+60000x60", "/livez"), requests("200", "0+600x60"), requests("504", "0+60x60")],
        {"ModelpackFailing"},
    ),
    "the queue is full": ([READY, requests("200", "0+600x60"), requests("429", "0+60x60")], {"ModelpackRefusing"}),
    "requests wait": (
        [
            READY, *(series(f"{name}_count", "0+600x60") for name in MEAN),
            series(f"{MEAN[0]}_sum", "0+6x60"), series(f"{MEAN[1]}_sum", "0+15x60"),
        ],
        {"ModelpackWaiting"},
    ),
    "requests share runs": (
        [
            READY, *(series(f"{name}_count", "0+600x60") for name in MEAN),
            series(f"{MEAN[0]}_sum", "0+6x60"), series(f"{MEAN[1]}_sum", "0+6x60"),
        ],
        set(),
    ),
    "a worker died": ([READY, series("modelpack_worker_deaths_total", "0x50 1x10")], {"ModelpackWorkersDying"}),
    "it starts anew": (
        [READY, series("process_start_time_seconds", "1x40 2x5 3x5 4x10")], {"ModelpackRestarting"}
    ),
    "something else starts anew": (
        [READY, series("process_start_time_seconds", "1x40 2x5 3x5 4x10", instance="b:9100")], set()
    ),
    "a rollout stopped": (
        [
            READY, series("modelpack_ready", "1+0x60", instance="b:8080"),
            series("modelpack_model_info", "1+0x60", version="1", **MODEL),
            series("modelpack_model_info", "1+0x60", version="2", instance="b:8080", **MODEL),
        ],
        {"ModelpackVersionsDiffer"},
    ),
    "the certificate is fresh": ([READY, series(CERTIFICATE, f"{40 * DAY}x60")], set()),
    "the certificate ends soon": ([READY, series(CERTIFICATE, f"{3 * DAY}x60")], {"ModelpackCertificateEnding"}),
    "the certificate was renewed": ([READY, series(CERTIFICATE, f"{3 * DAY}x55 {40 * DAY}x5")], set()),
    "the certificate has ended": ([READY, series(CERTIFICATE, "3000x60")], {"ModelpackCertificateRefused"}),
    "the certificate is refused": ([READY, series(CERTIFICATE, "0x60")], {"ModelpackCertificateRefused"}),
    "two versions everywhere": (
        [
            READY, series("modelpack_ready", "1+0x60", instance="b:8080"),
            *(
                series("modelpack_model_info", "1+0x60", version=version, instance=instance, **MODEL)
                for version in "12" for instance in ("a:8080", "b:8080")
            ),
        ],
        set(),
    ),
}  # fmt: skip


@pytest.mark.prometheus
def test_each_alert_fires_when_it_should_and_only_then(tmp_path):
    """Prometheus's own tool plays an hour of figures for each situation."""
    program = needs("promtool")
    wrong = {}
    for number, (situation, (figures, expected)) in enumerate(SITUATIONS.items()):
        told = [
            {
                "expr": f'(count(ALERTS{{alertstate="firing", alertname="{rule["alert"]}"}}) > bool 0) or vector(0)',
                "eval_time": "60m",
                "exp_samples": [{"labels": "{}", "value": int(rule["alert"] in expected)}],
            }
            for rule in RULES
        ]
        content = {
            "rule_files": [str(ALERTS)], "evaluation_interval": "1m",
            "tests": [{"interval": "1m", "input_series": figures, "promql_expr_test": told}],
        }  # fmt: skip
        path = tmp_path / f"{number}.yml"
        path.write_text(yaml.safe_dump(content))
        done = subprocess.run([program, "test", "rules", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            wrong[situation] = done.stdout + done.stderr
    assert wrong == {}
    assert set.union(*(expected for _, expected in SITUATIONS.values())) == {rule["alert"] for rule in RULES}


def test_the_dashboard_is_whole():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart = [
            one[at] + one[size] <= other[at] or other[at] + other[size] <= one[at]
            for at, size in (("x", "w"), ("y", "h"))
        ]
        assert any(apart), (one, other)
    for panel in PANELS:
        assert panel["title"]
        assert [target["refId"] for target in panel["targets"]] == list("ABC")[: len(panel["targets"])]


@pytest.mark.parametrize("name", ["dashboard", "alerts"])
def test_the_server_prints_what_it_ships(name):
    done = subprocess.run(
        [sys.executable, "-m", "modelpack.server", "--monitoring", name], capture_output=True, text=True, check=True
    )
    assert done.stdout == next(FOLDER.glob(f"{name}.*")).read_text("utf-8")
