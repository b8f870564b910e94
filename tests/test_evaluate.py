"""Evaluation: figures equal those computed by hand, on both kinds of model, and nothing is guessed silently."""

import doctest
import typing

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

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
from support import Rows, run_stage

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


class Given:
    """A predictor that gives columns of the batch as its outputs."""

    def __init__(self, prefix, *outputs, spec=None):
        self.inputs = {"x": spec or TensorSpec(shape=("batch",))}
        self.outputs = outputs
        self.prefix = prefix
        self.seen = []

    def __call__(self, batch):
        self.seen.append(len(batch["x"]))
        return {name: batch[f"{self.prefix}{name}"] for name in self.outputs}


def measure(plan, label=None, batch=7, output="a", **columns):
    """Evaluate given outputs: `a` of the model, `r_a` of the reference where there is one."""
    rows = len(next(iter(columns.values())))
    columns = {"x": np.zeros(rows, np.float32), **columns}
    if label is not None:
        columns["label"] = label
    names = [name for name in columns if f"r_{name}" in columns] or [output]
    reference = Given("r_", *names) if f"r_{names[0]}" in columns else None
    return evaluation.evaluate(Given("", *names), reference, Rows(columns, batch).batches(), plan)


def scores(rows=50, classes=7, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, classes)).astype(np.float32)


def labels(rows=50, classes=7, seed=1):
    return np.random.default_rng(seed).integers(0, classes, rows)


def test_examples_in_the_documentation_hold():
    assert doctest.testmod(comparison).failed == 0


def test_the_recipe_knows_exactly_the_metrics_that_exist():
    names = set(typing.get_args(stage_module.MetricName))
    assert names == metrics.OF_CLASSES | metrics.OF_DISTANCES | {evaluation.PAIRS}
    assert stage_module.CLASSES == metrics.OF_CLASSES


def test_metrics_of_classes_equal_those_computed_by_hand():
    output, truth = scores(), labels()
    found = measure(Plan(("accuracy", "top5", "precision", "recall", "f1")), truth, a=output).metrics
    chosen = output.argmax(1)
    hits = [((chosen == k) & (truth == k)).sum() for k in range(7)]
    precision = [hit / max(1, (chosen == k).sum()) for k, hit in enumerate(hits)]
    recall = [hit / max(1, (truth == k).sum()) for k, hit in enumerate(hits)]
    f1 = [2 * hit / max(1, (chosen == k).sum() + (truth == k).sum()) for k, hit in enumerate(hits)]
    accuracy = (chosen == truth).mean()
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["top5"] == pytest.approx((np.argsort(-output, 1)[:, :5] == truth[:, None]).any(1).mean())
    assert found["precision"] == pytest.approx(np.mean(precision))
    assert found["recall"] == pytest.approx(np.mean(recall))
    assert found["f1"] == pytest.approx(np.mean(f1))
    assert found["accuracy_stderr"] == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 50))


def pairwise_auroc(values, truth):
    positive, negative = values[truth == 1], values[truth == 0]
    return np.mean((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative))


@pytest.mark.parametrize("batch", [1, 8, 50])
def test_yes_or_no_reads_logits_as_logits_whatever_the_batches(batch):
    # Some batches lie wholly within 0…1 and must not be taken for probabilities.
    output = np.concatenate([np.linspace(0.1, 0.4, 25), np.linspace(-60, 90, 25)]).astype(np.float32)
    truth = labels(classes=2)
    found = measure(Plan(("accuracy", "auroc")), truth, batch, a=output).metrics
    assert found["accuracy"] == pytest.approx(((output > 0) == truth).mean())
    assert found["auroc"] == pytest.approx(pairwise_auroc(output, truth))


def test_yes_or_no_reads_probabilities_as_probabilities():
    output, truth = np.linspace(0, 1, 50).reshape(50, 1), labels(classes=2).reshape(50, 1).astype(np.float32)
    found = measure(Plan(("accuracy",)), truth, a=output).metrics
    assert found["accuracy"] == pytest.approx(((output > 0.5) == truth).mean())


def test_auroc_of_several_classes_is_the_mean_of_one_against_the_rest():
    output, truth = 5 * scores(classes=3), labels(classes=3)
    share = np.exp(output) / np.exp(output).sum(1, keepdims=True)
    wanted = np.mean([pairwise_auroc(share[:, k], truth == k) for k in range(3)])
    assert measure(Plan(("auroc",)), truth, 4, a=output).metrics["auroc"] == pytest.approx(wanted, abs=1e-6)


def test_several_labels_at_once():
    output, truth = scores(classes=3), (scores(classes=3, seed=5) > 0).astype(np.int64)
    found = measure(Plan(("accuracy", "auroc", "recall")), truth, a=output).metrics
    assert found["accuracy"] == pytest.approx(((output > 0) == truth).mean())
    assert found["auroc"] == pytest.approx(np.mean([pairwise_auroc(output[:, k], truth[:, k]) for k in range(3)]))
    wanted = np.mean([((output > 0) & (truth == 1))[:, k].sum() / truth[:, k].sum() for k in range(3)])
    assert found["recall"] == pytest.approx(wanted)


@pytest.mark.parametrize("last", [True, False])
def test_classes_at_every_place_leave_ignored_places_out(last):
    output, truth = scores(60, 5).reshape(10, 6, 5), labels(60, 5).reshape(10, 6)
    truth[:, 4:] = -100
    wanted = (output.argmax(2) == truth)[:, :4].mean()
    found = measure(Plan(("accuracy",)), truth, 3, a=output if last else output.transpose(0, 2, 1)).metrics
    assert found["accuracy"] == pytest.approx(wanted)
    assert "accuracy_stderr" not in found  # places of one row are not independent


def test_distances_equal_those_computed_by_hand():
    generator = np.random.default_rng(3)
    truth = generator.normal(1000, 1, 80)
    output = (truth + generator.normal(0, 0.3, 80)).reshape(80, 1)
    found = measure(Plan(("mse", "mae", "r2", "pearson", "spearman")), truth, a=output).metrics
    error = output[:, 0] - truth
    order = [np.argsort(np.argsort(values)) for values in (output[:, 0], truth)]
    assert found["mse"] == pytest.approx((error**2).mean())
    assert found["mae"] == pytest.approx(np.abs(error).mean())
    assert found["r2"] == pytest.approx(1 - (error**2).sum() / ((truth - truth.mean()) ** 2).sum())
    assert found["pearson"] == pytest.approx(np.corrcoef(output[:, 0], truth)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef(*order)[0, 1])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 5))
def test_the_size_of_the_batches_changes_nothing(batch, seed):
    columns = {"a": scores(60, seed=seed), "r_a": scores(60, seed=seed + 9)}
    plan = Plan(("accuracy", "top5", "f1", "spearman_pairs"))
    whole = measure(plan, labels(60), 60, **columns)
    parts = measure(plan, labels(60), batch, **columns)
    assert parts.metrics == pytest.approx(whole.metrics, rel=1e-5, abs=1e-9)


def test_a_drop_is_what_the_reference_had_more_and_its_error_is_paired():
    truth, better, worse = labels(), scores(), scores(seed=8)
    better[np.arange(40), truth[:40]] += 9
    worse[np.arange(25), truth[:25]] += 9
    found = measure(Plan(("accuracy", "f1")), truth, a=worse, r_a=better).metrics
    right, right_before = worse.argmax(1) == truth, better.argmax(1) == truth
    assert found["accuracy_reference"] == pytest.approx(right_before.mean())
    assert found["accuracy_drop"] == pytest.approx(right_before.mean() - right.mean())
    difference = right_before.astype(float) - right
    assert found["accuracy_drop_stderr"] == pytest.approx(difference.std() / np.sqrt(50))
    assert found["f1_drop"] == pytest.approx(found["f1_reference"] - found["f1"])


def test_a_drop_of_exactly_the_budget_is_not_above_it():
    truth = np.zeros(100, int)
    output = np.tile([1.0, 0.0], (100, 1)).astype(np.float32)
    for right in range(1, 101):
        better, worse = output.copy(), output.copy()
        better[right:], worse[right - 1 :] = [0, 1], [0, 1]
        found = measure(Plan(("accuracy",)), truth, 33, a=worse, r_a=better).metrics
        assert found["accuracy_drop"] == 0.01
        assert found["accuracy"] == (right - 1) / 100


def test_a_metric_that_falls_rises_when_the_model_is_worse():
    truth = np.linspace(0, 1, 20)
    found = measure(Plan(("mse",)), truth, a=truth + 2, r_a=truth + 1).metrics
    assert found["mse_rise"] == pytest.approx(3)


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


def test_the_stage_measures_both_kinds_on_the_same_data(tmp_path, pair):
    torch_model, onnx_file = pair
    data = {"test": Rows({"x": scores(classes=6), "kind": labels()}, 16)}
    asked = {"data": "test", "metrics": ["accuracy", "top5"], "target": "kind", "against": "model"}
    events = []
    report = run_stage(
        tmp_path, evaluate, asked, model=onnx_file, steps={"model": torch_model}, data=data, collect=events
    )
    alone = run_stage(tmp_path, evaluate, {**asked, "against": None}, model=torch_model, data=data)
    assert report.kind is Kind.REPORT
    assert report.metrics["accuracy"] == alone.metrics["accuracy"] == report.metrics["accuracy_reference"]
    assert report.metrics["agreement"] == 1
    assert report.metrics["accuracy_drop"] == 0
    assert report.metrics["sqnr_db"] > 100
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
