"""From a finished model to the files that platforms deploy it by: text, made from facts alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from modelpack.deploy import access
from modelpack.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelpack.deploy.facts import Facts, Files, Wish

TARGETS = {
    "kubernetes": "Deployment, Service, autoscaler, network policy, monitoring.",
    "kserve": "InferenceService, and the ServingRuntime that it names.",
    "compose": "The image with Prometheus and Grafana, for one machine.",
    "triton": "A model repository for Triton Inference Server; needs no image.",
    "sagemaker": "Model, endpoint configuration and endpoint; --apply makes them.",
    "vertex": "Model and deployment for Vertex AI's endpoints.",
    "azureml": "Managed online endpoint and its deployment.",
    "cloudrun": "A Cloud Run service.",
    "ci": "GitHub Actions, GitLab CI and Jenkins that push the image.",
}
"""What each target writes, by name; one module of this package each."""
_ONLY = dict.fromkeys(("--apply", "--rollback", "--delete", "--role", "--wait"), "sagemaker") | {"--recipe": "ci"}
"""Options that one target alone understands."""


def checked(target: str, wish: Wish) -> str:
    """Give a target's name back.

    Raises:
        UsageError: When there is no such target, or it has no place for the secrets that are wished.
    """
    if target not in TARGETS:
        raise UsageError(f"no target is called '{target}'", then=did_you_mean(target, TARGETS))
    access.check(target, wish)
    return target


def fitting(target: str, options: Iterable[str]) -> None:
    """Refuse options that a target would not look at.

    Raises:
        UsageError: Naming the first.
    """
    for option in options:
        then = f"leave {option} out for {target}"
        if _ONLY.get(option, target) != target:
            raise UsageError(f"this is for {_ONLY[option]}", where=option, then=then)
        if (target, option) == ("triton", "--image"):
            raise UsageError("Triton runs the model in an image of its own", where=option, then=then)


def render(target: str, facts: Facts, wish: Wish) -> Files:
    """Give a target's files: name → text, or the file that is copied there. The same facts give the same bytes.

    Raises:
        UsageError: When there is no such target, or it needs something that is not told.
    """
    files: Files = importlib.import_module(f"modelpack.deploy.{checked(target, wish)}").files(facts, wish)
    return files
