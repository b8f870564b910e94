import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pydantic import ValidationError

from modelpack import recipe, schema
from modelpack.cli import details
from modelpack.errors import RecipeError, StageError
from modelpack.events import Note
from modelpack.numerics import onnxfile
from modelpack.numerics.measure.statistics import ratio
from modelpack.numerics.quantization import qdq
from modelpack.numerics.quantization.calibration.record import Calibration
from modelpack.numerics.quantization.extent import Extent
from modelpack.numerics.quantization.mixing import cost, front, mixed, ranking, sensitivity, switches, trials
from modelpack.numerics.quantization.mixing.cost import Costs
from modelpack.numerics.quantization.mixing.flow import Draft
from modelpack.numerics.quantization.mixing.front import Point
from modelpack.numerics.quantization.mixing.mixed import Files
from modelpack.numerics.quantization.mixing.sensitivity import Noise
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


@pytest.fixture
def clock(monkeypatch):
    """Let every layer in float cost the same time, so that no clock decides."""

    def times(_reference, models, _evidence):
        found = [steady(5 + 0.5 * len(floats(model))) for model in models]
        return [(ratio([10.0] * len(rounds), rounds), tuple(rounds)) for rounds in found]

    def costs_of(model, layers, marks, *_others, **_more):
        marked = marks(layers)
        return Costs(dict.fromkeys(layers, 10.0), 0.0, 0.0, dict.fromkeys((*marked.measured, *marked.carried), 1), 100)

    monkeypatch.setattr(trials, "time", times)
    monkeypatch.setattr(cost, "measure", costs_of)


def floats(model):
    """Names of the convolutions that read floats."""
    makers = onnxfile.producers(model.graph)
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        and (node.input[0] not in makers or makers[node.input[0]].op_type != "DequantizeLinear")
    ]


def quantized(root, artifact, data=ROWS, collect=None, **wanted):
    asked = {"data": "val", "target": "vnni", "verify": False, **wanted}
    return run_stage(root, quantize_stage, asked, model=artifact, data={"val": data}, collect=collect)


def point(kept, db, rounds, size=100, *, corrected=False, **quality):
    speed = ratio([10.0] * len(rounds), rounds)
    return Point(tuple(NAMES[:kept]), {"sqnr_db": db, **quality}, size, speed, tuple(rounds), corrected)


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
    budget = Budget(measure, limit)
    assert budget.met({"sqnr_db": 0.0, measure: value}) is met
    assert str(budget) == f"{measure} {'≤' if measure == 'accuracy_drop' else '≥'} {limit:g}"


def test_the_fastest_point_is_chosen():
    points = [point(0, 18, steady(6)), point(1, 22, steady(5)), point(2, 25, steady(4.5)), point(3, 26, steady(6))]
    assert front.fastest(points) is points[2]


def test_of_points_as_fast_as_each_other_the_one_that_keeps_least_is_chosen():
    noisy = [5 + 0.4 * ((7 * place) % 5) for place in range(20)]
    points = [point(1, 22, noisy), point(4, 25, [value - 0.02 for value in noisy])]
    assert front.fastest(points) is points[0]
    within = [point(1, 22, steady(5)), point(4, 25, steady(4.97))]
    assert front.fastest(within) is within[0], "half a per cent is no gain"
    apart = [point(1, 22, steady(5)), point(4, 25, steady(4.5))]
    assert front.fastest(apart) is apart[1]


def test_the_point_nearest_to_a_budget_is_the_best():
    points = [point(0, 18, steady(4), agreement=0.9), point(1, 22, steady(5), agreement=0.95)]
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
    assert lines[0] == "front: each row keeps the layers of those above it too"
    assert lines[1].split() == ["kept", "in", "float", "against", "float32", "size", "sqnr_db", "added"]
    assert lines[3].split()[:2] == ["0", "2.50×"]
    assert lines[4].split()[:3] == ["chosen", "1", "2.00×"]
    assert lines[4].endswith("22.0 dB  layer0")
    assert lines[5].split()[0] == "beaten"


def test_the_front_tells_corrected_points_from_others():
    points = [point(0, 24, steady(4), corrected=True), point(1, 18, steady(5)), point(3, 27, steady(6), corrected=True)]
    lines = details.results({"front": front.table(points, points[2])}).splitlines()
    assert lines[1].endswith("corrected  added")
    assert [line.split("dB  ")[1].split()[0] for line in lines[3:]] == ["yes", "no", "yes"]
    budget = Budget("sqnr_db", 30)
    assert front.sentence(points[1], budget, 10, corrects=True) == (
        "keeps 1 of 10 layers in float: sqnr_db 18 before correction, 2.00 times as fast as float32, 100 bytes"
    )
    assert "correction" not in front.sentence(points[1], budget, 10, corrects=False)
    assert "correction" not in front.sentence(points[2], budget, 10, corrects=True)


def test_a_table_names_each_layer_once():
    points = [point(kept, 20 + kept, steady(4 + kept)) for kept in (0, 1, 3)]
    rows = front.table(points, points[0])
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
    corrects = False
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
    assert ranking.order(FLOW, errors, costs(), 3) == ["layer8", "layer1", "layer6"]
    assert ranking.order(FLOW, errors, costs(layer8=40.0), 3) == ["layer1", "layer6", "layer8"]
    assert ranking.order(FLOW, errors, costs(layer6=-5.0), 3)[0] == "layer6", "what costs nothing comes first"


def test_a_neighbour_of_a_kept_layer_is_cheaper():
    errors = dict.fromkeys(NAMES, 1e-6) | {"layer4": 9e-3, "layer5": 2e-3, "layer8": 3e-3}
    assert ranking.order(FLOW, errors, costs(), 3) == ["layer4", "layer8", "layer5"]
    assert ranking.order(FLOW, errors, costs(crossing=50.0), 3) == ["layer4", "layer5", "layer8"]


def test_no_more_layers_are_kept_than_asked_for():
    errors = dict.fromkeys(NAMES, 1e-3)
    assert len(ranking.order(FLOW, errors, costs(), 4)) == 4
    assert sorted(ranking.order(FLOW, errors, costs(), 99)) == sorted(NAMES)


# From rows to a model


def feeds(_label, limit=None):
    return ({"x": batch["x"]} for batch in Rows({"x": ROWS.columns["x"][:limit]}, 16).batches())


def test_the_fragile_layer_is_kept_first():
    inputs = trials.inputs_of(MODEL)
    few = sensitivity.spread(feeds(""), inputs)
    errors = Noise(switches.build(MODEL, write(NAMES), marks(NAMES)), marks, few).alone(NAMES)
    assert ranking.order(FLOW, errors, costs(), 1) == [FRAGILE]


def test_layers_are_ranked_by_what_is_measured(clock):
    order = ranking.ranked(FLOW, NAMES, 3, Evidence(feeds))
    assert order[0] == FRAGILE
    assert len(set(order)) == 3
    with pytest.raises(StageError, match="no rows"):
        ranking.ranked(FLOW, NAMES, 3, Evidence())


# Which files are made


class Improved(Plain):
    """A correction that stands for one: it lists what it was asked to quantize."""

    corrects = True

    def __init__(self):
        self.asked = []

    def correct(self, layers):
        self.asked.append(DEEP - len(layers))
        return Draft(Outcome(write(layers)))


def searched(monkeypatch, limit, decibels, *, milliseconds=None, plain=0.0, flow=None):
    """Search sets whose finished files come to some decibels; give the flow, the files and what was found."""
    flow = flow or Improved()
    sizes = range(len(decibels))
    times = milliseconds or [4 + 0.5 * size for size in sizes]
    points = [point(size, plain + size, steady(times[size])) for size in sizes]
    files = Files(MODEL, flow, NAMES, Budget("sqnr_db", limit), Evidence(feeds), points)
    monkeypatch.setattr(
        trials, "judge", lambda _reference, models, *_others: [{"sqnr_db": decibels[len(floats(models[0]))]}]
    )
    return flow, files, mixed.search(files)


RISING = [20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0, 28.0, 29.0]


@pytest.mark.parametrize("wanted", range(DEEP))
def test_the_smallest_set_whose_corrected_file_is_within_the_budget_is_found_by_halving(monkeypatch, wanted):
    flow, files, found = searched(monkeypatch, RISING[wanted], RISING)
    assert found == wanted
    assert len(flow.asked) == len(set(flow.asked)) <= (5 if wanted else 1)
    for place, now in enumerate(files.points):
        assert now.corrected == (place in flow.asked)
        assert now.quality["sqnr_db"] == (RISING[place] if now.corrected else place)


def test_a_set_that_is_faster_is_corrected_too(monkeypatch):
    flow, _, found = searched(monkeypatch, 21, RISING[:7], milliseconds=[4, 5, 6, 4.5, 7, 8, 9])
    assert found == 3
    assert flow.asked.count(3) == 1


def test_a_faster_set_whose_file_misses_the_budget_is_passed_over(monkeypatch):
    uneven = [20.0, 21.0, 22.0, 20.5, 24.0, 25.0, 26.0]
    _, files, found = searched(monkeypatch, 21, uneven, milliseconds=[4, 5, 6, 4.5, 7, 8, 9])
    assert found == 1
    assert files.points[3].corrected
    assert files.points[3].quality["sqnr_db"] == 20.5


def test_without_correction_only_the_chosen_file_is_made(monkeypatch):
    flow = Plain()
    _, files, found = searched(monkeypatch, 23, RISING, plain=20.0, flow=flow)
    assert found == 3
    assert list(files.made) == [3]
    assert not any(now.corrected for now in files.points)


def test_a_finished_file_that_misses_the_budget_is_not_handed_out(monkeypatch):
    spoiled = [value - 1.5 for value in RISING]
    _, files, found = searched(monkeypatch, 23, spoiled, plain=20.0, flow=Plain())
    assert found == 5
    assert list(files.made) == [3, 4, 5]
    assert [now.quality["sqnr_db"] for now in files.points[2:6]] == [22.0, 21.5, 22.5, 23.5]


def test_nothing_is_found_where_nothing_is_within_the_budget(monkeypatch):
    flow, _, found = searched(monkeypatch, 99, RISING)
    assert found is None
    assert flow.asked[0] == 0
    assert flow.asked[-1] == DEEP - 1, "the most that can be kept was tried"
    assert searched(monkeypatch, 99, RISING, flow=Plain())[2] is None


# Through the stage


def kept(made):
    return [row["layer"] for row in made.manifest.record["results"]["layers"] if not row["quantized"]]


def test_only_the_fragile_layer_stays_float(tmp_path, artifact, clock):
    plain = quantized(tmp_path, artifact)
    made = quantized(tmp_path, artifact, budget={"sqnr_db": 25})
    rows = made.manifest.record["results"]["front"]
    assert plain.manifest.record["metrics"]["quantize_sqnr_db"] < 20
    assert kept(made) == [FRAGILE]
    reasons = {item["layer"]: item["reason"] for item in made.manifest.record["results"]["layers"]}
    assert [reasons[name] for name in kept(made)] == ["chosen by `budget`"]
    assert not made.manifest.record["warnings"]  # the recipe wants it so
    assert [row["layers_kept"] for row in rows] == [0, 1, 2, 3, 4, 6, 8]
    assert rows[1]["added"] == [FRAGILE]
    assert rows[1]["sqnr_db"] > 25 > rows[0]["sqnr_db"]
    assert [row["chosen"] for row in rows] == [False, True, *[False] * 5]
    assert made.manifest.record["metrics"]["quantize_sqnr_db"] == pytest.approx(rows[1]["sqnr_db"], abs=0.01)
    assert made.manifest.record["metrics"]["quantize_kept_layers"] == 1
    assert rows[1]["model_bytes"] <= onnxfile.read(made.file("model.onnx")).ByteSize()


def test_whatever_the_clock_says_the_budget_is_met(tmp_path, artifact, monkeypatch):
    monkeypatch.setattr(trials, "ROUNDS", 10)
    made = quantized(tmp_path, artifact, budget={"sqnr_db": 25})
    rows = made.manifest.record["results"]["front"]
    (chosen,) = (row for row in rows if row["chosen"])
    assert chosen["layers_kept"] == len(kept(made)) >= 1
    assert FRAGILE in kept(made)
    assert made.manifest.record["metrics"]["quantize_sqnr_db"] >= 25
    assert all(0 < row["speedup_low"] <= row["speedup"] <= row["speedup_high"] for row in rows)


def test_a_budget_that_is_met_anyway_keeps_nothing(tmp_path, artifact, clock):
    made = quantized(tmp_path, artifact, budget={"sqnr_db": 1})
    assert kept(made) == []
    assert made.manifest.record["results"]["front"][0]["chosen"]


def test_the_range_of_a_tensor_is_found_once(tmp_path, artifact, monkeypatch):
    asked, extents = [], Calibration.extents

    def spied(self, names, *rule):
        asked.extend(names)
        return extents(self, names, *rule)

    monkeypatch.setattr(Calibration, "extents", spied)
    monkeypatch.setattr(trials, "ROUNDS", 10)
    quantized(tmp_path, artifact, budget={"sqnr_db": 1}, ranges="mse")
    assert asked
    assert len(asked) == len(set(asked))


def test_a_correction_is_made_anew_for_the_layers_that_are_left(tmp_path, artifact, clock):
    made = quantized(tmp_path, artifact, budget={"sqnr_db": 30}, correction="rounding")
    rows = made.manifest.record["results"]["front"]
    (chosen,) = (row for row in rows if row["chosen"])
    assert chosen["corrected"]
    assert chosen["sqnr_db"] >= 30
    assert made.manifest.record["metrics"]["quantize_sqnr_db"] == pytest.approx(chosen["sqnr_db"], abs=0.01)
    corrected = {row["layer"] for row in made.manifest.record["results"]["correction"]}
    assert corrected == set(NAMES) - set(kept(made))
    assert rows[0]["corrected"]
    by_hand = quantized(tmp_path, artifact, exclude=kept(made), correction="rounding")
    assert by_hand.file("model.onnx").read_bytes() == made.file("model.onnx").read_bytes()


def test_an_impossible_budget_is_refused_with_the_best_point(tmp_path, artifact, clock):
    events = []
    with pytest.raises(StageError, match="no mixture") as caught:
        quantized(tmp_path, artifact, budget={"sqnr_db": 150}, collect=events)
    assert caught.value.what == "no mixture of float and quantized layers has sqnr_db ≥ 150"
    assert caught.value.then.startswith("the best keeps 8 of 10 layers in float: sqnr_db ")
    assert caught.value.then.endswith("; ask for less, or add `correction: rounding`")
    told = [event.text for event in events if isinstance(event, Note) and event.text.startswith("keeps")]
    assert [text.split()[1] for text in told] == ["0", "1", "2", "3", "4", "6", "8"]
    assert told[-1] in caught.value.then


def test_labels_count_where_accuracy_does(tmp_path, artifact, clock):
    made = quantized(tmp_path, artifact, budget={"accuracy_drop": 1.0})
    assert all(row["accuracy"] == pytest.approx(row["accuracy"]) for row in made.manifest.record["results"]["front"])
    renamed = Rows({"x": ROWS.columns["x"], "kind": ROWS.columns["label"]}, 16)
    again = quantized(tmp_path, artifact, renamed, budget={"accuracy_drop": 1.0, "labels": "kind"})
    assert [row["accuracy"] for row in again.manifest.record["results"]["front"]]
    with pytest.raises(StageError, match="no labels under the key 'label'"):
        quantized(tmp_path, artifact, renamed, budget={"accuracy_drop": 1.0})


def test_a_model_of_a_fixed_number_of_rows_is_measured_on_as_many(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "ROUNDS", 10)
    model = net()
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.shape.dim[0].dim_value = 16
    made = quantized(tmp_path, onnx_artifact(tmp_path, model), budget={"sqnr_db": 1}, verify=True)
    assert len(made.manifest.record["results"]["front"]) == 7
    assert not [item for item in made.manifest.record["results"]["checks"] if "no rows" in item["cause"]]


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
