"""What clients change of one worker becomes so in all, or in none: whoever dies, stands still, drains or starts meanwhile."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import resource
import shutil
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.server import changes
from modelpack.server.board import Board
from modelpack.server.changes import Changes
from modelpack.server.faults import Invalid, StartError, Unready
from modelpack.server.minutes import Minutes, Note
from serving import JSON, Server, scaled, wait_for
from test_server_workers import children, free_port, several

ROW = '{"instances": [[1]]}'
LOAD, UNLOAD, BACK = "/v2/repository/models/m/load", "/v2/repository/models/m/unload", "/rollback/m"
numbers = itertools.count()


@pytest.fixture
def root(tmp_path):
    """A model with the versions 1 and 2."""
    for version in (1, 2):
        scaled(tmp_path / "models" / "m" / str(version), version)
    return tmp_path / "models"


@contextmanager
def changing(root, **limits):
    with several(root, allow_loading=1, log_requests=1, **{"workers": 2, **limits}) as server:
        yield server


def say(connection, path, body="{}"):
    """Send one request, and do not wait for its answer; gives its name in the log."""
    name = f"ask-{next(numbers)}-"
    connection.request("POST", path, body, JSON | {"x-request-id": name})
    return name


def answer(connection):
    response = connection.getresponse()
    return response.status, response.read().decode()


def value(status, text):
    return json.loads(text)["predictions"][0][0] if status == 200 else status


class Lines:
    """A connection to each worker, by its number."""

    def __init__(self, server: Server, workers: int = 2) -> None:
        self.by_worker: dict[int, http.client.HTTPConnection] = {}
        self.opened = []
        wait_for(lambda: server.metric("modelpack_workers") == workers)
        while len(self.by_worker) < workers:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            self.opened.append(connection)
            name = say(connection, "/predict/m", ROW)
            answer(connection)
            self.by_worker[json.loads(server.line(rf'^\{{.*"{name}".*\}}$')[0])["worker"]] = connection

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.opened:
            each.close()

    def ask(self, worker, path, body="{}"):
        say(self.by_worker[worker], path, body)
        return answer(self.by_worker[worker])

    def values(self, path="/predict/m"):
        return {value(*self.ask(worker, path, ROW)) for worker in self.by_worker}


def everywhere(server, workers=2, path="/predict/m"):
    """Ask every worker, and give what they say."""
    with Lines(server, workers) as lines:
        return lines.values(path)


def test_what_one_worker_is_asked_is_so_in_all_before_the_answer(root):
    with changing(root, workers=3) as server, Lines(server, 3) as lines:
        assert lines.values() == {2}
        scaled(root / "m" / "3", 3)
        for worker, path, status, after in (
            (0, LOAD, 200, {3}), (1, BACK, 200, {2}), (2, BACK, 200, {1}), (0, BACK, 400, {1}), (1, LOAD, 200, {1}),
            (2, UNLOAD, 200, {404}), (0, UNLOAD, 404, {404}), (1, LOAD, 200, {3}),
        ):  # fmt: skip
            assert lines.ask(worker, path)[0] == status
            assert lines.values() == after
        assert lines.values("/predict/m/1") == {1}
        url = json.dumps({"model_name": "n", "url": str(scaled(root / "n" / "model", 7).parent)})
        assert [lines.ask(worker, "/models", url)[0] for worker in (2, 0)] == [200, 409]
        assert lines.values("/predict/n") == {7}
        assert server.ask("DELETE", "/models/n")[0] == 200
        assert lines.values("/predict/n") == {404}
        assert len({lines.ask(worker, "/v2/repository/index")[1] for worker in range(3)}) == 1
        assert server.stop() == 0
    assert "Traceback" not in "".join(server.log)


def test_the_same_holds_for_grpc(root):
    grpc = pytest.importorskip("tritonclient.grpc")
    port = free_port()
    with changing(root, grpc_port=port) as server, Lines(server) as lines:
        client = grpc.InferenceServerClient(f"127.0.0.1:{port}")
        scaled(root / "m" / "3", 3)
        client.load_model("m")
        assert lines.values() == {3}
        client.unload_model("m")
        assert lines.values() == {404}
        client.close()


def test_what_one_worker_cannot_do_changes_nothing_in_any(root):
    with changing(root) as server, Lines(server) as lines:
        process = children(server)[1]  # in the order in which they were started
        scaled(root / "m" / "3", 3)
        limits = resource.prlimit(process, resource.RLIMIT_NOFILE)
        resource.prlimit(process, resource.RLIMIT_NOFILE, (3, limits[1]))
        status, text = lines.ask(0, LOAD)
        assert status == 400
        assert "nothing has changed, since worker 1 could not take part: " in text
        assert "Too many open files" in text
        assert lines.values() == {2}
        assert lines.values("/predict/m/3") == {404}
        resource.prlimit(process, resource.RLIMIT_NOFILE, limits)
        assert lines.ask(0, LOAD)[0] == 200
        assert lines.values() == {3}


def test_who_stands_in_begins_with_what_is_served(root):
    with changing(root) as server:
        assert server.ask("POST", BACK)[0] == 200
        scaled(root / "m" / "3", 3)  # announced to nobody
        os.kill(children(server)[0], signal.SIGKILL)
        server.line("died: killed by SIGKILL")
        assert everywhere(server) == {1}
        assert everywhere(server, path="/predict/m/3") == {404}
        assert server.ask("POST", UNLOAD)[0] == 200
        os.kill(children(server)[0], signal.SIGKILL)
        server.line("died: killed by SIGKILL")
        assert everywhere(server) == {404}
        server.process.send_signal(signal.SIGHUP)  # the directory wants 3 since it was unloaded
        wait_for(lambda: everywhere(server) == {3})


@pytest.mark.parametrize("dying", ["leader", "follower"])
def test_a_worker_that_dies_in_the_middle_leaves_all_with_the_same(root, dying):
    with changing(root) as server, Lines(server) as lines:
        process = children(server)
        scaled(root / "m" / "3", 3)
        os.kill(process[1], signal.SIGSTOP)
        say(lines.by_worker[0], LOAD)
        server.line("loaded: m 3")
        time.sleep(0.2)  # the question is asked, or this test shows less
        os.kill(process[0 if dying == "leader" else 1], signal.SIGKILL)
        server.line("died: killed by SIGKILL")
        if dying == "leader":
            os.kill(process[1], signal.SIGCONT)
            with pytest.raises((OSError, http.client.HTTPException)):
                answer(lines.by_worker[0])
            assert everywhere(server) == {2}
            assert server.ask("POST", LOAD)[0] == 200
        else:
            assert answer(lines.by_worker[0])[0] == 200
        assert everywhere(server) == {3}
        assert server.stop() == 0


def test_a_worker_that_drains_takes_part(root):
    with changing(root, drain_delay=2) as server, Lines(server) as lines:
        os.kill(children(server)[1], signal.SIGTERM)
        wait_for(lambda: server.metric("modelpack_workers") == 1)
        scaled(root / "m" / "3", 3)
        assert lines.ask(0, LOAD)[0] == 200
        assert lines.values() == {3}
        server.line("died: it ended with exit code 0")
        assert everywhere(server) == {3}


def test_a_client_that_leaves_has_asked_all_the_same(root):
    with changing(root) as server, Lines(server) as lines:
        process = children(server)
        scaled(root / "m" / "3", 3)
        os.kill(process[1], signal.SIGSTOP)
        say(lines.by_worker[0], LOAD)
        server.line("loaded: m 3")
        lines.by_worker.pop(0).close()
        os.kill(process[1], signal.SIGCONT)
        for _ in range(2):
            server.line(r'"serving: m 3"')
        assert everywhere(server) == {3}


def test_whatever_happens_at_once_all_serve_the_same_in_the_end(root):
    """Clients at all workers, the operator, and deaths."""
    with changing(root, workers=3) as server:
        statuses: set[int] = set()
        done = threading.Event()

        def client(paths):
            while not done.is_set():
                for path in paths:
                    try:
                        statuses.add(server.ask("POST", path)[0])
                    except (OSError, http.client.HTTPException):  # its worker was killed
                        continue

        clients = [
            threading.Thread(target=client, args=(paths,), daemon=True)
            for paths in ([LOAD, BACK], [BACK, UNLOAD], [LOAD, UNLOAD], [UNLOAD, LOAD])
        ]
        for each in clients:
            each.start()
        for version in (3, 4, 5):
            scaled(root / "m" / f".{version}", version)
            (root / "m" / f".{version}").rename(root / "m" / str(version))
            server.process.send_signal(signal.SIGHUP)
            os.kill(children(server)[0], signal.SIGKILL)
            server.line("died: killed by SIGKILL")
            shutil.rmtree(root / "m" / str(version - 2))
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: server.metric("modelpack_workers") == 3)
        done.set()
        for each in clients:
            each.join(60)
        assert not any(each.is_alive() for each in clients)
        with Lines(server, 3) as lines:  # what the signals ask for may not be over
            wait_for(lambda: len(lines.values()) == 1)
            wait_for(lambda: len({lines.ask(worker, "/v2/repository/index")[1] for worker in range(3)}) == 1)
        assert server.ask("POST", UNLOAD)[0] in {200, 404}  # which forgets a rollback
        assert server.ask("POST", LOAD)[0] == 200
        assert everywhere(server, 3) == {5}
        assert server.stop() == 0
    assert statuses <= {200, 400, 404}
    assert "Traceback" not in "".join(server.log)


@given(st.binary(max_size=200), st.integers(1, 2**40), st.data())
def test_half_a_note_is_none(text, number, data):
    note = Note(256)
    assert note.read(0) is None
    note.write(number, text)
    assert note.read(number) == text
    assert note.read(number + 1) is None
    at = data.draw(st.integers(0, 15 + len(text)))
    note._memory[at] ^= data.draw(st.integers(1, 255))
    assert note.read(number) is None


def test_what_holds_stays_until_something_else_is_decided():
    minutes = Minutes(1)
    minutes.write(1, b"one")
    minutes.decided[0] = 1.0
    for number, text in ((2, b"two"), (3, b"three")):
        minutes.write(number, text)
        assert minutes.held() == (1, b"one")
    assert (minutes.read(2), minutes.read(3)) == (None, b"three")
    minutes.decided[0] = 3.0
    assert minutes.held() == (3, b"three")
    with pytest.raises(StartError, match="more versions"):
        minutes.write(4, bytes(2**25))


class Numbers:
    """What is served is a number; this party cannot serve some."""

    def __init__(self, refused: int = -1) -> None:
        self.serving, self.refused, self.dropped = 0, refused, []

    async def prepare(self, text):
        if int(text) == self.refused:
            raise StartError(f"{self.refused} cannot be loaded")
        if int(text) == 99:
            raise ZeroDivisionError
        return int(text)

    def serve(self, prepared):
        self.serving = prepared

    def drop(self, prepared):
        self.dropped.append(prepared)


async def become(leader, party, number):
    async with leader.turn(party):
        await leader.ask(str(number).encode())
        leader.decide()
        party.serve(number)
        await leader.settle()


def test_parties_agree_or_nothing_changes(caplog):
    """Three workers, one of which starts later, and one of which is held up in the end."""
    board, parties = Board(3), [Numbers(), Numbers(refused=7), Numbers()]
    now = time.monotonic()

    async def scene():
        members = [Changes(board, worker) for worker in range(2)]
        for worker, member in enumerate(members):
            board.processes[worker], board.seen[worker] = os.getpid() + worker, now
            assert member.begin(lambda: b"1") == b"1"
        following = [asyncio.create_task(members[1].follow(parties[1]))]
        await become(members[0], parties[0], 2)
        assert [party.serving for party in parties] == [2, 2, 0]
        with pytest.raises(Invalid, match="since worker 1 could not take part: 7 cannot be loaded"):
            await become(members[0], parties[0], 7)
        with pytest.raises(Invalid, match="it failed, as its log says"):
            await become(members[0], parties[0], 99)
        board.processes[2], board.seen[2] = os.getpid() + 2, now
        late = Changes(board, 2)
        assert late.begin(lambda: b"5") == b"2", "it begins with what is served"
        board.minutes.asked[0] = board.minutes.decided[0] = 5.0  # in the moment in which it began
        board.minutes._texts[0].write(5, b"3")
        following.append(asyncio.create_task(late.follow(parties[2])))
        while [party.serving for party in parties[1:]] != [3, 3]:
            await asyncio.sleep(0.01)
        following[1].cancel()
        await asyncio.gather(following[1], return_exceptions=True)
        board.seen[2] = time.monotonic()
        leading = asyncio.create_task(become(members[0], parties[0], 4))
        while parties[1].serving == 4 or board.minutes.said[1] != board.minutes.asked[0]:
            await asyncio.sleep(0.01)
        leading.cancel()
        while parties[1].dropped[-1:] != [4]:
            await asyncio.sleep(0.01)
        board.seen[2] -= 2 * changes._SILENT
        with pytest.raises(Unready, match="worker 2 is held up"):
            await become(members[0], parties[0], 4)
        board.processes[2] = 0.0
        await become(members[0], parties[0], 6)
        assert [party.serving for party in parties] == [6, 6, 3]
        following[0].cancel()
        await asyncio.gather(*following, return_exceptions=True)

    asyncio.run(scene())
    assert "a change of what is served failed" in caplog.text
