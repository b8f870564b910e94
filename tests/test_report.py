"""The report: it holds what was recorded, draws it, and nothing in it can break out of its place."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpack.report import page
from pages import (
    BENCH,
    FRONT,
    HISTORY,
    HOSTILE,
    LATENCY,
    LAYERS,
    QUANTIZED,
    SENSITIVITY,
    TAGS,
    Reader,
    about,
    read,
    step,
    subject,
)


def test_every_chapter_is_drawn_from_the_data_alone():
    results = {
        "layers": LAYERS,
        "left_alone": {"gru": "GRU layers are left alone"},
        "sensitivity": SENSITIVITY,
        "latency": LATENCY,
    }
    steps = [
        step("prune", "prune", results, metrics={"macs": 0.5}, warnings=["invented rows"], config={"macs": 0.5, "keep": []}),
        step("distill", "distill", {"history": HISTORY}),
        step("quantize", "quantize", {"front": FRONT, "layers": QUANTIZED, "fidelity": {"y": {"sqnr_db": 30.0}},
                                      "checks": [{"check": "size", "verdict": "ok", "cause": "", "remedy": "", "where": ""}]}),
        step("evaluate", "evaluate", {"evaluation": {"metrics": {"accuracy": 0.97}, "rows": 9, "output": "y", "outputs": {}}}),
        step("bench", "bench", {"bench": BENCH}),
    ]  # fmt: skip
    whole = subject(
        steps=steps,
        changes=[
            {"label": "model size", "metric": "model_bytes", "before": 400_000, "after": 100_000},
            {"label": "accuracy", "metric": "accuracy", "before": 0.98, "after": 0.97},
            {"label": "speedup", "metric": "speedup", "before": None, "after": 2.0},
        ],
        budget=[{"name": "size", "limit": "≤ 25%", "measured": 0.3, "met": False, "step": "quantize"}],
        environment={"processor": {"name": "A Processor", "flags": []}, "cores": 2},
        text="name: net\nstages: []\n",
        overrides=["stages.prune.macs=0.5"],
        error="the budget was not met",
    )
    found = read({"schema": 1, "modelpack": "1.2", "subjects": [whole]})
    for told in (
        "4.00× smaller", "-1.00 pp", "≤ 25%", "not met", "invented rows", "A Processor", "name: net", "the budget was not met",
        "--set stages.prune.macs=0.5", "64 → 48", "GRU layers are left alone", "Score on held-out rows", "Accuracy on held-out rows",
        "1 of 2 layers are quantized", "left in float: too small", "Figures of every mixture", "30.0 dB", "2.00×, faster",
        "against export, 95 % interval", "7.0 MB", "measured at 4", "Made by modelpack 1.2", "36.0 % 51.0 %", "0.0100 ms",
    ):  # fmt: skip
        assert told in found.text, told
    chapters = re.findall(r"<h2>(.*?)</h2>", page.render({"subjects": [whole]}))
    assert chapters == [
        "What was gained", "Pruning", "Training", "Quantization", "Quality", "Speed", "Steps", "Environment", "Recipe",
    ]  # fmt: skip
    assert found.text.index("fragile") < found.text.index("robust"), "the most sensitive group comes first"
    assert len(set(found.ids)) == len(found.ids)
    assert set(found.links) <= {f"#{name}" for name in found.ids}


def test_curves_show_every_epoch_on_a_scale_that_fits():
    drawn = page.render(about(history=HISTORY))
    paths = [path.split("L") for path in re.findall(r'<path d="M([^"]+)" class="curve k', drawn)]
    assert [len(path) for path in paths if len(path) > 1] == [2, 2, 3, 2, 2]  # two losses, score, rate, accuracy
    assert 'aria-label="Loss: loss from 9 to 0.1; imitation from 7 to 0.05"' in drawn
    marked = re.findall(r"<title>score, ([^<]+)</title></circle>", drawn)
    assert marked == ["0: 0.5", "1: 0.875", "2: 0.75"]
    best = re.search(r'r="5" class="dot f0"><title>([^<]+)', drawn)
    assert best is not None
    assert best[1] == "score, 1: 0.875"


def test_what_no_drawing_knows_is_shown_as_a_table_in_its_step():
    odd = about(
        history="none",
        layers=[{"name": 1}],
        blocks=[1],
        front=[{"speedup": "fast"}],
        mine=[{"a": 1, "b": "two"}],
        bench={"cells": 3},
    )
    found = read(odd)
    assert "Training" not in found.text
    for told in ("mine", "two", "fast", "none"):
        assert told in found.text
    assert "Steps" in found.text


def test_layers_that_were_fitted_and_those_that_were_not_stand_in_the_chapter():
    found = read(about(refitted=["body.2", "head"], unfitted={"up": "its inputs cannot be looked at"}))
    chapter = found.text[found.text.rindex("Pruning") : found.text.rindex("Steps")]
    for told in ("a: fitted", "body.2 , head", "a: not fitted", "its inputs cannot be looked at up"):
        assert told in chapter, told
    assert "Pruning" not in read(about(refitted=[], unfitted={})).text


def test_what_became_of_batch_norms_stands_in_the_chapter():
    told = {"batch_norms": 7, "statistics": "kept", "error_by_old": 0.125, "error_by_new": 0.5}
    found = read(about(batch_norms=told)).text
    chapter = found[found.rindex("Training") : found.rindex("Steps")]
    assert "Statistics of 7 batch norms: kept;" in chapter
    assert "0.125 by the old, 0.5 by new ones" in chapter
    assert (
        "7 batch norms: measured anew."
        in read(about(batch_norms={"batch_norms": 7, "statistics": "measured anew"})).text
    )
    assert "Training" not in read(about(batch_norms={"batch_norms": 7})).text


def test_settings_that_were_left_open_say_what_they_came_to():
    steps = [step("prune", "prune", {"came_to": {"refit": True}}, config={"macs": 0.5, "refit": None})]
    found = read({"schema": 1, "modelpack": "1", "subjects": [subject(steps=steps)]}).text
    assert "setting value came to macs 0.5 refit – yes" in found
    assert "Tables" not in found
    plain = [step("prune", "prune", {}, config={"macs": 0.5})]
    assert "came to" not in read({"schema": 1, "modelpack": "1", "subjects": [subject(steps=plain)]}).text


def test_layers_and_blocks_are_listed_with_whatever_is_told_of_them():
    layers = [{"layer": "fc", "count": 512, "sqnr_db_after": 30.0}, {"layer": "head", "count": 8}]
    blocks = [{"block": "layers.1", "type": "Layer", "change": 0.25, "order": 1}]
    found = read(about(layers=layers, blocks=blocks))
    assert "Pruning" in found.text
    for told in ("count", "512", "30.0 dB", "layers.1", "0.25"):
        assert told in found.text
    assert "Tables" not in found.text


def test_zeros_halves_and_cuts_are_told_by_what_they_leave():
    sparse = read(
        about(layers=[{"layer": "fc", "weights": 64, "zeros": 48}], sparsity={"zeros": 48, "told": "no speed"})
    )
    assert "no speed layer weights zeros part that is zero fc 64 48 75.0 %" in sparse.text.replace(" a: layers", "")
    half = {
        "layer": "fc",
        "type": "Linear",
        "form": "channel",
        "rank": 8,
        "full": 32,
        "energy": 0.96,
        "before": 8,
        "after": 2,
    }
    assert "fc Linear channel 8 of 32 96.0 % 25.0 %" in read(about(layers=[half])).text
    cut = {"layer": "fc", "clipped": 3, "sqnr_db_before": 20.0, "sqnr_db_after": 21.5}
    assert "fc 3 20.0 dB 21.5 dB" in read(about(layers=[cut])).text
    for odd in ({"sparsity": {"zeros": 1}}, {"sparsity": 3}):
        assert "Tables" in read(about(**odd)).text


def test_heat_spans_what_can_be_told_apart():
    groups = [
        {"group": name, "units": 4, "values": values} for name, values in (("a", [200.0, 40.0]), ("b", [20.0, -9.0]))
    ]
    drawn = page.render(about(sensitivity={"measure": "sqnr_db", "rows": 4, "ratios": [0.1, 0.5], "groups": groups}))
    assert re.findall(r'class="heat h(\d)">([^<]+)<', drawn) == [
        ("4", "20.0 dB"), ("7", "-9.0 dB"), ("0", "200.0 dB"), ("0", "40.0 dB"),
    ]  # fmt: skip
    drawn = page.render(about(sensitivity=SENSITIVITY))
    assert re.findall(r'class="heat h(\d)">([^<]+)<', drawn) == [
        ("1", "90.0 %"), ("7", "25.0 %"), ("0", "98.0 %"), ("0", "97.0 %"),
    ]  # fmt: skip


def test_steps_of_gradual_pruning_are_listed():
    rows = [{"step": 1, "wanted": 0.5, "kept": 0.513, "loss": 0.25, "epochs": 2}]
    found = read(about(schedule=rows))
    assert "step to keep kept loss epochs 1 50.0 % 51.3 % 0.25 2" in found.text
    assert "Tables" in read(about(schedule=[{"step": 1}])).text


def test_text_is_escaped_wherever_it_stands():
    rows = [{HOSTILE: HOSTILE, "epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 2.0, HOSTILE: 3.0}]
    results = {
        "history": rows,
        "layers": [{**LAYERS[0], "layer": HOSTILE, "type": HOSTILE}],
        "left_alone": {HOSTILE: HOSTILE},
        "sensitivity": {
            **SENSITIVITY,
            "measure": HOSTILE,
            "groups": [{"group": HOSTILE, "units": HOSTILE, "values": [1.0, 2.0]}],
        },
        "front": [{**FRONT[0], "added": [HOSTILE], "layers_kept": HOSTILE}],
        "bench": {**BENCH, "notes": [HOSTILE], "cells": [{**BENCH["cells"][0], "subject": HOSTILE}]},
        HOSTILE: {HOSTILE: [HOSTILE]},
    }
    steps = [step(HOSTILE, HOSTILE, results, config={HOSTILE: HOSTILE}, metrics={HOSTILE: HOSTILE}, warnings=[HOSTILE])]
    changes = [{"label": HOSTILE, "metric": HOSTILE, "before": HOSTILE, "after": HOSTILE}]
    hostile = subject(
        name=HOSTILE, status=HOSTILE, device=HOSTILE, error=HOSTILE, text=HOSTILE, steps=steps, changes=changes
    )
    written = page.render({"modelpack": HOSTILE, "subjects": [hostile, hostile]})
    found = Reader(written)
    assert found.tags <= TAGS
    assert "alert(1)" in found.text
    assert "<script" not in written
    assert not set(written) & set("\u202e\x00\ud800")
    assert written.encode("utf-8").decode() == written


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(HOSTILE),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.text(max_size=4)
            | st.sampled_from(["epoch", "loss", "score", "lr", "before", "after", "layer", "speedup", "sqnr_db", "on_front",
                               "cells", "ratio", "low", "high", "value", "metrics", "outputs", "groups", "values", "ratios",
                               "trials", "costs", "share", "verdict", "zeros", "weights", "rank", "full", "energy", "clipped", "quantized", "model_bytes", "peak_bytes", "subjects"]),
            inner, max_size=4,
        ),
        max_leaves=12,
    ),
    st.sampled_from([*page._DRAWINGS, "else"]),
    st.sampled_from(["steps", "changes", "budget", "image", "environment", "text", "overrides", "results"]),
)  # fmt: skip
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_data_make_a_page(value, name, key):
    document = about(**{name: value})
    document["subjects"][0] |= {key: value} if key != "results" else {}
    found = read(json.loads(json.dumps(document)))
    assert found.tags <= TAGS


@pytest.mark.chromium
def test_a_browser_draws_the_page_in_both_themes(tmp_path):
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Debian's chromium")
    from PIL import Image

    from browser import FLAGS

    (tmp_path / "page.html").write_text(page.render(about(history=HISTORY, front=FRONT, sensitivity=SENSITIVITY)))
    darkness = []
    for theme in ("1", "0"):
        picture = tmp_path / f"{theme}.png"
        flags = [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={theme}"]
        place = f"file://{tmp_path / 'page.html'}"
        subprocess.run(
            [program, *flags, f"--screenshot={picture}", "--window-size=900,900", place],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        with Image.open(picture) as image:
            grey = image.convert("L")
            darkness.append(sum(value * count for value, count in enumerate(grey.histogram())) / (900 * 900))
            assert len(image.convert("RGB").getcolors(900 * 900)) > 50, "the style sheet is applied"
    assert darkness[0] > 200 > 80 > darkness[1]
