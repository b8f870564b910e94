"""The schema of gRPC, health, reflection, and the form of tensors in messages."""

from __future__ import annotations

import signal

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.grpc import model_config_pb2, service_pb2

from interfaces import made, objects, reading, sentences
from modelpack.server.faults import Invalid
from modelpack.server.grpc import schema
from modelpack.server.grpc.contents import FIELDS, read, write
from modelpack.server.model import Answer
from modelpack.server.open_inference import DATATYPES, NAMES, Asked
from modelpack.server.signature import Signature, Tensor
from serving import Server, linear, wait_for

REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
TEXTS = ["good film", "very very bad film", "odd"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    model = reading(root / "a")
    artifact = made(root / "1", model, {"data": "v"}, v=sentences(root, model))
    with Server(artifact.path, grpc_port=0) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc_address) as opened:
        yield opened


def same(ours, theirs):
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
        assert (field.containing_oneof is None) == (other.containing_oneof is None)
        if field.message_type:
            assert field.message_type.full_name == other.message_type.full_name
    for nested in ours.nested_types:
        same(nested, theirs.nested_types_by_name[nested.name])
    for enum in ours.enum_types:
        assert enum.values_by_number[1].name == theirs.enum_types_by_name[enum.name].values_by_number[1].name


def test_the_schema_has_the_numbers_and_types_that_tritons_client_has():
    file = schema.pool().FindFileByName("inference.proto")
    known = dict(service_pb2.DESCRIPTOR.message_types_by_name) | dict(model_config_pb2.DESCRIPTOR.message_types_by_name)
    assert len(file.message_types_by_name) > 30
    for name, ours in file.message_types_by_name.items():
        same(ours, known[name])
    theirs = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values_by_name
    for value in file.enum_types_by_name["DataType"].values:
        assert value.number == theirs[value.name].number
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in file.services_by_name["GRPCInferenceService"].methods:
        other = service.methods_by_name[method.name]
        for ours, them in ((method.input_type, other.input_type), (method.output_type, other.output_type)):
            assert ours.full_name == them.full_name
        streams = (method.client_streaming, method.server_streaming)
        assert streams == (other.client_streaming, other.server_streaming)


@pytest.mark.parametrize(
    "text", ["import x;", "message A { string b 1; }", 'syntax = "proto2";', "service A { rpc B; }"]
)
def test_what_is_not_read_is_refused(text):
    with pytest.raises(ValueError, match=r"is not known here|stands where"):
        schema.parse("a.proto", text)


def test_health_is_asked_by_the_whole_server_and_by_service(channel):
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"") == b"\x08\x01"  # field 1: SERVING
    name = schema.INFERENCE.encode()
    assert check(b"\x0a%c%b" % (len(name), name)) == b"\x08\x01"
    with pytest.raises(grpc.RpcError, match="no service 'z'") as found:
        check(b"\x0a\x01z")
    assert found.value.code() is grpc.StatusCode.NOT_FOUND
    watching = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\x0a\x01z")
    assert next(watching) == b"\x08\x03"  # SERVICE_UNKNOWN
    watching.cancel()


def test_who_watches_health_sees_the_drain_and_is_let_go(tmp_path):
    with Server(linear(tmp_path), grpc_port=0, drain_delay=1) as own, grpc.insecure_channel(own.grpc_address) as opened:
        watching = opened.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert next(watching) == b"\x08\x01"
        own.process.send_signal(signal.SIGTERM)
        assert next(watching) == b"\x08\x02"  # NOT_SERVING
        with pytest.raises(grpc.RpcError) as found:
            next(watching)
        assert found.value.code() is grpc.StatusCode.UNAVAILABLE
        assert own.process.wait(timeout=30) == 0


def test_streams_that_only_wait_leave_room_for_work(tmp_path):
    with (
        Server(linear(tmp_path), grpc_port=0, max_connections=4) as own,
        grpc.insecure_channel(own.grpc_address) as opened,
    ):
        watch = opened.unary_stream("/grpc.health.v1.Health/Watch")
        waiting = [watch(b"") for _ in range(2)]
        for each in waiting:
            assert next(each) == b"\x08\x01"
        wait_for(lambda: own.metric("modelpack_inflight_requests") == 3)  # the scrape is one
        with pytest.raises(grpc.RpcError, match="2 streams wait for their clients already") as found:
            next(watch(b""))
        assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert opened.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"
        waiting[0].cancel()
        wait_for(lambda: own.metric("modelpack_inflight_requests") == 2)
        assert next(watch(b"")) == b"\x08\x01"


def reflected(channel, *questions, path=REFLECT):
    """Ask in bytes: a field's number and a text."""
    asked = [bytes([number << 3 | 2, len(text)]) + text.encode() for number, text in questions]
    kind = schema.message("grpc.reflection.v1.ServerReflectionResponse")
    return [kind.FromString(data) for data in channel.stream_stream(path)(iter(asked))]


@pytest.mark.parametrize("path", [REFLECT, REFLECT.replace(".v1.", ".v1alpha.")])
def test_tools_learn_the_services_from_the_server(channel, path):
    listed, *found = reflected(channel, (7, "*"), (4, "inference.ModelInferRequest"), (3, "inference.proto"), path=path)
    names = [entry.name for entry in listed.list_services_response.service]
    assert names == [schema.INFERENCE, schema.HEALTH, schema.REFLECTION]
    for answer in found:
        (blob,) = answer.file_descriptor_response.file_descriptor_proto
        file = FileDescriptorProto.FromString(blob)
        assert (file.package, file.service[0].name) == ("inference", "GRPCInferenceService")
        assert (
            file.service[0].method[5].input_type == ".inference.ModelInferRequest"
        )  # names in full, as tools need them


def test_what_is_not_there_is_not_found_by_reflection(channel):
    wrong = reflected(channel, (4, "inference.Nothing"), (3, "no.proto"), (6, "no.Type"), (1, "host"))
    assert [answer.error_response.error_code for answer in wrong] == [5] * 4
    (known,) = reflected(channel, (6, "inference.ModelInferRequest"))
    assert known.all_extension_numbers_response.base_type_name == "inference.ModelInferRequest"


@pytest.mark.parametrize("raw", [True, False])
def test_texts_are_bytes_of_either_form(server, raw):
    with triton.InferenceServerClient(server.grpc_address) as client:
        (spec,) = client.get_model_metadata("model").inputs
        assert (spec.name, spec.datatype, list(spec.shape)) == ("text", "BYTES", [-1])
        sent = triton.InferInput("text", [3], "BYTES")
        sent.set_data_from_numpy(objects([text.encode() for text in TEXTS]))
        wanted = client.infer("model", [sent]).as_numpy("ids_out")
    request = service_pb2.ModelInferRequest(model_name="model")
    entry = request.inputs.add(name="text", datatype="BYTES", shape=[3])
    if raw:
        request.raw_input_contents.append(b"".join(len(text).to_bytes(4, "little") + text.encode() for text in TEXTS))
    else:
        entry.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = channel.unary_unary(f"/{schema.INFERENCE}/ModelInfer")
        response = service_pb2.ModelInferResponse.FromString(call(request.SerializeToString()))
        (output,) = (each for each in response.outputs if each.name == "ids_out")
        got = (
            response.raw_output_contents[list(response.outputs).index(output)]
            if raw
            else output.contents.int64_contents
        )
        assert (got if raw else np.int64(got).tobytes()) == wanted.tobytes()
        del entry.shape[:]
        entry.shape.append(2)
        with pytest.raises(grpc.RpcError, match="2"):
            call(request.SerializeToString())


@given(data=st.data(), dtype=st.sampled_from([*sorted(DATATYPES.values()), "string", "bytes"]), binary=st.booleans())
def test_what_is_written_is_read_back_exactly(data, dtype, binary):
    """An answer has the form of a request: turned into one, it must give the same tensors."""
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, max_side=3))
    words = {"string": st.text("aé€", max_size=4), "bytes": st.binary(max_size=4)}.get(dtype)
    kind = dtype if words is None else "object"
    tensors = {name: data.draw(arrays.arrays(kind, shape, elements=words)) for name in ("a", "b")}
    signature = Signature({name: Tensor(name, shape, dtype) for name in tensors}, {})

    class Named:
        name, version = "m", "1"

    response = write(Asked({}, "7", dict.fromkeys(tensors, binary)), Answer(tensors, 1, 0, 0), Named)
    assert bool(response.raw_output_contents) == (binary or dtype == "float16")
    request = schema.message("inference.ModelInferRequest")(
        raw_input_contents=response.raw_output_contents, id=response.id
    )
    for entry in response.outputs:
        request.inputs.add().ParseFromString(entry.SerializeToString())  # their fields have the same numbers
    asked = read(request, signature)
    assert asked.id == "7"
    for name, array in tensors.items():
        np.testing.assert_array_equal(asked.feed[name], array)
        assert (asked.feed[name].dtype, asked.feed[name].shape) == (array.dtype, array.shape)


texts = st.sampled_from(["x", "y", "z", ""])
VALUES = {"bytes_contents": st.binary(max_size=3), "bool_contents": st.booleans()}
contents = st.fixed_dictionaries(
    {},
    optional={name: st.lists(VALUES.get(name, st.integers(0, 200)), max_size=5) for name in FIELDS},
)
entries = st.fixed_dictionaries(
    {"name": texts, "datatype": st.sampled_from([*sorted(set(NAMES.values())), "", "FP8"])},
    optional={"shape": st.just([1, 4]) | st.lists(st.integers(-1, 2**62), max_size=40), "contents": contents},
)


@settings(max_examples=150, deadline=None)
@given(
    inputs=st.lists(entries, max_size=3), outputs=st.lists(texts, max_size=2),
    raw=st.lists(st.binary(max_size=20) | st.just(bytes(16)), max_size=2), dtype=st.sampled_from(["float32", "int8", "string"]),
)  # fmt: skip
def test_any_request_is_read_or_refused(inputs, outputs, raw, dtype):
    signature = Signature({"x": Tensor("x", ("n", 4), dtype)}, {"y": Tensor("y", ("n", 4), "float32")})
    request = schema.message("inference.ModelInferRequest")(
        inputs=inputs, outputs=[{"name": name} for name in outputs], raw_input_contents=raw
    )
    try:
        asked = read(request, signature)
    except Invalid:
        event("refused")
    else:
        assert set(asked.outputs) == {"y"}
