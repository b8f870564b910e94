"""The scripts that make README's figures: their arithmetic, and the pages they write."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from modelpack import recipe, usercode
from modelpack.numerics import graph
from onnx_support import graph_of, weights
from serving import linear as linear_model

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


# Quantizers side by side


def test_sentences_are_cut_apart_and_cut_to_length(module):
    tasks = module("tasks")
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    rows = {"input_ids": np.arange(12).reshape(3, 4), "attention_mask": mask}
    assert [feed["input_ids"].tolist() for feed in tasks.alone(rows)] == [[[0, 1, 2]], [[4, 5, 6, 7]], [[8]]]
    assert tasks.sized(rows, 2, 3)["input_ids"].tolist() == [[0, 1, 2], [4, 5, 6]]
    assert [len(feed["input_ids"]) for feed in tasks.feeds(rows, 2)] == [2, 1]


def test_closeness_is_told_in_decibels_and_cosines(module):
    tasks = module("tasks")
    wanted = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    assert tasks.noise_db(wanted, wanted) == ""
    assert tasks.noise_db(wanted * 1.1, wanted) == "20.0 dB"
    assert np.allclose(tasks.cosines(wanted, np.array([[6.0, 8.0], [0.0, 2.0]])), [1, 0])


def test_a_head_that_learned_from_float_embeddings_judges_the_rounded_ones(module):
    tasks = module("tasks")
    draw = np.random.default_rng(0)
    topics = np.repeat(["a", "b"], 50)
    points = draw.normal(size=(100, 3)).astype(np.float32) + np.where(topics == "a", 4, -4)[:, None]
    fp32 = {"train": points, "test": points}
    same = tasks.judge_articles({"test": points}, fp32, (topics, topics))
    assert (same["accuracy"], same["agreement"]) == ("1.0000", "1.0000")
    turned = tasks.judge_articles({"test": -points}, fp32, (topics, topics))
    assert (turned["accuracy"], turned["agreement"], turned["cosine, mean"]) == ("0.0000", "0.0000", "-1.0000")


@pytest.fixture
def linear(tmp_path):
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "linear")]
    tensors = {"w": weights(64, 8), "b": weights(8, seed=1)}
    onnx.save(graph_of(nodes, {"x": (["batch", 64], 1)}, {"y": ["batch", 8]}, tensors), tmp_path / "fp32.onnx")
    np.savez(tmp_path / "calibration.npz", x=weights(4, 64, seed=2))
    return tmp_path


def test_a_method_runs_in_a_process_of_its_own_and_its_cost_is_told(module, linear):
    methods = module("methods")
    method = next(item for item in methods.METHODS if item.name == "onnxruntime, dynamic, per channel")
    found = methods.run(method, linear, "transformer")
    assert found["cpu"] > 0
    assert found["memory"] > 0
    assert graph.operators(onnx.load(found["file"]))["MatMulInteger"] == 1
    Path(found["file"]).unlink()
    assert methods.run(method, linear, "transformer") == found  # what a folder holds is not made again


def test_a_method_that_fails_is_told_in_one_line(module, linear):
    methods, harness = module("methods"), module("quantization")
    (linear / "calibration.npz").write_bytes(b"damaged")
    method = next(item for item in methods.METHODS if item.name == "onnxruntime, its defaults")
    found = methods.run(method, linear, "convolutions")
    assert set(found) == {"error"}
    assert "\n" not in found["error"]
    assert harness.row(None, None, found, None) == {"fails": found["error"]}


def test_every_task_has_methods_of_ours_and_of_others_and_none_is_listed_twice(module):
    methods, tasks = module("methods"), module("tasks")
    for task in tasks.TASKS.values():
        names = [method.name for method in methods.METHODS if task.kind in method.kinds]
        assert len(set(names)) == len(names)
        assert {name.split(",")[0] for name in names} >= {"modelpack", "onnxruntime", "NNCF", "onnxsim"}


def test_the_network_that_is_only_timed_travels_with_the_blocks_that_it_is_made_of():
    assert set(usercode.closure("nets.py:resnet18", BENCHMARKS)) == {"nets.py", "fashion/net.py"}
    assert recipe.load(BENCHMARKS / "resnet18.yaml").name == "resnet18"


def test_every_way_to_train_for_rounding_is_a_step_that_is_judged(module, tmp_path):
    qat = module("qat")
    shutil.copytree(qat.DIGITS, tmp_path / "digits")
    (tmp_path / "qat.yaml").write_text(json.dumps(qat.body(3, "test")))
    found = recipe.load(tmp_path / "qat.yaml")
    assert found.seed == 3
    assert {step.id for step in found.steps} >= {*qat.WAYS, *(f"{name}-judged" for name in qat.WAYS)}


def test_a_way_is_told_by_its_mean_and_by_every_seed(module):
    qat = module("qat")
    figures = {"accuracy": 0.5, "agreement": 0.75, "sqnr_db": 20.0, "bytes": 1000}
    told = qat.line("static", [figures, {**figures, "accuracy": 1.0, "bytes": 2000}])
    assert told["accuracy"] == "0.7500 (0.5000, 1.0000)"
    assert (told["SQNR"], told["size"]) == ("20.0 (20.0, 20.0) dB", "1.5 (1.0, 2.0) kB")
    assert told["within one step of torch"] == ""
    trained = qat.line("learning", [{**figures, "export_lsb_share": share} for share in (1.0, 0.9995)])
    assert trained["within one step of torch"] == "99.95%"


def test_paragraphs_that_all_pages_share_come_once_and_last(monkeypatch):
    spec = importlib.util.spec_from_file_location("docs", BENCHMARKS.parent / "recipes" / "docs.py")
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    pages = {"one": "### One\n\ntable 1\n\nHow.", "two": "### Two\n\ntable 2\n\nHow."}
    monkeypatch.setattr(docs, "measured", pages.get)
    assert docs.together(["one", "two"]) == "### One\n\ntable 1\n\n### Two\n\ntable 2\n\nHow."


# Servers side by side


def test_an_answer_is_whole_when_its_length_has_arrived(module):
    answer = module("serving_wire").Answer()
    data = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
    assert [answer.take(data[at : at + 1]) for at in range(len(data))] == [False] * (len(data) - 1) + [True]
    assert (answer.status, answer.body, answer.closes) == (429, b"abc", True)


def test_a_server_is_asked_through_a_balancer_and_told_what_it_costs(module, tmp_path):
    servers, wire = module("serving_servers"), module("serving_wire")
    request, front = servers.OURS.request(np.ones((1, 4))), servers.free_port()
    with servers.Server(servers.OURS, linear_model(tmp_path / "model"), tmp_path / "scratch", max_batch=1) as server:
        assert server.await_answer(request) > 0
        before = server.cpu()
        command = [sys.executable, BENCHMARKS / "serving_balancer.py", str(front), str(server.port)]
        balancer = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert balancer.stdout.readline() == b"listening\n"
            server.await_answer(request)
            assert len(eventually(lambda: wire.load(front, request, 40, 4))) == 40
            with wire.Wire(front) as one:
                assert servers.OURS.read(one.exchange(request)[1]).shape == (3,)
            assert server.stop() == 0
            with pytest.raises(OSError, match=r"ended|reset"), wire.Wire(front) as one:
                one.exchange(request)
        finally:
            balancer.kill()
            balancer.wait()
            balancer.stdout.close()
    assert before > 0


def eventually(work):
    """Do it as soon as the balancer has seen that its server is ready."""
    for _ in range(100):
        try:
            return work()
        except (OSError, AssertionError):
            time.sleep(0.05)
    return work()


def test_every_peer_of_the_server_has_a_program_and_pinned_requirements(module):
    peers, folder = module("serving_servers").PEERS, BENCHMARKS / "serving_peers"
    assert set(module("serving").CASES) == set(module("serving").ROUNDS)
    for name in peers:
        assert (folder / f"with_{name}.py").is_file()
        assert all("==" in line for line in (folder / f"{name}.txt").read_text().split())


def test_clients_that_behave_badly_are_the_same_again(module):
    abuse = module("serving_abuse")
    first, again = ([*itertools.islice(abuse.abuses(7, ["/predict"]), 50)] for _ in range(2))
    assert first == again
    assert first != [*itertools.islice(abuse.abuses(8, ["/predict"]), 50)]
    assert abuse.wrong([200, 400, 500, 501, 503, 504]) == [500, 501]


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_committed_figures_say_where_they_were_measured_and_how_to_repeat_them(path):
    data = json.loads(path.read_text())
    script = data["command"].split()[1]
    assert (BENCHMARKS.parent / script).is_file()
    assert all(f"--rounds {count}" in data["command"] for count in re.findall(r"(\d+) rounds", " ".join(data["notes"])))
    assert data["machine"]["processor"]
    assert path.with_suffix(".md").read_text().startswith(f"# {data['title']}\n")
