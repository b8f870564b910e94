"""The calibrate stage, and the step that a recipe need not write."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelpack import engine
from modelpack import recipe as recipes
from modelpack.artifact import Kind
from modelpack.errors import RecipeError, StageError, UsageError
from modelpack.events import Note, StepStarted
from modelpack.numerics import onnxfile
from modelpack.numerics.quantization.calibration import record
from modelpack.planning import plan
from modelpack.stages.calibrate import calibrate as calibrate_stage
from modelpack.stages.quantize import quantize as quantize_stage
from modelpack.store import Store
from onnx_support import graph_of, onnx_artifact, weights
from support import Rows, run_stage

FLOAT = TensorProto.FLOAT


def convolutions(scale=1.0):
    """Two convolutions with a ReLU between them, a max pooling and a head."""
    return graph_of(
        [
            helper.make_node("Conv", ["image", "w"], ["c"], name="first", kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("Conv", ["r", "v"], ["d"], name="second", kernel_shape=[1, 1]),
            helper.make_node("MaxPool", ["d"], ["p"], name="pool", kernel_shape=[2, 2]),
            helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
            helper.make_node("Gemm", ["f", "u"], ["y"], name="head"),
        ],
        {"image": (["batch", 16, 6, 6], FLOAT)},
        {"y": ["batch", 20]},
        {"w": weights(32, 16, 3, 3) * np.float32(scale), "v": weights(32, 32, 1, 1, seed=1), "u": weights(288, 20)},
    )


def pictures(count=24, seed=0):
    return {"image": weights(count, 16, 6, 6, seed=seed)}


def calibrated(root, model, columns=None, **wanted):
    data = {"val": Rows(pictures() if columns is None else columns, 8)}
    return run_stage(root, calibrate_stage, {"data": "val", **wanted}, model=model, data=data)


def kept(artifact):
    return record.read(artifact.file(record.FACTS), artifact.file(record.ARRAYS))


def quantized(root, model, calibration=None, **wanted):
    steps = {"before": calibration} if calibration is not None else {}
    named = {"calibration": "before"} if calibration is not None else {}
    return run_stage(
        root,
        quantize_stage,
        {"data": "val", **named, **wanted},
        model=model,
        steps=steps,
        data={"val": Rows(pictures(), 8)},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnx_artifact(tmp_path_factory.mktemp("model"), convolutions())


@pytest.fixture(scope="module")
def calibration(tmp_path_factory, model):
    return calibrated(tmp_path_factory.mktemp("calibration"), model)


# The artifact


def test_every_tensor_that_static_may_round_is_counted(model, calibration):
    found = kept(calibration)
    assert calibration.kind is Kind.CALIBRATION
    assert (found.model, found.rows, found.counted) == (model.id, 24, True)
    assert set(found.tensors) == {"image", "r", "d", "f"}
    assert found.tensors["r"].histogram.total == 24 * 32 * 16
    assert found.tensors["image"].high == pictures()["image"].max()
    assert calibration.metrics["calibrated_tensors"] == 4


def test_the_same_work_gives_the_same_bytes(tmp_path, model, calibration):
    assert calibrated(tmp_path, model).id == calibration.id


def test_without_histograms_the_ranges_are_the_same(tmp_path, model, calibration):
    bare = kept(calibrated(tmp_path, model, histograms=False))
    assert not bare.counted
    for name, seen in kept(calibration).tensors.items():
        assert bare.tensors[name].high == pytest.approx(seen.high, rel=1e-6)
        assert bare.tensors[name].low == pytest.approx(seen.low, rel=1e-6)


def test_rows_are_counted(tmp_path, model):
    assert kept(calibrated(tmp_path, model, rows=11)).rows == 11


def test_what_makes_poor_ranges_is_warned_of(tmp_path, model):
    one = calibrated(tmp_path, model, {"image": np.zeros((1, 16, 6, 6), np.float32)})
    warnings = one.manifest.record["warnings"]
    assert any("calibrated on one row" in text for text in warnings)
    assert any("never change" in text and "image, r" in text for text in warnings)
    made_up = run_stage(
        tmp_path, calibrate_stage, {"data": "val"}, model=model,
        data={"val": Rows(pictures(), 8)}, synthetic=frozenset({"val"}),
    )  # fmt: skip
    assert any("made-up rows: 'val' is random" in text for text in made_up.manifest.record["warnings"])


def test_padding_is_noticed_and_told(tmp_path):
    proto = graph_of(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"], name="words"),
            helper.make_node("MatMul", ["e", "w"], ["y"], name="product"),
            helper.make_node("Identity", ["attention_mask"], ["m"], name="mask"),
            helper.make_node("Cast", ["m"], ["z"], name="cast", to=FLOAT),
        ],
        {"ids": (["batch", "time"], TensorProto.INT64), "attention_mask": (["batch", "time"], TensorProto.INT64)},
        {"y": ["batch", "time", 8], "z": ["batch", "time"]},
        {"table": np.arange(20, dtype=np.float32)[:, None] * np.ones((20, 8), np.float32), "w": weights(8, 8)},
    )
    ids = np.array([[1, 2, 3, 19], [4, 19, 19, 19]])
    columns = {"ids": ids, "attention_mask": (ids != 19).astype(np.int64)}
    events = []
    data = {"val": Rows(columns, 2)}
    source = onnx_artifact(tmp_path, proto)
    made = run_stage(tmp_path, calibrate_stage, {"data": "val"}, model=source, data=data, collect=events)
    assert kept(made).tensors["e"].high == 4
    assert kept(made).mask == "attention_mask"
    assert any("where 'attention_mask' is 0 did not count" in event.text for event in events if isinstance(event, Note))
    careless = run_stage(tmp_path, calibrate_stage, {"data": "val", "mask": "none"}, model=source, data=data)
    assert kept(careless).tensors["e"].high == 19


# What quantize takes from it


@pytest.mark.parametrize("rule", ["minmax", "percentile", "entropy", "mse"])
def test_a_named_calibration_gives_what_an_implied_one_gives(tmp_path, model, calibration, rule):
    named, implied = quantized(tmp_path, model, calibration, ranges=rule), quantized(tmp_path, model, ranges=rule)
    assert named.file("model.onnx").read_bytes() == implied.file("model.onnx").read_bytes()
    assert named.metrics["quantize_sqnr_db"] > 25


def test_layers_may_be_left_out_afterwards(tmp_path, model, calibration):
    made = quantized(tmp_path, model, calibration, exclude=["second"])
    scales = {name for name in onnxfile.constants(onnxfile.read(made.file("model.onnx")).graph) if "scale" in name}
    assert "f:scale" in scales, "behind the layer left out, what only carried its grid has its own"


def test_another_models_calibration_is_refused(tmp_path, model):
    other = calibrated(tmp_path, onnx_artifact(tmp_path, convolutions(2.0)))
    with pytest.raises(StageError, match="'before' calibrated another model"):
        quantized(tmp_path, model, other)


def test_ranges_that_need_histograms_say_so(tmp_path, model):
    bare = calibrated(tmp_path, model, histograms=False)
    assert quantized(tmp_path, model, bare).metrics["quantize_sqnr_db"] > 25
    with pytest.raises(StageError, match="`ranges: mse` needs histograms") as caught:
        quantized(tmp_path, model, bare, ranges="mse")
    assert "histograms: true" in caught.value.then


def test_tensors_that_were_not_looked_at_are_missed(tmp_path, model):
    part = calibrated(tmp_path, model, operators=["Gemm"])
    with pytest.raises(StageError, match="no ranges of"):
        quantized(tmp_path, model, part)


def test_damage_is_noticed(tmp_path, model, calibration):
    path = calibrated(tmp_path, model, rows=9)
    file = path.file(record.ARRAYS)
    file.chmod(0o644)
    file.write_bytes(b"")
    with pytest.raises(StageError, match="calibration cannot be read"):
        quantized(tmp_path, model, path)


# In recipes

RECIPE = """\
name: net
model: {onnx: net.onnx}
data:
  photos: {npz: {path: photos.npz}}
  others: {npz: {path: others.npz}}
stages:
"""


@pytest.fixture
def folder(tmp_path):
    onnx.save(convolutions(), tmp_path / "net.onnx")
    np.savez(tmp_path / "photos.npz", **pictures())
    np.savez(tmp_path / "others.npz", **pictures(seed=1))
    return tmp_path


def loaded(folder, *lines):
    (folder / "recipe.yaml").write_text(RECIPE + "".join(f"  - {line}\n" for line in lines))
    return recipes.load(folder / "recipe.yaml")


def problems(folder, *lines):
    with pytest.raises(RecipeError) as caught:
        loaded(folder, *lines)
    return [problem.message for problem in caught.value.problems]


def test_a_recipe_need_not_calibrate(folder):
    recipe = loaded(folder, "quantize: {method: static, data: photos, rows: 20, ranges: mse}")
    assert [step.id for step in recipe.steps] == ["model", "quantize.calibrate", "quantize"]
    implied, quantize = recipe.steps[1:]
    assert implied.config.model_dump() == {
        "data": "photos", "rows": 20, "histograms": True, "operators": None, "mask": "auto",
        "equalize": False, "smooth": None,
    }  # fmt: skip
    assert (implied.reads, implied.data, implied.implied) == ("model", ("photos",), True)
    assert (quantize.config.calibration, quantize.steps, quantize.implied) == (implied.id, (implied.id,), False)


@pytest.mark.parametrize("line", ["quantize: {method: float16}", "quantize: {method: dynamic}"])
def test_other_methods_need_no_calibration(folder, line):
    assert [step.id for step in loaded(folder, line).steps] == ["model", "quantize"]


def test_a_step_that_calibrates_is_named(folder):
    recipe = loaded(folder, "calibrate: {data: photos}", "quantize: {data: photos, calibration: calibrate}")
    assert [step.id for step in recipe.steps] == ["model", "calibrate", "quantize"]
    assert recipe.steps[2].steps == ("calibrate",)
    assert recipe.steps[2].reads == "model"


def test_only_a_calibration_can_be_one(folder):
    told = problems(folder, "quantize: {data: photos, calibration: model}")
    assert told == ["'calibration' must be calibration but 'model' gives onnx"]


def test_a_mistake_is_told_once_and_where_it_stands(folder):
    assert problems(folder, "quantize: {data: photoz}") == ["no data is named 'photoz'"]
    assert problems(folder, "quantize: {method: float16}", "{quantize: {data: photos}, id: again}") == [
        "'again' cannot work on a quantized model"
    ]
    with pytest.raises(RecipeError) as caught:
        loaded(folder, "calibrate: {data: nothing}")
    assert caught.value.problems[0].place.line == 7


def test_a_dot_stays_out_of_ids_that_users_give(folder):
    assert "an id is letters" in problems(folder, "{calibrate: {data: photos}, id: quantize.calibrate}")[0]


def test_a_recipe_may_end_before_and_after_the_implied_step(folder):
    recipe = loaded(folder, "quantize: {data: photos}")
    assert [step.id for step in recipe.upto("quantize").steps][-2:] == ["quantize.calibrate", "quantize"]
    assert recipe.upto("quantize.calibrate").steps[-1].id == "quantize.calibrate"
    with pytest.raises(UsageError, match="has no step"):
        recipe.upto("calibrate")


SWEEP = (
    "{quantize: {data: photos, ranges: mse}, id: one}",
    "{quantize: {data: photos, ranges: entropy}, id: two, from: model}",
    "{quantize: {data: others, ranges: entropy}, id: three, from: model}",
)


def test_a_sweep_calibrates_once(folder):
    store = Store(folder / "store")
    recipe = loaded(folder, *SWEEP)
    events = []
    run = engine.run(engine.open_desk(recipe, store, "cpu"), events.append)
    started = [event.step for event in events if isinstance(event, StepStarted)]
    assert started == ["model", "one.calibrate", "one", "two", "three.calibrate", "three"]
    found = {step.id: step for step in run.steps}
    assert found["two.calibrate"].artifact == found["one.calibrate"].artifact != found["three.calibrate"].artifact
    assert found["one"].artifact != found["two"].artifact
    assert all(not item.why for item in plan(engine.open_desk(recipe, store, "cpu")))


def test_an_error_tells_the_step_that_met_it(folder):
    bad = pictures()["image"]
    bad[3, 2, 1, 0] = np.nan
    np.savez(folder / "photos.npz", image=bad)
    recipe = loaded(folder, "quantize: {data: photos}")
    with pytest.raises(StageError, match="hold NaN or infinity in 'image'") as caught:
        engine.run(engine.open_desk(recipe, Store(folder / "store"), "cpu"), lambda _event: None)
    assert caught.value.where == "quantize.calibrate"
