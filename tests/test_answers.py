"""A teacher that remembers: never asked twice for a row, never another answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

import nets
from modelpack import canonical
from modelpack.numerics.distillation import coding
from modelpack.numerics.distillation import shelf as shelf_module
from modelpack.numerics.distillation.answers import Answers, Memory
from modelpack.numerics.distillation.shelf import KEY, Shelf
from modelpack.numerics.training import batches as batches_module
from modelpack.stages.distill import DistillConfig, distill
from modelpack.stages.model import model
from support import DEVICES, Rows, run_stage
from test_distill import history, student_and_teacher
from test_models import imported
from test_recover import unlabelled

torch.set_num_threads(1)
HERE = Path(__file__).parent


def key(number):
    return number.to_bytes(KEY, "big")


class Teacher:
    """Counts the rows that it is asked."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 4)).requires_grad_(False)
        self.sizes = []

    def __call__(self, inputs):
        self.sizes.append(len(inputs["x"]))
        hidden = self.net[0](inputs["x"])
        return {"logits": self.net(inputs["x"]), "hidden": hidden.bfloat16(), "sure": hidden.abs().sum(1) > 3}


def rows(count=40, seed=0):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def batches(data, order, size):
    return [{"x": data[order[start : start + size]]} for start in range(0, len(data), size)]


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def remembering(root, teacher, rows=8, limit=2**20, learnt=40):
    return Answers(teacher, rows, Memory(root / "room", limit, "the teacher", lambda: learnt))


def test_later_passes_in_any_order_cost_no_question_and_give_the_same_bits(tmp_path):
    data, teacher = rows(), Teacher()
    answers = remembering(tmp_path, teacher)
    plain = Answers(Teacher(), 8)
    for epoch in range(3):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))
        for batch in batches(data, order, 8):
            assert same(answers(batch), plain(batch))
    assert len(teacher.sizes) == 5 + 2  # one pass, and two batches to compare
    assert answers.use.remembered == 15 - len(teacher.sizes)
    assert answers.use.off == ""
    assert answers.use.rows == 40
    assert answers.use.bytes == sum(path.stat().st_size for path in (tmp_path / "room").rglob("*.*"))


def test_the_next_run_finds_what_this_one_kept_but_no_other_teacher_or_precision_does(tmp_path):
    data = rows()
    for batch in batches(data, range(40), 8):
        remembering(tmp_path, Teacher())(batch)
    again = Teacher()
    answers = remembering(tmp_path, again)
    for batch in batches(data, range(40), 8):
        answers(batch)
    assert len(again.sizes) == 2
    other = Teacher()
    stranger = Answers(other, 8, Memory(tmp_path / "room", 2**20, "another teacher", lambda: 40))
    for batch in batches(data, range(40), 8):
        stranger(batch)
    assert len(other.sizes) == 5
    with torch.autocast("cpu", torch.bfloat16):
        lower = [answers(batch)["logits"] for batch in batches(data, range(40), 8)]
    assert {value.dtype for value in lower} == {torch.bfloat16}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 20))
def test_the_teacher_is_always_asked_the_same_number_of_rows(count, size, cut):
    data, teacher = rows(count), Teacher()
    answers = Answers(teacher, size)
    given_back = [answers(batch) for batch in batches(data, range(count), cut)]
    whole = Teacher()({"x": data})
    assert torch.allclose(torch.cat([item["logits"] for item in given_back]), whole["logits"], atol=1e-6)
    unusual = [asked for asked in teacher.sizes if asked != size]
    assert len(unusual) <= 1  # once, to see that outputs are made of rows


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from(["float32", "bfloat16", "bool", "int64"]),
                                             st.lists(st.integers(0, 5), max_size=2)), min_size=1, max_size=3))  # fmt: skip
def test_rows_written_as_bytes_come_back_whatever_they_are_made_of(count, layout):
    generator = torch.Generator().manual_seed(0)
    answers = {
        f"part{place}": torch.randint(0, 2, (count, *shape), generator=generator).to(getattr(torch, kind))
        for place, (kind, shape) in enumerate(layout)
    }
    written = coding.encoded(answers, count)
    assert same(coding.decoded([memoryview(item) for item in written], torch.device("cpu")), answers)


def test_rows_that_never_come_back_are_noticed(tmp_path):
    teacher = Teacher()
    answers = remembering(tmp_path, teacher)
    for epoch in range(4):
        for batch in batches(rows(40, seed=epoch), range(40), 8):
            answers(batch)
    assert answers.use.rows == 88
    assert answers.use.off == "the data give other rows in every pass"
    assert "other rows in every pass" in answers.use.remarks()[0]


def test_a_teacher_whose_answer_depends_on_the_other_rows_is_not_remembered(tmp_path):
    def centred(inputs):
        return {"out": inputs["x"] - inputs["x"].mean(0)}

    data, answers = rows(), remembering(tmp_path, centred)
    for epoch in range(2):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))
        for batch in batches(data, order, 8):
            assert same(answers(batch), centred(batch))
    assert "beside it" in answers.use.off


@pytest.mark.parametrize("output", [lambda x: x.mean(), lambda x: x.T, lambda x: x[:, None].expand(-1, 3, -1)[0]])
def test_outputs_that_are_not_made_of_rows_are_given_as_they_are(tmp_path, output):
    answers = remembering(tmp_path, lambda inputs: {"out": output(inputs["x"])})
    for batch in batches(rows(20), range(20), 8) * 2:
        assert same(answers(batch), {"out": output(batch["x"])})
    assert answers.use.off == "its outputs are not made of rows"


def test_inputs_without_a_common_number_of_rows_go_to_the_teacher_as_they_are(tmp_path):
    answers = remembering(tmp_path, lambda inputs: {"out": inputs["x"] * inputs["scale"]})
    batch = {"x": rows(5), "scale": torch.ones(6)}
    assert same(answers(batch), {"out": batch["x"]})
    assert "number of rows" in answers.use.off


def test_a_full_room_keeps_what_it_holds_and_says_what_it_could_not(tmp_path):
    data, teacher = rows(), Teacher()
    limit = 5000
    answers = remembering(tmp_path, teacher, limit=limit, learnt=20)
    for batch in batches(data, range(40), 8) * 2:
        answers(batch)
    assert 0 < answers.use.rows < 40
    assert answers.use.bytes <= limit
    assert "raise `cache`" in answers.use.remarks()[-1]


def test_answers_that_would_not_fit_are_not_begun_with(tmp_path):
    answers = remembering(tmp_path, Teacher(), limit=5000)
    for batch in batches(rows(), range(40), 8):
        answers(batch)
    assert answers.use.rows == 8
    assert "would take 5.3 kB" in answers.use.off
    assert "raise `cache`" in answers.use.remarks()[0]


def test_the_answers_of_the_teacher_unused_longest_make_room(tmp_path):
    old, newer, mine = (Shelf(tmp_path / name, 2500) for name in ("old", "newer", "mine"))
    for shelf in (old, newer):
        shelf.add([key(1)], [bytes(1000)])
    old.close()
    newer.close()
    os.utime(tmp_path / "old", (1, 1))
    mine.add([key(1)], [bytes(1000)])
    assert {path.name for path in tmp_path.iterdir()} == {"newer", "mine"}
    used = Shelf(tmp_path / "newer", 2500)  # in use: it stays, and there is no room
    assert mine.add([key(2)], [bytes(1000)]) is None
    used.close()
    assert mine.add([key(2)], [bytes(1000)]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_writers_side_by_side_have_volumes_of_their_own_and_read_each_other_s(tmp_path):
    one, other = Shelf(tmp_path / "a", 10**6), Shelf(tmp_path / "a", 10**6)
    one.add([key(1)], [b"one"])
    other.add([key(1), key(2)], [b"one", b"two"])
    assert [bytes(item) for item in one.find([key(2), key(1)])] == [b"two", b"one"]
    assert one.find([key(3)]) is None
    assert len(list((tmp_path / "a").glob("*.index"))) == 2
    one.close()
    third = Shelf(tmp_path / "a", 10**6)
    assert [bytes(item) for item in third.find([key(1), key(2)])] == [b"one", b"two"]
    assert len(list((tmp_path / "a").glob("*.index"))) == 2  # the closed volume was taken over


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=12), st.data())
def test_whatever_is_cut_off_or_damaged_is_absent_and_the_rest_is_whole(tmp_path_factory, items, draw):
    directory = tmp_path_factory.mktemp("shelf") / "a"
    shelf = Shelf(directory, 10**6)
    keys = [key(number) for number in range(len(items))]
    shelf.add(keys, items)
    shelf.close()
    path = directory / draw.draw(st.sampled_from(["0000.index", "0000.data"]))
    content = bytearray(path.read_bytes())
    if content and draw.draw(st.booleans()):
        content[draw.draw(st.integers(0, len(content) - 1))] ^= draw.draw(st.integers(1, 255))
    else:
        del content[draw.draw(st.integers(0, len(content))) :]
    path.write_bytes(content)
    again = Shelf(directory, 10**6)
    for name, item in zip(keys, items, strict=True):
        found = again.find([name])
        assert found is None or bytes(found[0]) == item
    again.add(keys, items)
    assert [bytes(item) for item in again.find(keys)] == items


KILLED = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("shelf", sys.argv[1])  # alone: its package would load torch
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
shelf = module.Shelf(Path(sys.argv[2]), 10**9)
for number in range(10**9):
    names = [(64 * number + i).to_bytes(16, "big") for i in range(64)]
    shelf.add(names, [name * 50 for name in names])
    if number == 20:
        print("busy", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_items(tmp_path):
    for attempt in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, shelf_module.__file__, str(tmp_path / "a")], stdout=subprocess.PIPE
        )
        assert child.stdout.readline() == b"busy\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        shelf = Shelf(tmp_path / "a", 10**9)
        kept = 0
        while (found := shelf.find([key(kept)])) is not None:
            assert bytes(found[0]) == key(kept) * 50
            kept += 1
        assert kept > 64 * 20, attempt
        shelf.close()


def test_a_disk_that_refuses_is_reported_and_the_teacher_asked(tmp_path):
    (tmp_path / "room").write_text("a file where a directory should be")
    answers = remembering(tmp_path, Teacher())
    batch = {"x": rows(8)}
    assert same(answers(batch), Teacher()(batch))
    assert answers.use.failed
    assert "room" in answers.use.off


def test_what_is_faster_asked_is_not_looked_up(tmp_path):
    answers = remembering(tmp_path, lambda inputs: inputs)
    answers._fastest = -1.0
    for batch in batches(rows(), range(40), 8) * 6:
        answers(batch)
    assert answers.use.off == "to ask it is faster"
    assert np.isfinite(answers.use.seconds)
    assert Path(tmp_path / "room").exists()


def trained(root, artifacts, change, collect=None, device="cpu", **data):
    student, teacher = artifacts
    asked = {"data": "train", "epochs": 3, "lr": 5e-3, **change}
    data = {"train": unlabelled(96), **data}
    steps = {"model": teacher}
    return run_stage(root, distill, asked, model=student, steps=steps, data=data, collect=collect, device=device)


def cache(artifact):
    return artifact.manifest.record["results"]["teacher_cache"]


def figures(artifact):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in history(artifact)]


AUGMENTED = {"flip": True, "shift": 0.1, "mixup": 0.2, "variants": 2}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return student_and_teacher(tmp_path_factory.mktemp("artifacts"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", [{}, {"augment": AUGMENTED}, {"precision": "bfloat16"}])
def test_what_is_learnt_is_the_same_with_and_without_memory_and_in_the_next_run(tmp_path, artifacts, change, device):
    change = {**change, "eval_data": "val"}
    val = unlabelled(50, seed=1)
    kept = trained(tmp_path / "kept", artifacts, change, val=val, device=device)
    plain = trained(tmp_path / "plain", artifacts, {**change, "cache": "off"}, val=val, device=device)
    assert kept.id == plain.id
    assert figures(kept) == figures(plain)
    variants = 2 if "augment" in change else 1
    assert cache(kept)["rows"] == 96 * variants + 50
    # Judged 4 times, on 2 batches; 3 epochs of 3 batches; all asked once, and 2 again for a trial.
    assert cache(kept)["remembered"] == 4 * 2 + 3 * 3 - (2 + 3 * variants) - 2
    assert "teacher_cache" not in plain.manifest.record["results"]
    again = trained(tmp_path / "kept", artifacts, {**change, "lr": 1e-3}, val=val, device=device)
    assert cache(again)["remembered"] == 4 * 2 + 3 * 3 - 2
    assert cache(again)["rows"] == 0
    fresh = trained(tmp_path / "fresh", artifacts, {**change, "lr": 1e-3, "cache": "off"}, val=val, device=device)
    assert again.id == fresh.id != kept.id


def test_inner_values_and_texts_are_remembered_to_the_bit(tmp_path):
    generator = np.random.default_rng(0)
    columns = {"input_ids": generator.integers(0, 50, (72, 10)), "attention_mask": np.ones((72, 10), np.int64)}
    teacher = imported(tmp_path, "encoder", nets.TOKENS)
    student = run_stage(tmp_path / "s", model, {"factory": "nets.py:encoder", "inputs": nets.TOKENS}, base=HERE, seed=1)
    change = {
        "imitate": ["outputs", "features", "relations"],
        "epochs": 3,
        "augment": {"tokens": {"share": 0.2}, "variants": 1},
    }
    texts = Rows(columns, 16)
    kept = trained(tmp_path / "kept", (student, teacher), change, train=texts)
    plain = trained(tmp_path / "plain", (student, teacher), {**change, "cache": "off"}, train=texts)
    assert cache(kept)["remembered"] == 2 * 5 - 2
    assert cache(kept)["off"] == ""
    assert kept.id == plain.id


class Drawn(Rows):
    """A source that breaks its promise: other rows every time it is read, and too many to be kept in memory."""

    drawn = 0

    def batches(self):
        for batch in super().batches():
            self.drawn += 1
            yield {name: column + np.float32(self.drawn) for name, column in batch.items()}


def test_a_source_that_draws_rows_anew_is_noticed(tmp_path, artifacts, monkeypatch):
    monkeypatch.setattr(batches_module.Rows.__init__, "__defaults__", (False, 1000))
    events = []
    made = trained(tmp_path, artifacts, {"epochs": 6}, collect=events, train=Drawn(unlabelled(96).columns))
    assert cache(made)["off"] == "the data give other rows in every pass"
    assert any("other rows in every pass" in getattr(event, "text", "") for event in events)


def test_rows_that_are_new_every_epoch_are_not_kept(tmp_path, artifacts):
    made = trained(tmp_path, artifacts, {"augment": {"flip": True, "variants": 0}, "epochs": 1})
    assert "teacher_cache" not in made.manifest.record["results"]
    assert not (tmp_path / "store" / "shared" / "answers").exists()


def test_a_store_that_takes_no_answers_is_a_warning(tmp_path, artifacts):
    (tmp_path / "store" / "shared").mkdir(parents=True)
    (tmp_path / "store" / "shared" / "answers").write_text("in the way")
    made = trained(tmp_path, artifacts, {"epochs": 1})
    assert any("answers are not kept" in text for text in made.manifest.record["warnings"])
    assert cache(made)["failed"]


CHILD = """
import os, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
import test_answers as here
from modelpack.artifact import Artifact
class Killer(list):
    def append(self, event):
        if getattr(event, "label", "").startswith("epoch 2 ") and event.done == 1:
            os.kill(os.getpid(), signal.SIGKILL)
pair = [Artifact.load(Path(path)) for path in {paths!r}]
here.trained(Path({root!r}), pair, {{"augment": here.AUGMENTED}}, collect=Killer())
"""


def test_killed_in_the_midst_the_next_try_ends_with_the_same_result(tmp_path, artifacts):
    straight = trained(tmp_path / "straight", artifacts, {"augment": AUGMENTED, "cache": "off"})
    paths = [str(artifact.path) for artifact in artifacts]
    code = CHILD.format(here=str(HERE), root=str(tmp_path / "killed"), paths=paths)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    resumed = trained(tmp_path / "killed", artifacts, {"augment": AUGMENTED})
    assert 0 < cache(resumed)["rows"] < 2 * 96  # the first try left some
    assert resumed.id == straight.id


def test_settings_are_checked_and_the_cache_is_no_part_of_what_was_asked():
    base = {"data": "a"}
    kept = [DistillConfig.model_validate({**base, **more}) for more in ({}, {"cache": "off"}, {"cache": "3 MB"})]
    assert [config.cache.bytes for config in kept] == [2 * 2**30, 0, 3_000_000]
    assert len({canonical.digest(config) for config in kept}) == 1
    augmented = DistillConfig.model_validate({**base, "augment": {"flip": True}})
    assert canonical.digest(augmented) != canonical.digest(kept[0])
    for wrong in (
        {"cache": "much"},
        {"cache": "-1"},
        {"cache": "2"},
        {"augment": {}},
        {"augment": {"variants": 2}},
        {"augment": {"flip": True, "variants": -1}},
        {"augment": {"scale": 1}},
        {"augment": {"mixup": 0.6}},
        {"augment": {"tokens": {"share": 0}}},
        {"augment": {"flip": True, "variants": 0}, "cache": "1 GiB"},
    ):
        with pytest.raises(ValidationError):
            DistillConfig.model_validate({**base, **wrong})
