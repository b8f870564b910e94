"""Pipelines: what the systems' schemas say, what shells and Groovy read, and that the commands are modelpack's own."""

import json
import os
import re
import shlex
import subprocess
import urllib.request
from dataclasses import replace

import jsonschema
import pytest

from commands import RECIPE, Shell, install_copy, write_recipe
from deploying import FACTS, IMAGE, read, rendered, vendored
from image_support import little_wheels, registry, rootfs
from modelpack.cli.command import CONTENTS, Group
from modelpack.container import login
from modelpack.deploy.facts import Image, Wish
from modelpack.errors import UsageError

__all__ = ["little_wheels", "registry", "rootfs"]
BUILDING = replace(FACTS, builds="build")
LOCAL = replace(FACTS, image=replace(IMAGE, reference="digits:1.0", named=False))
HUB = replace(FACTS, image=Image("me/digits:1.0", named=True))
SITUATIONS = {
    "build by command": FACTS,
    "build by recipe": BUILDING,
    "no registry": LOCAL,
    "hub": HUB,
    "none": replace(FACTS, image=None),
}
GITHUB, GITLAB, JENKINS = ".github/workflows/modelpack.yml", ".gitlab-ci.yml", "Jenkinsfile"


@pytest.fixture(params=SITUATIONS)
def files(request):
    return rendered("ci", SITUATIONS[request.param], Wish(recipe="recipes/my model's.yaml"))


@pytest.mark.parametrize(("schema", "name"), [("github-workflows", GITHUB), ("gitlab-ci", GITLAB)])
def test_pipelines_are_what_the_systems_read(files, schema, name):
    document = vendored(schema)
    validator = jsonschema.validators.validator_for(document)(document)
    validator.validate(read(files, name))
    broken = read(files, name)
    (broken["jobs"]["model"] if schema == "github-workflows" else broken["model"])["stepps"] = [1]
    assert not validator.is_valid(broken)


def scripts(files) -> dict[str, str]:
    """Give each system's commands, in order, as its shell gets them."""
    github = [step["run"] for step in read(files, GITHUB)["jobs"]["model"]["steps"] if "run" in step]
    steps = re.findall(r"sh '''\n(.*?)'''", files[JENKINS], re.DOTALL)
    jenkins = [step.replace("\\'\\'\\'", "'''").replace("\\\\", "\\") for step in steps]
    found = {"github": github, "gitlab": read(files, GITLAB)["model"]["script"], "jenkins": jenkins}
    return {name: "\n".join(lines) + "\n" for name, lines in found.items()}


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_shells_read_the_scripts(files, shell):
    for name, script in scripts(files).items():
        if shell == "dash" and name == "github":
            continue  # it says `shell: bash`
        done = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), name


def test_the_commands_are_modelpacks_own(files):
    """Every command and option that a pipeline types is one that `modelpack` has."""
    names = {name for entries in CONTENTS.values() for name, _, _ in entries}
    for script in scripts(files).values():
        lines = [line.strip() for line in script.splitlines() if line.strip().startswith("modelpack ")]
        assert len(lines) >= 5
        for line in lines:
            _, command, *rest = shlex.split(line)
            assert command in names
            options = {
                option for parameter in Group(name="x").get_command(None, command).params for option in parameter.opts
            }
            assert {word for word in rest if word.startswith("--")} <= options, line
        assert any(shlex.split(line)[2] == "recipes/my model's.yaml" for line in lines)


def pushing(files, system: str, folder, **variables: str) -> tuple[list[str], dict]:
    """Run the last step of a pipeline with a program that only says how it was called."""
    program = folder / "modelpack"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\ncp "$DOCKER_CONFIG/config.json" "$SEEN"\n')
    program.chmod(0o755)
    script = scripts(files)[system]
    script = script[script.index("export DOCKER_CONFIG") :].replace("\nfi\n", "\n")
    seen = folder / "seen.json"
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SEEN": str(seen), "TMPDIR": str(folder), **variables}
    done = subprocess.run(["bash", "-euc", script], env=environment, text=True, capture_output=True, check=True)
    return done.stdout.splitlines(), json.loads(seen.read_text())


@pytest.mark.parametrize(
    ("system", "commit"), [("github", "GITHUB_SHA"), ("gitlab", "CI_COMMIT_SHA"), ("jenkins", "GIT_COMMIT")]
)
@pytest.mark.parametrize("facts", [FACTS, BUILDING])
def test_the_push_is_made_with_credentials_that_modelpack_reads(system, commit, facts, tmp_path, monkeypatch):
    known = {
        "REGISTRY": "r.example:5000",
        "REGISTRY_USER": "me",
        "REGISTRY_PASSWORD": 'p"$%s\\w',
        "IMAGE": "r.example:5000/a",
    }
    arguments, config = pushing(rendered("ci", facts), system, tmp_path, **known, **{commit: "f00"})
    if facts.builds:
        assert arguments == ["compress", "digits.yaml", "--set", "stages.build.push=r.example:5000/a:f00"]
    else:
        assert arguments == ["build", "digits", "--push", "r.example:5000/a:f00"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert login.find("r.example:5000") == login.Login("me", known["REGISTRY_PASSWORD"])


def test_images_go_where_the_user_says():
    named = rendered("ci", FACTS)
    assert read(named, GITHUB)["jobs"]["model"]["env"]["IMAGE"] == "registry.example.com/team/digits"
    assert read(named, GITLAB)["model"]["variables"]["REGISTRY"] == "registry.example.com"
    assert "IMAGE = 'registry.example.com/team/digits'" in named[JENKINS]
    own = rendered("ci", LOCAL)
    assert read(own, GITHUB)["jobs"]["model"]["env"]["IMAGE"] == "ghcr.io/${{ github.repository }}"
    assert read(own, GITLAB)["model"]["variables"]["IMAGE"] == "$CI_REGISTRY_IMAGE"
    assert read(rendered("ci", HUB), GITLAB)["model"]["variables"]["REGISTRY"] == "https://index.docker.io/v1/"


def test_only_main_pushes():
    files = rendered("ci")
    steps = read(files, GITHUB)["jobs"]["model"]["steps"]
    assert [step.get("if", "") for step in steps if "--push" in step.get("run", "")] == [
        "github.ref == 'refs/heads/main'"
    ]
    assert 'if [ "$CI_COMMIT_BRANCH" = "$CI_DEFAULT_BRANCH" ]' in read(files, GITLAB)["model"]["script"][-1]
    assert files[JENKINS].index("when { branch 'main' }") < files[JENKINS].index("--push")


def test_groovys_brackets_are_closed(files):
    text = re.sub(r"'''.*?'''|'[^'\n]*'|//[^\n]*", "", files[JENKINS], flags=re.DOTALL)
    open_ones = []
    for char in text:
        if char in "([{":
            open_ones.append(char)
        elif char in ")]}":
            assert open_ones.pop() + char in ("()", "[]", "{}")
    assert open_ones == []
    assert "<" not in text


def test_a_model_of_no_recipe_has_no_pipeline():
    with pytest.raises(UsageError, match="a pipeline runs a recipe"):
        rendered("ci", replace(FACTS, recipe=""))


@pytest.mark.registry
def test_what_a_pipeline_pushes_is_what_deploy_then_names(
    tmp_path, capsys, monkeypatch, rootfs, little_wheels, registry
):
    """Every command of a pipeline run as it stands there, and the digest that `deploy` writes asked of the registry."""
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path / "store", [install_copy(tmp_path / "copy")], capsys, monkeypatch)
    build = f"  - build: {{base: 'rootfs:{rootfs}', tag: 'tiny:1.0', platform: linux/amd64}}\n"
    write_recipe(tmp_path, RECIPE + build)
    assert shell("compress", "tiny.yaml").code == 0
    assert shell("deploy", "ci", "--output", ".", "--image", f"{registry}/team/tiny").code == 0
    files = {name: (tmp_path / name).read_text() for name in (GITHUB, GITLAB, JENKINS)}
    script = scripts(files)["gitlab"].replace("$IMAGE", f"{registry}/team/tiny").replace("$CI_COMMIT_SHA", "f00")
    for line in script.splitlines():
        if line.strip().startswith("modelpack "):
            done = shell(*shlex.split(line)[1:])
            assert done.code == 0, (line, done.err)
    assert (tmp_path / "report.html").is_file()
    told = shell("deploy", "kubernetes", "--image", f"{registry}/team/tiny:f00", "--json").json
    wanted = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    pushed = urllib.request.Request(f"http://{registry}/v2/team/tiny/manifests/f00", headers=wanted)
    with urllib.request.urlopen(pushed) as answer:
        assert told["image"] == f"{registry}/team/tiny:f00@{answer.headers['Docker-Content-Digest']}"
