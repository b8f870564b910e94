"""`modelpack deploy`: from a run with its image and its figures to files, and what it says when something is missing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from commands import RECIPE, Shell, plugins, write_recipe
from deploying import DIGEST, ROLE, plant_image
from image_support import little_wheels, rootfs
from modelpack import deployment
from modelpack.artifact import Kind
from modelpack.deploy import TARGETS, facts
from modelpack.store import Store

__all__ = ["little_wheels", "plugins", "rootfs"]
BENCH = "  - bench: {rounds: 10, seconds: 0.2, batch: [1, 4]}\n"


@pytest.fixture
def shell(tmp_path, plugins, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path / "store", plugins, capsys, monkeypatch)
    assert shell("compress", write_recipe(tmp_path / "work")).code == 0
    return shell


def container(folder: Path) -> dict:
    return yaml.safe_load((folder / "deployment.yaml").read_text())["spec"]["template"]["spec"]["containers"][0]


def test_files_are_made_of_what_was_built_and_measured(tmp_path, plugins, capsys, monkeypatch, rootfs, little_wheels):
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path / "store", plugins, capsys, monkeypatch)
    text = f"{RECIPE}{BENCH}  - build: {{base: 'rootfs:{rootfs}', tag: 'mine:1.0', platform: linux/amd64}}\n"
    assert shell("compress", write_recipe(tmp_path / "work", text)).code == 0
    store = Store(shell.store)
    run = shell("show", "tiny", "--json").json
    built = store.get(next(step["artifact"] for step in run["steps"] if step["stage"] == "build"))
    told = shell("deploy", "kubernetes", "--image", "registry.example.com/a/mine:1.0", "--json")
    assert told.code == 0, told.err
    digest = built.manifest.record["results"]["image"]["digest"]
    assert told.json["image"] == f"registry.example.com/a/mine:1.0@{digest}"
    assert told.json["warnings"] == []
    found = container(tmp_path / "deploy" / "kubernetes")
    assert found["image"] == told.json["image"]
    assert found["resources"]["limits"]["cpu"] == "1"
    assert "rows a second" in (tmp_path / "deploy" / "kubernetes" / "deployment.yaml").read_text()
    gathered = deployment.gather(store, None)
    assert (gathered.name, gathered.version, gathered.builds) == ("tiny", "1.0", "build")
    assert gathered.bench is not None
    assert gathered.bench.batch in (1, 4)
    assert shell("deploy", "ci", "--recipe", "work/tiny.yaml", "-o", "ci").code == 0
    assert "--set stages.build.push=" in (tmp_path / "ci" / "Jenkinsfile").read_text()
    by_image = deployment.gather(store, built.id)
    assert replace(by_image, builds="build") == gathered


def test_the_image_of_the_command_build_is_found_by_its_model(shell):
    store = Store(shell.store)
    model = store.get(shell("show", "tiny:copy", "--json").json["id"])
    other = store.get(shell("show", "tiny:model", "--json").json["id"])
    plant_image(store, other, "other:1.0")
    plant_image(store, model, "mine:1.0")
    newest = plant_image(store, model, "mine:2.0")
    gathered = deployment.gather(store, "tiny", "registry.example.com/mine:2.0")
    assert gathered.served.reference == f"registry.example.com/mine:2.0@{DIGEST}"  # all of them are this one
    gathered = deployment.gather(store, "tiny")
    assert gathered.image == facts.image(newest)
    assert (gathered.image.reference, gathered.version) == (f"mine:2.0@{DIGEST}", "2.0")
    assert gathered.bench is None
    told = shell("deploy", "compose")
    assert told.code == 0
    assert "this model was not measured" in told.err
    assert "no registry has" not in told.err
    assert "no registry has mine:2.0" in shell("deploy", "kserve").err


def test_a_name_that_may_mean_another_image_of_the_model_is_not_guessed(shell, tmp_path):
    store = Store(shell.store)
    model = store.get(shell("show", "tiny:copy", "--json").json["id"])
    older = plant_image(store, model, "mine:1.0", digest=f"sha256:{'3c' * 32}")
    plant_image(store, model, "mine:2.0")
    pushed = "registry.example.com/mine:1.0"
    refused = shell("deploy", "kubernetes", "tiny", "--image", pushed, "-o", "out")
    assert refused.code == 2
    assert "--image: this model has 2 images, and nothing tells which of them was pushed there" in refused.err
    assert f"\n  {pushed}@{DIGEST}\n  {pushed}@sha256:{'3c' * 32}\n" in refused.err
    assert not (tmp_path / "out").exists()
    for words in (("tiny", "--image", f"{pushed}@sha256:{'3c' * 32}"), (older.id[:12], "--image", pushed)):
        told = shell("deploy", "kubernetes", *words, "-o", "out", "--json")
        assert told.json["image"] == f"{pushed}@sha256:{'3c' * 32}"
    assert shell("deploy", "compose", "tiny").code == 0
    assert shell("deploy", "ci", "tiny", "--image", pushed, "-o", "ci").code == 0
    for number in range(5):
        plant_image(store, model, f"mine:{number + 3}.0", digest=f"sha256:{str(number) * 64}")
    assert "\n  and 2 more\n" in shell("deploy", "kubernetes", "tiny", "--image", pushed).err


def test_figures_count_for_every_artifact_with_the_same_model(shell):
    """`interface` and `copy` keep the model's bytes: what was measured of one was measured of the other."""
    store = Store(shell.store)
    one, same = (shell("show", f"tiny:{step}", "--json").json["id"] for step in ("model", "copy"))
    subject = {"id": one, "name": "m", "peak_bytes": {"1": 30, "8": 50}, "runtime_bytes": 20}
    cells = [
        {"subject": "m", "batch": batch, "threads": threads, "p50_ms": 1.0, "rows_per_second": rows}
        for batch, threads, rows in ((1, 2, 10.0), (8, 2, 40.0), (8, 4, 90.0))
    ]
    bench = {"subjects": [subject], "cells": cells, "settings": {"threads": [2, 4], "device": "cpu"}, "machine": {}}
    for device in ("cpu", "cuda:0"):
        with store.draft() as draft:
            (draft.path / "bench.json").write_text(device)
            record = {
                "results": {"bench": bench | {"settings": bench["settings"] | {"device": device}}},
                "finished": device,
            }
            store.commit(draft, Kind.REPORT, {"stage": "bench", "model": one}, record)
    assert deployment.gather(store, same).bench == facts.Bench(2, 8, 1.0, 40.0, 30, "")
    with store.draft() as draft:
        (draft.path / "report").write_text("another kind of report")
        store.commit(draft, Kind.REPORT, {"stage": "evaluate"}, {"finished": "z"})
    assert deployment.gather(store, same).bench.threads == 2


def test_an_image_may_be_named_that_the_store_does_not_have(shell, tmp_path):
    result = shell("deploy", "kubernetes", "tiny", "--image", "ghcr.io/me/tiny:7", "-o", "out")
    assert result.code == 0
    assert "known by name only" in result.err
    assert container(tmp_path / "out")["image"] == "ghcr.io/me/tiny:7"
    pinned = shell("deploy", "kubernetes", "tiny", "--image", f"ghcr.io/me/tiny@{DIGEST}", "-o", "out")
    assert "known by name only" not in pinned.err
    assert "wrote" in pinned.out
    assert "as it was" in pinned.out


def test_triton_gets_the_model_without_any_image(shell, tmp_path):
    result = shell("deploy", "triton", "tiny", "-o", "models")
    assert (result.code, result.err) == (0, "")
    original = Path(shell("show", "tiny:copy", "--json").json["path"]) / "model.onnx"
    assert (tmp_path / "models" / "tiny" / "1" / "model.onnx").read_bytes() == original.read_bytes()
    assert 'name: "x"' in (tmp_path / "models" / "tiny" / "config.pbtxt").read_text()


def test_secrets_are_named_and_the_commands_that_make_them_told(shell, tmp_path):
    named = ("--image", f"ghcr.io/me/tiny@{DIGEST}", "-o", "out")
    open_to_all = shell("deploy", "kubernetes", "tiny", *named)
    assert "next" not in open_to_all.out
    guarded = ("--token-secret", "their-tokens", "--tls-secret", "our-tls", "--client-ca-secret", "our-tls")
    told = shell("deploy", "kubernetes", "tiny", *named, *guarded)
    assert told.code == 0, told.err
    assert told.out.endswith(
        "\nnext, unless these secrets are there:\n"
        "  openssl rand -hex 32 | kubectl create secret generic their-tokens --from-file=tokens=/dev/stdin"
        " --namespace NAMESPACE\n"
        "  kubectl create secret generic our-tls --type=kubernetes.io/tls --from-file=tls.crt --from-file=tls.key"
        " --from-file=ca.crt --namespace NAMESPACE\n"
    )
    assert "MODELPACK_TLS_CLIENT_CA" in {item["name"] for item in container(tmp_path / "out")["env"]}
    again = shell("deploy", "kubernetes", "tiny", *named, *guarded, "--json").json
    assert [line.split(" secret ")[1].split()[1] for line in again["next"]] == ["their-tokens", "our-tls"]


def test_the_same_run_gives_the_same_bytes(shell, tmp_path):
    plant_image(Store(shell.store), Store(shell.store).get(shell("show", "tiny:copy", "--json").json["id"]))
    for folder in ("one", "two"):
        for target in TARGETS:
            image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/tiny:1"
            given = {"sagemaker": ("--role", ROLE, "--image", image), "triton": ()}.get(target, ("--image", image))
            told = shell("deploy", target, *given, "-o", f"{folder}/{target}", "--json")
            assert told.code == 0, told.err
    one, two = ({path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
                for name in ("one", "two"))  # fmt: skip
    assert one == two
    assert len(one) > 30


def test_edited_files_stay_until_forced(shell, tmp_path):
    shell("deploy", "triton", "-o", "out")
    config = tmp_path / "out" / "tiny" / "config.pbtxt"
    config.write_text("mine")
    refused = shell("deploy", "triton", "-o", "out")
    assert refused.code == 2
    assert "--force" in refused.err
    assert config.read_text() == "mine"
    forced = shell("deploy", "triton", "-o", "out", "--force", "--json")
    assert forced.json["wrote"] == ["tiny/config.pbtxt"]
    renamed = shell("deploy", "triton", "-o", "out", "--name", "other", "--json").json
    assert renamed["removed"] == ["tiny/1/model.onnx", "tiny/config.pbtxt"]


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (("kubernets",), 2, "no target is called 'kubernets'\n  did you mean 'kubernetes'?"),
    (("kubernetes",), 2, "this model has no image yet\n  `modelpack build tiny --push REF` makes one"),
    (("kubernetes", "tny"), 2, "did you mean 'tiny'?"),
    (("kubernetes", "--image", "UPPER"), 2, "--image: 'UPPER' is no image reference"),
    (("sagemaker", "--image", "x"), 2, "SageMaker runs a model in a role of yours"),
    (("sagemaker", "--image", "x", "--role", ROLE), 2, "SageMaker pulls from Amazon ECR alone, not x"),
    (("triton", "--name", "../x"), 2, "--name: '../x' is no name"),
    (("triton", "--image", "x"), 2, "--image: Triton runs the model in an image of its own"),
    (("kubernetes", "--image", "x", "--name", "Bad Name"), 2, "a letter first\n  write bad-name"),
    (("azureml", "--image", "x", "--name", "a" * 33), 2, "is no name there: at most 32"),
    (("triton", "work/tiny.onnx"), 2, "this is a file"),
    (("triton", "-o", "work/tiny.onnx"), 2, "a directory is expected"),
    (("kubernetes", "--client-ca-secret", "x"), 2, "--client-ca-secret: clients show certificates by TLS alone"),
    (("vertex", "--tls-secret", "x"), 2, "--tls-secret: Vertex AI itself ends TLS"),
    (("sagemaker", "--delete", "--token-secret", "x"), 2, "--token-secret: SageMaker itself checks who asks (IAM)"),
    ((), 2, "Missing argument 'TARGET'"),
])  # fmt: skip
def test_mistakes_are_told(shell, arguments, code, message):
    result = shell("deploy", *arguments)
    assert (result.code, "Traceback" in result.err) == (code, False)
    assert message in result.err


def test_a_damaged_model_is_not_deployed(shell):
    path = Path(shell("show", "tiny:copy", "--json").json["path"]) / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    result = shell("deploy", "triton")
    assert result.code == 5
    assert f"{path}: changed" in result.err


def test_a_torch_model_is_no_deployment(shell, tmp_path):
    store = Store(shell.store)
    with store.draft() as draft:
        (draft.path / "weights.safetensors").write_bytes(b"x")
        torch = store.commit(draft, Kind.TORCH, {"stage": "model"}, {})
    result = shell("deploy", "triton", torch.id[:12])
    assert result.code == 2
    assert "onnx is needed here" in result.err


def test_help_lists_the_targets(shell, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = shell("deploy", "--help").out
    for name, words in TARGETS.items():
        assert f"  {name.ljust(10)}  {words}\n" in text


def test_json_tells_the_error(shell):
    told = json.loads(shell("deploy", "kubernetes", "--json").out)
    assert told["exit_code"] == 2
