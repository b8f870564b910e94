"""Whole commands whose training runs in workers: lost ones, Ctrl-C, and two hosts with addresses of their own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
RECIPE = """\
name: two
model: {factory: nets.py:cnn, arguments: {width: 8}, inputs: {image: {shape: [batch, 1, 16, 16]}}}
data:
  train: {npz: {path: train.npz, batch: 16}}
stages:
  - distill: {data: train, epochs: EPOCHS, alpha: 0.5, lr: 5e-3}
"""
LIMIT = 240


def lay(root: Path, epochs: int = 4, store: Path | None = None) -> Path:
    """Write a recipe with its data, and a store that has its model, where one is given."""
    root.mkdir(parents=True, exist_ok=True)
    if store is not None:
        shutil.copytree(store, root / "store")
    generator = np.random.default_rng(0)
    label = generator.integers(0, 10, 205)
    np.savez(root / "train.npz", image=generator.standard_normal((205, 1, 16, 16)).astype(np.float32), label=label)
    shutil.copy(HERE / "nets.py", root)
    (root / "recipe.yaml").write_text(RECIPE.replace("EPOCHS", str(epochs)))
    return root


class Command:
    """``modelpack compress`` under way."""

    def __init__(self, root: Path, *options: str, before: tuple[str, ...] = ()) -> None:
        self.root, self.events = root, []
        paths = os.pathsep.join(path for path in sys.path if path)
        with (root / "stderr").open("w") as errors:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "modelpack", "compress", "recipe.yaml", "--json", *options],
                cwd=root,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": paths, "MODELPACK_STORE": str(root / "store"), "OMP_NUM_THREADS": "1"},
            )

    def until(self, label: str) -> Command:
        """Wait until a piece of work with this label goes on."""
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1].get("label", "").startswith(label):
                return self
        raise AssertionError(f"{self.process.wait()}: {self.events[-3:]} {(self.root / 'stderr').read_text()}")

    def end(self) -> int:
        """Wait for the end; gives the exit code."""
        self.events += [json.loads(line) for line in self.process.stdout]
        self.process.stdout.close()
        return self.process.wait(LIMIT)

    def family(self) -> list[int]:
        """Ids of the command's children and theirs: the agent first, then the workers by their rank."""
        found, queue = [], [self.process.pid]
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        while queue:
            parent = queue.pop(0)
            children = sorted(child for child, of in parents.items() if of == parent)
            found += children
            queue += children
        return found

    @property
    def artifact(self) -> str:
        """Id of what was trained."""
        return next(
            event["artifact"] for event in self.events if event.get("stage") == "distill" and "artifact" in event
        )

    @property
    def told(self) -> str:
        """Notes and the error."""
        texts = [event["text"] for event in self.events if event.get("event") == "note"]
        return "\n".join([*texts, *(json.dumps(event["error"]) for event in self.events if "error" in event)])


def gone(ids: list[int]) -> bool:
    """Whether processes end within seconds."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(_alive(one) for one in ids):
            return True
        time.sleep(0.1)
    return False


def _alive(one: int) -> bool:
    try:
        return Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with the model that is to be trained."""
    run = Command(lay(tmp_path_factory.mktemp("model")), "--until", "model")
    assert run.end() == 0, run.told
    return run.root / "store"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, store):
    """What two processes come to on one host."""
    run = Command(lay(tmp_path_factory.mktemp("undisturbed"), store=store), "--nproc", "2")
    assert run.end() == 0, run.told
    return run


def test_two_processes_tell_what_one_would(undisturbed):
    labels = {event["label"] for event in undisturbed.events if event["event"] == "progress"}
    assert {f"epoch {number} of 4" for number in range(1, 5)} <= labels
    assert not any(event.get("warning") for event in undisturbed.events)
    assert list((undisturbed.root / "store" / "tmp").iterdir()) == []
    manifest = next((undisturbed.root / "store").glob(f"artifacts/*/{undisturbed.artifact}/manifest.json"))
    body = json.loads(manifest.read_text())
    assert body["work"]["assumes"] == {"processes": "2"}
    assert [line["epoch"] for line in body["record"]["results"]["history"]][-1] == 4


@pytest.mark.slow
def test_a_lost_worker_costs_time_and_changes_nothing(undisturbed, store, tmp_path):
    run = Command(lay(tmp_path, store=store), "--nproc", "2").until("epoch 2 ")
    os.kill(run.family()[-1], signal.SIGKILL)
    assert run.end() == 0, run.told
    assert "rank 1 was lost: all started again (restart 1)" in run.told
    assert run.artifact == undisturbed.artifact


def test_a_lost_worker_that_must_not_be_replaced_is_an_error(store, tmp_path):
    run = Command(lay(tmp_path, 4000, store), "--nproc", "2", "--max-restarts", "0").until("epoch 2 ")
    family = run.family()
    os.kill(family[-1], signal.SIGKILL)
    assert run.end() == 3
    assert "rank 1 was killed by signal 9" in run.told
    assert gone(family)


@pytest.fixture
def hosts():
    """Two network namespaces, each with an address of its own, joined by a cable."""
    names = [f"mp{secrets.token_hex(3)}" for _ in range(2)]
    cables = [f"v{secrets.token_hex(4)}" for _ in range(2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
            ip("-n", name, "addr", "add", f"10.213.7.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", cable, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        pytest.skip(f"network namespaces are not permitted here: {error}")
    yield [("ip", "netns", "exec", name) for name in names]
    for name in names:
        ip("netns", "del", name)


@pytest.mark.slow
def test_two_hosts_come_to_what_two_processes_on_one_come_to(hosts, undisturbed, store, tmp_path):
    options = ("--nnodes", "2", "--rdzv", "10.213.7.1:29400", "--wait", "60")
    serves = Command(lay(tmp_path / "serves"), *options, before=hosts[1])
    leads = Command(lay(tmp_path / "leads", store=store), *options, before=hosts[0])
    assert (leads.end(), serves.end()) == (0, 0), leads.told + serves.told
    assert leads.artifact == undisturbed.artifact
    assert "takes part as host 2 of 2" in serves.told
    # The host that served has what it was sent, and no result.
    model = next(event["artifact"] for event in leads.events if event.get("stage") == "model" and "artifact" in event)
    assert [path.name for path in (tmp_path / "serves/store/artifacts").glob("*/*")] == [model]
    assert not list((tmp_path / "serves/store").glob("runs/*"))


@pytest.mark.slow
def test_a_host_that_is_gone_ends_the_run_everywhere(hosts, store, tmp_path):
    options = ("--nnodes", "2", "--rdzv", "10.213.7.1:29400", "--wait", "60")
    serves = Command(lay(tmp_path / "serves", 4000), *options, before=hosts[1])
    leads = Command(lay(tmp_path / "leads", 4000, store), *options, before=hosts[0]).until("epoch 2 ")
    families = [*leads.family(), *serves.family()]
    assert len(families) == 4
    serves.process.kill()
    assert (leads.end(), serves.end()) == (3, -signal.SIGKILL)
    assert "10.213.7.2 is gone" in leads.told
    assert gone(families)
