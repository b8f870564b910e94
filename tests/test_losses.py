"""Losses of tasks and distances of imitation, against plain float64 arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from modelpack.errors import StageError
from modelpack.numerics.distillation import distances, tasks
from modelpack.numerics.distillation.aspects import relations, similarity
from modelpack.numerics.distillation.aspects.outputs import ALL, Outputs
from modelpack.numerics.distillation.question import question
from modelpack.numerics.distillation.taps import Seen
from modelpack.numerics.distillation.tasks.own import Own
from modelpack.numerics.training.batches import TRUTH

torch.set_num_threads(1)
SEEDS = st.integers(0, 2**31)


def draw(seed, *shape, scale=3.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape)).float()


def softmax(values):
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def divergence(p, q):
    return float((p * (np.log(p) - np.log(q))).sum(-1).mean())


def exact(tensor):
    return tensor.double().numpy()


def asked(truth=None, mask=None, inputs=None):
    """A question about two rows, or as many as the truth has."""
    rows = len(truth) if truth is not None else 2
    given = {"x": torch.zeros(rows, 1), **({"mask": mask} if mask is not None else {}), **(inputs or {})}
    return question(given, {} if truth is None else {TRUTH: truth}, "mask" if mask is not None else None)


def apart(student, teacher, task=None, distance=None, temperature=4.0, asking=None):
    wanted = {ALL: distance} if distance else {}
    seen = [Seen({"output": value}) for value in (student, teacher)]
    return float(Outputs(task, wanted, temperature).loss(*seen, asking or asked()))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 9), st.floats(0.5, 10))
def test_kl_is_the_divergence_at_a_temperature(seed, classes, temperature):
    student, teacher = draw(seed, 5, classes), draw(seed + 1, 5, classes)
    p, q = softmax(exact(teacher) / temperature), softmax(exact(student) / temperature)
    expected = divergence(p, q) * temperature**2
    assert apart(student, teacher, None, "kl", temperature) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert apart(teacher, teacher, None, "kl", temperature) == pytest.approx(0, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(3, 9), st.booleans())
def test_decoupled_distillation_weighs_the_right_class_and_the_others_apart(seed, classes, labelled):
    student, teacher, temperature = draw(seed, 6, classes), draw(seed + 1, 6, classes), 2.0
    truth = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, 6))
    right = truth.numpy() if labelled else exact(teacher).argmax(1)
    p, q = softmax(exact(teacher) / temperature), softmax(exact(student) / temperature)
    rows, hit = np.arange(6), np.zeros((6, classes), bool)
    hit[rows, right] = True
    pair = [np.stack([value[rows, right], 1 - value[rows, right]], 1) for value in (p, q)]
    others = [(value[~hit] / np.repeat(1 - value[rows, right], classes - 1)).reshape(6, -1) for value in (p, q)]
    expected = (divergence(*pair) + 8 * divergence(*others)) / 9 * temperature**2
    task = tasks.CrossEntropy() if labelled else None
    found = apart(student, teacher, task, "dkd", temperature, asked(truth) if labelled else None)
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-4)


def test_decoupled_distillation_needs_two_classes():
    with pytest.raises(StageError, match="only one"):
        apart(draw(0, 4, 1), draw(1, 4, 1), None, "dkd")


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_relative_error_and_cosine(seed, width):
    student, teacher = draw(seed, 7, width), draw(seed + 1, 7, width)
    s, t = exact(student), exact(teacher)
    assert apart(student, teacher) == pytest.approx(((s - t) ** 2).mean() / t.var(), rel=1e-4)
    cosine = (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    assert apart(student, teacher, None, "cosine") == pytest.approx(1 - cosine.mean(), rel=1e-4, abs=1e-5)


def test_labels_are_compared_each_by_itself():
    student, teacher, truth = draw(0, 6, 4), draw(1, 6, 4), torch.randint(0, 2, (6, 4))
    p, q = 1 / (1 + np.exp(-exact(teacher) / 2)), 1 / (1 + np.exp(-exact(student) / 2))
    expected = float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()) * 4
    found = apart(student, teacher, tasks.MultiLabel(), None, 2.0, asked(truth))
    assert found == pytest.approx(expected, rel=1e-4)


def test_what_is_compared_how_follows_from_the_task_and_from_what_is_asked():
    named = Outputs(tasks.CrossEntropy("logits"), {"embedding": "cosine"})
    assert named.distance("logits", judged=True) == "kl"
    assert named.distance("embedding", judged=False) == "cosine"
    assert Outputs(tasks.SquaredError()).distance("output", judged=True) == "mse"
    assert Outputs(None, {ALL: "dkd", "b": "mse"}).distance("a", judged=False) == "dkd"
    with pytest.raises(StageError, match="no output 'embeding'"):
        Outputs(None, {"embeding": "mse"}).loss(Seen({"a": draw(0, 2, 3)}), Seen({"a": draw(0, 2, 3)}), asked())


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ({"logits": draw(0, 2, 3)}, "the teacher gives output, the student logits"),
        ({"output": draw(0, 2, 4)}, r"the teacher gives \[2, 3\], the student \[2, 4\]"),
    ],
)
def test_outputs_that_do_not_match_are_named(given_, told):
    with pytest.raises(StageError, match=f"differ in the output 'output'.*{told}"):
        Outputs().loss(Seen(given_), Seen({"output": draw(1, 2, 3)}), asked())


def test_an_output_without_a_width_has_no_distribution():
    with pytest.raises(StageError, match="no dimension holds classes"):
        apart(draw(0, 4), draw(1, 4), None, "kl")


def test_images_keep_their_classes_in_the_second_dimension():
    student, teacher = draw(0, 2, 3, 4, 5), draw(1, 2, 3, 4, 5)
    p, q = (softmax(exact(value).transpose(0, 2, 3, 1) / 4) for value in (teacher, student))
    assert apart(student, teacher, None, "kl") == pytest.approx(divergence(p, q) * 16, rel=1e-4)


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])


@pytest.mark.parametrize("distance", ["kl", "dkd", "mse", "cosine"])
def test_padded_positions_do_not_count(distance):
    student, teacher = draw(0, 2, 4, 6), draw(1, 2, 4, 6)
    real = MASK.bool()
    found = apart(student, teacher, None, distance, asking=asked(mask=MASK))
    assert found == pytest.approx(apart(student[real], teacher[real], None, distance), rel=1e-5)
    spoilt = student.clone()
    spoilt[~real] = 1e4
    assert apart(spoilt, teacher, None, distance, asking=asked(mask=MASK)) == pytest.approx(found, rel=1e-6)


def test_a_mask_must_be_of_zeros_and_ones_for_each_position():
    with pytest.raises(StageError, match="other than 0 and 1"):
        asked(mask=torch.tensor([[1, 2]]))
    with pytest.raises(StageError, match=r"not \[rows, positions\]"):
        asked(mask=torch.ones(2, 3, 4))


def nll(logits, classes, smoothing=0.0):
    logs = np.log(softmax(exact(logits)))
    hit = logs[np.arange(len(logs)), classes]
    return -float(((1 - smoothing) * hit + smoothing * logs.mean(1)).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_rows_of_tokens_and_of_pixels(smoothing):
    task = tasks.CrossEntropy(smoothing=smoothing)
    logits, truth = draw(0, 6, 5), torch.tensor([0, 4, 2, 1, 1, 3])
    for column in (truth, truth[:, None], truth.float()):
        found = float(task.loss({"output": logits}, asked(column)))
        assert found == pytest.approx(nll(logits, truth.numpy(), smoothing), rel=1e-5)
    tokens, classes = draw(1, 2, 4, 5), torch.tensor([[0, 1, -100, 2], [3, -100, -100, -100]])
    kept = classes.flatten() != -100
    expected = nll(tokens.reshape(-1, 5)[kept], classes.flatten()[kept].numpy(), smoothing)
    assert float(task.loss({"output": tokens}, asked(classes))) == pytest.approx(expected, rel=1e-5)
    pixels = {"output": tokens.permute(0, 2, 1)[..., None]}
    assert float(task.loss(pixels, asked(classes[..., None]))) == pytest.approx(expected, rel=1e-5)


def test_labels_at_padded_positions_do_not_count():
    task, tokens = tasks.CrossEntropy(), draw(1, 2, 4, 5)
    classes = torch.tensor([[0, 1, 2, 0], [3, 0, 0, 0]])
    real = MASK.bool().flatten()
    expected = nll(tokens.reshape(-1, 5)[real], classes.flatten()[real].numpy())
    assert float(task.loss({"output": tokens}, asked(classes, MASK))) == pytest.approx(expected, rel=1e-5)
    (right, count) = task.judge({"output": tokens}, asked(classes, MASK))["score"]
    assert count == 4
    assert right == int((tokens.argmax(-1) == classes).flatten()[real].sum())


def test_a_batch_in_which_nothing_counts_has_no_loss():
    classes = torch.full((2, 4), -100)
    logits = draw(1, 2, 4, 5).requires_grad_()
    loss = tasks.CrossEntropy().loss({"output": logits}, asked(classes))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_language_modelling_foretells_the_next_token():
    logits, tokens = draw(0, 2, 4, 7), torch.tensor([[1, 2, 3, 6], [4, 5, 0, 0]])
    task = tasks.named("language_modelling")
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    places = [(0, 0, 2), (0, 1, 3), (0, 2, 6), (1, 0, 5)]
    chosen = torch.stack([logits[row, place] for row, place, _ in places])
    expected = nll(chosen, [token for *_, token in places])
    assert float(task.loss({"output": logits}, asked(tokens, mask))) == pytest.approx(expected, rel=1e-5)
    judged = task.judge({"output": logits}, asked(tokens, mask))
    total, count = judged["score"]
    assert count == judged["eval_accuracy"][1] == 4
    assert task.figure(total / count) == ("eval_perplexity", pytest.approx(math.exp(expected), rel=1e-5))
    with pytest.raises(StageError, match="language modelling needs logits"):
        task.loss({"output": logits[:, 0]}, asked(tokens, mask))


def test_multi_label_counts_f1_over_all_labels():
    logits = torch.tensor([[2.0, -1.0, 3.0], [-2.0, 1.0, -0.5]])
    truth = torch.tensor([[1, 1, 0], [0, 1, 0]])
    task = tasks.named("multi_label", smoothing=0.1)
    p, soft = 1 / (1 + np.exp(-exact(logits))), truth.numpy() * 0.9 + 0.05
    expected = -float((soft * np.log(p) + (1 - soft) * np.log(1 - p)).mean())
    assert float(task.loss({"output": logits}, asked(truth))) == pytest.approx(expected, rel=1e-5)
    judged = task.judge({"output": logits}, asked(truth))
    assert judged == {"score": (4.0, 6), "eval_accuracy": (4.0, 6)}  # two hits of three said and three true
    with pytest.raises(StageError, match="other than 0 and 1"):
        task.loss({"output": logits}, asked(truth * 2))
    with pytest.raises(StageError, match="do not fit"):
        task.loss({"output": logits}, asked(truth[:, :2]))


def test_squared_error_is_the_mean_over_all_numbers():
    task, output, truth = tasks.named("mse"), draw(0, 4, 1), draw(1, 4)
    expected = float(((exact(output)[:, 0] - exact(truth)) ** 2).mean())
    assert float(task.loss({"output": output}, asked(truth))) == pytest.approx(expected, rel=1e-5)
    total, count = task.judge({"output": output}, asked(truth))["score"]
    assert task.figure(total / count) == ("eval_mse", pytest.approx(expected, rel=1e-5))
    with pytest.raises(StageError, match="the truth has the shape"):
        task.loss({"output": draw(0, 4, 2)}, asked(truth))


@pytest.mark.parametrize(
    ("truth", "output", "task"),
    [
        (torch.tensor([0, 3]), draw(0, 2, 5), "cross_entropy"),
        (torch.tensor([0.0, 1.0]), draw(0, 2, 1), "mse"),
        (torch.tensor([0, 1]), draw(0, 2, 1), "multi_label"),
        (torch.tensor([[0, 1, 1], [1, 0, 0]]), draw(0, 2, 3), "multi_label"),
        (torch.tensor([[0, 1, 1], [1, 0, 0]]), draw(0, 2, 3, 4), "cross_entropy"),
        (torch.tensor([[0, 1, 2], [1, 0, 0]]), draw(0, 2, 3), "cross_entropy"),
    ],
)
def test_a_task_is_guessed_from_the_truth_and_the_output(truth, output, task):
    assert tasks.guess(truth, output) == task


@pytest.mark.parametrize(
    ("task", "truth"), [("cross_entropy", [2, 1]), ("multi_label", [[0, 1, 1], [1, 0, 0]]), ("mse", [[0.0] * 3] * 2)]
)
def test_a_score_of_what_is_no_number_is_none(task, truth):
    logits = draw(0, 2, 3)
    judged = tasks.named(task)
    assert math.isfinite(judged.judge({"output": logits}, asked(torch.tensor(truth)))["score"][0])
    logits[1, 0] = math.nan
    assert math.isnan(judged.judge({"output": logits}, asked(torch.tensor(truth)))["score"][0])


def test_ones_own_task_gets_outputs_and_columns():
    def weighed(outputs, columns):
        return ((outputs["output"] - columns["price"]) ** 2 * columns["x"]).mean()

    output, truth = draw(0, 3, 1).requires_grad_(), draw(1, 3, 1)
    task = Own(weighed, "own.py:weighed")
    asking = question({"x": torch.tensor([[1.0], [2.0], [3.0]])}, {" price": truth}, None)
    expected = float(((exact(output.detach()) - exact(truth)) ** 2 * [[1], [2], [3]]).mean())
    assert float(task.loss({"output": output}, asking).detach()) == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        total, count = task.judge({"output": output}, asking)["score"]
    assert task.figure(total / count) == ("eval_loss", pytest.approx(expected, rel=1e-5))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda _outputs, columns: columns["prize"], "KeyError: 'prize'"),
        (lambda outputs, _columns: outputs["output"], r"it returned a tensor of the shape \[2, 3\], a scalar"),
        (lambda _outputs, _columns: 3.0, "it returned float"),
        (lambda outputs, _columns: outputs["output"].detach().mean(), "what it returned does not depend"),
    ],
)
def test_ones_own_task_that_is_wrong_is_blamed(function, says):
    with pytest.raises(StageError, match=f"own.py:f: {says}"):
        Own(function, "own.py:f").loss({"output": draw(0, 2, 3).requires_grad_()}, asked(torch.zeros(2)))


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_similarities_of_rows_are_preserved(seed):
    student, teacher = draw(seed, 5, 3, 2), draw(seed + 1, 5, 7)

    def similar(value):
        flat = exact(value).reshape(5, -1)
        products = flat @ flat.T
        return products / np.linalg.norm(products, axis=1, keepdims=True)

    expected = float(((similar(student) - similar(teacher)) ** 2).mean())
    assert float(similarity.preserved(student, teacher)) == pytest.approx(expected, rel=1e-3, abs=1e-7)
    turned = teacher @ torch.linalg.qr(draw(seed, 7, 7))[0]
    assert float(similarity.preserved(turned * 3, teacher)) == pytest.approx(0, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_relations_are_divergences_of_attention_among_themselves(seed):
    student, teacher = draw(seed, 2, 4, 32, scale=1), draw(seed + 1, 2, 4, 64, scale=1)

    def related(value, row, head, size):
        width = value.shape[-1] // size
        cut = exact(value)[row][:, head * width : (head + 1) * width]
        real = MASK[row].bool().numpy()
        return softmax((cut @ cut.T / np.sqrt(width))[real][:, real])

    found = float(relations.apart(student, teacher, MASK.bool()))
    total, count = 0.0, 0
    for row in range(2):
        for head in range(2):
            p, q = related(teacher, row, head, 2), related(student, row, head, 2)
            total, count = total + float((p * np.log(p / q)).sum()), count + len(p)
    assert found == pytest.approx(total / count, rel=1e-3)
    assert float(relations.apart(student, student, MASK.bool())) == pytest.approx(0, abs=1e-6)
    assert float(relations.apart(student, teacher, None)) > 0


def test_gradients_of_relations_are_numbers_where_positions_are_hidden():
    student = draw(0, 2, 4, 32).requires_grad_()
    relations.apart(student, draw(1, 2, 4, 64), MASK.bool()).backward()
    assert torch.isfinite(student.grad).all()
    assert not student.grad[~MASK.bool()].any()


def test_each_distance_is_what_torch_says_of_flat_rows():
    student, teacher = draw(0, 5, 3), draw(1, 5, 3)
    found = distances.divergence.classes(student, teacher, 1.0)
    one = functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    assert float(found) == pytest.approx(float(one), rel=1e-5)
