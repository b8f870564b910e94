"""gRPC, asked by Triton's own client and by messages of its own schema."""

from __future__ import annotations

import asyncio
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as rest
from onnx import helper
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs
from tritonclient.utils import InferenceServerException

from modelpack.server.open_inference import DATATYPES, NAMES
from serving import (
    ISOLATED,
    TYPES,
    Server,
    linear,
    logarithm,
    pair,
    patient,
    reshaping,
    scaled,
    wait_for,
    whole,
    write_model,
)

ROWS = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
ENDLESS = np.array([10**9])
TOKEN = "first-token-0123456789"
COUNTED = 'modelpack_requests_total{code="%d",protocol="grpc",route="inference.GRPCInferenceService.ModelInfer"}'


def everything(folder):
    """Give every element type back as it came."""
    return write_model(
        folder,
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in TYPES],
        {name: (["n"], name) for name in TYPES},
        {f"{name}_out": (["n"], name) for name in TYPES},
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for make in (linear, logarithm, pair, whole, reshaping, everything):
        make(folder / make.__name__)
    scaled(folder / "scale" / "1", 1)
    scaled(folder / "scale" / "2", 2)
    with Server(folder, grpc_port=0, max_body=100_000, max_rows=64, max_batch=1, log_requests=1) as running:
        yield running
        assert running.stop() == 0


def ask(server):
    return triton.InferenceServerClient(server.grpc_address)


@pytest.fixture
def client(server):
    with ask(server) as asking:
        yield asking


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield stubs.GRPCInferenceServiceStub(channel)


def sent(kind=triton, **named):
    made = []
    for name, array in named.items():
        made.append(kind.InferInput(name, list(array.shape), NAMES[array.dtype.name]))
        made[-1].set_data_from_numpy(array)
    return made


def refused(code, match, action, *arguments, **named):
    with pytest.raises(InferenceServerException, match=match) as found:
        action(*arguments, **named)
    assert found.value.status() == f"StatusCode.{code}"


def test_answers_are_those_of_rest_bit_for_bit(server, client):
    with rest.InferenceServerClient(f"127.0.0.1:{server.port}") as other:
        for name, feed in [
            ("linear", {"x": ROWS}),
            ("logarithm", {"x": np.float32([[-1, 0], [1, 2]])}),
            ("whole", {"x": np.float32([1, 2]), "scale": np.array(2, "float32")}),
            ("pair", {"mask": np.array([[True, False]]), "ids": np.array([[3, 5]])}),
        ]:
            ours, theirs = client.infer(name, sent(**feed)), other.infer(name, sent(rest, **feed))
            for entry in ours.get_response().outputs:
                got, wanted = ours.as_numpy(entry.name), theirs.as_numpy(entry.name)
                assert (got.dtype, got.shape, got.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def test_many_at_once_by_the_asynchronous_client_get_their_own_answers(server):
    feeds = np.random.default_rng(2).normal(size=(40, 3, 4)).astype("float32")

    async def scene():
        async with triton_aio.InferenceServerClient(server.grpc_address) as asking:
            assert await asking.is_model_ready("linear")
            return await asyncio.gather(*(asking.infer("linear", sent(triton_aio, x=rows)) for rows in feeds))

    results = asyncio.run(scene())
    with rest.InferenceServerClient(f"127.0.0.1:{server.port}") as other:
        for rows, result in zip(feeds, results, strict=True):
            wanted = other.infer("linear", sent(rest, x=rows)).as_numpy("y")
            assert result.as_numpy("y").tobytes() == wanted.tobytes()


def extremes(dtype):
    if dtype == "bool":
        return np.array([True, False, True])
    limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    return np.array([limits.min, 0, limits.max], dtype)


def test_every_element_type_raw(client):
    assert sorted(TYPES) == sorted(DATATYPES.values())
    result = client.infer("everything", sent(**{name: extremes(name) for name in TYPES}), request_id="mine")
    for name in TYPES:
        got = result.as_numpy(f"{name}_out")
        assert (got.dtype, got.tobytes()) == (np.dtype(name), extremes(name).tobytes())
    head = result.get_response()
    assert (head.id, head.model_name, head.model_version) == ("mine", "everything", "1")


FIELDS = {
    "bool": "bool_contents", "int8": "int_contents", "int16": "int_contents", "int32": "int_contents",
    "int64": "int64_contents", "uint8": "uint_contents", "uint16": "uint_contents", "uint32": "uint_contents",
    "uint64": "uint64_contents", "float32": "fp32_contents", "float64": "fp64_contents",
}  # fmt: skip


def typed(model="linear", outputs=(), version="", **named):
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, array in named.items():
        entry = request.inputs.add(name=name, shape=array.shape, datatype=NAMES[array.dtype.name])
        getattr(entry.contents, FIELDS[array.dtype.name]).extend(array.reshape(-1).tolist())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def test_every_element_type_typed(stub):
    feed = {name: extremes(name) for name in FIELDS}
    half = np.float16([1, 2, 3])
    wide = typed("everything", [f"{name}_out" for name in FIELDS], **feed, float16=half.astype("float32"))
    response = stub.ModelInfer(wide)
    assert not response.raw_output_contents
    for entry, (name, array) in zip(response.outputs, feed.items(), strict=True):
        assert (entry.name, entry.datatype, list(entry.shape)) == (f"{name}_out", NAMES[name], [3])
        assert list(getattr(entry.contents, FIELDS[name])) == array.tolist()
    del wide.outputs[:]
    response = stub.ModelInfer(wide)  # with FP16 among them, which has no typed form, answers are raw
    raw = dict(zip([entry.name for entry in response.outputs], response.raw_output_contents, strict=True))
    assert raw["float16_out"] == half.tobytes()
    assert raw["int64_out"] == extremes("int64").tobytes()


def changed(**more):
    request = typed(x=ROWS[:1])
    for name, value in more.items():
        setattr(request.inputs[0], name, value)
    return request


def with_raw(*blobs, **more):
    request = pb.ModelInferRequest(model_name="linear", raw_input_contents=blobs)
    request.inputs.add(**({"name": "x", "datatype": "FP32", "shape": [1, 4]} | more))
    return request


def edited(edit):
    request = typed(x=ROWS[:1])
    edit(request)
    return request


def clash(request):
    request.inputs[0].contents.int_contents.append(1)


def share(request):
    request.inputs[0].parameters["shared_memory_region"].string_param = "a"


def classify(request):
    request.outputs.add(name="y").parameters["classification"].int64_param = 2


GOOD = ROWS[:1].tobytes()
BAD = [
    (pb.ModelInferRequest(model_name="linear"), r"input 'x' is missing \(shape \[batch, 4\], float32\)"),
    (pb.ModelInferRequest(), "the model has no name"),
    (changed(name=""), r"inputs\[0\] has no name"),
    (changed(name="z"), "unknown input 'z'"),
    (edited(lambda request: request.inputs.append(request.inputs[0])), "'x' is given twice"),
    (changed(datatype="FP8"), "datatype is 'FP8', expected one of"),
    (changed(datatype="BYTES"), "datatype is 'BYTES', expected 'FP32'"),
    (changed(datatype="FP16"), "FP16 is sent in 'raw_input_contents' only"),
    (changed(datatype="INT8"), "INT8 is sent in 'int_contents', found 'fp32_contents'"),
    (edited(clash), "found 'int_contents'"),
    (edited(share), "shared memory is not served"),
    (edited(classify), "'classification' is not served"),
    (typed(x=np.float64([[1e300] * 4])), "too large for float32"),
    (typed(x=np.array([[True] * 4])), "expected float32, got bool"),
    (typed(x=ROWS[0]), r"expected shape \[batch, 4\], got \[4\]"),
    (typed(x=np.zeros((65, 4), "float32")), "65 rows, and the limit for one request is 64"),
    (typed(outputs=["z"], x=ROWS[:1]), "unknown output 'z': the model's outputs are 'y'"),
    (typed(outputs=["y", "y"], x=ROWS[:1]), "'y' is asked for twice"),
    (with_raw(GOOD, shape=[2, 4]), "takes 32 bytes, got 16"),
    (with_raw(GOOD, shape=[-1, 4]), "'shape' is not an array of sizes"),
    (with_raw(GOOD, GOOD), "'raw_input_contents' has 2 entries, and there are 1 inputs"),
    (with_raw(GOOD, contents={"fp32_contents": [1]}), "send one of them"),
    (edited(lambda request: request.inputs[0].shape.pop()), r"shape \[1\] takes 1 values, got 4"),
]


@pytest.mark.parametrize(("request_", "message"), BAD)
def test_wrong_requests_are_invalid_with_the_reason(stub, request_, message):
    with pytest.raises(grpc.RpcError) as found:
        stub.ModelInfer(request_)
    assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(message, found.value.details()), found.value.details()


def test_an_integer_out_of_its_range_is_refused(stub):
    request = typed("everything", **{name: extremes(name) for name in FIELDS}, float16=np.float32([1, 2, 3]))
    next(entry for entry in request.inputs if entry.name == "int8").contents.int_contents[0] = 400
    with pytest.raises(grpc.RpcError, match="400 is outside -128 to 127"):
        stub.ModelInfer(request)


def test_faults_are_statuses(server, client):
    inputs = sent(x=ROWS)
    refused("NOT_FOUND", "no model 'other'", client.infer, "other", inputs)
    refused("NOT_FOUND", "has no version '9'", client.infer, "linear", inputs, "9")
    refused("NOT_FOUND", "no model 'other'", client.get_model_metadata, "other")
    refused("NOT_FOUND", "no model 'other'", client.get_inference_statistics, "other")
    refused("PERMISSION_DENIED", "MODELPACK_ALLOW_LOADING=1", client.load_model, "linear")
    refused("PERMISSION_DENIED", "MODELPACK_ALLOW_LOADING=1", client.unload_model, "linear")
    refused("RESOURCE_EXHAUSTED", "larger than max", client.infer, "linear", sent(x=np.zeros((6251, 4), "float32")))
    refused("UNIMPLEMENTED", "ethod not found", client.get_trace_settings)
    refused("UNIMPLEMENTED", "is disabled", client.infer, "linear", inputs, compression_algorithm="gzip")
    failed = 'level":"error","message":"request mine failed"'
    assert failed not in "".join(server.log)
    refused("INTERNAL", r"its log has the reason \(mine\)", client.infer, "reshaping", sent(x=np.float32([1, 2, 3])),
            headers={"x-request-id": "mine"})  # fmt: skip
    wait_for(lambda: failed in "".join(server.log))


def test_bytes_that_are_no_message_are_refused(server):
    with grpc.insecure_channel(server.grpc_address) as channel:
        with pytest.raises(grpc.RpcError, match=r"no message inference\.ModelInferRequest") as found:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff")
        assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_connections_are_counted_and_free_again_when_they_end(tmp_path):
    def alive(channel, **named):
        return channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=20, **named)

    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    with Server(linear(tmp_path), grpc_port=0, max_connections=1) as own:
        first, second = (grpc.insecure_channel(own.grpc_address, own_connection) for _ in range(2))
        with second:
            with first:
                assert alive(first)
                with pytest.raises(grpc.RpcError) as found:
                    alive(second)
                assert found.value.code() is grpc.StatusCode.UNAVAILABLE
            assert alive(second, wait_for_ready=True)


def test_a_message_that_does_not_come_is_not_waited_for(tmp_path):
    done = threading.Event()

    def silent():
        done.wait(30)
        yield from ()

    with (
        Server(linear(tmp_path), grpc_port=0, body_timeout=0.3) as own,
        grpc.insecure_channel(own.grpc_address) as channel,
    ):
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        for requests, code in ((silent(), "DEADLINE_EXCEEDED"), (iter(()), "INVALID_ARGUMENT")):
            with pytest.raises(grpc.RpcError, match="message") as found:
                call(requests)
            assert found.value.code() is grpc.StatusCode[code]
        done.set()


def test_who_leaves_is_counted_and_not_logged_as_a_failure(tmp_path):
    with Server(patient(tmp_path / "model"), grpc_port=0) as own, ask(own) as client:
        leaving = client.async_infer("model", sent(steps=ENDLESS), lambda result, error: None)
        wait_for(lambda: own.metric("modelpack_inflight_requests") == 2)
        leaving.cancel()
        wait_for(lambda: own.metric(COUNTED % 499) == 1)
        assert client.infer("model", sent(steps=np.array([1]))).as_numpy("y").shape == (1,)
        assert own.stop() == 0
        assert '"level":"error"' not in "".join(own.log)


def test_the_client_learns_about_server_and_models(server, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale", "1")
    refused("NOT_FOUND", "no model 'other'", client.is_model_ready, "other")
    with rest.InferenceServerClient(f"127.0.0.1:{server.port}") as other:
        assert client.get_server_metadata(as_json=True) == other.get_server_metadata()
        for name in ("pair", "scale", "whole"):
            ours, theirs = client.get_model_metadata(name), other.get_model_metadata(name)
            assert (ours.name, list(ours.versions), ours.platform) == (name, theirs["versions"], theirs["platform"])
            for role in ("inputs", "outputs"):
                assert [(entry.name, entry.datatype, list(entry.shape)) for entry in getattr(ours, role)] == [
                    (entry["name"], entry["datatype"], entry["shape"]) for entry in theirs[role]
                ]
        config = client.get_model_config("linear").config
        assert (config.max_batch_size, config.backend) == (64, "onnxruntime")
        assert [(entry.name, entry.data_type, list(entry.dims)) for entry in config.input] == [("x", 11, [4])]
        entries = client.get_model_repository_index(as_json=True)["models"]
        assert [entry | {"reason": ""} for entry in entries] == other.get_model_repository_index()
    assert client.infer("scale", sent(x=np.ones((1, 1), "float32")), "1").as_numpy("y").item() == 1


def test_statistics_count_what_was_asked(tmp_path):
    with Server(scaled(tmp_path / "scale", 1), grpc_port=0) as own, ask(own) as client:
        for rows in (1, 3, 3):
            client.infer("model", sent(x=np.ones((rows, 1), "float32")))
        (known,) = client.get_inference_statistics("model").model_stats
        assert (known.inference_count, known.execution_count, known.inference_stats.success.count) == (7, 3, 3)
        assert [(entry.batch_size, entry.compute_infer.count) for entry in known.batch_stats] == [(1, 1), (3, 2)]
        assert known.inference_stats.success.ns >= known.inference_stats.compute_infer.ns > 0
        assert own.metric(COUNTED % 200) == 3


def test_a_model_is_loaded_and_unloaded_where_that_is_allowed(tmp_path):
    scaled(tmp_path / "scale" / "1", 1)
    with Server(tmp_path, grpc_port=0, allow_loading=1) as own, ask(own) as client:
        scaled(tmp_path / "scale" / "2", 2)
        client.load_model("scale")
        assert client.infer("scale", sent(x=np.ones((1, 1), "float32"))).as_numpy("y").item() == 2
        client.unload_model("scale")
        refused("NOT_FOUND", "no model 'scale'", client.is_model_ready, "scale")
        assert [entry.state for entry in client.get_model_repository_index().models] == ["UNAVAILABLE"]
        refused("INVALID_ARGUMENT", "'parameters' are not taken", client.load_model, "scale", config="{}")


def test_a_stream_is_answered_in_order_and_goes_on_after_an_error(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    for value in (1, 2, 3):
        shape = (1, 1) if value != 2 else (1, 2)
        client.async_stream_infer("scale", sent(x=np.full(shape, value, "float32")), request_id=str(value))
    first, second, third = (answers.get(timeout=30) for _ in range(3))
    assert (first.as_numpy("y").item(), first.get_response().id) == (2, "1")
    assert "expected shape [batch, 1], got [1, 2]" in str(second)
    assert (third.as_numpy("y").item(), third.get_response().id) == (6, "3")
    client.stop_stream()


def test_the_log_has_the_clients_id_and_trace(server, stub):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = (("x-request-id", "order-17"), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01"))
    _, call = stub.ServerLive.with_call(pb.ServerLiveRequest(), metadata=metadata)
    assert ("x-request-id", "order-17") in [tuple(pair) for pair in call.trailing_metadata()]
    wait_for(lambda: '"request_id":"order-17"' in "".join(server.log))
    (line,) = (line for line in server.log if "order-17" in line)
    assert f'"trace_id":"{trace}"' in line
    assert '"route":"inference.GRPCInferenceService.ServerLive"' in line


def test_a_token_is_asked_for_but_for_health(tmp_path):
    with Server(linear(tmp_path), grpc_port=0, token=TOKEN) as own, ask(own) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        refused("UNAUTHENTICATED", "asks for a token", client.infer, "model", sent(x=ROWS))
        refused("UNAUTHENTICATED", "asks for a token", client.get_server_metadata)
        wrong, right = ({"authorization": f"Bearer {token}"} for token in (TOKEN[::-1], TOKEN))
        refused("UNAUTHENTICATED", "does not know", client.infer, "model", sent(x=ROWS), headers=wrong)
        assert client.infer("model", sent(x=ROWS), headers=right).as_numpy("y").shape == (5, 3)


def test_deadlines_of_server_and_client_stop_the_run(tmp_path):
    with Server(patient(tmp_path / "model"), grpc_port=0, deadline=1) as own, ask(own) as client:
        refused("DEADLINE_EXCEEDED", "passed while running", client.infer, "model", sent(steps=ENDLESS))
        refused("DEADLINE_EXCEEDED", "(?i)deadline", client.infer, "model", sent(steps=ENDLESS), client_timeout=0.3)
        wait_for(lambda: own.metric(COUNTED % 504) + own.metric(COUNTED % 499) == 2)
        assert client.infer("model", sent(steps=np.array([1]))).as_numpy("y").shape == (1,)


def test_a_full_queue_is_resource_exhausted(tmp_path):
    with Server(patient(tmp_path / "model"), grpc_port=0, queue=0) as own, ask(own) as client:
        first = client.async_infer("model", sent(steps=ENDLESS), lambda result, error: None)
        wait_for(lambda: own.metric("modelpack_inflight_requests") == 2)  # the scrape is one
        refused("RESOURCE_EXHAUSTED", "wait already", client.infer, "model", sent(steps=np.array([1])))
        first.cancel()


def test_sigterm_lets_calls_finish_and_ends_streams_that_wait(tmp_path):
    with (
        Server(patient(tmp_path / "model"), grpc_port=0, drain_delay=2, drain_timeout=60) as own,
        ask(own) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        ended = queue.Queue()
        client.start_stream(lambda result, error: ended.put(error))
        running = pool.submit(client.infer, "model", sent(steps=np.array([1500])))
        wait_for(lambda: own.metric("modelpack_inflight_requests") == 3)
        own.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not client.is_server_ready())
        assert not client.is_model_ready("model")
        assert client.is_server_live()
        assert running.result().as_numpy("y").shape == (1,)
        assert "stopped" in str(ended.get(timeout=30))
        client.stop_stream()
        assert own.process.wait(timeout=30) == 0


def test_a_stream_gets_its_answer_before_the_server_ends(tmp_path):
    with Server(patient(tmp_path / "model"), grpc_port=0, drain_delay=0.5, drain_timeout=60) as own, ask(own) as client:
        ended = queue.Queue()
        client.start_stream(lambda result, error: ended.put(error or result))
        client.async_stream_infer("model", sent(steps=np.array([2500])))
        wait_for(lambda: own.metric("modelpack_inflight_requests") == 2)
        own.process.send_signal(signal.SIGTERM)
        assert ended.get(timeout=30).as_numpy("y").shape == (1,)
        assert "stopped" in str(ended.get(timeout=30))
        client.stop_stream()
        assert own.process.wait(timeout=30) == 0


def test_the_end_of_the_drain_tells_clients_that_still_wait(tmp_path):
    with (
        Server(patient(tmp_path / "model"), grpc_port=0, drain_timeout=1) as own,
        ask(own) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(client.infer, "model", sent(steps=ENDLESS))
        wait_for(lambda: own.metric("modelpack_inflight_requests") == 2)
        assert own.stop() == 0
        refused("UNAVAILABLE", "stopped before", running.result)


def test_workers_share_the_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Server(linear(tmp_path), grpc_port=port, workers=2) as own:
        wait_for(lambda: "".join(own.log).count("serving gRPC") == 2)
        for _ in range(6):
            with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
                wait_for(client.is_server_ready)
                assert client.infer("model", sent(x=ROWS)).as_numpy("y").shape == (5, 3)
        assert own.stop() == 0


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError, match=rf"cannot listen on 127\.0\.0\.1:{port} for gRPC"):
            Server(linear(tmp_path), grpc_port=port)


@pytest.mark.parametrize(("port", "message"), [("70000", "70000"), ("8123", "8123"), ("x", "not a whole number")])
def test_a_port_that_cannot_be_is_refused(tmp_path, monkeypatch, port, message):
    from modelpack.server.faults import StartError
    from modelpack.server.settings import Settings

    with pytest.raises(StartError, match=message):
        Settings.read({"MODELPACK_GRPC_PORT": port, "MODELPACK_PORT": "8123"})


def test_without_grpcio_the_port_is_an_error_and_nothing_else_is(tmp_path):
    import shutil

    import modelpack.server

    shutil.copytree(modelpack.server.__path__[0], tmp_path / "site" / "modelpack_server")
    program = ISOLATED.replace('"torch",', '"torch", "grpc",')
    command = [sys.executable, "-c", program, str(tmp_path / "site")]
    with Server(linear(tmp_path / "model"), command=command) as plain:
        assert plain.predict({"instances": [[1, 2, 3, 4]]})[0] == 200
    done = subprocess.run(
        [*command, "--model", str(tmp_path / "model"), "--host", "127.0.0.1", "--port", "0"],
        env={"MODELPACK_GRPC_PORT": "0"}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "build the image with 'grpc: true', install modelpack[grpc]" in done.stderr
    assert "Traceback" not in done.stderr
