"""The commands in docs/server.md work as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from serving import Server, linear, scaled

PAGE = (Path(__file__).parents[1] / "docs" / "server.md").read_text("utf-8")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_command_of_the_page_succeeds(tmp_path):
    scaled(tmp_path / "models" / "scale" / "1", 1)
    scaled(tmp_path / "models" / "scale" / "2", 2)
    linear(tmp_path / "models" / "linear")
    commands = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL))
    assert commands.count("curl ") == 37
    routes = {"predict_route": "/v1/endpoints/7/deployedModels/8:predict", "health_route": "/health"}
    with (
        Server(tmp_path / "models", allow_loading=1) as server,
        Server(tmp_path / "models" / "scale" / "2", **routes) as image,
    ):
        script = commands.replace("curl ", "curl --fail-with-body --silent --show-error ")
        script = script.replace("localhost:8080", f"127.0.0.1:{server.port}")
        script = script.replace("localhost:8081", f"127.0.0.1:{image.port}")
        script = script.replace('"url": "/models/', f'"url": "{tmp_path}/models/')
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=tmp_path, env=os.environ | {"no_proxy": "*"}, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"predictions":[[2.0],[5.0]]' in done.stdout
    assert '"outputs":{"y":[[1.0],[2.5]]}' in done.stdout
    assert done.stdout.count('{"predictions":[[2.0],[5.0]]}') == 5
    assert "2.0\n5.0\n" in done.stdout
    assert "[2.0]\n[5.0]\n" in done.stdout
    assert '"status":"succeeded","output":[[2.0],[5.0]]' in done.stdout
    assert (tmp_path / "answer.npy").read_bytes()[:6] == b"\x93NUMPY"
    assert (tmp_path / "answer.bin").read_bytes().endswith(b"\0\0\0\x40")
    assert done.stdout.endswith('{"model_name":"scale","model_version":"1"}')
