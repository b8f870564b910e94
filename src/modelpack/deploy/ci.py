"""Pipelines: check the recipe, run it, compare the store with its hashes, push the image."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from modelpack import __version__
from modelpack.deploy.documents import said, to_yaml
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from modelpack.deploy.facts import Facts, Files, Wish

PYTHON = "3.11"
_INSTALL = (
    f'python -m pip install "modelpack[cpu]=={__version__}" --extra-index-url https://download.pytorch.org/whl/cpu'
)
_INSTALL_WHY = "PyTorch's own index has a build without gigabytes of CUDA. Add the extras that the recipe's data need."
_LOGIN = """\
export DOCKER_CONFIG="$(mktemp -d)"
auth="$(printf '%s:%s' "$REGISTRY_USER" "$REGISTRY_PASSWORD" | base64 -w0)"
printf '{"auths": {"%s": {"auth": "%s"}}}' "$REGISTRY" "$auth" > "$DOCKER_CONFIG/config.json"
"""
_LOGIN_WHY = "Only from the main branch. The file is what `docker login` would write; modelpack needs no Docker."
_HUB = "https://index.docker.io/v1/"
"""What Docker Hub is called where credentials are kept."""
_PURPOSE = "On every change: is the model still small, fast and right? On main: push its image."
_STORE_WHY = "The store: what was computed once, for the same recipe, data and code, is not computed again."


def files(facts: Facts, wish: Wish) -> Files:
    """Give a pipeline for each of three systems.

    Raises:
        UsageError: For a model that no recipe made.
    """
    if not facts.recipe:
        raise UsageError("a pipeline runs a recipe, and none made this model", then="name a run of a recipe")
    recipe = shlex.quote(wish.recipe or f"{facts.recipe}.yaml")
    return {
        ".github/workflows/modelpack.yml": _github(facts, recipe),
        ".gitlab-ci.yml": _gitlab(facts, recipe),
        "Jenkinsfile": _jenkins(facts, recipe),
    }


def _steps(facts: Facts, recipe: str) -> list[str]:
    """Give the commands that tell whether a change is good."""
    return [
        f"modelpack check {recipe}",
        f"modelpack compress {recipe}",
        f"modelpack report {facts.recipe} --output report.html",
        f"modelpack verify {facts.recipe}",
    ]


def _push(facts: Facts, recipe: str, reference: str) -> str:
    """Give the command that pushes: the recipe's own step where it has one, else with settings of the command."""
    if facts.builds:
        return f'modelpack compress {recipe} --set stages.{facts.builds}.push="{reference}"'
    return f'modelpack build {facts.recipe} --push "{reference}"'


def _github(facts: Facts, recipe: str) -> str:
    steps = [
        {"uses": "actions/checkout@v4"},
        {"uses": "actions/setup-python@v5", "with": {"python-version": PYTHON}},
        said(
            _STORE_WHY,
            {
                "uses": "actions/cache@v4",
                "with": {
                    "path": ".modelpack",
                    "key": "modelpack-${{ github.sha }}",
                    "restore-keys": "modelpack-",
                },
            },
        ),
        said(_INSTALL_WHY, {"run": _INSTALL}),
        *({"run": step} for step in _steps(facts, recipe)),
        {"uses": "actions/upload-artifact@v4", "with": {"name": "report", "path": "report.html"}},
        said(_LOGIN_WHY, _github_push(facts, recipe)),
    ]
    job = {
        "runs-on": "ubuntu-24.04",
        "timeout-minutes": 180,
        "env": {"IMAGE": _reference(facts, "ghcr.io/${{ github.repository }}")},
        "steps": steps,
    }
    document = {
        "name": "modelpack",
        "on": {"push": {"branches": ["main"]}, "pull_request": {}},
        "permissions": said(
            "The token may read the code and push images, and nothing else.", {"contents": "read", "packages": "write"}
        ),
        "concurrency": {"group": "modelpack-${{ github.ref }}", "cancel-in-progress": True},
        "jobs": {"model": job},
    }
    return to_yaml(_PURPOSE, document)


def _github_push(facts: Facts, recipe: str) -> dict[str, Any]:
    registry = _registry(facts)
    user, password = "${{ vars.REGISTRY_USER }}", "${{ secrets.REGISTRY_PASSWORD }}"
    if not registry:
        registry, user, password = "ghcr.io", "${{ github.actor }}", "${{ secrets.GITHUB_TOKEN }}"
    # A repository's name may have capitals, an image's may not.
    push = _push(facts, recipe, "${IMAGE,,}:$GITHUB_SHA")
    return {
        "if": "github.ref == 'refs/heads/main'",
        "shell": "bash",
        "env": {"REGISTRY": registry, "REGISTRY_USER": user, "REGISTRY_PASSWORD": password},
        "run": f"{_LOGIN}{push}\n",
    }


def _gitlab(facts: Facts, recipe: str) -> str:
    push = _push(facts, recipe, "$IMAGE:$CI_COMMIT_SHA")
    registry: dict[str, Any] = {
        "REGISTRY": "$CI_REGISTRY",
        "REGISTRY_USER": "$CI_REGISTRY_USER",
        "REGISTRY_PASSWORD": "$CI_REGISTRY_PASSWORD",
    }
    if named := _registry(facts):
        why = "REGISTRY_USER and REGISTRY_PASSWORD belong into the project's settings, masked."
        registry = {"REGISTRY": said(why, named)}
    job = {
        "image": f"python:{PYTHON}",
        "timeout": "3 hours",
        "variables": {"IMAGE": _reference(facts, "$CI_REGISTRY_IMAGE"), **registry},
        "cache": said(_STORE_WHY, {"key": "modelpack", "paths": [".modelpack"]}),
        "script": [
            said(_INSTALL_WHY, _INSTALL),
            *_steps(facts, recipe),
            said(
                _LOGIN_WHY,
                f'if [ "$CI_COMMIT_BRANCH" = "$CI_DEFAULT_BRANCH" ]; then\n{_deeper(_LOGIN + push)}\nfi\n',
            ),
        ],
        "artifacts": {"when": "always", "paths": ["report.html"], "expire_in": "30 days"},
    }
    return to_yaml(_PURPOSE, {"model": job})


def _reference(facts: Facts, usual: str) -> str:
    """Give the repository of images: the one that the user named, without tag and digest, or the platform's own."""
    if facts.image is None or facts.image.local:
        return usual
    name = facts.image.name
    return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name


def _registry(facts: Facts) -> str:
    """Give the registry that the user named, as credentials are kept for it; empty for the platform's own."""
    if facts.image is None or facts.image.local:
        return ""
    return facts.image.registry or _HUB


def _deeper(text: str, by: int = 2) -> str:
    return "\n".join(f"{' ' * by}{line}" for line in text.splitlines())


def _jenkins(facts: Facts, recipe: str) -> str:
    push = _push(facts, recipe, "$IMAGE:$GIT_COMMIT")
    text = _JENKINS
    for key, value in {
        "PYTHON": PYTHON,
        "REGISTRY": _registry(facts) or "registry.example.com",
        "IMAGE": _reference(facts, f"registry.example.com/{facts.recipe}"),
        "INSTALL_WHY": _INSTALL_WHY,
        "LOGIN_WHY": _LOGIN_WHY,
        "INSTALL": _shell([_INSTALL], 16),
        "STEPS": _shell(_steps(facts, recipe), 16),
        "PUSH": _shell([*_LOGIN.splitlines(), push], 20),
    }.items():
        text = text.replace(f"<{key}>", value)
    return text


def _shell(lines: list[str], by: int) -> str:
    r"""Write a shell step; Groovy reads a backslash in ''' as the beginning of an escape."""
    escaped = [line.replace("\\", "\\\\").replace("'''", "\\'\\'\\'") for line in ["set -eu", *lines]]
    return f"sh '''\n{_deeper(chr(10).join(escaped), by + 4)}\n{' ' * by}'''"


_JENKINS = """\
// On every change: is the model still small, fast and right? On main: push its image.
// It needs the Docker Pipeline plugin, and credentials called `registry`: a user name and a password.
pipeline {
    agent { docker { image 'python:<PYTHON>'; args '--env HOME=/tmp' } }
    options { timeout(time: 3, unit: 'HOURS'); disableConcurrentBuilds() }
    environment {
        REGISTRY = '<REGISTRY>'
        IMAGE = '<IMAGE>'
    }
    stages {
        stage('install') {
            steps {
                // <INSTALL_WHY>
                <INSTALL>
            }
        }
        stage('model') {
            steps {
                // The store stays in the workspace: what was computed once is not computed again.
                <STEPS>
            }
        }
        stage('push') {
            when { branch 'main' }
            steps {
                // <LOGIN_WHY>
                withCredentials([usernamePassword(credentialsId: 'registry',
                                 usernameVariable: 'REGISTRY_USER', passwordVariable: 'REGISTRY_PASSWORD')]) {
                    <PUSH>
                }
            }
        }
    }
    post {
        always { archiveArtifacts artifacts: 'report.html', allowEmptyArchive: true }
    }
}
"""
