"""What a crew is asked for, what hosts say to each other, and what is made of what workers tell."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack import engine, events, planning, recipe
from modelpack.artifact import Kind
from modelpack.crew import Crew, attend, lines, muster, network, service, wire
from modelpack.crew.lead import _Watch
from modelpack.crew.order import Order
from modelpack.errors import MissingError, ModelpackError, StageError, StoreError, UsageError
from modelpack.events import Event, Note
from modelpack.stage import Job
from modelpack.store import Store

RECIPE = """\
name: two
model: {factory: nets.py:cnn, inputs: {image: {shape: [batch, 1, 16, 16]}}}
data:
  train: {random: {rows: 64, batch: 8}}
stages:
  - distill: {data: train, epochs: 1}
  - export:
"""


@pytest.fixture
def desk(tmp_path):
    """A recipe that trains, and a store."""
    (tmp_path / "nets.py").write_text((Path(__file__).parent / "nets.py").read_text())
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def lay(**crew):
        loaded = recipe.load(tmp_path / "recipe.yaml")
        return engine.open_desk(loaded, Store(tmp_path / "store"), "cpu", crew=Crew(**crew))

    return lay


@pytest.mark.parametrize(
    ("crew", "says"),
    [
        ({"nnodes": 2}, "--nnodes 2 needs a place"),
        ({"rdzv": "10.0.0.1:1"}, "--rdzv is for several hosts"),
        ({"nproc": 9}, "9 processes cannot share batches of 8 rows"),
        ({"nproc": 3, "nnodes": 3, "rdzv": "a:1"}, "9 processes cannot share batches"),
    ],
)
def test_crews_that_make_no_sense_are_refused(desk, crew, says):
    asked = desk(**crew)
    with pytest.raises(UsageError, match=says):
        asked.crew.expect(asked.recipe, "cpu")


def test_a_crew_that_makes_sense_is_not(desk):
    for crew in ({}, {"nproc": 8}, {"nproc": 2, "nnodes": 4, "rdzv": "10.0.0.1:29400"}):
        desk(**crew).crew.expect(desk().recipe, "cpu")
    idle = desk(nproc=2)
    with pytest.raises(UsageError, match="no step of the recipe trains"):
        idle.crew.expect(idle.recipe.upto("model"), "cpu")
    with pytest.raises(MissingError, match="CUDA device each"):
        idle.crew.expect(idle.recipe, "cuda:7")


def test_only_what_several_processes_train_is_another_piece_of_work(desk):
    def assumed(**crew):
        return {item.step.id: {a.name: a.value for a in item.assumptions} for item in planning.plan(desk(**crew))}

    alone = assumed()
    assert alone["distill"] == {}
    assert assumed(nproc=2)["distill"] == {"processes": "2"}
    assert assumed(nproc=2, nnodes=2)["distill"] == {"processes": "4"}
    assert assumed(nproc=2)["export"] == alone["export"]


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "host:-1"])
def test_places_that_name_no_port_are_refused(text):
    with pytest.raises(UsageError, match="names no port"):
        network.split(text)


def test_hosts_that_nobody_knows_and_that_everybody_is_are_refused():
    with pytest.raises(UsageError, match="cannot be found"):
        network.resolve("no.such.host.invalid:1")
    with pytest.raises(UsageError, match=r"0\.0\.0\.0"):
        network.resolve("0.0.0.0:29400")
    assert network.resolve("127.0.0.1:29400") == ("127.0.0.1", 29400)
    assert network.interface("127.0.0.1") == "lo"


def test_who_has_the_address_listens_and_who_has_not_does_not():
    listener, ours = network.opened("127.0.0.1", 0)
    with listener:
        assert ours
        port = listener.getsockname()[1]
        assert network.opened("127.0.0.1", port) == (None, True)
    assert network.opened("192.0.2.1", 29400) == (None, False)


@pytest.fixture
def wires():
    """Two ends of a connection."""
    ends = [wire.Wire(end, name, 5.0) for end, name in zip(_connected(), ("one", "other"), strict=True)]
    yield ends
    for end in ends:
        end.close()


def _connected():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5))
def test_frames_arrive_as_they_were_sent(bodies):
    one, other = (wire.Wire(end, "peer", 5.0) for end in _connected())
    for body in bodies:
        one.send(**body)
    found = [other.receive() for _ in bodies]
    assert found == bodies
    one.close()
    with pytest.raises(StageError, match="peer is gone"):
        other.receive()
    other.close()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "another language"),
        (struct.pack(">I", 5) + b"hello", "another language"),
        (struct.pack(">I", 2) + b"[]", "no JSON object"),
        (struct.pack(">I", 9) + b"{", "does not answer"),
    ],
)
def test_strangers_are_told_from_hosts(wires, data, says):
    wires[0].link.sendall(data)
    with pytest.raises(StageError, match=says):
        wires[1].receive(0.3)


def test_files_travel_whole(wires, tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "sent").write_bytes(content)
    giving = threading.Thread(target=lambda: (wires[0].give(tmp_path / "sent"), wires[0].send(after=1)))
    giving.start()
    assert wires[1].take(tmp_path / "came", len(content)) == hashlib.sha256(content).hexdigest()
    giving.join()
    assert (tmp_path / "came").read_bytes() == content
    assert list(wires[1].arrived()) == [{"after": 1}]


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


def gathered(desk, other, **crew):
    """Let two commands meet in this process; gives what each raised, or the links."""
    listener, _ = network.opened("127.0.0.1", 0)
    port = listener.getsockname()[1]
    crew = {"nnodes": 2, "rdzv": f"127.0.0.1:{port}", "wait": 5.0, **crew}
    leads, serves, found = desk(**crew), other(crew), {}
    common = muster.facts(leads)

    def serving():
        link = service.join("127.0.0.1", port, 5.0, busy=False)
        try:
            service.serve(serves, link, lambda _event: None)
        except ModelpackError as error:
            found["serves"] = error
        finally:
            link.close()

    gathering = muster.Muster(listener, leads.crew)
    thread = threading.Thread(target=serving)
    thread.start()
    try:
        links = gathering.gather(common)
        found["links"] = [link.number for link in links]
        for link in links:
            link.dismiss("failed", "on purpose")
    except ModelpackError as error:
        found["leads"] = error
    finally:
        thread.join(10)
        gathering.close()
    return found


def test_hosts_meet_and_part(desk):
    found = gathered(desk, lambda crew: desk(**crew))
    assert found["links"] == [1]
    assert "the run failed: on purpose" in str(found["serves"])


def test_hosts_that_differ_are_told_in_what(desk, tmp_path):
    def other(crew):
        (tmp_path / "recipe.yaml").write_text(RECIPE.replace("rows: 64", "rows: 63"))
        return replace(desk(**crew), crew=Crew(**{**crew, "nproc": 2}))

    found = gathered(desk, other)
    for error in (found["leads"], found["serves"]):
        assert isinstance(error, UsageError)
        assert "the recipe, --nproc and data 'train'" in str(error).replace(", data 'train'", " and data 'train'")


def test_hosts_that_do_not_come_are_missed(desk):
    listener, _ = network.opened("127.0.0.1", 0)
    where = f"127.0.0.1:{listener.getsockname()[1]}"
    asked = desk(nnodes=3, rdzv=where, wait=0.5)
    gathering = muster.Muster(listener, asked.crew)
    stranger = socket.create_connection(listener.getsockname())
    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(MissingError, match=f"{where}: 2 of 3 hosts did not come in 0.5 seconds"):
        gathering.gather({})
    gathering.close()
    stranger.close()


def test_nobody_who_leads_is_missed_and_another_program_is_told(desk):
    with pytest.raises(MissingError, match="no host answered in 1 seconds"):
        service.join("127.0.0.1", network.free_port("127.0.0.1"), 1.0, busy=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        def greet():
            with other.accept()[0] as link:
                link.sendall(b"220 hello there\r\n")

        greeting = threading.Thread(target=greet)
        greeting.start()
        asked = desk(nnodes=2, rdzv=f"127.0.0.1:{port}", wait=5.0)
        with pytest.raises(UsageError, match="in use by another program"):
            attend.attend(asked, lambda _event: None, lambda: None)
        greeting.join()


def test_an_artifact_is_received_only_when_its_hashes_are_right(desk, wires, tmp_path):
    asked = desk(nnodes=2, rdzv="127.0.0.1:1")
    asked.store.prepare()
    theirs = Store(tmp_path / "theirs")
    theirs.prepare()
    with theirs.draft() as draft:
        (draft.path / "weights.safetensors").write_bytes(b"w" * 100)
        artifact = theirs.commit(draft, Kind.TORCH, {"stage": "model"}, {"name": "two"})
    serving = service._Service(asked, wires[1], lambda _event: None, 1)
    for sent in (b"x" * 100, b"w" * 100):
        wires[0].link.sendall(sent)
        if sent[:1] == b"x":
            with pytest.raises(StoreError, match="another hash"):
                serving._received(artifact.manifest)
            assert asked.store.artifacts() == []
        else:
            assert serving._received(artifact.manifest).verify() == []
    assert [path.name for path in asked.store.artifacts()] == [artifact.id]


@pytest.mark.parametrize(
    "body",
    [
        {"step": "nothing", "artifacts": {}, "station": {}},
        {"step": "export", "artifacts": {}, "station": {}},
        {"step": "distill", "artifacts": {}, "station": {}},
        {"step": "distill", "artifacts": {"model": "{}"}, "station": {"hosts": 2}},
    ],
)
def test_orders_that_do_not_fit_the_recipe_are_refused(desk, wires, body):
    asked = desk(nnodes=2, rdzv="127.0.0.1:1")
    asked.store.prepare()
    serving = service._Service(asked, wires[1], lambda _event: None, 1)
    with pytest.raises(StageError):
        serving.step({**body, "number": 1})
    assert "error" in wires[0].receive()


def test_an_order_is_the_same_after_its_file(tmp_path):
    order = Order("/r.yaml", RECIPE, ("a=1",), "distill", {"model": "/a"}, "/o", "/s", "/h", "/n", "cuda:1", 2, 4, 60.0)
    (tmp_path / "order.json").write_text(order.encode())
    assert Order.read(tmp_path / "order.json") == order
    assert [order.place(rank) for rank in (2, 3)] == ["cuda:1", "cuda:2"]
    assert replace(order, device="cpu").place(3) == "cpu"
