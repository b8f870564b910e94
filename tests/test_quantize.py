from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from exported import WIDE
from modelpack.errors import StageError
from modelpack.numerics import graph, grid, onnxfile, optimize, prediction, rows, runtime
from modelpack.numerics.quantization import embedding, engine, layers, qdq
from modelpack.numerics.quantization.rewriting import prepare
from modelpack.numerics.quantization.settings import Evidence, Settings
from modelpack.stages.optimize import optimize as optimize_stage
from modelpack.stages.quantize import quantize as quantize_stage
from modelpack.stages.quantize_config import QuantizeConfig
from modelpack.tensors import TensorSpec
from onnx_support import calibrated, graph_of, onnx_artifact, weights
from support import Rows, run_stage

FLOAT = TensorProto.FLOAT
finite = st.floats(-1e6, 1e6, width=32)


def drawn(artifact, count=48, seed=7):
    return Rows(rows.sample(prediction.signature(artifact)[0], count, seed), 16)


def quantized(root, artifact, **wanted):
    return run_stage(root, quantize_stage, {"data": "val", **wanted}, model=artifact, data={"val": drawn(artifact)})


def proto_of(artifact):
    return onnxfile.read(artifact.file("model.onnx"))


def kernels(artifact):
    """Operators as onnxruntime really runs them."""
    return graph.operators(optimize.by_onnxruntime(proto_of(artifact)))


# The grids


@given(finite, finite)
def test_a_grid_holds_zero_exactly_and_every_value_of_its_range(one, two):
    low, high = min(one, two, 0.0), max(one, two, 0.0)
    spot = grid.asymmetric(one, two) if one <= two else grid.asymmetric(two, one)
    scale, zero = np.float64(spot.scale), np.float64(spot.zero_point)
    assert scale > 0
    for value in (low, high, 0.0, (low + high) / 2):
        step = np.clip(np.rint(value / scale) + zero, 0, 255)
        assert abs((step - zero) * scale - value) <= scale * 1.001 + 1e-30
    assert (np.rint(0.0 / scale) + zero - zero) * scale == 0.0


def test_a_grid_needs_numbers():
    with pytest.raises(ValueError, match="no grid spans"):
        grid.asymmetric(0.0, float("inf"))


@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=finite), st.data())
def test_rounded_weights_lie_within_half_a_step_of_their_channel(values, data):
    axis = data.draw(st.sampled_from([None, *range(values.ndim)]))
    scales = grid.symmetric_scales(values, axis)
    steps = grid.to_int8(values, scales, axis)
    shape = [-1 if place == axis else 1 for place in range(values.ndim)]
    spread = scales.astype(np.float64).reshape(shape) if axis is not None else scales.astype(np.float64)
    assert steps.dtype == np.int8
    assert np.abs(steps.astype(int)).max() <= 127
    assert (np.abs(steps * spread - values.astype(np.float64)) <= spread * 0.5001).all()


@given(finite, st.floats(1e-12, 10.0), st.floats(1e-12, 10.0))
def test_a_bias_always_fits_into_32_bits(bias, scale, input_scale):
    values, scales = np.array([bias], np.float32), np.array([scale], np.float32)
    wide = grid.wide_enough(scales, values, np.float32(input_scale))
    assert wide[0] >= scales[0]
    steps = (wide * np.float32(input_scale)).astype(np.float64)
    exact = np.rint(values / steps)
    assert (np.abs(exact) < 2**31).all()
    assert np.array_equal(grid.to_int32(values, steps), exact.astype(np.int32))


# Static


def test_a_cnn_runs_in_integers_from_end_to_end(tmp_path, exported):
    made = quantized(tmp_path, exported["cnn"])
    assert made.metrics["quantized_layers"] == made.metrics["quantizable_layers"] == 12
    assert made.metrics["quantize_sqnr_db"] > 30
    assert made.metrics["quantize_agreement"] > 0.9
    assert made.model_bytes < 0.4 * exported["cnn"].model_bytes
    found = kernels(made)
    assert found["QLinearConv"] == 11
    assert "Conv" not in found
    assert "FusedConv" not in found
    assert made.manifest.record["warnings"] == []
    assert graph.facts(proto_of(made)).precision == "int8"


def test_beside_attention_only_matrix_products_are_rounded(tmp_path, exported):
    made = quantized(tmp_path, exported["encoder"])
    assert made.metrics["quantized_layers"] == made.metrics["quantizable_layers"] == 15
    assert made.model_bytes < 0.35 * exported["encoder"].model_bytes
    assert kernels(made)["MatMulIntegerToFloat"] == 12
    proto = proto_of(made)
    read = {name for node in proto.graph.node if node.op_type in ("Softmax", "Where", "Add") for name in node.input}
    assert not any(name.endswith(":dequantized") for name in read)


def test_a_padded_row_gives_what_it_gives_alone(tmp_path, exported):
    artifact = exported["encoder"]
    inputs, _ = prediction.signature(artifact)
    made = quantized(tmp_path, artifact)
    predict = prediction.predictor(made)
    alone = rows.sample(inputs, 1, 3, {"sequence": 5})
    padded = rows.sample(inputs, 2, 4, {"sequence": 12})
    for name, value in alone.items():
        padded[name][0] = 0
        padded[name][0, :5] = value[0]
    np.testing.assert_allclose(predict(padded)["logits"][:1], predict(alone)["logits"], atol=0.02)


def test_a_relu_after_a_product_does_not_cost_the_integer_kernel(tmp_path, exported):
    made = quantized(tmp_path, exported["grouped"])
    assert kernels(made)["QGemm"] == 2
    assert made.metrics["quantized_layers"] == 7
    assert not any("computes them in floating point" in text for text in made.manifest.record["warnings"])


def test_excluded_layers_stay_float_and_are_listed(tmp_path, exported):
    made = quantized(tmp_path, exported["cnn"], exclude=["block1.*", "head/Gemm"])
    left = {
        item["layer"]: item["reason"] for item in made.manifest.record["results"]["layers"] if not item["quantized"]
    }
    assert left == {
        "block1.expand/Conv": "excluded by 'block1.*'",
        "block1.depthwise/Conv": "excluded by 'block1.*'",
        "block1.project/Conv": "excluded by 'block1.*'",
        "head/Gemm": "excluded by 'head/Gemm'",
    }
    assert "block1.expand.weight" in {item.name for item in proto_of(made).graph.initializer}


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path, exported):
    with pytest.raises(StageError, match=r"named like 'blok1\.\*'"):
        quantized(tmp_path, exported["cnn"], exclude=["blok1.*"])


def test_the_same_work_gives_the_same_bytes(tmp_path, exported):
    for way in ({"ranges": "percentile"}, {"method": "float16"}):
        one, two = (quantized(tmp_path / name, exported["cnn"], **way) for name in ("one", "two"))
        assert one.id == two.id


def test_tensors_behind_a_reshape_share_its_grid():
    proto = graph_of(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[3, 3]),
            helper.make_node("MaxPool", ["c"], ["m"], name="pool", kernel_shape=[2, 2]),
            helper.make_node("Flatten", ["m"], ["f"], name="flat"),
            helper.make_node("Gemm", ["f", "v"], ["y"], name="head"),
        ],
        {"x": (["batch", 3, 6, 6], FLOAT)},
        {"y": ["batch", 10]},
        {"w": weights(16, 3, 3, 3), "v": weights(64, 10)},
    )
    marked = qdq.marks(proto, ["conv", "head"])
    assert marked.measured == ("c", "x")
    assert marked.carried == {"m": "c", "f": "c"}
    assert marked.made == {"c", "m", "f"}


def test_an_output_that_is_a_convolution_keeps_its_name(tmp_path):
    proto = graph_of(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", kernel_shape=[3, 3]),
            helper.make_node("Conv", ["y", "v"], ["z"], name="next", kernel_shape=[1, 1]),
        ],
        {"x": (["batch", 16, 8, 8], FLOAT)},
        {"y": ["batch", 64, 6, 6], "z": ["batch", 8, 6, 6]},
        {"w": weights(64, 16, 3, 3), "b": weights(64), "v": weights(8, 64, 1, 1)},
    )
    source = onnx_artifact(tmp_path, proto)
    made = quantized(tmp_path, source)
    feed = {"x": weights(2, 16, 8, 8, seed=5)}
    expected, got = prediction.predictor(source)(feed), prediction.predictor(made)(feed)
    assert list(got) == ["y", "z"]
    for name in got:
        assert np.abs(got[name] - expected[name]).max() < 0.03 * np.abs(expected[name]).max()
    assert kernels(made)["QLinearConv"] == 2


@pytest.mark.parametrize("transposed", [0, 1])
def test_products_follow_a_float64_reference_of_the_rounding(transposed):
    w, b, x = weights(24, 40), weights(40, seed=2), weights(9, 24, seed=3)
    proto = graph_of(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", transB=transposed)],
        {"x": (["batch", 24], FLOAT)},
        {"y": ["batch", 40]},
        {"w": w.T.copy() if transposed else w, "b": b},
    )
    made = engine.quantize(proto, Settings(), Evidence(calibration=calibrated(proto, [{"x": x}]))).outcome
    got = runtime.execute(runtime.session(onnxfile.encode(made.model)), {"x": x})["y"]
    spot = grid.asymmetric(float(x.min()), float(x.max()))
    steps = np.clip(np.rint(x / spot.scale) + int(spot.zero_point), 0, 255) - int(spot.zero_point)
    scales = grid.symmetric_scales(w, 1)
    exact = (steps * np.float64(spot.scale)) @ (grid.to_int8(w, scales, 1) * scales.astype(np.float64)) + b
    np.testing.assert_allclose(got, exact, atol=1e-3)


def test_a_dead_channel_with_a_bias_stays_its_bias(tmp_path):
    w = weights(64, 16, 3, 3)
    w[5] *= 1e-9
    b = weights(64, seed=2)
    b[5] = 3.0
    proto = graph_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", kernel_shape=[3, 3])],
        {"x": (["batch", 16, 8, 8], FLOAT)},
        {"y": ["batch", 64, 6, 6]},
        {"w": w, "b": b},
    )
    made = quantized(tmp_path, onnx_artifact(tmp_path, proto))
    got = prediction.predictor(made)({"x": weights(2, 16, 8, 8)})["y"]
    np.testing.assert_allclose(got[:, 5], 3.0, atol=0.2)


def test_operators_restrict_what_is_quantized(tmp_path, exported):
    made = quantized(tmp_path, exported["cnn"], operators=["Conv"])
    left = [item for item in made.manifest.record["results"]["layers"] if not item["quantized"]]
    assert [(item["layer"], item["reason"]) for item in left] == [("head/Gemm", "Gemm is not among `operators`")]


def test_rows_are_counted(tmp_path, exported):
    one = quantized(tmp_path / "few", exported["cnn"], rows=1)
    many = quantized(tmp_path / "many", exported["cnn"], rows=48)
    scale = {name: onnxfile.array(onnxfile.constants(proto_of(made).graph)["image:scale"]) for name, made in
             (("one", one), ("many", many))}  # fmt: skip
    assert scale["one"] < scale["many"]


@given(arrays.arrays(np.float32, (7, 5), elements=st.floats(-100, 100, width=32)))
@settings(max_examples=25, deadline=None)
def test_an_embedding_keeps_each_row_to_half_a_step_of_its_own(table):
    proto = graph_of(
        [helper.make_node("Gather", ["table", "ids"], ["y"], name="words")],
        {"ids": (["batch", "time"], TensorProto.INT64)},
        {"y": ["batch", "time", 5]},
        {"table": table},
    )
    made = embedding.quantize(proto, ["words"])
    ids = np.array([[0, 6, 3], [5, 1, 1]])
    got = runtime.execute(runtime.session(onnxfile.encode(made), threads=1), {"ids": ids})["y"]
    assert (np.abs(got - table[ids]) <= np.abs(table[ids]).max(-1, keepdims=True) / 253 + grid.SMALLEST_SCALE).all()


# Dynamic and float16


def test_dynamic_shrinks_matrices_and_embeddings(tmp_path, exported):
    made = quantized(tmp_path, exported["encoder"], method="dynamic")
    assert made.metrics["quantized_layers"] == made.metrics["quantizable_layers"] == 15
    assert made.metrics["quantize_cosine"] > 0.999
    assert made.model_bytes < 0.35 * exported["encoder"].model_bytes
    found = kernels(made)
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == 13
    assert graph.facts(proto_of(made)).precision == "int8"


def test_dynamic_needs_no_data_but_says_what_it_was_compared_on(tmp_path, exported):
    made = run_stage(tmp_path, quantize_stage, {"method": "dynamic"}, model=exported["encoder"])
    assert any("made-up inputs" in text for text in made.manifest.record["warnings"])
    assert "quantize_sqnr_db" in made.metrics


def test_a_file_that_does_not_shrink_is_a_failure_that_names_the_leftovers(tmp_path, exported):
    with pytest.raises(StageError, match="did not become smaller") as caught:
        quantized(tmp_path, exported["cnn"], method="dynamic")
    assert "1 of 12 layers" in caught.value.then
    assert "down/Conv (18,432 weights) and 10 more: integer convolutions" in caught.value.then


@pytest.mark.parametrize("name", WIDE)
def test_float16_keeps_float32_inputs_and_outputs(tmp_path, exported, name):
    made = quantized(tmp_path, exported[name], method="float16")
    assert graph.signature(proto_of(made)) == graph.signature(proto_of(exported[name]))
    assert made.metrics["quantize_sqnr_db"] > 50
    assert made.model_bytes < 0.6 * exported[name].model_bytes
    assert any("slower" in text for text in made.manifest.record["warnings"])
    assert graph.facts(proto_of(made)).precision == "float16"


def test_a_number_that_float16_and_float32_nodes_share_serves_both(tmp_path):
    nodes = [
        helper.make_node("Range", ["zero", "end", "one"], ["steps"], "range"),  # stays in float32
        helper.make_node("MatMul", ["x", "w"], ["h"], "fc"),
        helper.make_node("Greater", ["h", "one"], ["high"], "greater"),
        helper.make_node("Where", ["high", "zero", "h"], ["low"], "where"),
        helper.make_node("Add", ["low", "steps"], ["y"], "add"),
    ]
    generator = np.random.default_rng(0)
    weights = {
        "zero": np.float32(0), "one": np.float32(1), "end": np.float32(32),
        "w": generator.normal(size=(64, 32)).astype(np.float32),
    }  # fmt: skip
    source = onnx_artifact(tmp_path, graph_of(nodes, {"x": (["n", 64], TensorProto.FLOAT)}, {"y": ["n", 32]}, weights))
    made = quantized(tmp_path, source, method="float16")
    feed = {"x": generator.normal(size=(5, 64)).astype(np.float32) / 8}
    expected, got = (prediction.predictor(artifact)(feed)["y"] for artifact in (source, made))
    np.testing.assert_allclose(got, expected, atol=0.05)


def test_a_weight_too_large_for_float16_is_refused_a_mask_is_not(tmp_path):
    def net(mask, largest):
        w = weights(64, 64)
        w[0, 0] = largest
        return graph_of(
            [
                helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
                helper.make_node("Greater", ["x", "zero"], ["on"], name="on"),
                helper.make_node("Where", ["on", "h", "mask"], ["m"], name="masked"),
                helper.make_node("Softmax", ["m"], ["y"], name="soft"),
            ],
            {"x": (["batch", 64], FLOAT)},
            {"y": ["batch", 64]},
            {"w": w, "zero": np.float32(0), "mask": np.float32(mask)},
        )

    made = quantized(tmp_path, onnx_artifact(tmp_path, net(-3.4e38, 1.0)), method="float16")
    assert made.metrics["quantize_sqnr_db"] > 40
    with pytest.raises(StageError, match="does not fit into float16"):
        quantized(tmp_path, onnx_artifact(tmp_path, net(-1.0, 1e6)), method="float16")


def test_a_graph_that_crashes_the_engine_is_refused_and_we_live_on(tmp_path, exported, monkeypatch):
    monkeypatch.setattr(runtime, "survives", lambda _model, _device: False)
    with pytest.raises(StageError, match="crashes when it opens the float16 graph on cpu"):
        quantized(tmp_path, exported["cnn"], method="float16")


# Files from elsewhere


def hand_net(opset=17, **more):
    return graph_of(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["g"]),
            helper.make_node("Flatten", ["g"], ["f"]),
            helper.make_node("Gemm", ["f", "v", "d"], ["y"], transB=1),
        ],
        {"x": (["batch", 16, 8, 8], FLOAT)},
        {"y": ["batch", 32]},
        {"w": weights(64, 16, 3, 3), "b": weights(64), "v": weights(32, 64), "d": weights(32)},
        opset=opset,
        **more,
    )


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_an_older_opset_is_converted(tmp_path, opset):
    source = onnx_artifact(tmp_path, hand_net(opset))
    made = quantized(tmp_path, source)
    assert graph.facts(proto_of(made)).opset == prepare.TARGET
    assert made.metrics["quantized_layers"] == 2
    assert made.metrics["quantize_sqnr_db"] > 25
    assert kernels(made)["QLinearConv"] == 1


def test_a_quantized_file_is_refused(tmp_path):
    made = quantized(tmp_path, onnx_artifact(tmp_path, hand_net()))
    with pytest.raises(StageError, match="quantized already"):
        quantized(tmp_path, made)


def test_a_file_without_layers_is_refused(tmp_path):
    proto = graph_of([helper.make_node("Relu", ["x"], ["y"])], {"x": (["batch", 4], FLOAT)}, {"y": ["batch", 4]}, {})
    with pytest.raises(StageError, match="no layer can be quantized"):
        quantized(tmp_path, onnx_artifact(tmp_path, proto))


def test_initializers_that_are_inputs_become_constants(tmp_path):
    proto = hand_net()
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    source = onnx_artifact(tmp_path, proto)
    made = quantized(tmp_path, source)
    assert [item.name for item in proto_of(made).graph.input] == ["x"]
    assert made.metrics["quantized_layers"] == 2


def test_constants_as_nodes_and_unfolded_batch_norms_are_understood(tmp_path):
    w = numpy_helper.from_array(weights(64, 16, 3, 3), "w_value")
    proto = graph_of(
        [
            helper.make_node("Constant", [], ["w"], value=w),
            helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
            helper.make_node("Relu", ["n"], ["y"]),
        ],
        {"x": (["batch", 16, 8, 8], FLOAT)},
        {"y": ["batch", 64, 6, 6]},
        {"s": np.abs(weights(64)), "b": weights(64), "m": weights(64), "v": np.abs(weights(64)) + 0.5},
    )
    made = quantized(tmp_path, onnx_artifact(tmp_path, proto))
    found = kernels(made)
    assert found["QLinearConv"] == 1
    assert "BatchNormalization" not in found
    assert made.metrics["quantize_sqnr_db"] > 25


def test_computed_constants_old_formats_and_sums_are_understood(tmp_path):
    proto = graph_of(
        [
            helper.make_node("Mul", ["half", "two"], ["w"]),
            helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["x", "v"], ["d"], kernel_shape=[1, 1]),
            helper.make_node("Sum", ["c", "d"], ["s"]),
            helper.make_node("Relu", ["s"], ["r"]),
            helper.make_node("Conv", ["r", "u"], ["y"], kernel_shape=[1, 1]),
        ],
        {"x": ([1, 16, 8, 8], FLOAT)},
        {"y": [1, 16, 8, 8]},
        {
            "half": weights(32, 16, 3, 3),
            "two": np.float32(2),
            "v": weights(32, 16, 1, 1),
            "u": weights(16, 32, 1, 1),
        },
        opset=9,
    )
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    source = onnx_artifact(tmp_path, proto)
    data = {"val": Rows({"x": weights(12, 16, 8, 8)}, 5)}  # cut to the model's batch of one
    made = run_stage(tmp_path, quantize_stage, {"data": "val"}, model=source, data=data)
    found = kernels(made)
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == 1
    assert not {"Relu", "Mul", "Sum", "Conv"} & set(found)
    assert made.metrics["quantize_sqnr_db"] > 25


CONVERTED = Path(onnx.__file__).parent / "backend/test/data/pytorch-converted"


@pytest.mark.parametrize("method", ["static", "dynamic", "float16"])
def test_every_single_module_of_the_onnx_suite_works_or_is_refused(method):
    done, seen = 0, set()
    for path in sorted(CONVERTED.glob("*/model.onnx")):
        proto = onnxfile.read(path)
        form = (*(node.op_type for node in proto.graph.node), len(proto.graph.input[0].type.tensor_type.shape.dim))
        if method == "float16" and form in seen:
            continue  # each is opened in a process of its own, and sizes of kernels do not matter to it
        seen.add(form)
        try:
            inputs = {name: TensorSpec.model_validate(spec) for name, spec in graph.signature(proto)["inputs"].items()}
            feeds = [rows.sample(inputs, 2, seed) for seed in range(2)]
            evidence = Evidence(calibration=calibrated(proto, feeds) if method == "static" else None)
            made = engine.quantize(proto, Settings(method=method), evidence).outcome
            figures = engine.fidelity(proto, made.model, feeds, inputs)
        except StageError:
            continue
        assert min(item["sqnr_db"] for item in figures.values()) > (40 if method == "float16" else 15), path
        assert not made.warnings, path
        done += 1
    assert done >= {"static": 25, "dynamic": 2, "float16": 6}[method]


def test_layers_inside_branches_are_left_alone_and_listed(tmp_path):
    def branch(name, tensor):
        return helper.make_graph(
            [helper.make_node("MatMul", ["h", tensor], [f"{name}_out"], name=f"{name}_product")],
            name, [], [helper.make_tensor_value_info(f"{name}_out", FLOAT, ["batch", 64])],
        )  # fmt: skip

    proto = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="outer"),
            helper.make_node("ReduceSum", ["h"], ["total"], name="total", keepdims=0),
            helper.make_node("Greater", ["total", "zero"], ["positive"], name="positive"),
            helper.make_node(
                "If", ["positive"], ["y"], name="choice", then_branch=branch("a", "u"), else_branch=branch("b", "v")
            ),
        ],
        {"x": (["batch", 200], FLOAT)},
        {"y": ["batch", 64]},
        {"w": weights(200, 64), "u": weights(64, 64), "v": weights(64, 64, seed=1), "zero": np.float32(0)},
    )
    source = onnx_artifact(tmp_path, proto)
    for method in ("static", "dynamic"):
        made = quantized(tmp_path, source, method=method)
        assert made.metrics["quantized_layers"] == 1
        assert made.metrics["quantizable_layers"] == 3
        assert made.metrics["quantize_sqnr_db"] > 20
        assert any("inside a branch or loop" in text for text in made.manifest.record["warnings"])
    half = quantized(tmp_path, source, method="float16")
    assert half.metrics["quantized_layers"] == 3
    assert half.metrics["quantize_sqnr_db"] > 40


def test_dimensions_without_names_and_several_outputs_work(tmp_path):
    proto = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="one"),
            helper.make_node("MatMul", ["y", "v"], ["z"], name="two"),
        ],
        {"x": ([None, 64], FLOAT)},
        {"y": [None, 64], "z": [None, 48]},
        {"w": weights(64, 64), "v": weights(64, 48)},
    )
    source = onnx_artifact(tmp_path, proto)
    assert prediction.signature(source)[0]["x"].shape == ("x_0", 64)
    made = quantized(tmp_path, source)
    assert set(made.manifest.record["results"]["fidelity"]) == {"y", "z"}
    assert made.metrics["quantize_sqnr_db"] > 25


def test_external_tensors_are_read(tmp_path):
    path = tmp_path / "big.onnx"
    onnx.save(hand_net(), str(path), save_as_external_data=True, location="big.data", size_threshold=0)
    proto = onnxfile.read(path)
    assert quantized(tmp_path, onnx_artifact(tmp_path, proto)).metrics["quantized_layers"] == 2
    (tmp_path / "big.data").unlink()
    with pytest.raises(StageError, match=r"big\.onnx: cannot be read"):
        onnxfile.read(path)


def test_a_model_too_large_for_one_file_keeps_its_tensors_beside_it(tmp_path, exported, monkeypatch):
    monkeypatch.setattr(onnxfile, "LIMIT", 50_000)
    optimized = run_stage(tmp_path, optimize_stage, {}, model=exported["cnn"])
    assert (optimized.path / onnxfile.DATA_NAME).stat().st_size > 100_000
    made = quantized(tmp_path, optimized)
    assert made.model_bytes < 0.4 * optimized.model_bytes
    assert made.metrics["quantize_sqnr_db"] > 30
    feed = rows.sample(prediction.signature(made)[0], 2, 0)
    assert prediction.predictor(made)(feed)["output"].shape == (2, 10)


def test_a_graph_that_optimize_has_fused_can_still_be_quantized(tmp_path, exported):
    optimized = run_stage(tmp_path, optimize_stage, {}, model=exported["cnn"])
    assert graph.operators(proto_of(optimized))["FusedConv"]
    made = quantized(tmp_path, optimized)
    assert made.metrics["quantized_layers"] == 12
    assert made.metrics["quantize_sqnr_db"] > 30
    assert kernels(made)["QLinearConv"] == 11


# The settings


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="add `data:`"):
        QuantizeConfig(method="static")
    with pytest.raises(ValueError, match="'dynamic' cannot quantize Conv"):
        QuantizeConfig(method="dynamic", operators=("Conv",))
    assert QuantizeConfig(method="dynamic").rows == 256


def test_the_planner_knows_what_it_marks_and_refuses():
    assert "quantized" in quantize_stage.marks & quantize_stage.refuses


def test_made_up_rows_are_said_to_be(tmp_path, exported):
    source = exported["cnn"]
    made = run_stage(
        tmp_path,
        quantize_stage,
        {"data": "val"},
        model=source,
        data={"val": drawn(source)},
        synthetic=frozenset({"val"}),
    )
    assert any("'val' is random data" in text for text in made.manifest.record["warnings"])


def test_every_layer_has_a_reason_or_is_quantized(exported):
    prepared, _ = prepare.prepare(proto_of(exported["grouped"]))
    found = {layer.name: layer.reason for layer in layers.choose(prepared, "static", None, ())}
    assert "up/ConvTranspose" in found
    assert not any(found.values())


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cnn", "encoder"])
@pytest.mark.parametrize("wanted", [{}, {"correction": "rounding"}, {"correction": "adaround"}, {"ranges": "entropy"}])
def test_a_gpu_calibrates_to_the_same_quality(tmp_path, exported, name, wanted):
    given = {"model": exported[name], "data": {"val": drawn(exported[name], 64)}}
    asked = {"data": "val", "target": "vnni", **wanted}
    here, there, again = (
        run_stage(tmp_path / place, quantize_stage, asked, device=device, **given)
        for place, device in (("1", "cpu"), ("2", "cuda:0"), ("3", "cuda:0"))
    )
    assert there.id == again.id
    assert there.metrics["quantized_layers"] == here.metrics["quantized_layers"]
    feed = next(iter(drawn(exported[name], 64, seed=8).batches()))
    one, two, plain = (
        next(iter(runtime.execute(runtime.session(item.file("model.onnx")), feed).values()))
        for item in (here, there, exported[name])
    )
    off = [float(np.square(item - plain).mean()) for item in (one, two)]
    assert off[1] < 1.6 * off[0]  # about two decibels


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cnn", "encoder"])
def test_half_a_model_runs_on_a_gpu(tmp_path, exported, name):
    made = run_stage(
        tmp_path, quantize_stage, {"method": "float16", "data": "val"}, model=exported[name],
        data={"val": drawn(exported[name])}, device="cuda:0",
    )  # fmt: skip
    assert made.model_bytes < 0.6 * exported[name].model_bytes
    assert made.metrics["quantize_sqnr_db"] > 40
