from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from modelpack.errors import StageError, UsageError
from modelpack.sources.image_folder import image_folder
from sources import bound, opened, problems, read, spec

PLAIN = {"scale": 1.0}


def paint(path, colour, size=(8, 8), mode="RGB", **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **save)
    return path


def one(tmp_path, inputs=None, **settings):
    """Read a folder of one image, channels first."""
    return read(image_folder, tmp_path, {"path": "p", "name": "x", **PLAIN, **settings}, inputs)["x"][0]


def test_subdirectories_are_classes_in_order(tmp_path):
    for folder, name, red in [("dog", "b.png", 3), ("dog", "a.PNG", 2), ("cat", "deep/z.png", 1), ("cat", "a.png", 0)]:
        paint(tmp_path / "p" / folder / name, (red, 0, 0))
    (tmp_path / "p" / "cat" / "notes.txt").write_text("not an image")
    paint(tmp_path / "p" / "cat" / ".hidden.png", (9, 9, 9))
    paint(tmp_path / "p" / ".cache" / "x.png", (9, 9, 9))
    got = read(image_folder, tmp_path, {"path": "p", **PLAIN}, {"ids": spec("n", 4), "image": spec("n", 3, 8, 8)})
    assert got["image"].dtype == np.float32
    assert got["image"].shape == (4, 3, 8, 8)
    assert got["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert got["label"].tolist() == [0, 0, 1, 1]
    assert got["label"].dtype == np.int64


def test_classes_fix_the_numbers_of_a_part_of_the_data(tmp_path):
    paint(tmp_path / "p" / "dog" / "a.png", 0, mode="L")
    settings = {"path": "p", "name": "x", "classes": ["ant", "cat", "dog"]}
    assert read(image_folder, tmp_path, settings)["label"].tolist() == [2]
    with pytest.raises(UsageError, match="'dog' is not among `classes`"):
        opened(image_folder, tmp_path, {**settings, "classes": ["ant", "cat"]})


def test_numeric_directories_are_classes_too(tmp_path):
    for name in ("3", "7"):
        paint(tmp_path / "p" / name / "a.png", 0, mode="L")
    assert read(image_folder, tmp_path, {"path": "p", "name": "x"})["label"].tolist() == [0, 1]


def test_a_flat_folder_has_no_labels_and_a_file_may_bring_them(tmp_path):
    for name in ("a", "b", "c"):
        paint(tmp_path / "p" / f"{name}.png", (ord(name), 0, 0))
    assert set(read(image_folder, tmp_path, {"path": "p", "name": "x"})) == {"x"}
    (tmp_path / "labels.csv").write_text("file,label\nc.png,dog\na.png,cat\n")
    got = read(image_folder, tmp_path, {"path": "p", "name": "x", "labels": "labels.csv", **PLAIN})
    assert got["x"][:, 0, 0, 0].tolist() == [ord("c"), ord("a")]
    assert got["label"].tolist() == [1, 0]
    (tmp_path / "labels.csv").write_text("c.png,0.5\na.png,2\n")
    got = read(image_folder, tmp_path, {"path": "p", "name": "x", "labels": "labels.csv"})
    assert got["label"].tolist() == [0.5, 2]
    assert got["label"].dtype == np.float32


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.png,cat\nz.png,dog\n", r"labels.csv:2: there is no image"),
        ("a.png,cat\na.png\n", r"labels.csv:2: .*not 1 values"),
        ("name,label\n", "names no image"),
    ],
)
def test_a_wrong_label_file_names_the_line(tmp_path, lines, message):
    paint(tmp_path / "p" / "a.png", 0, mode="L")
    (tmp_path / "labels.csv").write_text(lines)
    with pytest.raises(UsageError, match=message):
        opened(image_folder, tmp_path, {"path": "p", "name": "x", "labels": "labels.csv"})


def test_folders_without_sense_are_refused(tmp_path):
    (tmp_path / "p").mkdir()
    with pytest.raises(UsageError, match="no image"):
        opened(image_folder, tmp_path, {"path": "p", "name": "x"})
    paint(tmp_path / "p" / "a" / "x.png", 0, mode="L")
    (tmp_path / "p" / "b").mkdir()
    with pytest.raises(UsageError, match="b: the class directory holds no image"):
        opened(image_folder, tmp_path, {"path": "p", "name": "x"})
    paint(tmp_path / "p" / "stray.png", 0, mode="L")
    with pytest.raises(UsageError, match="beside the class directory 'a'"):
        opened(image_folder, tmp_path, {"path": "p", "name": "x"})


def test_efficientnet_lite_preparation(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    photo = Image.fromarray(rng.integers(0, 256, (300, 420, 3), dtype=np.uint8))
    photo.save(tmp_path / "p" / "a.png")
    config = bound(
        image_folder, tmp_path, "{path: p, size: 256, crop: 224, resample: bicubic, scale: 1, mean: 127, std: 128}"
    )
    batch = next(iter(image_folder.open(config, {"image": spec("batch", 3, 224, 224)}).batches()))
    resized = photo.resize((358, 256), Image.Resampling.BICUBIC)
    cut = np.asarray(resized.crop((67, 16, 67 + 224, 16 + 224)), dtype=np.float64)
    np.testing.assert_allclose(batch["image"][0], ((cut - 127) / 128).transpose(2, 0, 1), atol=1e-6)


def test_scale_then_mean_and_std_per_channel_and_layouts(tmp_path):
    paint(tmp_path / "p" / "a.png", (255, 51, 0))
    settings = {"scale": 1 / 255, "mean": [0.5, 0.1, 0.0], "std": [0.5, 0.1, 1]}
    np.testing.assert_allclose(one(tmp_path, **settings)[:, 0, 0], [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(one(tmp_path, **settings, layout="NHWC")[0, 0], [1, 1, 0], atol=1e-6)
    assert one(tmp_path, channels="BGR")[:, 0, 0].tolist() == [0, 51, 255]
    grey = one(tmp_path, channels="grey")
    assert grey.shape == (1, 8, 8)
    assert grey[0, 0, 0] == pytest.approx(0.299 * 255 + 0.587 * 51, abs=1)


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("grey", 128), ("black", 0)])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_transparent_pixels_lie_on_the_background(tmp_path, background, value, kind):
    path = paint(tmp_path / "p" / "a.png", (200, 0, 0, 0), mode="RGBA")
    if kind == "P":
        paint(path, 0, mode="P", transparency=0)
    elif kind == "LA":
        paint(path, (200, 0), mode="LA")
    assert one(tmp_path, background=background)[:, 0, 0].tolist() == [value] * 3


def test_half_transparent_pixels_are_mixed(tmp_path):
    paint(tmp_path / "p" / "a.png", (200, 0, 0, 128), mode="RGBA")
    np.testing.assert_allclose(one(tmp_path, background="black")[:, 0, 0], [100, 0, 0], atol=1)


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    (tmp_path / "p").mkdir()
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "p" / "a.png")
    assert one(tmp_path)[0, 0, 0] == 0x80


def test_float_pixels_are_refused(tmp_path):
    paint(tmp_path / "p" / "a.tif", 0.5, mode="F")
    with pytest.raises(StageError, match=r"a\.tif, row 1: .*kind F"):
        one(tmp_path)


def test_cmyk_becomes_rgb(tmp_path):
    paint(tmp_path / "p" / "a.jpg", (0, 255, 255, 0), mode="CMYK")
    red, green, blue = one(tmp_path)[:, 4, 4]
    assert red > 200 > 60 > max(green, blue)


def test_camera_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    photo = Image.new("RGB", (20, 10))
    photo.paste((255, 255, 255), (0, 0, 10, 10))  # left half white: the upper half once upright
    (tmp_path / "p").mkdir()
    photo.save(tmp_path / "p" / "a.png", exif=exif)
    got = one(tmp_path)
    assert got.shape == (3, 20, 10)
    assert got[0, 2].min() == 255
    assert got[0, -3].max() == 0


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (30, 20)),
        ({"size": 10}, (10, 10)),
        ({"size": [12, 6]}, (12, 6)),
        ({"crop": [7, 5]}, (7, 5)),
        ({"size": 16, "crop": 8}, (8, 8)),
    ],
)
def test_size_and_crop(tmp_path, settings, shape):
    paint(tmp_path / "p" / "a.png", 9, size=(20, 30), mode="L")
    assert one(tmp_path, **settings).shape == (3, *shape)


def test_a_broken_image_is_named_with_its_row(tmp_path):
    for name in ("a", "b", "c"):
        paint(tmp_path / "p" / f"{name}.png", (1, 2, 3), size=(64, 64))
    path = tmp_path / "p" / "b.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(StageError, match=r"b\.png, row 2: the image cannot be used"):
        one(tmp_path)
    path.write_text("hello")
    with pytest.raises(StageError, match=r"b\.png, row 2"):
        one(tmp_path, seed=4)


def test_formats_that_start_other_programs_are_refused(tmp_path):
    paint(tmp_path / "p" / "a.png", 0, mode="L", format="EPS")
    with pytest.raises(StageError, match=r"a\.png, row 1: .*cannot identify"):
        one(tmp_path)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    paint(tmp_path / "p" / "a.png", 0, size=(40, 40), mode="L")
    for limit in (1000, 100):  # Pillow warns over its limit and refuses over twice of it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(StageError, match=r"a\.png, row 1: .*exceeds limit"):
            one(tmp_path)


def test_a_sliver_does_not_grow_without_end(tmp_path):
    paint(tmp_path / "p" / "a.png", 0, size=(60_000, 1), mode="L")
    with pytest.raises(StageError, match="60000x1 and would become 13440000x224"):
        one(tmp_path, size=224)


def test_images_of_different_sizes_need_a_size(tmp_path):
    paint(tmp_path / "p" / "a.png", 0, mode="L")
    paint(tmp_path / "p" / "b.png", 0, mode="L", size=(9, 8))
    with pytest.raises(StageError, match=r"b\.png, row 2: the image is \[3, 8, 9\] where \[3, 8, 8\].*\n.*set `size:`"):
        one(tmp_path)
    with pytest.raises(StageError, match=r"a\.png, row 1: the image is \[3, 8, 8\] where \[3, 8, 9\]"):
        one(tmp_path, {"x": spec("n", 3, 8, 9)})
    with pytest.raises(StageError, match=r"a\.png, row 1: .*smaller than the crop 9x9"):
        one(tmp_path, crop=9)


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        ({"ids": spec("n", 4)}, {}, "no 4-D input"),
        ({"x": spec("n", 3, 8, 8)}, {"size": 4}, r"images become \[3, 4, 4\], but the model's 'x' takes \[3, 8, 8\]"),
        ({"x": spec("n", 1, "h", "w")}, {}, r"images become \[3, 'any', 'any'\]"),
        ({"x": spec("n", 8, 8, 3)}, {"size": 8}, "layout"),
        ({"x": spec("n", 3, 8, 8, dtype="uint8")}, {"scale": 0.5}, "scale: 1"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_anything_runs(tmp_path, inputs, settings, message):
    paint(tmp_path / "p" / "a.png", 0, mode="L")
    with pytest.raises(UsageError, match=message):
        opened(image_folder, tmp_path, {"path": "p", **settings}, inputs)


def test_whole_numbers_for_a_model_that_takes_them(tmp_path):
    paint(tmp_path / "p" / "a.png", (250, 3, 4))
    got = one(tmp_path, {"x": spec("n", 3, 8, 8, dtype="uint8")})
    assert got.dtype == np.uint8
    assert got[:, 0, 0].tolist() == [250, 3, 4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{path: p/a.png}", "1:8 p/a.png is a file"),
        ("{path: p, size: 8, crop: 9}", "`crop` [9, 9] does not fit into `size` [8, 8]"),
        ("{path: p, mean: [1, 2]}", "`mean` has 2 values for 3 channels"),
        ("{path: p, std: 0}", "`std` divides"),
        ("{path: p, size: 0}", "1:17"),
        ("{path: p, channels: RBG}", "did you mean 'RGB'?"),
        ("{path: p, classes: [a, a]}", "1:20 the class 'a' is listed twice"),
        ("{path: p, labels: gone.csv}", "1:19 no such file"),
        ("{path: p, resise: 3}", "unknown key 'resise'"),
    ],
)
def test_bad_settings_have_a_place(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "p" / "a.png", 0, mode="L")
    found = problems(image_folder, tmp_path.relative_to(tmp_path), text)
    assert len(found) == 1
    assert expected in found[0]


def test_digest_is_of_pictures_in_order_with_their_labels(tmp_path):
    def digest(**settings):
        return opened(image_folder, tmp_path, {"path": "p", "name": "x", **settings}).digest()

    first = paint(tmp_path / "p" / "a" / "1.png", 1, mode="L")
    paint(tmp_path / "p" / "b" / "1.png", 2, mode="L")
    before = digest()
    assert digest(size=8) != before
    assert digest(classes=["b", "a"]) != before
    moved = first.rename(tmp_path / "p" / "b" / "0.png")
    paint(tmp_path / "p" / "a" / "1.png", 2, mode="L")
    assert digest() != before
    assert moved.exists()
