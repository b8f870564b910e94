import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pydantic import ValidationError

from modelpack import recipe, schema
from modelpack.cli import details
from modelpack.errors import RecipeError, StageError
from modelpack.numerics import onnxfile
from modelpack.numerics.measure.statistics import ratio
from modelpack.numerics.quantization import qdq
from modelpack.numerics.quantization.extent import Extent
from modelpack.numerics.quantization.mixing import front, mixed, trials
from modelpack.numerics.quantization.mixing.cost import Costs
from modelpack.numerics.quantization.mixing.front import Point
from modelpack.numerics.quantization.mixing.mixed import Draft
from modelpack.numerics.quantization.settings import Budget, Evidence, Outcome
from modelpack.stages.quantize import quantize as quantize_stage
from modelpack.stages.quantize_config import QuantizeConfig
from onnx_support import graph_of, onnx_artifact, weights
from support import Rows, run_stage

FLOAT = TensorProto.FLOAT
DEEP = 10
NAMES = tuple(f"layer{place}" for place in range(DEEP))
FRAGILE = "layer4"


def net(width=24):
    """Convolutions in a row; one has huge weights on a channel that is always zero, and few steps for the others."""
    generator = np.random.default_rng(0)
    tensors, nodes, value = {}, [], "x"
    for place, name in enumerate(NAMES):
        size = width if place else 3
        made = generator.standard_normal((width, size, 3, 3)).astype(np.float32) * np.float32(np.sqrt(2 / (9 * size)))
        made[0] = 0.0
        if name == FRAGILE:
            made[:, 0, 0, 0] = 20.0
        tensors[f"w{place}"] = made
        nodes.append(helper.make_node("Conv", [value, f"w{place}"], [f"c{place}"], name=name, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{place}"], [f"r{place}"], name=f"relu{place}"))
        value = f"r{place}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["p"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["y"], name="flat"))
    return graph_of(nodes, {"x": (["batch", 3, 8, 8], FLOAT)}, {"y": ["batch", width]}, tensors)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return onnx_artifact(tmp_path_factory.mktemp("net"), net())


ROWS = Rows({"x": weights(48, 3, 8, 8, seed=3), "label": np.arange(48) % 24}, 16)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Measure times briefly: no test depends on them."""
    monkeypatch.setattr(trials, "ROUNDS", 10)


def quantized(root, artifact, data=ROWS, **wanted):
    asked = {"data": "val", "target": "vnni", "verify": False, **wanted}
    return run_stage(root, quantize_stage, asked, model=artifact, data={"val": data})


def point(kept, db, rounds, size=100, **quality):
    floats = [10.0] * len(rounds)
    return Point(tuple(NAMES[:kept]), {"sqnr_db": db, **quality}, size, ratio(floats, rounds), tuple(rounds))


def steady(milliseconds):
    return [milliseconds * (1 + 0.001 * (place % 3)) for place in range(20)]


# What a budget asks for


@pytest.mark.parametrize(
    ("measure", "limit", "value", "met"),
    [
        ("sqnr_db", 20, 20.0, True),
        ("sqnr_db", 20, 19.99, False),
        ("agreement", 0.9, 0.9, True),
        ("agreement", 0.9, 0.89, False),
        ("accuracy_drop", 0.01, 0.01, True),
        ("accuracy_drop", 0.01, 0.011, False),
        ("accuracy_drop", 0.0, -0.02, True),
    ],
)
def test_a_budget_is_met_from_its_side(measure, limit, value, met):
    assert Budget(measure, limit).met({"sqnr_db": 0.0, measure: value}) is met


def test_the_fastest_point_within_the_budget_is_chosen():
    points = [point(0, 18, steady(4)), point(1, 22, steady(5)), point(2, 25, steady(4.5)), point(3, 26, steady(6))]
    assert front.choose(points, Budget("sqnr_db", 20)) is points[2]
    assert front.choose(points, Budget("sqnr_db", 25.5)) is points[3]
    assert front.choose(points, Budget("sqnr_db", 10)) is points[0]


def test_of_points_as_fast_as_each_other_the_one_that_keeps_least_is_chosen():
    noisy = [5 + 0.4 * ((7 * place) % 5) for place in range(20)]
    points = [point(1, 22, noisy), point(4, 25, [value - 0.02 for value in noisy])]
    assert front.choose(points, Budget("sqnr_db", 20)) is points[0]
    within = [point(1, 22, steady(5)), point(4, 25, steady(4.97))]
    assert front.choose(within, Budget("sqnr_db", 20)) is within[0], "half a per cent is no gain"
    apart = [point(1, 22, steady(5)), point(4, 25, steady(4.5))]
    assert front.choose(apart, Budget("sqnr_db", 20)) is apart[1]


def test_an_impossible_budget_names_the_best_point():
    points = [point(0, 18, steady(4), agreement=0.9), point(1, 22, steady(5), agreement=0.95)]
    assert front.choose(points, Budget("sqnr_db", 30)) is None
    assert front.best(points, Budget("sqnr_db", 30)) is points[1]
    tied = [point(0, 18, steady(4), agreement=0.9), point(1, 22, steady(5), agreement=0.9)]
    assert front.best(tied, Budget("agreement", 1)) is tied[1]


@given(
    st.lists(
        st.tuples(st.sampled_from([3.0, 4.0, 5.0]), st.sampled_from([18.0, 20.0, 22.0]), st.sampled_from([100, 200])),
        min_size=1,
        max_size=9,
    )
)
@settings(max_examples=30, deadline=None)
def test_no_point_of_the_front_is_beaten_in_everything(found):
    points = [point(place, db, [time] * 10, size) for place, (time, db, size) in enumerate(found)]
    rows = front.table(points, points[0])
    for row, (time, db, size) in zip(rows, found, strict=True):
        beaten = any(
            t <= time and d >= db and s <= size and (t, d, s) != (time, db, size)
            for t, d, s in found
        )  # fmt: skip
        assert row["on_front"] is not beaten
    assert any(row["on_front"] for row in rows)
    assert [row["chosen"] for row in rows] == [True] + [False] * (len(rows) - 1)


def test_the_front_is_shown_with_the_chosen_point():
    points = [point(0, 18, steady(4)), point(1, 22, steady(5)), point(3, 21, steady(6))]
    lines = details.results({"front": front.table(points, points[1])}).splitlines()
    assert lines[0] == "front"
    assert lines[1].split() == ["kept", "in", "float", "against", "float32", "size", "sqnr_db", "added"]
    assert lines[3].split()[:2] == ["0", "2.50×"]
    assert lines[4].split()[:3] == ["chosen", "1", "2.00×"]
    assert lines[4].endswith("22.0 dB  layer0")
    assert lines[5].split()[0] == "beaten"


def test_a_table_names_each_layer_once():
    rows = front.table([point(kept, 20 + kept, steady(4 + kept)) for kept in (0, 1, 3)], None)
    assert [row["added"] for row in rows] == [[], ["layer0"], ["layer1", "layer2"]]
    assert [row["layers_kept"] for row in rows] == [0, 1, 3]


# Which layers are kept first


MODEL = net()


def marks(layers):
    return qdq.marks(MODEL, layers)


def write(layers):
    marked = marks(layers)
    return qdq.quantize(MODEL, layers, marked, dict.fromkeys(marked.measured, Extent(-4.0, 8.0)))


class Plain:
    """Nothing but QDQ pairs."""

    model = MODEL
    marks = staticmethod(marks)
    write = staticmethod(write)

    def correct(self, layers):
        return Draft(Outcome(write(layers)))

    def align(self, model):
        return model

    def finish(self, draft, _layers):
        return draft.outcome


FLOW = Plain()
SIZES = {"x": 1, **{f"r{place}": 1 for place in range(DEEP)}, "p": 1, "y": 1}


def costs(crossing=0.0, **layers):
    return Costs(dict.fromkeys(NAMES, 10.0) | layers, crossing, crossing, SIZES, 100.0)


def test_layers_come_by_error_removed_per_time_lost():
    errors = dict.fromkeys(NAMES, 1e-6) | {"layer1": 3e-3, "layer6": 2e-3, "layer8": 4e-3}
    assert mixed.order(FLOW, errors, costs(), 3) == ["layer8", "layer1", "layer6"]
    assert mixed.order(FLOW, errors, costs(layer8=40.0), 3) == ["layer1", "layer6", "layer8"]
    assert mixed.order(FLOW, errors, costs(layer6=-5.0), 3)[0] == "layer6", "what costs nothing comes first"


def test_a_neighbour_of_a_kept_layer_is_cheaper():
    errors = dict.fromkeys(NAMES, 1e-6) | {"layer4": 9e-3, "layer5": 2e-3, "layer8": 3e-3}
    assert mixed.order(FLOW, errors, costs(), 3) == ["layer4", "layer8", "layer5"]
    assert mixed.order(FLOW, errors, costs(crossing=50.0), 3) == ["layer4", "layer5", "layer8"]


def test_no_more_layers_are_kept_than_asked_for():
    errors = dict.fromkeys(NAMES, 1e-3)
    assert len(mixed.order(FLOW, errors, costs(), 4)) == 4
    assert sorted(mixed.order(FLOW, errors, costs(), 99)) == sorted(NAMES)


# From rows to a model


def feeds(_label, limit=None):
    return ({"x": batch["x"]} for batch in Rows({"x": ROWS.columns["x"][:limit]}, 16).batches())


def test_the_fragile_layer_is_kept_first():
    assert mixed.ranked(FLOW, NAMES, write(NAMES), Evidence(feeds))[0] == FRAGILE


def test_constants_are_lent_and_nothing_else():
    donor = write(NAMES)
    for item in donor.graph.initializer:
        if item.name.endswith(":rows:quantized"):
            item.raw_data = bytes(len(item.raw_data))
    subset = write(NAMES[1:])
    twin = mixed._lent(onnxfile.copied(subset), donor)
    assert [node.name for node in twin.graph.node] == [node.name for node in subset.graph.node]
    lent = {item.name: onnxfile.array(item) for item in twin.graph.initializer}
    assert not lent["w3:rows:quantized"].any()
    assert lent["w0"].any()


def kept(made):
    return [row["layer"] for row in made.manifest.record["results"]["layers"] if not row["quantized"]]


def test_only_the_fragile_layer_stays_float(tmp_path, artifact):
    plain = quantized(tmp_path, artifact)
    made = quantized(tmp_path, artifact, budget={"sqnr_db": 25})
    rows = made.manifest.record["results"]["front"]
    assert plain.manifest.record["metrics"]["quantize_sqnr_db"] < 20
    assert made.manifest.record["metrics"]["quantize_sqnr_db"] >= 25
    assert FRAGILE in kept(made)
    assert [row["layers_kept"] for row in rows] == [0, 1, 2, 3, 4, 6, 8]
    assert rows[1]["added"] == [FRAGILE]
    assert rows[1]["sqnr_db"] > 25 > rows[0]["sqnr_db"]
    (chosen,) = (row for row in rows if row["chosen"])
    assert chosen["layers_kept"] == len(kept(made)) >= 1
    assert chosen["sqnr_db"] == pytest.approx(made.manifest.record["metrics"]["quantize_sqnr_db"], abs=0.01)
    assert made.manifest.record["metrics"]["quantize_kept_layers"] == len(kept(made))
    assert chosen["model_bytes"] <= onnxfile.read(made.file("model.onnx")).ByteSize()


def test_a_budget_that_is_met_anyway_keeps_nothing_that_costs_time(tmp_path, artifact):
    made = quantized(tmp_path, artifact, budget={"sqnr_db": 1})
    rows = made.manifest.record["results"]["front"]
    assert rows[0]["layers_kept"] == 0
    (chosen,) = (row for row in rows if row["chosen"])
    assert chosen["speedup"] >= rows[0]["speedup"] / front.SLACK


def test_a_correction_is_made_anew_for_the_layers_that_are_left(tmp_path, artifact):
    made = quantized(tmp_path, artifact, budget={"sqnr_db": 25}, correction="rounding")
    (chosen,) = (row for row in made.manifest.record["results"]["front"] if row["chosen"])
    assert chosen["sqnr_db"] >= 25
    assert made.manifest.record["metrics"]["quantize_sqnr_db"] == pytest.approx(chosen["sqnr_db"], abs=0.01)
    corrected = {row["layer"] for row in made.manifest.record["results"]["correction"]}
    assert corrected == set(NAMES) - set(kept(made))


def test_an_impossible_budget_is_refused_with_the_best_point(tmp_path, artifact):
    with pytest.raises(StageError) as caught:
        quantized(tmp_path, artifact, budget={"sqnr_db": 150})
    assert "of 10 layers in float and has " in caught.value.what
    assert "0 kept: " in caught.value.then
    assert "8 kept: " in caught.value.then


def test_labels_count_where_accuracy_does(tmp_path, artifact):
    made = quantized(tmp_path, artifact, budget={"accuracy_drop": 1.0})
    assert all(row["accuracy"] == pytest.approx(row["accuracy"]) for row in made.manifest.record["results"]["front"])
    renamed = Rows({"x": ROWS.columns["x"], "kind": ROWS.columns["label"]}, 16)
    again = quantized(tmp_path, artifact, renamed, budget={"accuracy_drop": 1.0, "labels": "kind"})
    assert [row["accuracy"] for row in again.manifest.record["results"]["front"]]
    with pytest.raises(StageError, match="no labels under the key 'label'"):
        quantized(tmp_path, artifact, renamed, budget={"accuracy_drop": 1.0})


def test_a_model_of_a_fixed_number_of_rows_is_measured_on_as_many(tmp_path):
    model = net()
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.shape.dim[0].dim_value = 16
    made = quantized(tmp_path, onnx_artifact(tmp_path, model), budget={"sqnr_db": 1})
    assert len(made.manifest.record["results"]["front"]) == 7


def test_answers_that_are_no_classes_cannot_agree(tmp_path):
    model = net()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("p", FLOAT, ["batch", 24, 1, 1]))
    whole = onnx_artifact(tmp_path, model)
    with pytest.raises(StageError, match="no scores of classes") as caught:
        quantized(tmp_path, whole, budget={"agreement": 0.9})
    assert "sqnr_db" in caught.value.then


# Settings


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("{sqnr: 20}", 52, "unknown key 'sqnr'"),
        ("{sqnr_db: 20, agreement: 0.9}", 51, "give one of sqnr_db, agreement and accuracy_drop"),
        ("{sqnr_db: many}", 61, "'sqnr_db' should be a valid number"),
        ("20", 51, "'budget' should be settings"),
    ],
)
def test_a_wrong_budget_is_shown_at_its_place(tmp_path, text, column, said):
    onnxfile.write(net(), tmp_path)
    np.savez(tmp_path / "rows.npz", x=ROWS.columns["x"])
    (tmp_path / "recipe.yaml").write_text(
        "name: mix\n"
        "model: {onnx: model.onnx}\n"
        "data: {val: {npz: {path: rows.npz}}}\n"
        "stages:\n"
        f"  - quantize: {{method: static, data: val, budget: {text}}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        recipe.load(tmp_path / "recipe.yaml")
    (problem,) = caught.value.problems
    assert (problem.place.line, problem.place.column) == (5, column)
    assert problem.message.startswith(said)


def test_the_names_of_a_budget_are_explained():
    (told,) = (item.type for item in schema.settings(QuantizeConfig) if item.name == "budget")
    assert told == "{sqnr_db, agreement, accuracy_drop, labels}"


@pytest.mark.parametrize(
    "wanted",
    [
        {"budget": {}},
        {"budget": {"sqnr_db": 20, "agreement": 0.9}},
        {"budget": {"sqnr_db": 0}},
        {"budget": {"agreement": 1.1}},
        {"budget": {"accuracy_drop": -0.1}},
        {"budget": {"sqnr": 20}},
        {"budget": {"sqnr_db": 20}, "method": "dynamic"},
    ],
)
def test_settings_that_make_no_sense_are_refused(wanted):
    with pytest.raises(ValidationError):
        QuantizeConfig(data="val", **wanted)
