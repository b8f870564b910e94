"""The commands in docs/serving.md work as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from certificates import Authority
from interfaces import made, photos, pictures, reading, seeing, sentences
from serving import Server, linear, scaled

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text("utf-8")


def _with_interfaces(folder):
    """Add a model of images and one of texts, and leave two pictures beside them."""
    for path in photos(folder)[:2]:
        shutil.copy(path, folder / f"picture{path.suffix}")
    model = seeing(folder / "a")
    outputs = {"scores": {"softmax": True, "top": 2}}
    colours = made(folder / "1", model, {"data": "v", "outputs": outputs}, v=pictures(folder, model))
    model = reading(folder / "b")
    reviews = made(folder / "2", model, {"data": "v"}, v=sentences(folder, model))
    shutil.copytree(colours.path, folder / "models" / "colours")
    shutil.copytree(reviews.path, folder / "models" / "reviews")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_command_of_the_page_succeeds(tmp_path):
    scaled(tmp_path / "models" / "scale" / "1", 1)
    scaled(tmp_path / "models" / "scale" / "2", 2)
    linear(tmp_path / "models" / "linear")
    _with_interfaces(tmp_path)
    commands = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL))
    assert commands.count("curl ") == 51
    ours = Authority(tmp_path)
    host, client = ours.issue("host"), ours.issue("client")
    shutil.copy(ours.path, tmp_path / "ca.pem")
    client.install(tmp_path / "client.pem", tmp_path / "client.key")
    tls = {"tls_cert": host.path, "tls_key": host.key, "tls_client_ca": ours.path}
    routes = {"predict_route": "/v1/endpoints/7/deployedModels/8:predict", "health_route": "/health"}
    with (
        Server(tmp_path / "models", allow_loading=1, grpc_port=0) as server,
        Server(tmp_path / "models" / "scale" / "2", **routes) as image,
        Server(tmp_path / "models" / "scale" / "2", token="an-example-only-0123456789") as guarded,
        Server(tmp_path / "models" / "scale" / "2", **tls) as secured,
    ):
        script = commands.replace("curl ", "curl --fail-with-body --silent --show-error ")
        script = script.replace("localhost:8080", f"127.0.0.1:{server.port}")
        script = script.replace("localhost:8081", f"127.0.0.1:{image.port}")
        script = script.replace("localhost:8082", f"127.0.0.1:{guarded.port}")
        script = script.replace("localhost:8443", f"127.0.0.1:{secured.port}")
        script = script.replace("localhost:9000", re.search(r"gRPC on (\S+:\d+)", "".join(server.log))[1])
        script = script.replace('"url": "/models/', f'"url": "{tmp_path}/models/')
        environment = os.environ | {"no_proxy": "*", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"predictions":[[2.0],[5.0]]' in done.stdout
    assert '"outputs":{"y":[[1.0],[2.5]]}' in done.stdout
    assert done.stdout.count('{"predictions":[[2.0],[5.0]]}') == 5
    assert done.stdout.count('{"ready":true}') == 3
    assert done.stdout.count('"scores_label":["blue",') == 3
    assert done.stdout.count("[2,4,6,3]") == 2
    assert "2.0\n5.0\n" in done.stdout
    assert "[[2.]\n [5.]]\n" in done.stdout
    assert "[2.0]\n[5.0]\n" in done.stdout
    assert '"status":"succeeded","output":[[2.0],[5.0]]' in done.stdout
    assert (tmp_path / "answer.npy").read_bytes()[:6] == b"\x93NUMPY"
    assert (tmp_path / "answer.bin").read_bytes().endswith(b"\0\0\0\x40")
    assert '{"model_name":"scale","model_version":"1"}' in done.stdout
