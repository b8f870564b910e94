"""Inputs read from an ONNX file's bytes are those that the library reads."""

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelpack import onnx_header
from modelpack.errors import UsageError
from modelpack.numerics import graph
from modelpack.tensors import TensorSpec


def model(*inputs, initializers=()):
    nodes = [helper.make_node("Identity", [inputs[0].name], ["y"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return helper.make_model(helper.make_graph(nodes, "g", list(inputs), outputs, list(initializers)))


MODELS = {
    "plain": model(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 224, 224])),
    "several types": model(
        *(helper.make_tensor_value_info(f"x{number}", number, ["n"]) for number in onnx_header.ELEMENTS)
    ),
    "odd names": model(
        helper.make_tensor_value_info("a.b/c", TensorProto.INT64, ["batch size", None, "1st", 0, "größe", ""]),
        helper.make_tensor_value_info("ünïcode", TensorProto.INT64, [2**40]),
    ),
    "a scalar": model(helper.make_tensor_value_info("x", TensorProto.FLOAT, [])),
    "initializers among the inputs": model(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]),
        initializers=[numpy_helper.from_array(np.zeros(4, np.float32), "w")],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_reads_what_the_library_reads(tmp_path, name):
    onnx.save(MODELS[name], tmp_path / "m.onnx")
    expected = graph.signature(MODELS[name])["inputs"]
    found = onnx_header.inputs(tmp_path / "m.onnx")
    assert list(found) == list(expected)
    assert found == {key: TensorSpec.model_validate(value) for key, value in expected.items()}


def test_an_input_that_is_no_tensor_is_left_out(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    onnx.save(model(sequence, helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])), tmp_path / "m.onnx")
    assert list(onnx_header.inputs(tmp_path / "m.onnx")) == ["x"]


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x02}q\x00.", b"\xff" * 40, b"PK\x03\x04", b"\x3a\xff\x01abc"])
def test_another_file_is_refused(tmp_path, data):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(UsageError, match="cannot be read as an ONNX file"):
        onnx_header.inputs(tmp_path / "m.onnx")


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "m.onnx").touch()
    with pytest.raises(UsageError, match="it is empty"):
        onnx_header.inputs(tmp_path / "m.onnx")


def test_any_damage_is_refused_or_harmless(tmp_path):
    """A thousand broken files: each is read or refused, none raises anything else."""
    source = MODELS["odd names"].SerializeToString()
    rng = random.Random(0)
    for _ in range(1000):
        data = bytearray(source)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "m.onnx").write_bytes(data[: rng.randint(1, len(data))])
        try:
            onnx_header.inputs(tmp_path / "m.onnx")
        except UsageError:
            continue
