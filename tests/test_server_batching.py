"""Natural batching: who runs with whom, what a full queue says, and that nobody's trouble becomes another's."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.server import batching
from modelpack.server.batching import Pool
from modelpack.server.engine import Engine
from modelpack.server.faults import Disconnected, Full, Late
from modelpack.server.independence import independent
from modelpack.server.signature import read
from modelpack.server.statistics import Ledger, Statistics
from serving import linear, pair, patient, reshaping, write_model


def never() -> bool:
    return False


def options() -> SimpleNamespace:
    return SimpleNamespace(terminate=False)


def rows_of(*values):
    return {"x": np.array(values, "float64")[:, None]}


class Gate:
    """Work that waits for the test before its first run, and notes the rows of each."""

    def __init__(self, work=lambda feed, _options: {"y": 2 * feed["x"]}):
        self.open, self.entered, self.runs, self._work = threading.Event(), threading.Event(), [], work

    def __call__(self, feed, given):
        self.entered.set()
        assert self.open.wait(10)
        self.runs.append(feed["x"].ravel().tolist())
        return self._work(feed, given)


async def behind(gate, pool, feeds, later):
    """Hold one run up, queue the others behind it, then let all go."""
    first = asyncio.create_task(pool.run(rows_of(0), 1, later, never))
    await asyncio.to_thread(gate.entered.wait, 10)
    tasks = [asyncio.create_task(pool.run(feed, len(feed["x"]), later, never)) for feed in feeds]
    await asyncio.sleep(0)
    gate.open.set()
    return await asyncio.gather(first, *tasks, return_exceptions=True)


def scene(gate, feeds, **limits):
    observed = []

    async def play():
        pool = Pool(gate, options, **{"workers": 1, "limit": 64, "observe": observed.append} | limits)
        results = await behind(gate, pool, feeds, asyncio.get_running_loop().time() + 10)
        pool.close(1)
        return results

    return asyncio.run(play()), observed


@given(sizes=st.lists(st.integers(1, 5), max_size=9), limit=st.integers(2, 8))
def test_what_waits_runs_together_and_everyone_gets_their_own_rows(sizes, limit):
    feeds = [rows_of(*range(10 * at, 10 * at + size)) for at, size in enumerate(sizes, 1)]
    gate = Gate()
    results, observed = scene(gate, feeds, rows=limit)
    for feed, (_, _, outputs) in zip(feeds, results[1:], strict=True):
        np.testing.assert_array_equal(outputs["y"], 2 * feed["x"])
    assert all(len(run) <= max(limit, *sizes) for run in gate.runs[1:])
    assert [run.rows for run in observed] == [len(run) for run in gate.runs]
    starts = [run[0] for run in gate.runs]
    assert starts == sorted(starts), "the oldest goes first"
    if sizes and sum(sizes) <= limit:
        assert len(gate.runs) == 2, "one run for all that waited"


def test_short_runs_are_made_at_once_and_long_ones_are_not(monkeypatch):
    now, here = [0.0], []
    monkeypatch.setattr(batching, "perf_counter", lambda: now[0])

    def work(feed, _options):
        here.append(threading.current_thread() is threading.main_thread())
        now[0] += float(feed["x"][0, 0])
        return {"y": feed["x"]}

    async def play(seconds, **given):
        pool = Pool(work, options, workers=1, limit=8, rows=8, **given)
        later = asyncio.get_running_loop().time() + 60
        here.clear()
        for each in seconds:
            await pool.run(rows_of(each), 1, later, never)
            while pool.busy:
                await asyncio.sleep(0)
        pool.close(1)
        return list(here)

    short, long = 20e-6, 0.01
    learned = asyncio.run(play([short] * 20, short=True))
    assert (learned[0], learned[-1]) == (False, True)
    assert not any(asyncio.run(play([short] * 20)))
    assert not any(asyncio.run(play([long] * 20, short=True)))
    disturbed = asyncio.run(play([*[short] * 60, long, *[short] * 2], short=True))
    assert disturbed[-2:] == [True, True], "one interruption is no rule"
    grown = asyncio.run(play([*[short] * 60, *[long] * 5], short=True))
    assert grown[-2:] == [False, False]


def test_a_limit_of_one_row_shares_nothing():
    gate = Gate()
    scene(gate, [rows_of(1), rows_of(2)], rows=1)
    assert gate.runs == [[0], [1], [2]]


def test_only_equal_shapes_share_a_run():
    gate = Gate()
    wide = {"x": np.ones((1, 2))}
    results, _ = scene(gate, [rows_of(1), wide, rows_of(3)], rows=8)
    assert gate.runs == [[0], [1, 3], [1, 1]]
    assert [outputs["y"].shape for _, _, outputs in results] == [(1, 1), (1, 1), (1, 2), (1, 1)]


def test_a_bad_request_fails_alone():
    def work(feed, _options):
        if 2 in feed["x"]:
            raise ValueError("two")
        return {"y": feed["x"]}

    results, observed = scene(Gate(work), [rows_of(1), rows_of(2), rows_of(3)], rows=8)
    assert isinstance(results[2], ValueError)
    assert [results[at][2]["y"].item() for at in (0, 1, 3)] == [0, 1, 3]
    assert [run.rows for run in observed] == [1, 1, 1]


def test_answers_that_are_not_rows_are_computed_one_by_one():
    gate = Gate(lambda feed, _options: {"y": feed["x"].sum(keepdims=True)})
    results, _ = scene(gate, [rows_of(1), rows_of(2)], rows=8)
    assert [outputs["y"].item() for _, _, outputs in results] == [0, 1, 2]


def test_a_job_that_expires_in_the_queue_is_never_run():
    """One thread is held by a run that ignores its deadline; what waits behind it gets its own answer in time."""
    gate = Gate(lambda _feed, given: {"stopped": given.terminate})

    async def play():
        pool = Pool(gate, options, workers=1, limit=1)
        now = asyncio.get_running_loop().time()
        first = asyncio.create_task(pool.run(rows_of(1), 1, now + 0.2, never))
        await asyncio.to_thread(gate.entered.wait, 10)
        second = asyncio.create_task(pool.run(rows_of(2), 1, now + 0.1, never))
        await asyncio.sleep(0)
        with pytest.raises(Full) as full:
            await pool.run(rows_of(3), 1, now + 10, never)
        with pytest.raises(Late, match="while waiting in the queue"):
            await second
        with pytest.raises(Late, match="while running"):
            await first
        assert pool.waiting == 1, "the thread is still held, so its place is too"
        gate.open.set()
        while pool.waiting:
            await asyncio.sleep(0.01)
        last = await pool.run(rows_of(4), 1, now + 10, never)
        pool.close(1)
        return full.value, last

    full, (queued, run, result) = asyncio.run(play())
    assert full.retry_after == 1
    assert gate.runs == [[1], [4]]
    assert queued >= 0
    assert run.started <= run.joined <= run.ended <= run.split
    assert result == {"stopped": False}


def test_a_shared_run_goes_on_while_anybody_waits_for_it():
    gate = Gate(lambda feed, given: {"y": feed["x"], "stopped": np.full((len(feed["x"]), 1), given.terminate)})
    running = threading.Event()

    def work(feed, given):
        if len(feed["x"]) > 1:
            running.set()
            assert both.wait(10)
        return gate(feed, given)

    both = threading.Event()

    async def play():
        pool = Pool(work, options, workers=1, limit=8, rows=8)
        now = asyncio.get_running_loop().time()
        first = asyncio.create_task(pool.run(rows_of(0), 1, now + 60, never))
        await asyncio.to_thread(gate.entered.wait, 10)
        now = asyncio.get_running_loop().time()
        short = asyncio.create_task(pool.run(rows_of(1), 1, now + 1, never))
        long = asyncio.create_task(pool.run(rows_of(2), 1, now + 10, never))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.to_thread(running.wait, 10)
        with pytest.raises(Late, match="while running"):
            await short
        both.set()
        results = await asyncio.gather(first, long)
        pool.close(1)
        return results

    _, (_, _, outputs) = asyncio.run(play())
    assert (outputs["y"].item(), outputs["stopped"].item()) == (2, False)


def test_who_left_is_not_computed_for():
    async def play():
        pool = Pool(gate, options, workers=1, limit=8, rows=8)
        later = asyncio.get_running_loop().time() + 10
        first = asyncio.create_task(pool.run(rows_of(0), 1, later, never))
        await asyncio.to_thread(gate.entered.wait, 10)
        left = asyncio.create_task(pool.run(rows_of(1), 1, later, lambda: True))
        stays = asyncio.create_task(pool.run(rows_of(2), 1, later, never))
        await asyncio.sleep(0)
        gate.open.set()
        results = await asyncio.gather(first, left, stays, return_exceptions=True)
        pool.close(1)
        return results

    gate = Gate()
    assert isinstance(asyncio.run(play())[1], Disconnected)
    assert gate.runs == [[0], [2]]


def test_statistics_count_requests_rows_and_runs():
    ledger = Ledger()
    statistics = Statistics(ledger, "m", "1")
    _, observed = scene(Gate(), [rows_of(1, 2), rows_of(3)], rows=8)
    for run in observed:
        statistics.ran(run)
    known = statistics.figures(ledger.totals())
    assert (known.inferences, known.executions) == (4, 2)
    assert {rows: steps[0] for rows, steps in known.batches.items()} == {1: 1, 3: 1}
    assert known.steps[0] == 3, "requests"


def engine(folder, **given):
    built = Engine(folder / "model.onnx", read(folder / "signature.json"), 1, **given)
    built.warm_up()
    return built


def test_an_engine_slices_what_exceeds_a_batch(tmp_path):
    whole, sliced = engine(linear(tmp_path / "m")), engine(tmp_path / "m", rows=4)
    feed = {"x": np.random.default_rng(0).normal(size=(11, 4)).astype("float32")}
    assert (whole.batch, sliced.batch) == (1, 4)
    np.testing.assert_allclose(sliced.run(feed)["y"], whole.run(feed)["y"], rtol=1e-5, atol=1e-6)
    assert engine(pair(tmp_path / "pair"), rows=4).batch == 4
    assert engine(reshaping(tmp_path / "reshaping"), rows=4).batch == 1


def test_a_model_that_loops_may_take_any_time(tmp_path):
    assert engine(linear(tmp_path / "linear")).steady
    assert not engine(patient(tmp_path / "patient")).steady


def test_models_that_mix_the_rows_of_a_run_keep_requests_apart(tmp_path):
    from onnx import helper

    tensors = {"x": (["n", 4], "float32")}, {"y": (["n", 4], "float32")}
    centred = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])]
    rounded = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    for name, nodes in (("centred", centred), ("rounded", rounded)):
        assert engine(write_model(tmp_path / name, nodes, *tensors), rows=8).batch == 1


def test_a_model_that_refuses_the_trial_shares_nothing():
    def refuse(_feed):
        raise ValueError

    assert not independent(refuse, {"x": np.zeros((1, 4), "float32")}, {})


@pytest.mark.parametrize(("limits", "seen"), [((0, 9), True), (None, False)])
def test_whole_numbers_are_tried_where_their_range_is_known(limits, seen):
    def mixing(feed):
        return {"y": feed["id"] - feed["id"].sum()}

    assert independent(mixing, {"id": np.zeros((1, 8), "int64")}, {"id": limits}) is not seen
