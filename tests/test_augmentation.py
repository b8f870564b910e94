"""Augmented rows: the same whenever they are asked for, and nothing in them that was not in the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.errors import StageError
from modelpack.numerics.training import Rows as Picked
from modelpack.numerics.training.augmentation import Augmentation, Replaced, Wanted, draws
from modelpack.numerics.training.batches import TRUTH
from modelpack.stages.distill import distill
from modelpack.tensors import TensorSpec
from support import Rows, run_stage
from test_distill import history, patterns, run, student_and_teacher

EVERYTHING = {
    "flip": True, "shift": 0.2, "scale": 0.4, "rotate": 15, "brightness": 0.3, "contrast": 0.3, "cutout": 0.3, "mixup": 0.3,
}  # fmt: skip


def pictures(count=12, channels=3, height=9, width=11, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(count, channels, height, width)).astype(dtype)


def augmentation(columns=None, seed=0, **wanted):
    columns = {"image": pictures()} if columns is None else columns
    specs = {
        name: TensorSpec(shape=("batch", *column.shape[1:]), dtype=column.dtype.name)
        for name, column in columns.items()
    }
    return Augmentation(Wanted(**wanted), Picked(Rows(columns, 5).batches, specs, None), seed)


def changed(images, epoch=1, seed=0, **wanted):
    return augmentation({"image": images}, seed, **wanted)({"image": images}, epoch)["image"]


@pytest.mark.parametrize("wanted", [{name: value} for name, value in EVERYTHING.items()] + [EVERYTHING])
@settings(max_examples=12, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_a_row_is_the_same_in_every_batch(wanted, order, size):
    images = pictures()
    augment = augmentation(**wanted)
    whole = augment({"image": images}, 2)["image"]
    assert whole.shape == images.shape
    assert not np.array_equal(whole, images)
    for start in range(0, 12, size):
        chosen = order[start : start + size]
        assert np.array_equal(augment({"image": images[chosen]}, 2)["image"], whole[chosen])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name in EVERYTHING if name != "mixup"])
def test_no_value_leaves_the_range_that_its_channel_has(name, dtype):
    images = pictures(64, dtype=dtype)
    found = changed(images, **{name: EVERYTHING[name]})
    assert found.dtype == dtype
    assert (found.min((2, 3)) >= images.min((2, 3))).all()
    assert (found.max((2, 3)) <= images.max((2, 3))).all()


def test_variants_come_in_turn_and_without_them_every_epoch_has_its_own():
    images = pictures()
    three = [changed(images, epoch, variants=3, **EVERYTHING) for epoch in range(1, 8)]
    for epoch, found in enumerate(three):
        assert np.array_equal(found, three[epoch % 3])
    assert len({found.tobytes() for found in three}) == 3
    assert len({changed(images, epoch, variants=0, **EVERYTHING).tobytes() for epoch in range(1, 8)}) == 7
    assert changed(images, 1, seed=1, **EVERYTHING).tobytes() != three[0].tobytes()


def test_a_flip_is_a_flip_and_happens_to_half_of_the_rows():
    images = pictures(400)
    found = changed(images, flip=True)
    flipped = np.array([np.array_equal(one, other[..., ::-1]) for one, other in zip(found, images, strict=True)])
    kept = np.array([np.array_equal(one, other) for one, other in zip(found, images, strict=True)])
    assert (flipped ^ kept).all()
    assert 0.4 < flipped.mean() < 0.6


def test_a_shift_moves_by_whole_pixels_and_mirrors_what_is_missing():
    images = pictures(50, 1, 10, 10)
    found = changed(images, shift=0.2)
    moves = set()
    for one, other in zip(found, images, strict=True):
        wide = np.pad(other, ((0, 0), (2, 2), (2, 2)), mode="symmetric")
        fits = [
            (y, x) for y in range(5) for x in range(5) if np.allclose(wide[:, y : y + 10, x : x + 10], one, atol=1e-5)
        ]
        assert len(fits) == 1
        moves.add(fits[0])
    assert len(moves) > 15


def test_a_crop_of_a_ramp_is_a_part_of_it_enlarged():
    ramp = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float32), (40, 1, 32, 32)).copy()
    ramp += np.arange(40, dtype=np.float32)[:, None, None, None]  # rows of their own numbers
    found = changed(ramp, scale=0.5) - np.arange(40, dtype=np.float32)[:, None, None, None]
    width = found[..., -1] - found[..., 0]
    assert ((width > 0.45) & (width <= 1)).all()
    assert width.min() < 0.6 < 0.9 < width.max()
    inner = np.diff(found[:, 0, 16, 2:-2], axis=1)
    assert np.allclose(inner, inner.mean(1, keepdims=True), atol=1e-3)


def test_a_turn_keeps_the_middle_and_the_proportions():
    """A disc in the middle of an image that is no square stays where it is."""
    y, x = np.mgrid[:21, :41]
    disc = ((y - 10) ** 2 + (x - 20) ** 2 < 49).astype(np.float32)
    found = changed(np.stack([disc[None]] * 3) + np.arange(3, dtype=np.float32)[:, None, None, None] * 0, rotate=45)
    assert np.abs(found[:, 0] - disc).mean() < 0.02


def test_light_changes_brightness_by_its_part_of_the_range():
    images = np.clip(pictures(200) * 0.1, -1, 1)
    images[:, :, 0, 0], images[:, :, 0, 1] = -1, 1
    found = changed(images, brightness=0.2)
    moved = (found - images)[:, :, 2, 2]
    assert np.abs(moved).max() <= 0.4 + 1e-5
    assert np.abs(moved).max() > 0.3
    stronger = changed(images, contrast=0.5)[:, 0, 2:, 2:].std((1, 2)) / images[:, 0, 2:, 2:].std((1, 2))
    assert 0.5 <= stronger.min() < 0.6 < 1.4 < stronger.max() <= 1.5 + 1e-4


def test_a_hole_has_its_size_and_the_mean():
    images = pictures(60, 3, 20, 20)
    found = changed(images, cutout=0.4)
    for one, other in zip(found, images, strict=True):
        inside = (one != other).any(0)
        rows, columns = inside.any(1), inside.any(0)
        assert rows.sum() <= 8
        assert columns.sum() <= 8
        assert np.array_equal(inside, rows[:, None] & columns)
        assert np.allclose(one[:, inside], other.mean((1, 2))[:, None], atol=1e-6)
    assert (found != images).any((1, 2, 3)).all()


def test_a_mixture_is_a_bit_of_another_row_in_all_inputs_alike():
    columns = {"image": pictures(30), "extra": np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)}
    found = augmentation(columns, mixup=0.4)(columns, 1)
    for row in range(30):
        one = {name: column[row].ravel().astype(np.float64) for name, column in found.items()}
        mine = {name: column[row].ravel().astype(np.float64) for name, column in columns.items()}
        best = []
        for other in range(30):
            away = {name: columns[name][other].ravel() - mine[name] for name in columns}
            length = sum(value @ value for value in away.values())
            part = sum((one[name] - mine[name]) @ away[name] for name in columns) / length if length else 0.0
            rest = max(np.abs(one[name] - mine[name] - part * away[name]).max() for name in columns)
            best.append((rest, part))
        rest, part = min(best)
        assert rest < 1e-5
        assert 0 <= part <= 0.4


def tokens(**wanted):
    ids = np.random.default_rng(0).integers(5, 50, (40, 12))
    ids[:, 9:] = 0
    columns = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    found = augmentation(columns, tokens=Replaced("input_ids", **wanted))(columns, 1)
    assert np.array_equal(found["attention_mask"], columns["attention_mask"])
    assert found["input_ids"].dtype == ids.dtype
    return ids, found["input_ids"]


def test_tokens_are_replaced_by_the_mask_but_not_those_to_keep():
    ids, found = tokens(share=0.3, by=3, keep=(0,))
    assert set(found[found != ids]) == {3}
    assert np.array_equal(found[:, 9:], ids[:, 9:])
    assert 0.2 < (found != ids)[:, :9].mean() < 0.4


def test_tokens_are_replaced_by_others_of_their_row():
    ids, found = tokens(share=0.5, keep=(0,))
    assert all(set(one) <= set(other) for one, other in zip(found, ids, strict=True))
    assert (found[:, :9] != 0).all()
    assert 0.2 < (found != ids)[:, :9].mean() < 0.5


@pytest.mark.parametrize(
    ("columns", "wanted", "says"),
    [
        ({"ids": np.ones((4, 8), np.int64)}, {"flip": True}, "only images"),
        ({"image": np.ones((4, 3, 8, 8), np.uint8)}, {"cutout": 0.1}, "only images"),
        ({"image": pictures(4, 32, 32, 3)}, {"contrast": 0.1}, "only images"),
        ({"image": pictures(4), TRUTH: np.ones((4, 9, 11), np.int64)}, {"shift": 0.1}, "says something of places"),
        ({"image": pictures(4), " map": np.ones((4, 9, 11))}, {"flip": True}, "the column 'map' has the shape"),
        ({"image": pictures(4), TRUTH: np.ones(4, np.int64)}, {"mixup": 0.1}, "mixture of two rows"),
        ({"ids": np.ones((4, 8), np.int64)}, {"mixup": 0.1}, "'ids' holds no floats"),
        ({"ids": np.ones((4, 8), np.int64)}, {"tokens": Replaced("idx", 0.1)}, "no input 'idx'"),
        ({"image": pictures(4)}, {"tokens": Replaced("image", 0.1)}, "only integers"),
    ],
)
def test_rows_that_do_not_fit_are_refused(columns, wanted, says):
    inputs = {name: column for name, column in columns.items() if name != TRUTH}
    with pytest.raises(StageError, match=says):
        augmentation(inputs, **wanted)(columns, 1)


def test_the_truth_of_a_row_stays():
    truth = np.arange(12)
    found = augmentation(flip=True, shift=0.2)({"image": pictures(), TRUTH: truth}, 1)
    assert np.array_equal(found[TRUTH], truth)


def test_images_of_other_sizes_are_not_mixed():
    augment = augmentation(mixup=0.2)
    with pytest.raises(StageError, match="rows of one shape"):
        augment({"image": pictures(height=8)}, 1)


@given(st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_draws_are_even_and_of_other_names_others(seed, variant):
    rows = [np.arange(256)]
    numbers = draws.for_rows(rows, seed, variant)
    one, other = numbers.uniform("one", -1, 3, 4), numbers.uniform("other", -1, 3, 4)
    assert ((one >= -1) & (one < 3)).all()
    assert abs(one.mean() - 1) < 0.3
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.2
    assert abs(np.corrcoef(one[:, 0], one[:, 1])[0, 1]) < 0.35
    assert not np.array_equal(one, draws.for_rows(rows, seed, variant + 1).uniform("one", -1, 3, 4))


def test_labels_go_with_gentle_changes_and_not_with_mixtures(tmp_path):
    student, teacher = student_and_teacher(tmp_path)
    events = []
    with pytest.raises(StageError, match="mixture of two rows"):
        run_stage(
            tmp_path, distill, {"data": "train", "augment": {"mixup": 0.2}},
            model=student, steps={"model": teacher}, data={"train": patterns(64)}, collect=events,
        )  # fmt: skip
    assert not any(getattr(event, "label", "").startswith("epoch") for event in events)
    losses = []
    for place, change in enumerate((None, {"shift": 0.1}, {"shift": 0.1, "variants": 1}, {"shift": 0.2})):
        settings = {"data": "train", "epochs": 1, "augment": change}
        made = run(tmp_path / str(place), student, teacher, settings, train=patterns(64))
        losses.append(history(made)[-1]["loss"])
    assert losses[1] == losses[2]  # the first variant is the first variant, however many there are
    assert len(set(losses)) == 3
