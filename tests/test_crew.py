"""What a crew is asked for, what hosts say to each other, and what is made of what workers tell."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack import engine, planning, recipe
from modelpack.artifact import Kind
from modelpack.crew import Crew, attend, muster, network, service, wire
from modelpack.crew.order import Order
from modelpack.errors import MissingError, ModelpackError, StageError, StoreError, UsageError
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


def test_a_place_where_hosts_met_is_free_at_once():
    listener, _ = network.opened("127.0.0.1", network.free_port("127.0.0.1"))
    place = listener.getsockname()
    gathering = muster.Muster(listener, Crew(nnodes=2, rdzv="x:1"))
    socket.create_connection(place, timeout=5).close()
    time.sleep(0.1)  # it waits for the next one
    gathering.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place, timeout=5)


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
