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
from torch import nn

from modelpack.numerics.distillation import shelf as shelf_module
from modelpack.numerics.distillation.answers import Answers, Memory
from modelpack.numerics.distillation.shelf import KEY, Shelf

torch.set_num_threads(1)


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


def remembering(root, teacher, rows=8, limit=2**20, **memory):
    return Answers(teacher, rows, Memory(root / "room", limit, "the teacher", **memory))


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
    stranger = Answers(other, 8, Memory(tmp_path / "room", 2**20, "another teacher"))
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


def test_rows_that_never_come_back_are_noticed(tmp_path):
    teacher = Teacher()
    answers = remembering(tmp_path, teacher, too_many=lambda count: count > 40)
    for epoch in range(3):
        for batch in batches(rows(40, seed=epoch), range(40), 8):
            answers(batch)
    assert answers.use.rows == 48
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


def test_a_full_room_keeps_what_it_holds_and_says_what_it_could_not(tmp_path):
    data, teacher = rows(), Teacher()
    limit = 5000
    answers = remembering(tmp_path, teacher, limit=limit)
    for batch in batches(data, range(40), 8) * 2:
        answers(batch)
    assert 0 < answers.use.rows < 40
    assert answers.use.bytes <= limit
    assert "raise `cache`" in answers.use.remarks()[-1]


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
