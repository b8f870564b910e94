"""The image in a real engine: loaded under the id that was foretold, run sealed, compared with onnxruntime."""

import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from certificates import Authority
from deploying import belongings, docker_run, installed, read, seen_by_prometheus
from image_support import debian, dockerd, free_port, onnx_artifact, registry
from modelpack import deploy
from modelpack.container import build as container
from modelpack.container import engine, plan
from modelpack.container import registry as registries
from modelpack.container.base import open_base
from modelpack.container.deliver import deliver
from modelpack.container.proof.examine import examine
from modelpack.container.reference import BaseRef
from modelpack.deploy.facts import Wish, facts
from modelpack.deploy.facts import image as described
from modelpack.errors import StageError, UsageError
from modelpack.stages.build import build
from serving import wait_for
from support import run_stage

__all__ = ["debian", "dockerd", "registry"]
pytestmark = [pytest.mark.docker, pytest.mark.mmdebstrap]

SEALED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=12345", "--network=host"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, dockerd, debian):
    """A directory with a base and an artifact; the engine's address and a cache of the module's own in the environment."""
    root = tmp_path_factory.mktemp("docker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", dockerd)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        (root / "base.tar").hardlink_to(debian)
        shutil.copytree(plan.SERVER_SOURCES, root / "server")  # so that editing it meanwhile does not matter
        patch.setattr(plan, "SERVER_SOURCES", root / "server")
        yield root


@pytest.fixture(scope="module")
def model(place):
    return onnx_artifact(place)


@pytest.fixture(scope="module")
def written(place, model):
    """The image by the oci builder, loaded."""
    image = run_stage(place / "oci", build, {"base": "rootfs:base.tar", "tag": "small:oci"}, model=model, base=place)
    loaded = engine.load(image.file("image.tar"))
    return image, loaded


@pytest.fixture(scope="module")
def built(place, model):
    """The image by the docker builder."""
    settings = {"base": "rootfs:base.tar", "tag": "small:docker", "builder": "docker"}
    return run_stage(place / "docker", build, settings, model=model, base=place)


def docker(*command: str) -> str:
    return subprocess.run(
        ["docker", *command], capture_output=True, text=True, check=True, env=os.environ
    ).stdout.strip()


def inspected(image: str) -> dict:
    return json.loads(docker("inspect", image))[0]


def ask(url: str, body: object = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def wait_until_ready(url: str, container_id: str) -> None:
    for _ in range(200):
        try:
            ask(f"{url}/readyz")
        except OSError:
            assert docker("inspect", "--format={{.State.Running}}", container_id) == "true", docker(
                "logs", container_id
            )
            time.sleep(0.1)
        else:
            return
    raise AssertionError(docker("logs", container_id))


def test_the_engine_gives_the_id_that_was_foretold(written):
    image, loaded = written
    assert loaded == image.read_json("image.json")["id"]
    assert engine.present("small:oci")
    assert docker("image", "inspect", "--format={{.Id}}", "small:oci") == loaded


@pytest.mark.parametrize("tag", ["small:oci", "small:docker"])
def test_sealed_it_answers_what_onnxruntime_answers(written, built, model, tag):
    port = free_port()
    running = docker("run", "--detach", *SEALED, f"--env=MODELPACK_PORT={port}", tag)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, running)
        rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        answer = ask(f"{url}/predict", {"instances": rows.tolist()})["predictions"]
        session = onnxruntime.InferenceSession(str(model.file("model.onnx")), providers=["CPUExecutionProvider"])
        (expected,) = session.run(None, {"x": rows})
        np.testing.assert_allclose(np.asarray(answer, dtype=np.float32), expected, rtol=1e-5, atol=1e-6)
        assert ask(url)["artifact"] == model.id
        python = "/usr/bin/python3.11"
        assert docker("exec", running, python, "-m", "modelpack_server", "--healthcheck")
        assert docker("exec", running, python, "-c", "import os; print(os.getuid())") == "12345"
        docker("stop", "--time=30", running)
        assert docker("inspect", "--format={{.State.ExitCode}}", running) == "0"
    finally:
        docker("rm", "--force", running)


ASK = """
import json, urllib.request
body = json.dumps({"instances": [[1, 2, 3, 4]] * 100}).encode()
request = urllib.request.Request("http://127.0.0.1:8080/predict", body, {"Content-Type": "application/json"})
for _ in range(50):
    answer = json.load(urllib.request.urlopen(request, timeout=10))
print(len(answer["predictions"]), sum(b"/sh" in open(f"/proc/{n}/cmdline", "rb").read() for n in (1,)))
"""


def test_it_serves_without_network_shell_rights_or_much_memory(written):
    page = (Path(__file__).parents[1] / "docs" / "images.md").read_text("utf-8")
    block = page.partition("## Run it sealed")[2].partition("```bash\n")[2].partition("```")[0]
    command = block.replace("\\\n", " ").replace("-p 127.0.0.1:8080:8080", "--network none")
    running = docker(*shlex.split(command.replace("digits:1.0", "small:oci"))[1:])
    python = "/usr/bin/python3.11"
    try:
        for _ in range(100):
            check = ["docker", "exec", running, python, "-m", "modelpack_server", "--healthcheck"]
            if not subprocess.run(check, capture_output=True, check=False).returncode:
                break
            time.sleep(0.1)
        assert docker("exec", running, python, "-c", ASK) == "100 0"
        peak = "print(max(int(open(f'/proc/{n}/status').read().split('VmHWM:')[1].split()[0]) for n in (1,)))"
        assert int(docker("exec", running, python, "-c", peak)) < 100_000, "kB of memory at its highest"
        docker("stop", "--time=30", running)
        state = json.loads(docker("inspect", "--format={{json .State}}", running))
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    finally:
        docker("rm", "--force", running)
    shell = subprocess.run(
        ["docker", "run", "--rm", "--network=none", "--entrypoint=/bin/sh", "small:oci", "-c", "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (shell.returncode, "no such file" in shell.stderr) == (127, True)


def test_byte_code_is_used_as_it_is(written):
    told = docker("run", "--rm", "--network=none", "--read-only", "--entrypoint=/usr/bin/python3.11", "small:oci", "-v", "-c",
                  "import numpy, uvloop, asyncio, modelpack_server.app, sys; print(sys.dont_write_bytecode)")  # fmt: skip
    assert told == "True"
    shown = subprocess.run(
        ["docker", "run", "--rm", "--network=none", "--read-only", "--entrypoint=/usr/bin/python3.11", "small:oci", "-v",
         "-c", "import numpy, uvloop, asyncio, modelpack_server.app"], capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    compiled = [line for line in shown.splitlines() if line.startswith("# code object from '/")]
    assert [line for line in compiled if ".pyc" not in line] == []
    assert len(compiled) > 100


def listing(tag: str) -> dict[str, tuple[int, str, str]]:
    """Every path of an image: mode, type and target, hash of the content."""
    made = docker("create", tag)
    try:
        data = subprocess.run(["docker", "export", made], capture_output=True, check=True).stdout
    finally:
        docker("rm", made)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {
            item.name: (item.mode, f"{item.type!r} {item.linkname}",
                        hashlib.sha256(archive.extractfile(item).read()).hexdigest() if item.isreg() else "")
            for item in archive
        }  # fmt: skip


def test_both_builders_make_the_same_image(written, built):
    ours, theirs = (inspected(tag)["Config"] for tag in ("small:oci", "small:docker"))
    for key in (
        "Entrypoint",
        "Cmd",
        "User",
        "Labels",
        "Env",
        "ExposedPorts",
        "Healthcheck",
        "StopSignal",
        "WorkingDir",
    ):
        one, two = ours.get(key), theirs.get(key)
        if key == "Labels":
            one, two = ({k: v for k, v in item.items() if not k.endswith("version")} for item in (one, two))
        assert one == two, key
    one, two = listing("small:oci"), listing("small:docker")
    different = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    assert different == {"opt/modelpack/model/card.json"}  # it holds the version, which is the tag


def test_no_container_is_left_behind_even_by_a_failed_step(place, built, model, tmp_path):
    from modelpack.container import dockerfile

    before = docker("ps", "--all", "--quiet")
    text = dockerfile.template().read_text()
    assert "USER {{user}}" in text
    (tmp_path / "Mine").write_text(
        text.replace("USER {{user}}", 'RUN ["/usr/bin/python3.11", "-c", "raise SystemExit(7)"]')
    )
    settings = {"base": f"rootfs:{place / 'base.tar'}", "builder": "docker", "template": "Mine", "tag": "small:failed"}
    with pytest.raises(StageError, match="docker build failed"):
        run_stage(tmp_path, build, settings, model=model, base=tmp_path)
    assert docker("ps", "--all", "--quiet") == before
    (tmp_path / "Mine").write_text(text.replace("USER {{user}}", 'ENV MINE="yes"\nUSER {{user}}'))
    run_stage(tmp_path, build, settings, model=model, base=tmp_path)
    assert "MINE=yes" in inspected("small:failed")["Config"]["Env"]


def test_an_unknown_word_in_a_template_is_named_with_its_line(place, tmp_path):
    (tmp_path / "Mine").write_text("FROM {{base}}\nUSER {{usr}}\n")
    config = build.config.model_validate(
        {"base": f"rootfs:{place / 'base.tar'}", "builder": "docker", "template": "Mine"}, context={"base": tmp_path}
    )
    with pytest.raises(UsageError, match="usr") as caught:
        container.check(config.order("x"), tmp_path)
    assert caught.value.where == f"{tmp_path / 'Mine'}:2"
    assert caught.value.then == "did you mean 'user'?"


def test_an_image_of_the_engine_is_a_base_too(place, model, built, tmp_path):
    base = open_base(BaseRef.parse("docker-daemon:small:docker"), "linux/amd64", cache=tmp_path, scratch=tmp_path)
    assert base.python.path == "/usr/bin/python3.11"
    (tmp_path / "saved.tar").write_bytes(b"")
    engine.export("small:oci", tmp_path / "saved.tar")
    saved = open_base(
        BaseRef.parse(f"docker-archive:{tmp_path / 'saved.tar'}"), "linux/amd64", cache=tmp_path, scratch=tmp_path
    )
    assert len(saved.layers) == 4
    with pytest.raises(UsageError, match="no such image"):
        engine.export("none:1", tmp_path / "none.tar")


@pytest.mark.registry
def test_images_of_both_builders_are_pushed_and_pulled_as_bases(place, written, built, model, registry, tmp_path):
    told: list[str] = []
    deliver(written[0], None, f"{registry}/small/oci:1", told.append)
    deliver(built, tmp_path / "saved.tar", f"{registry}/small/docker:1", told.append)
    attached = "attached 2 documents to it"
    assert [line.split("@")[0] for line in told] == [
        f"pushed {registry}/small/oci:1", attached,
        f"wrote {tmp_path / 'saved.tar'}", f"pushed {registry}/small/docker:1", attached,
    ]  # fmt: skip
    for line, path in zip((told[0], told[3]), ("oci", "docker"), strict=True):
        base = open_base(
            BaseRef.parse(f"docker://{registry}/small/{path}:1"), "linux/amd64", cache=tmp_path, scratch=tmp_path
        )
        assert line.endswith(base.digest)
        assert base.python.path == "/usr/bin/python3.11"
    upon = run_stage(
        place / "upon", build, {"base": f"{registry}/small/oci:1", "tag": "upon:1"}, model=model, base=place
    )
    assert any("known by name only" in line for line in upon.manifest.record["warnings"])
    assert engine.load(upon.file("image.tar")) == upon.read_json("image.json")["id"]
    for path, image in (("oci", written[0]), ("docker", built)):
        docker("pull", f"{registry}/small/{path}:1")
        assert inspected(f"{registry}/small/{path}:1")["Id"] == image.read_json("image.json")["id"]
    assert registries.push(upon.file("image.tar"), f"{registry}/small/upon").startswith(
        f"{registry}/small/upon:latest@"
    )


def test_images_of_both_builders_prove_themselves(written, built, tmp_path):
    for image in (written[0], built):
        path = image.file("image.tar")
        report = examine(BaseRef("oci-archive", path.name, path), None, tmp_path)
        assert {row.check: row.verdict for row in report.rows if row.verdict != "ok"} == {"signature": "not checked"}


def test_an_image_that_the_engine_lost_comes_back_under_its_id(place, model):
    settings = {"base": "rootfs:base.tar", "tag": "lost:1", "builder": "docker"}
    lost = run_stage(place / "lost", build, settings, model=model, base=place)
    identity = lost.read_json("image.json")["id"]
    assert docker("image", "inspect", "--format={{.Id}}", "lost:1") == identity
    docker("rmi", "--force", identity)
    assert not engine.present("lost:1")
    told: list[str] = []
    deliver(lost, None, None, told.append)
    deliver(lost, None, None, told.append)
    assert told == ["loaded lost:1 into the Docker engine again"]
    assert docker("image", "inspect", "--format={{.Id}}", "lost:1") == identity
    layers = lost.manifest.record["results"]["image"]["layers"]
    assert [item["name"] for item in layers] == ["base", "wheels", "server", "model"]


def test_two_builds_on_a_real_base_are_the_same_bytes(place, model, written, tmp_path):
    again = run_stage(tmp_path, build, {"base": f"rootfs:{place / 'base.tar'}", "tag": "small:oci"}, model=model)
    assert again.file("image.tar").stat().st_ino != written[0].file("image.tar").stat().st_ino
    assert again.id == written[0].id
    assert Path(again.file("image.tar")).read_bytes() == written[0].file("image.tar").read_bytes()


@pytest.mark.prometheus
def test_it_runs_as_compose_says_and_is_seen_by_prometheus(written, model, tmp_path):
    files = deploy.render("compose", facts(model, "small", "oci", image=described(written[0])), Wish())
    document = read(files, "compose.yaml")
    port, image = free_port(), document["services"]["model"]["image"]
    running = docker("run", "--detach", *docker_run(document, tmp_path), f"--env=MODELPACK_PORT={port}", image)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, running)
        rows = np.zeros((4000, 4)).tolist()
        assert np.shape(ask(f"{url}/predict", {"instances": rows})["predictions"]) == (4000, 3)
        seen = seen_by_prometheus(files, tmp_path, f"127.0.0.1:{port}")
        assert seen["job"] == "small"
        docker("stop", running)
        assert docker("inspect", "--format={{.State.ExitCode}} {{.State.OOMKilled}}", running) == "0 false"
    finally:
        docker("rm", "--force", running)


def test_it_is_guarded_as_compose_says(written, model, tmp_path):
    """The image's own user, whom the engine shows the files as they are here, can read them."""
    authority = Authority(tmp_path)
    wish = Wish(tokens="theirs", tls="ours", clients="ours")
    installed(wish, belongings(authority, tmp_path), tmp_path / "compose")
    document = read(
        deploy.render("compose", facts(model, "small", "oci", image=described(written[0])), wish), "compose.yaml"
    )
    port, image = free_port(), document["services"]["model"]["image"]
    options = docker_run(document, tmp_path / "compose")
    running = docker("run", "--detach", *options, f"--env=MODELPACK_PORT={port}", image)
    try:
        check = ["docker", "exec", running, "/usr/bin/python3.11", "-m", "modelpack_server", "--healthcheck"]
        wait_for(lambda: not subprocess.run(check, capture_output=True, check=False).returncode)
        token = (tmp_path / "compose" / "secrets" / "theirs" / "tokens").read_text().strip()
        request = urllib.request.Request(
            f"https://localhost:{port}/predict",
            b'{"instances": [[1, 2, 3, 4]]}',
            {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(
            request, timeout=10, context=authority.trusted(authority.issue("client"))
        ) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=10, context=authority.trusted())
    finally:
        docker("rm", "--force", running)
