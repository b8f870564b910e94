"""The model card in a real browser: drawn without a script and without another request."""

import re
import shutil
import subprocess

import pytest
from PIL import Image

from serving import Server, linear

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.mark.chromium
def test_a_browser_draws_the_model_card_and_asks_for_nothing_else(tmp_path):
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Debian's chromium")
    with Server(linear(tmp_path / "model")) as server:
        subprocess.run(
            [
                program,
                *FLAGS,
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--screenshot={tmp_path / 'card.png'}",
                "--window-size=900,900",
                f"http://127.0.0.1:{server.port}/",
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        asked = server.ask("GET", "/metrics")[2].decode()
    with Image.open(tmp_path / "card.png") as picture:
        assert picture.size == (900, 900)
        colours = picture.convert("RGB").getcolors(900 * 900)
    assert len(colours) > 20, "letters are drawn in many shades"
    assert max(count for count, _ in colours) < 0.98 * 900 * 900, "the page is not blank"
    routes = set(re.findall(r'modelpack_requests_total\{[^}]*route="([^"]+)"', asked))
    assert routes <= {"/", "/readyz", "/livez", "/metrics"}, "the page fetches nothing"
