"""What models have done: counted in memory that all workers share, and read as one."""

from __future__ import annotations

import http.client
import json
import os
import signal
from types import SimpleNamespace

import pytest

from modelpack.server.board import Board
from modelpack.server.statistics import Ledger, Statistics
from serving import JSON, scaled, wait_for
from test_server_workers import children, free_port, several


def ran(rows=1, requests=1, at=0.0):
    """A run that took one second to join, two to run, three to split."""
    return SimpleNamespace(rows=rows, requests=requests, started=at, joined=at + 1.0, ended=at + 3.0, split=at + 6.0)


def test_workers_add_up_and_the_latest_run_of_all_is_the_last():
    board = Board(2)
    ledgers = [Ledger(board, number) for number in range(2)]
    both = [Statistics(ledger, "m", "1") for ledger in ledgers]
    other = Statistics(ledgers[0], "m", "2")
    for each in both:
        each.ran(ran(rows=4, requests=3))
        each.answered(0.5, 2.0)
        each.failed(1.0)
    both[1].ran(ran(rows=2))
    first, second = (each.figures(ledger.totals()) for each, ledger in zip(both, ledgers, strict=True))
    assert first == second
    assert (first.success, first.fail, first.queue) == ((2, 4 * 10**9), (2, 2 * 10**9), (2, 10**9))
    assert (first.inferences, first.executions) == (10, 3)
    assert first.steps == (7, 7 * 10**9, 14 * 10**9, 21 * 10**9)
    assert first.batches == {2: (1, 10**9, 2 * 10**9, 3 * 10**9), 4: (2, 2 * 10**9, 4 * 10**9, 6 * 10**9)}
    assert 1_700_000_000_000 < first.last < 10 * 1_700_000_000_000, "not the sum of two times"
    nothing = other.figures(ledgers[0].totals())
    assert (nothing.success, nothing.executions, nothing.last, nothing.batches) == ((0, 0), 0, 0, {})


def test_the_same_files_go_on_where_they_were_and_others_begin_anew():
    ledger = Ledger()
    Statistics(ledger, "m", "1", (1, 2)).answered(0, 1)
    assert Statistics(ledger, "m", "1", (1, 2)).figures(ledger.totals()).success[0] == 1
    assert Statistics(ledger, "m", "1", (1, 3)).figures(ledger.totals()).success[0] == 0


def test_a_full_ledger_fails_no_request_and_says_so_once(caplog):
    ledger = Ledger()
    ledger.row("everything", 2**20 - 8)
    late = Statistics(ledger, "m", "1")
    late.ran(ran(rows=2))
    late.answered(0, 1)
    assert late.figures(ledger.totals()).success == (1, 10**9)
    assert caplog.text.count("no room is left for statistics") == 1


@pytest.fixture
def models(tmp_path):
    scaled(tmp_path / "scale" / "1", 1)
    return tmp_path


def test_every_worker_tells_what_all_have_done(models):
    grpc = pytest.importorskip("grpc")
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    port = free_port()

    def told(connection):
        connection.request("GET", "/v2/models/scale/stats")
        (known,) = json.loads(connection.getresponse().read())["model_stats"]
        return known["inference_count"], known["inference_stats"]["success"]["count"]

    with several(models, grpc_port=port) as server:
        opened = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=30) for _ in range(8)]
        for each in opened:
            each.request("POST", "/predict", '{"instances": [[1], [2]]}', JSON)
            assert each.getresponse().read()
        assert {told(each) for each in opened} == {(16, 8)}
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            (known,) = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="scale")).model_stats
            assert (known.inference_count, known.inference_stats.success.count) == (16, 8)
        os.kill(children(server)[0], signal.SIGKILL)
        server.line("died: killed by SIGKILL")
        wait_for(lambda: server.metric("modelpack_workers") == 2)
        later = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        assert told(later) == (16, 8), "what a dead worker counted stays"
        for each in (*opened, later):
            each.close()
