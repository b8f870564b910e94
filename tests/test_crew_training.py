"""Training by two processes equals training by one, whatever is shared and however uneven the parts are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import crew_cases
import nets
from crewing import HERE, together
from modelpack.artifact import Artifact
from modelpack.errors import StageError
from modelpack.numerics.training import crew, norms, sharing, spread
from modelpack.stages.model import model
from support import run_stage

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student and a teacher for each case."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"cnn": ("width", 8, 16, nets.IMAGE), "encoder": ("hidden", 32, 64, nets.TOKENS)}
    found = {}
    for name, (key, small, large, inputs) in sizes.items():
        made = []
        for size in (small, large):
            settings = {"factory": f"crew_cases.py:{name}", "inputs": inputs, "arguments": {key: size}}
            made.append(str(run_stage(root / f"{name}{size}", model, settings, base=HERE).path))
        found[name] = made
    return found


@pytest.fixture(scope="module")
def shared(models, tmp_path_factory):
    """What two processes come to, in the small cases and in both ways of training."""
    return together("crew_cases", "everything", root=tmp_path_factory.mktemp("two"), models=models)


@pytest.fixture(scope="module")
def small(shared):
    """What two processes find in the small cases."""
    return [said["small"] for said in shared]


def test_processes_tell_each_other_numbers_json_and_tensors_and_share_rows(small):
    first, second = (said["talk"] for said in small)
    for said in (first, second):
        assert said["told"] == {"x": [1, None, "é"]}
        assert said["shown"]
        assert said["compared"] == [[0, 5], [1, 5]]
        assert said["summed"] == {"a": 3.0, "b": 2.0}
        assert said["total"] == [3.0]
    # Whole batches in turn; the last round has one batch, which the second process computes without counting it.
    assert first["turns"] == [[7, True], [1, True]]
    assert second["turns"] == [[2, True], [1, False]]
    # Parts of rows; where none is left, one row is computed that does not count.
    assert first["shares"] == [[3, 3, 7], [1, 1, 2], [1, 0, 1], [2, 2, 5]]
    assert second["shares"] == [[4, 4, 7], [1, 1, 2], [1, 1, 1], [3, 3, 5]]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("early", "the data end early on rank 1: its batch 3 has 0 rows, that of rank 0 has 1"),
        ("fewer", "the data differ on rank 1: its batch 2 has 1 rows, that of rank 0 has 2"),
        ("other", "the processes read different rows in batch 2"),
    ],
)
def test_data_that_are_not_the_same_everywhere_are_noticed(kind, says, small):
    for said in small:
        assert said["disagree"][kind].startswith(says)


def test_data_that_end_early_are_noticed_though_rows_are_shuffled(small):
    says = "the data end early on rank 1: it reads 3 batches, rank 0 reads 5"
    assert all(said["fall_short"].startswith(says) for said in small)


@pytest.mark.parametrize("layer", ["1d", "2d"])
def test_batch_norms_and_losses_of_all_rows_are_those_of_one_process(layer, small):
    worst = [said[layer] for said in small]
    for found in worst:
        assert {"loss", "variance"} < set(found)
        assert max(value for name, value in found.items() if name != "variance") < 1e-12
        assert found["variance"] < 1e-6  # taken in float32
    assert worst[0] == worst[1]


def test_ranges_follow_the_activations_of_all_rows(small):
    first, second = (said["follow"] for said in small)
    assert first == second
    widest = [[float(batch["x"].min()), float(batch["x"].max())] for batch in crew_cases.lay(4)]
    assert first[: len(widest)] == [pytest.approx(bounds, rel=1e-6) for bounds in widest]
    for (low, high), (least, most) in zip(first[len(widest) :], widest, strict=True):
        assert least - 1e-6 <= low < high <= most + 1e-6


def test_accumulated_gradients_are_exchanged_once_a_step(small):
    """Also those of a layer that the last batch does not use."""
    for said in small:
        *before, last = [max(found.values()) for _, found in sorted(said["exchange"].items())]
        assert before
        assert min(before) > 1e-3
        assert last < 1e-15


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory):
    """What one process comes to."""
    return crew_cases.train(str(tmp_path_factory.mktemp("alone")), models, "ddp")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_come_to_what_one_comes_to(parallel, models, alone, shared):
    _compare([said[parallel] for said in shared], alone, models)


def _compare(found, alone, models, loose=1.0):
    """See that two processes came to the same, and to what one came to."""
    first, second = found
    for name, one in alone.items():
        assert first[name]["id"] == second[name]["id"]
        for line, wanted in zip(first[name]["history"], one["history"], strict=True):
            assert {key: line[key] for key in wanted if key != "seconds"} == pytest.approx(
                {key: value for key, value in wanted.items() if key != "seconds"}, rel=1e-4 * loose
            )
        made, wanted = (
            load_file(Artifact.load(_path(item)).file("weights.safetensors")) for item in (first[name], one)
        )
        assert set(made) == set(wanted)
        moved = _distance(load_file(Artifact.load(_path(models[name][0])).file("weights.safetensors")), wanted)
        assert _distance(made, wanted) < 2e-3 * loose * moved
        edits = [Artifact.load(_path(item)).read_json("edits.json") for item in (first[name], one)]
        assert edits[0] == edits[1]


@pytest.mark.cuda
def test_two_processes_that_share_a_gpu_come_to_what_one_comes_to(models, alone, tmp_path, monkeypatch):
    # NCCL wants a GPU for each; gloo carries the tensors of one that they share, but not those of fsdp.
    monkeypatch.setenv("CREW_OVER", "gloo")
    said = together("crew_cases", "trained_on_one_gpu", device="cuda:0", root=tmp_path, models=models)
    _compare(said, alone, models)


@pytest.mark.cuda
def test_a_crew_on_a_gpu_meets_over_nccl():
    (said,) = together("crew_cases", "over_nccl", size=1, device="cuda:0")
    assert said["backend"] in ("nccl", "cpu:gloo,cuda:nccl")
    assert said["sums"] == [[1.0] * 3] * 2
    assert said["output"]
    assert said["gradients"]
    assert (said["size"], said["told"]) == (1, {"x": 1})


def _path(item):
    return Path(item["path"] if isinstance(item, dict) else item)


def _distance(one, other):
    return float(np.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)))


def test_one_process_alone_is_a_crew_that_waits_for_nobody():
    assert (crew.size(), crew.rank(), crew.leads(), crew.apart()) == (1, 0, True, ())
    assert crew.told({"x": 1}) == {"x": 1}
    assert crew.compared([3]) == [[3]]
    assert crew.summed({"a": 2.0}) == {"a": 2.0}
    rows = [{"x": np.ones((count, 2))} for count in (3, 1)]
    assert [(len(batch["x"]), share.weight) for batch, share in sharing.dealt(rows)] == [(3, 1.0), (1, 1.0)]
    assert all(counts for _, counts in sharing.in_turn(rows))
    layer = torch.nn.BatchNorm1d(2)
    with norms.synchronized(layer):
        assert "forward" not in vars(layer)


def test_who_is_gone_is_told_from_what_is_wrong():
    gone = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer")
    wrapped = ValueError("the model cannot be trained")
    wrapped.__cause__ = gone
    assert crew.lost(gone)
    assert crew.lost(wrapped)
    assert crew.lost(torch.distributed.DistBackendError("NCCL"))
    assert not crew.lost(RuntimeError("the size of tensor a must match"))
    assert not crew.lost(ValueError("gloo"))


def test_a_parameter_without_parts_is_refused_by_its_name():
    net = nn.Sequential(nn.Linear(2, 2))
    net.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(StageError, match="'scale', which is a single number") as caught:
        spread._shard(net, torch.device("cpu"))
    assert "parallel: ddp" in caught.value.then
