"""ONNX files in: taken as they are, with their external tensors, and refused where they are broken."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from modelpack import canonical
from modelpack.errors import StageError
from modelpack.stages.model import OnnxModelConfig, onnx_model
from support import run_stage

torch.set_num_threads(1)


def matmul(external=None, shape=("batch size", 3)):
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 2])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_onnx_file_is_taken_as_it_is(tmp_path):
    onnx.save(matmul(), tmp_path / "m.onnx")
    artifact = run_stage(tmp_path, onnx_model, {"onnx": "m.onnx"})
    assert artifact.file("model.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert artifact.read_json("signature.json")["inputs"]["x"]["shape"] == ["batch_size", 3]
    assert artifact.metrics == {"parameters": 6, "mac_count": 6}


def test_declared_onnx_inputs_are_compared_with_the_graph(tmp_path):
    onnx.save(matmul(), tmp_path / "m.onnx")
    fixed = run_stage(tmp_path, onnx_model, {"onnx": "m.onnx", "inputs": {"x": {"shape": [4, 3]}}})
    assert fixed.read_json("signature.json")["outputs"]["y"]["shape"] == [4, 2]
    for settings, says in [
        ({"inputs": {"z": {"shape": [4, 3]}}}, "no input 'z'"),
        ({"inputs": {"x": {"shape": [4, 5]}}}, "in the recipe"),
        ({"inputs": {"x": {"shape": ["n", 3], "dtype": "int64"}}}, "int64"),
        ({"outputs": ["q"]}, "no output 'q'"),
    ]:
        with pytest.raises(StageError, match=says):
            run_stage(tmp_path, onnx_model, {"onnx": "m.onnx", **settings})


def test_external_tensors_are_hashed_taken_in_and_contained(tmp_path):
    onnx.save(matmul(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)

    def digest():
        return canonical.digest(OnnxModelConfig.model_validate({"onnx": "m.onnx"}, context={"base": tmp_path}))

    artifact = run_stage(tmp_path, onnx_model, {"onnx": "m.onnx"})
    assert [f.name for f in artifact.manifest.files] == ["model.onnx", "signature.json"]
    before = digest()
    data = bytearray((tmp_path / "m.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "m.data").write_bytes(data)
    assert digest() != before
    outside = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for entry in outside.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../secret"
    (tmp_path.parent / "secret").write_bytes(bytes(24))
    (tmp_path / "out.onnx").write_bytes(outside.SerializeToString())
    with pytest.raises(StageError, match="outside the model's directory"):
        run_stage(tmp_path, onnx_model, {"onnx": "out.onnx"})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("offset", "1000000", "external tensors cannot be read: .*exceeds"),
        ("offset", "-4", "external tensors cannot be read"),
        ("length", "many", "external tensors cannot be read"),
        ("location", "m.data\0/../../secret", "outside the model's directory"),
    ],
)
def test_nonsense_about_external_tensors_is_refused(tmp_path, key, value, says):
    onnx.save(matmul(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    odd = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    entries = {entry.key: entry for entry in odd.graph.initializer[0].external_data}
    entry = entries.get(key) or odd.graph.initializer[0].external_data.add(key=key)
    entry.value = value
    (tmp_path / "odd.onnx").write_bytes(odd.SerializeToString())
    with pytest.raises(StageError, match=says):
        run_stage(tmp_path, onnx_model, {"onnx": "odd.onnx"})


def test_broken_onnx_files_are_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"not a model")
    (tmp_path / "b.onnx").write_bytes(b"")
    bad = matmul()
    bad.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "c.onnx").write_bytes(bad.SerializeToString())
    for name in ("a.onnx", "b.onnx", "c.onnx"):
        with pytest.raises(StageError, match=name):
            run_stage(tmp_path, onnx_model, {"onnx": name})
