"""Metrics against labels equal those computed by hand, whatever the batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from measuring import labels, measure, scores
from modelpack.numerics.measure.evaluation import Plan


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
