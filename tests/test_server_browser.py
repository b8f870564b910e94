"""The page at `/` in a real browser: filled in, clicked, watched, unlocked, and drawn on a desk and on a phone."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from onnx import helper
from PIL import Image

from browser import Browser
from interfaces import made, photos, pictures, reading, seeing, sentences
from serving import Server, linear, pair, scaled, table, write_model

pytestmark = pytest.mark.chromium
TOKEN = "an-example-only-0123456789"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def opened(browser, server, path="/", **window):
    page = browser.open(f"http://127.0.0.1:{server.port}{path}", **window)
    page.wait("!document.getElementById('try').hidden")
    page.wait("document.getElementById('shell').textContent")
    return page


def answer(page):
    """Press the button and give what is answered."""
    page.run("delete document.getElementById('answer').dataset.state")
    page.click("#send")
    page.wait("document.getElementById('answer').dataset.state")
    return page.text("#answer")


def content(page):
    """Give the JSON of the answer."""
    return json.loads(page.run("document.querySelector('#answer details pre').textContent"))


def figures(page):
    titles = page.run("[...document.querySelectorAll('#figures > div')].map((tile) => tile.innerText.split('\\n'))")
    return {title: rest for title, *rest in titles}


def at_rest(page, server):
    assert page.complaints() == []
    asked = {url.removeprefix(f"http://127.0.0.1:{server.port}") for url in page.asked() if not url.startswith("blob:")}
    assert asked <= {"/", "/metrics", "/predict"}, "nothing comes from elsewhere"


def test_an_example_is_filled_in_asked_answered_and_counted(browser, tmp_path):
    with Server(scaled(tmp_path, 3)) as server:
        page = opened(browser, server)
        page.type("#fields input[type=number]", "2.5")
        assert "7.5" in answer(page)
        assert content(page)["outputs"] == {"y": [[7.5]]}
        page.wait("document.querySelector('#figures strong').textContent === '1'")
        page.type("#fields input[type=number]", "")
        assert "x 1 is no number" in answer(page)
        for _ in range(3):
            server.predict({"instances": [[1, 2]]})
        page.wait("document.querySelector('#figures strong').textContent === '4'")
        told = figures(page)
        assert told["Errors"] == ["3", "75 % of all"]
        assert told["Rows in a run"] == ["1", "in 1 run"]
        assert told["Half within"][0].endswith("ms")
        assert told["Waiting"][0] == "0"
        at_rest(page, server)


def test_the_command_for_a_shell_does_the_same(browser, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    with Server(pair(tmp_path)) as server:
        page = opened(browser, server)
        page.type(".sizes label:nth-of-type(2) input", "6")
        page.run("document.querySelector('.sizes label:nth-of-type(2) input').blur()")
        page.wait("document.querySelectorAll('#fields input[type=checkbox]').length === 6")
        page.click("#fields input[type=checkbox]")
        answer(page)
        command = page.run("document.getElementById('shell').textContent")
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=30)
        assert json.loads(done.stdout) == content(page)
        assert content(page)["outputs"] == {"total": [20.0], "largest": [6]}


def test_whole_numbers_beyond_a_scripts_precision_arrive(browser, tmp_path):
    model = write_model(
        tmp_path, [helper.make_node("Identity", ["x"], ["y"])], {"x": (["n"], "int64")}, {"y": (["n"], "int64")}
    )
    with Server(model, log_requests=1) as server:
        page = opened(browser, server)
        page.type("#fields input[type=number]", "9007199254740993")
        assert "9007199254740993" in page.run("document.getElementById('shell').textContent")
        answer(page)
        page.type("#fields input[type=number]", "1.5")
        assert "is no whole number" in answer(page)


def test_what_the_server_refuses_is_told_in_its_words(browser, tmp_path):
    with Server(table(tmp_path)) as server:
        page = opened(browser, server)
        page.type("#fields input[type=number]", "50")
        assert "400: the model refuses these values" in answer(page)


def test_a_large_tensor_is_filled_and_sent(browser, tmp_path):
    for number, (sizes, kind) in enumerate([((40, 40), "textarea"), ((3, 64, 64), "select")]):
        shape = ["batch", *sizes]
        model = write_model(
            tmp_path / str(number),
            [helper.make_node("ReduceMax", ["x"], ["y"], axes=[1, 2][: len(sizes)], keepdims=0)],
            {"x": (shape, "float32")},
            {"y": (["batch", *sizes[2:]], "float32")},
            ranges={"x": [0, 2]},
        )
        with Server(model) as server:
            page = opened(browser, server)
            assert page.run(f"document.querySelectorAll('#fields {kind}').length") == 1
            page.run(
                "(fill => { fill.selectedIndex = 2; fill.dispatchEvent(new Event('change')); })(document.querySelector('select'))"
            )
            answer(page)
            given = content(page)["outputs"]["y"][0]
            assert given == (1 if number == 0 else [1] * 64)


def test_images_are_chosen_and_texts_are_typed(browser, tmp_path):
    pictured = photos(tmp_path)
    model = seeing(tmp_path / "a")
    colours = made(
        tmp_path / "1",
        model,
        {"data": "v", "outputs": {"scores": {"softmax": True, "top": 2}}},
        v=pictures(tmp_path, model),
    )
    with Server(colours.path) as server:
        page = opened(browser, server)
        page.wait("document.querySelectorAll('.pictures img').length === 1")
        assert "scores" in answer(page), "an image is there from the start"
        blue = next(path for path in pictured if path.parent.name == "blue")
        page.choose("#fields input[type=file]", blue, pictured[-1])
        page.wait("document.querySelectorAll('.pictures img').length === 2")
        answer(page)
        assert [labels[0] for labels in content(page)["outputs"]["scores_label"]] == ["blue", pictured[-1].parent.name]
        assert "--data-binary @picture.jpg" in page.text("#shell")
        at_rest(page, server)
    model = reading(tmp_path / "b")
    with Server(made(tmp_path / "2", model, {"data": "v"}, v=sentences(tmp_path, model)).path) as server:
        page = opened(browser, server)
        page.type("#fields textarea", "good 'film' \"odd\"\nfilm")
        answer(page)
        answered = content(page)["outputs"]["ids_out"]
        assert answered == server.predict({"inputs": {"text": ["good 'film' \"odd\"\nfilm"]}})[1]["outputs"]["ids_out"]
        at_rest(page, server)


def test_a_token_is_asked_for_kept_in_the_tab_and_forgotten(browser, tmp_path):
    with Server(scaled(tmp_path, 2), token=TOKEN) as server:
        page = browser.open(f"http://127.0.0.1:{server.port}/")
        page.wait("!document.getElementById('lock').hidden")
        assert page.run("document.getElementById('try').hidden")
        for wrong, told in [("not-the-token-of-it", "does not know"), ("not a tökén", "letters, digits")]:
            page.type("#token", wrong)
            page.click("#unlock button")
            page.wait(f"document.getElementById('locked').textContent.includes('{told}')")
        page.type("#token", TOKEN)
        page.click("#unlock button")
        page.wait("!document.getElementById('try').hidden")
        answer(page)
        assert '"authorization: Bearer $TOKEN"' in page.text("#shell")
        assert TOKEN not in page.run("document.documentElement.outerHTML")
        page.wait("document.querySelector('#figures strong').textContent === '1'")
        page.send("Page.reload")
        page.wait("!document.getElementById('try').hidden")
        page.click("#forget")
        page.wait("!document.getElementById('lock').hidden")


def test_what_a_card_says_is_text_and_no_markup(browser, tmp_path):
    folder = linear(tmp_path)
    card = {
        "name": HOSTILE,
        "version": HOSTILE,
        "description": HOSTILE,
        "metrics": {HOSTILE: HOSTILE, "accuracy": 0.98},
        "list": [{"a": HOSTILE}],
    }
    (folder / "card.json").write_text(json.dumps(card))
    with Server(folder) as server:
        page = opened(browser, server)
        assert page.text("#name") == HOSTILE
        assert page.text("body").count("onerror=alert(1)") >= 5
        assert page.run("document.querySelectorAll('img, #facts script').length") == 0
        at_rest(page, server)


def test_several_models_are_a_list_of_links(browser, tmp_path):
    scaled(tmp_path / "scale" / "1", 1)
    scaled(tmp_path / "scale" / "2", 2)
    linear(tmp_path / "linear")
    with Server(tmp_path) as server:
        page = browser.open(f"http://127.0.0.1:{server.port}/")
        page.wait("document.querySelectorAll('#models a').length === 3")
        page.click("#models a[href='/card/scale/1']")
        page.wait("location.pathname === '/card/scale/1' && document.getElementById('shell')?.textContent")
        page.type("#fields input[type=number]", "4")
        answer(page)
        assert content(page) == {"outputs": {"y": [[4.0]]}, "model_name": "scale", "model_version": "1"}


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False), (320, True)])
def test_the_page_fits_its_window_by_day_and_night(browser, tmp_path, width, dark):
    with Server(linear(tmp_path / "model")) as server:
        page = opened(browser, server, width=width, dark=dark)
        answer(page)
        assert page.run("document.documentElement.scrollWidth") <= width, "nobody scrolls sideways"
        small = page.run(
            "[...document.querySelectorAll('button, #fields input')].filter((each) => each.offsetParent && each.offsetHeight < 32).length"
        )
        assert small == 0, "fingers find what is pressed"
        with Image.open(page.picture(tmp_path / "page.png")) as picture:
            colours = picture.convert("RGB").getcolors(picture.width * picture.height)
            corner = sum(picture.convert("RGB").getpixel((2, 2)))
        assert len(colours) > 50, "letters are drawn in many shades"
        assert (corner < 120) == dark
