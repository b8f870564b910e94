"""Planning and running: nothing runs twice, nothing is packaged over budget, nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tiny as tiny_stages
from modelpack import canonical, engine
from modelpack import recipe as recipes
from modelpack.errors import BudgetError, MissingError, StageError, StoreError, UsageError
from modelpack.events import Metric, Note, Progress, StepFinished, StepStarted
from modelpack.planning import plan
from modelpack.runs import Journal, Runs
from modelpack.stage import Assumption
from modelpack.store import Store

pytestmark = pytest.mark.usefixtures("tiny")


def desk(folder, overrides=(), store=None, device="cpu", force=()):
    recipe = recipes.load(folder / "recipe.yaml", overrides)
    return engine.open_desk(recipe, Store(store or folder / "store"), device, force)


def go(folder, *overrides, events=None, **more):
    return engine.run(desk(folder, overrides, **more), (events if events is not None else []).append)


def executed(events):
    return [event.step for event in events if isinstance(event, StepStarted)]


def edit(folder, old, new):
    path = folder / "recipe.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_run_does_every_step_once_and_a_second_run_none(folder):
    events = []
    first = go(folder, events=events)
    assert first.status == "succeeded"
    assert executed(events) == ["model", "shrink", "heal", "convert", "score", "pack"]
    assert [event.value for event in events if isinstance(event, Metric)] == [0.5, 0.9, 2.0]
    assert [event.done for event in events if isinstance(event, Progress)] == [0, 1, 2, 3]
    again = []
    second = go(folder, events=again)
    assert executed(again) == []
    assert [step.artifact for step in second.steps] == [step.artifact for step in first.steps]
    assert all(event.cached for event in again if isinstance(event, StepFinished))
    assert any(isinstance(event, Note) and event.text == "shrunk" for event in again), "warnings are told again"
    assert Runs(Store(folder / "store")).current("tiny").number == 2


def test_two_empty_stores_give_the_same_ids(folder):
    one, two = go(folder), go(folder, store=folder / "other")
    assert [step.artifact for step in one.steps] == [step.artifact for step in two.steps]


def test_the_plan_says_what_will_run_and_why(folder):
    before = plan(desk(folder))
    assert [(item.step.id, item.why) for item in before][:3] == [
        ("model", "not done before"), ("shrink", "after model"), ("heal", "after shrink, model"),
    ]  # fmt: skip
    go(folder)
    assert all(item.artifact for item in plan(desk(folder)))
    assert plan(desk(folder, ["stages.shrink.keep=0.4"]))[1].why == "keep: 0.5 → 0.4"
    (folder / "train.txt").write_text("other\n")
    planned = plan(desk(folder))
    assert [bool(item.artifact) for item in planned] == [True, False, False, False, False, False]
    assert planned[1].why == "data 'train' changed"


@pytest.mark.parametrize(
    ("change", "ran"),
    [
        (lambda folder: (folder / "train.txt").write_text("new\n"), ["shrink"]),
        (lambda folder: (folder / "weights.txt").write_text("v" * 40), ["model", "shrink", "heal", "convert", "score", "pack"]),
        (lambda folder: edit(folder, "- convert:", "- convert: {level: 2}"), ["convert"]),
        (lambda folder: edit(folder, "name: tiny", "# a comment\nname: tiny"), []),
        (lambda folder: os.utime(folder / "train.txt", (1, 1)), []),
        (lambda folder: edit(folder, "name: tiny", "seed: 5\nname: tiny"), ["model", "shrink", "heal", "convert", "score", "pack"]),
    ],
)  # fmt: skip
def test_a_change_reruns_exactly_what_depends_on_it(folder, change, ran):
    go(folder)
    change(folder)
    events = []
    go(folder, events=events)
    # A step whose input has another id runs again even when bytes are equal: identity includes what was asked.
    assert executed(events)[: len(ran)] == ran
    assert bool(executed(events)) == bool(ran)


def test_what_bears_the_recipes_name_is_made_again_under_another_name(folder):
    go(folder)
    edit(folder, "name: tiny", "name: other")
    events = []
    run = go(folder, events=events)
    assert executed(events) == ["pack"]
    image = Store(folder / "store").get(run.step("pack").artifact)
    assert image.file("image.tar").read_bytes().startswith(b"other")


def test_a_forced_step_runs_again_and_equal_bytes_stop_the_ripple(folder):
    go(folder)
    events = []
    go(folder, events=events, force=["shrink"])
    assert executed(events) == ["shrink"]


def test_a_missed_budget_stops_before_packaging_and_is_recorded(folder):
    with pytest.raises(BudgetError, match=r"score: the budget is not met: accuracy is 0.4, the budget says ≥ 0.5"):
        go(folder, "stages.score.accuracy=0.4")
    (run,) = Runs(Store(folder / "store")).list("tiny")
    assert run.status == "failed"
    assert [verdict["met"] for verdict in run.budget] == [True, False]
    assert "pack" not in [step.id for step in run.steps]
    assert tiny_stages.EFFECTS == []
    assert Runs(Store(folder / "store")).current("tiny") is None


def test_a_relative_size_is_held_against_the_original_model(folder):
    with pytest.raises(BudgetError, match=r"size is 90%, the budget says ≤ 50%"):
        go(folder, "stages.shrink.keep=0.9")


def test_a_failed_stage_keeps_what_was_finished(folder):
    with pytest.raises(StageError, match="shrink: failed on purpose"):
        go(folder, "stages.shrink.fail=true")
    events = []
    go(folder, events=events)
    assert executed(events)[0] == "shrink"
    assert list((folder / "store" / "tmp").iterdir()) == []


def test_preflights_run_before_the_first_stage(folder):
    events = []
    with pytest.raises(MissingError, match="needs a CPU"):
        go(folder, device="cuda:0", events=events)
    assert events == []
    assert Runs(Store(folder / "store")).list() == []


def test_an_effect_is_repeated_on_a_cached_run(folder):
    go(folder)
    go(folder)
    assert len(tiny_stages.EFFECTS) == 2
    assert len(set(tiny_stages.EFFECTS)) == 1


def test_a_measurement_is_cached_on_the_same_machine_only(folder, monkeypatch):
    go(folder)
    monkeypatch.setattr("modelpack.planning.machine", lambda device: {"processor": "another", "device": device})
    assert [item.step.id for item in plan(desk(folder)) if not item.artifact] == ["score"]


def test_a_bug_in_a_stage_leaves_its_traceback_with_the_run(folder, monkeypatch):
    monkeypatch.setattr(tiny_stages, "_shrink_preflight", None)
    monkeypatch.setattr("tiny.Kind", None)
    monkeypatch.setattr("tiny.round", lambda _: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError):
        go(folder)
    directory = folder / "store" / "runs" / "tiny" / "0001"
    assert "ZeroDivisionError" in (directory / "traceback.txt").read_text()
    assert json.loads((directory / "run.json").read_text())["status"] == "failed"


def test_a_full_disk_under_a_stage_is_the_stores_error(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tiny.round", full, raising=False)
    with pytest.raises(StoreError, match="No space left"):
        go(folder)


def test_a_full_disk_under_the_journal_is_the_stores_error(folder, monkeypatch):
    begin = Journal.__init__

    def full(journal, *arguments):
        begin(journal, *arguments)
        journal._events.close()
        journal._events = Path("/dev/full").open("a")  # noqa: SIM115 - the journal closes it

    monkeypatch.setattr(Journal, "__init__", full)
    with pytest.raises(StoreError, match="the disk is full"):
        go(folder)
    assert Runs(Store(folder / "store")).get("tiny@1").status == "interrupted", "its last word could not be written"


def test_two_at_once_share_the_work(folder):
    shutil.copytree(folder, folder / "copy")
    results = []
    threads = [threading.Thread(target=lambda: results.append(go(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run.number for run in results) == [1, 2, 3, 4]
    assert len({run.steps[-1].artifact for run in results}) == 1
    assert sum(not step.cached for run in results for step in run.steps) == 6


def test_who_waits_for_another_process_is_told(folder):
    go(folder)
    store = Store(folder / "store")
    changed = plan(desk(folder, ["stages.shrink.keep=0.4"]))[1]
    events = []
    with store.claim(changed.fingerprint):
        thread = threading.Thread(target=lambda: go(folder, "stages.shrink.keep=0.4", events=events))
        thread.start()
        while not any("another process" in getattr(event, "text", "") for event in events):
            assert thread.is_alive()
            time.sleep(0.01)
    thread.join()
    assert executed(events)[0] == "shrink"


class TestRuns:
    def test_an_older_run_that_ends_later_does_not_become_current(self, folder):
        go(folder)
        runs = Runs(Store(folder / "store"))
        first = runs.get("tiny@1")
        with runs.begin(replace(first, status="running"), "") as older:
            go(folder, "stages.shrink.keep=0.4")
            older.update(status="succeeded")
        assert (older.run.number, runs.current("tiny").number) == (2, 3)

    def test_references(self, folder):
        go(folder)
        go(folder, "stages.shrink.keep=0.4")
        runs = Runs(Store(folder / "store"))
        assert runs.get("tiny").number == 2
        assert runs.get("tiny@1").number == 1
        assert runs.newest().number == 2
        for bad in ("tinny", "tiny@9", "../x", "tiny@x"):
            with pytest.raises(UsageError):
                runs.get(bad)

    def test_rollback_moves_current_to_a_run_that_succeeded(self, folder):
        go(folder)
        go(folder, "stages.shrink.keep=0.4")
        with pytest.raises(BudgetError):
            go(folder, "stages.shrink.keep=0.8")
        runs = Runs(Store(folder / "store"))
        assert runs.current("tiny").number == 2
        runs.rollback("tiny", 1)
        assert runs.current("tiny").number == 1
        with pytest.raises(UsageError, match="failed"):
            runs.rollback("tiny", 3)

    def test_cleaning_keeps_current_recent_and_their_ancestors(self, folder):
        for keep in (0.5, 0.4, 0.3, 0.2):
            go(folder, f"stages.shrink.keep={keep}")
        store = Store(folder / "store")
        runs = Runs(store)
        runs.rollback("tiny", 1)
        store.collect(lambda: runs.kept(1))
        remaining = {path.name for path in store.artifacts()}
        for number, present in ((1, True), (2, False), (3, False), (4, True)):
            ids = {step.artifact for step in runs.get(f"tiny@{number}").steps}
            assert ids.issubset(remaining) is present
        events = []
        go(folder, events=events)
        assert executed(events) == []

    def test_nothing_is_made_from_a_damaged_artifact_and_force_mends_it(self, folder):
        run = go(folder)
        store = Store(folder / "store")
        artifact = store.get(run.steps[3].artifact)
        path = artifact.path / "model.onnx"
        path.chmod(0o644)
        path.write_bytes(b"x" * 20)
        with pytest.raises(StoreError, match="the result of 'convert' is damaged") as caught:
            go(folder, force={"score"})
        assert "--force convert" in caught.value.then
        assert go(folder, force={"convert"}).status == "succeeded"
        assert artifact.verify() == []
        assert go(folder, force={"score"}).status == "succeeded"

    def test_payload_goes_nowhere_it_cannot_be_written(self, folder):
        run = go(folder)
        artifact = Store(folder / "store").get(run.steps[3].artifact)
        (folder / "file").touch()
        with pytest.raises(UsageError, match="cannot write"):
            engine.payload(artifact, folder / "file" / "out")

    def test_payload_is_copied_out_and_a_damaged_one_is_not(self, folder):
        run = go(folder)
        store = Store(folder / "store")
        artifact = store.get(run.steps[3].artifact)
        (written,) = engine.payload(artifact, folder / "out")
        assert written.read_bytes() == b"w" * 20
        path = artifact.path / "model.onnx"
        path.chmod(0o644)
        path.write_bytes(b"x" * 20)
        with pytest.raises(StoreError, match="damaged"):
            engine.payload(artifact, folder / "again")
        assert not (folder / "again").exists()


KILLED = """
    import sys, time
    sys.path.insert(0, sys.argv[1])
    import tiny
    from pathlib import Path
    from modelpack import engine, recipe, registry
    from modelpack.data import Source
    from modelpack.stage import Stage
    from modelpack.store import Store
    stages = registry.discover("s", Stage, [tiny.Here(i.name, i) for i in tiny.STAGES])
    sources = registry.discover("d", Source, [tiny.Here("lines", tiny.lines)])
    registry.stages, registry.sources = (lambda: stages), (lambda: sources)
    folder = Path(sys.argv[2])
    desk = engine.open_desk(recipe.load(folder / "recipe.yaml"), Store(folder / "store"), "cpu")
    print("ready", flush=True)
    engine.run(desk, lambda event: time.sleep(0.003))
"""


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.03, 0.045, 0.06, 0.08])
def test_killed_at_any_moment_the_next_run_continues(folder, delay):
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), here, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = Store(folder / "store")
    finished = len(store.artifacts())
    assert all(run.status in ("interrupted", "succeeded") for run in Runs(store).list())
    events = []
    run = go(folder, events=events)
    assert run.status == "succeeded"
    assert len(executed(events)) == 6 - finished
    reference = go(folder, store=folder / "fresh")
    assert [step.artifact for step in run.steps] == [step.artifact for step in reference.steps]


def test_fingerprints_are_hashes_of_the_work(folder):
    go(folder)
    for item in plan(desk(folder)):
        assert item.fingerprint == canonical.digest(item.work) == item.artifact.manifest.fingerprint


def test_what_a_stage_assumes_of_the_machine_is_part_of_its_identity(folder):
    def assuming(value):
        found = desk(folder)
        steps = (
            replace(
                step, stage=replace(step.stage, assumes=lambda _config, _device: [Assumption("integers", value, "")])
            )
            if step.id == "shrink"
            else step
            for step in found.recipe.steps
        )
        return replace(found, recipe=replace(found.recipe, steps=tuple(steps)))

    engine.run(assuming("U8S8"), [].append)
    same, other = (plan(assuming(value)) for value in ("U8S8", "S8S8"))
    assert not any(item.why for item in same)
    changed = next(item for item in other if item.step.id == "shrink")
    assert changed.why == "integers: U8S8 → S8S8"
    assert next(item for item in plan(desk(folder)) if item.step.id == "shrink").why == "integers: U8S8 → –"
    assert changed.assumptions == (Assumption("integers", "S8S8", ""),)
