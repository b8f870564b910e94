"""The bench: turns are fair, figures come from the process asked for, and what cannot be measured says why.

No test here depends on how long anything takes.
"""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from modelpack import canonical, errors
from modelpack.errors import MissingError, StageError
from modelpack.events import Note, Progress
from modelpack.numerics.measure import bench, children, memory, subjects, work
from modelpack.numerics.measure.figures import Settings
from modelpack.numerics.measure.subjects import Subject
from modelpack.stage import Outside
from modelpack.stages.bench import bench as bench_stage
from modelpack.stages.model import model as model_stage
from modelpack.stages.model import onnx_model
from modelpack.tensors import TensorSpec
from support import Rows, run_stage

QUICK = {"rounds": 10, "seconds": 0.001, "warmup": 1}
NET = """
import os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 7)

    def forward(self, x):
        print("noise on stdout", flush=True)
        {body}
        return self.linear(x)

def build():
    return Net()
"""


def linear(path, rows=6, columns=7, shape=("batch", None), fill=0.5):
    """Write an ONNX file that multiplies by a matrix."""
    sizes = [rows if size is None else size for size in shape]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["file", "w"], ["output"])],
        "linear",
        [helper.make_tensor_value_info("file", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [*sizes[:-1], columns])],
        [numpy_helper.from_array(np.full((rows, columns), fill, np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def pair(tmp_path):
    """Two ONNX files with one input, which is called like a parameter of numpy's savez."""
    names = {"small": 7, "large": 64}
    return [Subject.of_file(linear(tmp_path / f"{name}.onnx", 6, size), name) for name, size in names.items()]


def torch_subject(root, body, name="net"):
    """A torch model whose forward runs `body` once it is an artifact."""
    (root / "net.py").write_text(NET.replace("{body}", f"if os.environ.get('OMP_NUM_THREADS'): {body}"))
    settings = {"factory": "net.py:build", "inputs": {"x": {"shape": ["batch", 6]}}}
    return Subject.of(run_stage(root, model_stage, settings), name)


def test_everything_asked_for_is_measured(pair):
    told = []
    asked = Settings(reference="large", batches=(4, 1), threads=(1, 2), **QUICK)
    found = bench.measure(pair, asked, lambda *step: told.append(step))
    cells = {(cell.subject, cell.batch, cell.threads): cell for cell in found.cells}
    assert set(cells) == {(name, rows, threads) for name in ("small", "large") for rows in (4, 1) for threads in (1, 2)}
    for (name, rows, _), cell in cells.items():
        assert (cell.ratio is None) is (name == "large")
        assert cell.rows_per_second == pytest.approx(1000 * rows / cell.times.p50)
        assert cell.rounds == 10
    assert found.cell("small") is cells["small", 4, 1]
    small, large = found.weights
    assert (small.macs, large.macs) == (6 * 7, 6 * 64)
    assert small.size == pair[0].path.stat().st_size
    assert small.load_ms > 0
    assert small.runtime_bytes < small.peak_bytes[1] <= small.peak_bytes[4]
    assert told[-1] == ("memory", 2, 2)
    row = json.loads(canonical.encode(found.to_json()))["cells"][0]
    assert row["ratio"]["verdict"] in ("faster", "slower", "no difference shown")
    assert {"min_ms", "p50_ms", "p95_ms", "p99_ms", "rows_per_second", "batch", "threads"} <= set(row)
    with pytest.raises(KeyError, match="not measured"):
        found.cell("small", batch=2)


def test_a_torch_model_runs_with_the_threads_asked_for(tmp_path):
    check = "assert torch.get_num_threads() == int(os.environ['OMP_NUM_THREADS']) == 2"
    subject = torch_subject(tmp_path, check)
    found = bench.measure([subject], Settings(threads=(2,), **QUICK))
    assert found.weights[0].runtime == "torch"
    assert found.weights[0].macs == 6 * 7
    with pytest.raises(StageError, match=r"net: failed on x \[1, 6\]: AssertionError"):
        bench.measure([subject], Settings(threads=(1,), **QUICK))


def test_a_process_that_is_killed_is_reported(tmp_path):
    with pytest.raises(StageError, match="killed by signal 9") as caught:
        bench.measure([torch_subject(tmp_path, "os.kill(os.getpid(), 9)")], Settings(**QUICK))
    assert "memory ran out" in caught.value.then


def test_a_process_that_ends_by_itself_is_reported_with_its_last_words(tmp_path):
    body = "print('no more', flush=True), os._exit(7)"
    with pytest.raises(StageError, match="ended with code 7") as caught:
        bench.measure([torch_subject(tmp_path, body)], Settings(**QUICK))
    assert "no more" in caught.value.then


def test_a_provider_that_is_absent_is_missing_across_the_process(pair):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    request = {"do": "time", "subjects": [bench._body(pair[0])], "device": "cuda:0", "threads": 1, "level": "all"}
    with pytest.raises(MissingError, match="CUDA"):
        children.run(request, 1)


def test_errors_keep_their_kind_across_the_process():
    for kind in (errors.StageError, errors.MissingError, errors.UsageError):
        told = {"type": kind.__name__, "what": "a", "where": "b", "then": "c"}
        with pytest.raises(kind) as caught:
            children._understood({"error": told})
        assert str(caught.value) == "b: a\n  c"


def test_onnx_is_measured_without_loading_torch(pair, tmp_path):
    feed = tmp_path / "feed.npz"
    np.savez(feed, np.zeros((1, 6), np.float32))
    request = {
        "subject": bench._body(pair[0]), "device": "cpu", "threads": 1, "level": "all", "feeds": [str(feed)],
    }  # fmt: skip
    script = f"""
import sys
from modelpack.numerics.measure import worker
worker._weigh({request!r}, print)
sys.exit(int("torch" in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_peak_memory_is_this_process_own():
    before = memory.resident()
    block = np.ones(8_000_000)
    assert memory.resident() - before > 60_000_000
    assert memory.peak() >= memory.resident() - 1_000_000
    del block
    script = "from modelpack.numerics.measure import memory; print(memory.peak())"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert int(child.stdout) < 60_000_000  # `getrusage` would give at least what this process had


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reference": "other"}, "'other' is not among small, large"),
        ({"rounds": 9}, "10 are the fewest"),
        ({"dimensions": {"sequence": 5}}, "no dynamic dimensions besides their rows"),
    ],
)
def test_settings_that_do_not_fit_are_refused(pair, change, reason):
    with pytest.raises(StageError) as caught:
        bench.measure(pair, Settings(**{**QUICK, **change}))
    assert reason in str(caught.value)


def test_subjects_need_different_names(pair):
    with pytest.raises(StageError, match="different names"):
        bench.measure([pair[0], pair[0]], Settings(**QUICK))


def test_a_fixed_number_of_rows_is_respected(tmp_path):
    subject = Subject.of_file(linear(tmp_path / "fixed.onnx", shape=(4, None)), "fixed")
    with pytest.raises(StageError, match="exactly 4 rows, not 8"):
        bench.measure([subject], Settings(batches=(4, 8), **QUICK))
    assert bench.measure([subject], Settings(batches=(4,), **QUICK)).cells[0].batch == 4


def test_dynamic_dimensions_take_the_sizes_given_and_others_are_told(tmp_path):
    subject = Subject.of_file(linear(tmp_path / "text.onnx", shape=("batch", "sequence", None)), "text")
    told = bench.measure([subject], Settings(**QUICK))
    sized = bench.measure([subject], Settings(dimensions={"sequence": 5}, **QUICK))
    assert "no size was given for sequence: measured at 16" in told.notes
    assert not any("sequence" in note for note in sized.notes)
    assert (told.weights[0].macs, sized.weights[0].macs) == (16 * 6 * 7, 5 * 6 * 7)
    with pytest.raises(StageError, match="sequense") as caught:
        bench.measure([subject], Settings(dimensions={"sequense": 5}, **QUICK))
    assert "did you mean 'sequence'" in caught.value.then


def test_work_is_counted_where_shape_inference_gives_up(tmp_path):
    # The product's rows are cut to a size that only a run computes: the input's second dimension.
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "one"], ["width"]),
        helper.make_node("Slice", ["table", "zero", "width", "zero"], ["cut"]),
        helper.make_node("MatMul", ["cut", "w"], ["product"]),
        helper.make_node("Add", ["product", "x"], ["output"]),
    ]
    constants = {
        "one": np.array([1]), "zero": np.array([0]), "table": np.ones((32, 6), np.float32),
        "w": np.ones((6, 1), np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "cut",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 1])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "length", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path / "cut.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    subject = Subject.of_file(path, "cut")
    assert work.macs_per_row(subject, {"x": np.ones((2, 9, 1), np.float32)}) == 9 * 6 // 2


def test_rows_of_data_are_repeated_to_fill_a_batch():
    subject = Subject("a", "onnx", None, {"x": TensorSpec(shape=("batch", 2))}, 0)
    data = {"x": np.arange(6, dtype=np.float32).reshape(3, 2), "label": np.arange(3)}
    found = subjects.drawn(subject, data, 5)
    assert found["x"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert list(found) == ["x"]


def test_data_without_rows_are_refused(pair):
    with pytest.raises(StageError, match="no rows"):
        bench.measure(pair, Settings(**QUICK), data=[])


def test_more_threads_than_cores_and_mixed_runtimes_are_told(pair, tmp_path):
    net = torch_subject(tmp_path, "pass")
    notes = bench._notes([pair[0], net], Settings(threads=(4096,)), sampled_inputs=True)
    assert any("4096 threads" in note for note in notes)
    assert any("compare runtimes" in note for note in notes)


def test_the_stage_records_figures_outside_the_identity(tmp_path):
    linear(tmp_path / "small.onnx")
    linear(tmp_path / "large.onnx", columns=64)
    small = run_stage(tmp_path, onnx_model, {"onnx": "small.onnx"})
    large = run_stage(tmp_path, onnx_model, {"onnx": "large.onnx"})
    asked = {"against": "model", "data": "rows", **QUICK}
    data, events = {"rows": Rows({"file": np.ones((3, 6), np.float32)})}, []
    given = {"model": small, "steps": {"model": large}, "data": data, "collect": events}
    first, second = (run_stage(tmp_path / place, bench_stage, asked, **given) for place in ("one", "two"))
    assert first.id == second.id
    assert first.read_json("bench.json")["against"] == large.id
    assert set(first.metrics) == {"latency_ms", "latency_ms_reference", "rows_per_second", "speedup"}
    found = first.manifest.record["results"]["bench"]
    ratio = next(cell["ratio"] for cell in found["cells"] if cell["subject"] == "onnx_model")
    assert first.metrics["speedup"] == (ratio["value"] if ratio["verdict"] != "no difference shown" else 1)
    assert found["machine"]["cores"] >= 1
    assert any(isinstance(event, Progress) for event in events)
    assert any(isinstance(event, Note) and event.text.startswith("against model: ") for event in events)


def test_a_model_against_one_of_the_same_stage_keeps_its_own_name(tmp_path):
    linear(tmp_path / "small.onnx")
    small = run_stage(tmp_path, onnx_model, {"onnx": "small.onnx"})
    report = run_stage(
        tmp_path, bench_stage, {"against": "onnx_model", **QUICK}, model=small, steps={"onnx_model": small}
    )
    cells = report.manifest.record["results"]["bench"]["cells"]
    assert [cell["subject"] for cell in cells] == ["onnx_model (this)", "onnx_model"]


@pytest.mark.parametrize(
    "config", [{"batch": []}, {"batch": [0]}, {"rounds": 9}, {"seconds": 0}, {"dimensions": {"a": 0}}, {"bacth": [1]}]
)
def test_settings_out_of_range_are_refused(config):
    with pytest.raises(ValidationError):
        bench_stage.config.model_validate(config)


def test_budgets_know_what_will_be_measured():
    config = bench_stage.config
    assert bench_stage.gauges(config()) == {"latency_ms"}
    assert bench_stage.gauges(config(against="export")) == {"latency_ms", "speedup"}


def test_a_device_whose_memory_cannot_be_measured_is_refused_before_the_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    config = bench_stage.config()
    bench_stage.preflight(config, Outside("cpu"))
    with pytest.raises(MissingError, match="nvidia-ml-py"):
        bench_stage.preflight(config, Outside("cuda:0"))


@pytest.mark.cuda
def test_both_runtimes_are_measured_on_the_device(pair, tmp_path):
    net = torch_subject(tmp_path, "pass")
    found = bench.measure([pair[0], net], Settings(device="cuda:0", **QUICK))
    assert all(cell.times.p50 > 0 for cell in found.cells)
    assert all(item.device_bytes[1] > 0 for item in found.weights)
