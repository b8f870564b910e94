"""What workers say, and what the command that leads makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from modelpack import events
from modelpack.crew import Crew, lines
from modelpack.crew.lead import _Watch
from modelpack.errors import MissingError, StageError, StoreError, UsageError
from modelpack.events import Event, Note
from modelpack.stage import Job


def test_every_event_survives_its_json():
    for kind in Event.__subclasses__():
        event = replace(kind(), step="s")
        body = json.loads(json.dumps(event.to_json()))
        assert events.decode(body).to_json() == {**event.to_json(), **body}
    for wrong in ({"event": "nothing"}, {"event": "note", "more": 1}, {}):
        with pytest.raises(ValueError, match="no event"):
            events.decode(wrong)


def test_errors_are_raised_as_what_they_were():
    for error in (StageError("a", where="b", then="c"), UsageError("a"), StoreError("x"), MissingError("y", then="z")):
        made = lines.raised(lines.described(error), "rank 1")
        assert type(made) is type(error)
        assert (made.what, made.then) == (error.what, error.then)
        assert made.where.startswith("rank 1")
    step = StageError("a", where="step 1 of 2")
    assert [lines.raised(lines.described(step), by).where for by in ("rank 1", "")] == [
        "rank 1: step 1 of 2",
        "step 1 of 2",
    ]
    full = lines.raised(lines.described(OSError(28, "No space left", "/x")), "rank 0")
    assert isinstance(full, OSError)
    assert full.errno == 28
    assert "KeyError" in str(lines.raised(lines.described(KeyError("k")), "rank 0"))
    for wrong in (None, [], {"type": 1}, {"type": "StageError"}):
        assert "understood" in str(lines.raised(wrong, "rank 1"))


class FakeTeam:
    """Workers that say what they are told to."""

    def __init__(self, said, code, failure=None):
        self.said, self.code, self._failure = said, code, failure or {}

    @property
    def lines(self):
        said, self.said = self.said, []
        return said

    def ended(self):
        return self.code

    def failure(self):
        return self._failure

    def printed(self):
        return ["last words"]


def watched(said, code, failure=None, nproc=2):
    told = []
    job = Job(None, {}, Path(), Path(), Path(), step="distill", emit=told.append)
    _Watch(Crew(nproc=nproc), job, FakeTeam(said, code, failure)).until_done()
    return job, told


def test_what_the_first_worker_tells_is_told_as_if_it_happened_here(capsys):
    note = Note("distill", "hello", warning=True)
    done = {"metrics": {"a": 1.5}, "results": {"history": [1]}, "warnings": ["w"]}
    said = [(0, {"begun": 0}), (1, {"begun": 0}), (0, {"event": note.to_json()}), (0, {"print": "text\n"})]
    job, told = watched([*said, (0, {"done": done}), (1, {"done": {}})], 0)
    assert told == [note]
    assert (job.metrics, job.results, job.warnings) == ({"a": 1.5}, {"history": [1]}, ["w"])
    assert capsys.readouterr().err == "text\n"


@pytest.mark.parametrize(
    ("said", "code", "failure", "says"),
    [
        ([(0, {"begun": 0}), (1, {"begun": 0}), (0, {"lost": "x"})], 1, {"workers": {"0": 1, "1": -9}},
         "rank 1 was killed by signal 9"),
        ([(0, {"begun": 0}), (1, {"begun": 0}), (0, {"lost": "x"})], 1, {"workers": {"0": 1}}, "rank 1 was lost"),
        ([(1, {"begun": 0})], 1, {"workers": {"1": 3}}, "rank 1 ended with code 3"),
        ([(0, {"begun": 0})], -9, {}, "torchrun's agent was killed by signal 9"),
        ([], 1, {"agent": "RendezvousTimeoutError: "}, "could not be kept going: Rendezvous"),
        ([(1, {"error": {"type": "StageError", "what": "loss is nan", "where": ""}})], None, {}, "rank 1: loss is nan"),
    ],
)  # fmt: skip
def test_how_workers_ended_is_told_with_who_was_to_blame(said, code, failure, says):
    with pytest.raises(StageError, match=says):
        watched(said, code, failure)


def test_what_all_workers_say_needs_no_name():
    same = {"type": "StageError", "what": "no such column", "where": "", "then": ""}
    with pytest.raises(StageError, match=r"^no such column$"):
        watched([(0, {"error": same}), (1, {"error": same})], None)


def test_a_restart_is_told():
    begun = [(0, {"begun": 0}), (1, {"begun": 0}), (0, {"lost": "x"}), (0, {"begun": 1}), (1, {"begun": 1})]
    done = {"metrics": {}, "results": {}, "warnings": []}
    job, told = watched([*begun, (0, {"done": done})], 0)
    assert [event.text for event in told] == ["rank 1 was lost: all started again (restart 1)"]
    assert job.warnings == []  # a circumstance of this run, not of the artifact


class FakeLink:
    """A host that says what it is told to."""

    name, number = "10.0.0.2", 1

    def __init__(self, said):
        self.said = said

    def told(self):
        said, self.said = self.said, []
        return said


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"rank": 0, "line": {"done": {"metrics": {}}}}, "cannot be understood"),
        ({"rank": 1, "line": {"event": {"event": "note"}}}, "cannot be understood"),
        ({"rank": "1", "line": {}}, "cannot be understood"),
        ({"ended": "0"}, "cannot be understood"),
        (
            {"ended": 1, "failure": {"workers": {"0": -11}}, "printed": ["x"]},
            "rank 1 on 10.0.0.2 was killed by signal 11",
        ),
        ({"rank": 1, "line": {"error": {"type": "StageError", "what": "no", "where": ""}}}, "rank 1 on 10.0.0.2: no"),
    ],
)
def test_what_another_host_says_is_about_its_own_workers(body, says):
    job = Job(None, {}, Path(), Path(), Path(), step="distill")
    watch = _Watch(Crew(nnodes=2, links=[FakeLink([body])]), job, FakeTeam([], None))
    with pytest.raises(StageError, match=says):
        watch.until_done()
