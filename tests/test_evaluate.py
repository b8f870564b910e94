"""Evaluation: figures equal those computed by hand, on both kinds of model, and nothing is guessed silently."""

import typing

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from measuring import Given, labels, measure, scores
from modelpack.artifact import Kind
from modelpack.errors import StageError
from modelpack.events import Note, Progress
from modelpack.numerics.measure import comparison, evaluation, metrics
from modelpack.numerics.measure.evaluation import Plan
from modelpack.stages import evaluate as stage_module
from modelpack.stages.evaluate import evaluate
from modelpack.stages.model import model as model_stage
from modelpack.stages.model import onnx_model
from modelpack.tensors import TensorSpec
from support import DEVICES, Rows, run_stage

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 7, bias=False)

    def forward(self, x):
        return self.linear(x)

def build():
    return Net()
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_the_recipe_knows_exactly_the_metrics_that_exist():
    names = set(typing.get_args(stage_module.MetricName))
    assert names == metrics.OF_CLASSES | metrics.OF_DISTANCES | {evaluation.PAIRS, evaluation.SIMILARITY}
    assert stage_module.CLASSES == metrics.OF_CLASSES


def test_comparison_equals_formulas_for_every_output():
    one, two = scores(), scores() + 0.1 * scores(seed=4)
    other = 3 * scores(classes=2, seed=6)
    found = measure(Plan(), batch=6, a=two, r_a=one, b=-other, r_b=other)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    cosines = (one * two).sum(1) / lengths
    assert found.metrics["agreement"] == pytest.approx((one.argmax(1) == two.argmax(1)).mean())
    assert found.metrics["cosine"] == pytest.approx(cosines.mean())
    assert found.metrics["cosine_min"] == pytest.approx(cosines.min())
    assert found.metrics["sqnr_db"] == pytest.approx(10 * np.log10((one**2).sum() / ((one - two) ** 2).sum()), rel=1e-5)
    assert found.outputs["a"] == {name: found.metrics[name] for name in found.outputs["a"]}
    assert found.outputs["b"]["cosine"] == pytest.approx(-1)
    assert found.outputs["b"]["agreement"] == 0


def test_equal_models_agree_fully_with_figures_that_json_can_hold():
    output = scores()
    output[3] = 0
    found = measure(Plan(("spearman_pairs",), task="classes"), a=output, r_a=output).metrics
    assert (found["agreement"], found["sqnr_db"], found["largest_difference"]) == (1, comparison.MOST_DECIBELS, 0)
    assert (found["cosine_min"], found["spearman_pairs"]) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize(
    ("plan", "agrees"),
    [
        (Plan(), True),
        (Plan(task="values"), False),
        (Plan(("spearman_pairs",)), False),
        (Plan(("mse",)), False),
    ],
)
def test_agreement_is_for_classes_only(plan, agrees):
    output = scores()
    found = measure(plan, label=output + 1 if plan.labelled else None, a=output, r_a=output)
    assert ("agreement" in found.metrics) is agrees


def test_rows_of_unit_length_are_taken_for_an_embedding():
    unit = scores() / np.linalg.norm(scores(), axis=1, keepdims=True)
    assert "agreement" not in measure(Plan(), a=unit, r_a=unit).metrics


def test_similarities_of_pairs_do_not_see_a_rotation():
    output = scores(40)
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(7, 7)))
    turned = measure(Plan(("spearman_pairs",)), a=output @ rotation, r_a=output).metrics
    mixed = measure(Plan(("spearman_pairs",)), a=scores(40, seed=9), r_a=output).metrics
    assert turned["spearman_pairs"] == pytest.approx(1, abs=1e-6)
    assert abs(mixed["spearman_pairs"]) < 0.2


def test_pairs_are_judged_by_their_similarity_in_whatever_order_they_come():
    generator = np.random.default_rng(3)
    one, noise = generator.normal(size=(2, 20, 5))
    share = np.linspace(0, 1, 20)[:, None]
    rows = np.concatenate([one, share * one + (1 - share) * noise]).astype(np.float32)
    number = np.tile(np.arange(20), 2)
    cosine = (rows[:20] * rows[20:]).sum(1) / np.linalg.norm(rows[:20], axis=1) / np.linalg.norm(rows[20:], axis=1)
    order = generator.permutation(40)
    plan = Plan(("similarity",), task="values")
    given = {"a": rows[order], "r_a": -rows[order], "pair": number[order]}
    found = measure(plan, np.tile(np.exp(cosine), 2)[order], **given).metrics
    assert found["similarity"] == found["similarity_reference"] == pytest.approx(1)
    assert found["similarity_drop"] == 0
    assert measure(plan, np.tile(-cosine, 2), a=rows, pair=number).metrics == {"similarity": pytest.approx(-1)}
    half = measure(plan, np.tile(cosine, 2)[:39], a=rows[:39], pair=number[:39])
    assert half.warnings == ("1 rows had no other row of their pair: similarity leaves them out",)
    with pytest.raises(StageError, match="under the key 'pair'"):
        measure(plan, np.ones(40), a=rows)
    with pytest.raises(StageError, match="20 pairs do not differ"):
        measure(plan, np.ones(40), a=rows, pair=number)


def test_pairs_are_bounded_and_say_so():
    output = scores(comparison.PAIRED_ROWS + 5)
    found = measure(Plan(("spearman_pairs",)), None, 64, a=output, r_a=output)
    assert "first 1000 of 1005 rows" in found.warnings[0]


@pytest.mark.parametrize(
    ("plan", "label", "columns", "reason"),
    [
        (Plan(("accuracy",)), None, {"a": scores()}, "under the key 'label', the data have x, a"),
        (Plan(("accuracy",)), labels() + 3, {"a": scores()}, "the output knows the classes 0 to 6"),
        (Plan(("accuracy",)), labels() + 0.5, {"a": scores()}, "not class numbers"),
        (Plan(("accuracy",)), labels().astype(str), {"a": scores()}, "not numbers"),
        (Plan(("accuracy",)), labels().reshape(10, 5)[[0] * 50], {"a": scores()}, "no dimension can be the classes"),
        (Plan(("accuracy",)), labels(), {"a": labels()}, "need scores"),
        (Plan(("accuracy",)), np.zeros((4, 5), int), {"a": np.zeros((4, 5, 5), np.float32)}, "second or the last"),
        (Plan(("accuracy",)), np.full(50, -100), {"a": scores()}, "no label counts"),
        (Plan(("top5",)), labels(classes=2), {"a": scores(classes=4)}, "5 classes or more, the output has 4"),
        (Plan(("mse",)), labels(), {"a": scores()}, r"shape \[7, 7\], its labels \[7\]"),
        (Plan(("mse",)), np.full(50, np.nan), {"a": scores(classes=1)}, "labels hold NaN"),
        (Plan(("pearson",)), np.ones(50), {"a": scores(classes=1)}, "do not vary"),
        (Plan(("spearman_pairs",)), None, {"a": np.ones((9, 2)), "r_a": np.ones((9, 2))}, "do not vary"),
        (Plan(output="b"), None, {"a": scores(), "r_a": scores()}, "no output 'b'"),
        (Plan(), None, {"a": scores(), "r_a": scores(classes=5)}, "the reference's has"),
        (Plan(), None, {"a": np.full((5, 2), np.nan), "r_a": scores(5, 2)}, "output 'a' of the model holds NaN"),
        (Plan(), None, {"a": scores(5, 2), "r_a": np.full((5, 2), np.inf)}, "of the reference holds infinite"),
        (Plan(), None, {"a": scores(0), "r_a": scores(0)}, "no rows"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(plan, label, columns, reason):
    with pytest.raises(StageError, match=reason):
        measure(plan, label, **columns)


def test_models_with_other_outputs_are_not_compared():
    with pytest.raises(StageError, match="the reference's are b"):
        evaluation.evaluate(Given("", "a"), Given("", "b"), [], Plan())


@pytest.mark.parametrize("rows", [3, 4, 10])
def test_a_model_with_a_fixed_batch_gets_pieces_of_that_size(rows):
    model = Given("", "x", spec=TensorSpec(shape=(4,)))
    found = evaluation.predict(model, {"x": np.arange(rows), "other": np.arange(2)}, rows)
    assert found["x"].tolist() == list(range(rows))
    assert set(model.seen) == {4}


def linear(path, weights):
    """Write an ONNX file that multiplies by a matrix."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["output"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weights.shape[0]])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture
def pair(tmp_path):
    """A torch model, and an ONNX file of the same function."""
    (tmp_path / "net.py").write_text(NET)
    settings = {"factory": "net.py:build", "inputs": {"x": {"shape": ["batch", 6]}}}
    torch_model = run_stage(tmp_path, model_stage, settings)
    from safetensors.numpy import load_file

    weights = load_file(torch_model.file("weights.safetensors"))["linear.weight"]
    linear(tmp_path / "linear.onnx", np.ascontiguousarray(weights.T))
    return torch_model, run_stage(tmp_path, onnx_model, {"onnx": "linear.onnx"})


@pytest.mark.parametrize("device", DEVICES)
def test_the_stage_measures_both_kinds_on_the_same_data(tmp_path, pair, device):
    torch_model, onnx_file = pair
    data = {"test": Rows({"x": scores(classes=6), "kind": labels()}, 16)}
    asked = {"data": "test", "metrics": ["accuracy", "top5"], "target": "kind", "against": "model"}
    events = []
    report = run_stage(
        tmp_path,
        evaluate,
        asked,
        model=onnx_file,
        steps={"model": torch_model},
        data=data,
        collect=events,
        device=device,
    )
    alone = run_stage(tmp_path, evaluate, {**asked, "against": None}, model=torch_model, data=data, device=device)
    assert report.kind is Kind.REPORT
    assert report.metrics["accuracy"] == alone.metrics["accuracy"] == report.metrics["accuracy_reference"]
    assert report.metrics["agreement"] == 1
    assert report.metrics["accuracy_drop"] == 0
    assert report.metrics["sqnr_db"] > (100 if device == "cpu" else 50)
    assert [event.done for event in events if isinstance(event, Progress)] == [0, 16, 32, 48, 50]
    found = report.manifest.record["results"]["evaluation"]
    assert (found["rows"], found["synthetic"]) == (50, False)
    assert set(report.read_json("evaluation.json")) == {"model", "against", "settings", "data", "rows"}


def test_invented_rows_are_called_invented(tmp_path, pair):
    data, events = {"made": Rows({"x": scores(classes=6)})}, []
    report = run_stage(
        tmp_path, evaluate, {"data": "made", "against": "model"}, model=pair[1], steps={"model": pair[0]},
        data=data, synthetic=frozenset({"made"}), collect=events,
    )  # fmt: skip
    assert report.manifest.record["results"]["evaluation"]["synthetic"] is True
    assert any("invented" in event.text for event in events if isinstance(event, Note) and event.warning)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"data": "test"}, "nothing to measure"),
        ({"data": "test", "metrics": ["spearman_pairs"]}, "against"),
        ({"data": "test", "metrics": ["acuracy"]}, "'accuracy'"),
        ({"metrics": ["accuracy"]}, "required"),
        ({"data": "test", "metrics": ["accuracy"], "targt": "y"}, "Extra inputs"),
    ],
)
def test_settings_that_measure_nothing_are_refused(config, reason):
    with pytest.raises(ValidationError, match=reason):
        evaluate.config.model_validate(config)


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"metrics": ["accuracy"]}, {"accuracy"}),
        ({"metrics": ["f1"]}, set()),
        ({"against": "model"}, {"agreement", "cosine", "sqnr_db"}),
        ({"against": "model", "metrics": ["mse"]}, {"cosine", "sqnr_db"}),
        ({"against": "model", "task": "values"}, {"cosine", "sqnr_db"}),
        (
            {"against": "model", "metrics": ["accuracy"]},
            {"accuracy", "accuracy_drop", "agreement", "cosine", "sqnr_db"},
        ),
    ],
)
def test_budgets_know_what_will_be_measured(config, known):
    assert evaluate.gauges(evaluate.config.model_validate({"data": "test", **config})) == known
