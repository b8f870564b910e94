"""Who may ask the servers: tokens, TLS, and authorities for clients' certificates, from secrets that a platform keeps.

Nothing secret is written: the files name what the platform holds, and commands say how to put it there.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack.deploy import serving
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.deploy.facts import Wish

FOLDER = "/run/secrets"
TOKENS, CHAIN, KEY, AUTHORITIES = "tokens", "tls.crt", "tls.key", "ca.crt"
"""What a secret calls its parts; the last three as Kubernetes' own secrets for TLS do."""
OPEN_WHY = (
    "Prometheus shows no token and no certificate: figures are for whoever reaches the port, so open no way to "
    f"{serving.METRICS} from outside."
)
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_CLUSTER = ("kubernetes", "kserve")
_NO_TOKENS = {
    "triton": "Triton knows no tokens: a proxy before it may",
    "sagemaker": "SageMaker itself checks who asks (IAM), before the container",
    "vertex": "Vertex AI itself checks who asks (IAM), before the container",
    "azureml": "Azure ML itself checks who asks, by the endpoint's keys (`auth_mode`)",
    "ci": "pipelines serve nothing",
}
_NO_TLS = {
    "kserve": "KServe's gateway ends TLS, and reaches the servers by plain HTTP",
    "triton": "Triton has options of its own for TLS, and reads no settings of modelpack",
    "sagemaker": "SageMaker itself ends TLS, and reaches the container by plain HTTP",
    "vertex": "Vertex AI itself ends TLS, and reaches the container by plain HTTP",
    "azureml": "Azure ML itself ends TLS, and reaches the container by plain HTTP",
    "cloudrun": "Cloud Run itself ends TLS, and reaches the container by plain HTTP",
    "ci": "pipelines serve nothing",
}


@dataclass(frozen=True)
class Mount:
    """A secret in the server's container.

    Attributes:
        name: What it is for.
        secret: What the platform calls it.
        files: Variable of the server → part of the secret that it names.
    """

    name: str
    secret: str
    files: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Where the server finds its parts."""
        return f"{FOLDER}/{self.name}"

    def path(self, part: str) -> str:
        """Where the server finds one part."""
        return f"{self.folder}/{part}"


def mounts(wish: Wish) -> list[Mount]:
    """Give what the server's container needs of what was wished."""
    every = [
        Mount("tokens", wish.tokens, {"MODELPACK_TOKEN_FILE": TOKENS}),
        Mount("tls", wish.tls, {"MODELPACK_TLS_CERT": CHAIN, "MODELPACK_TLS_KEY": KEY}),
        Mount("clients", wish.clients, {"MODELPACK_TLS_CLIENT_CA": AUTHORITIES}),
    ]
    return [mount for mount in every if mount.secret]


def environment(wish: Wish) -> dict[str, str]:
    """Give the variables that name those files."""
    return {variable: mount.path(part) for mount in mounts(wish) for variable, part in mount.files.items()}


def opened(wish: Wish) -> dict[str, str]:
    """Give the variable that lets Prometheus in where clients must prove themselves."""
    return {"MODELPACK_OPEN_METRICS": "1"} if wish.tokens or wish.clients else {}


def scheme(wish: Wish) -> str:
    """Say how the server is spoken with."""
    return "https" if wish.tls else "http"


def check(target: str, wish: Wish) -> None:
    """Refuse what a target has no place for.

    Raises:
        UsageError: For a secret that the target cannot give to the server, or one that cannot be called so.
    """
    options = {
        "--token-secret": (wish.tokens, _NO_TOKENS),
        "--tls-secret": (wish.tls, _NO_TLS),
        "--client-ca-secret": (wish.clients, _NO_TLS),
    }
    for option, (name, refusals) in options.items():
        if name and target in refusals:
            raise UsageError(refusals[target], where=option, then=f"leave {option} out for {target}")
        if name and not _NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' is no name of a secret", where=option, then="write small letters, digits, hyphens and dots"
            )
    if wish.clients and not wish.tls:
        raise UsageError("clients show certificates by TLS alone", where="--client-ca-secret", then="add --tls-secret")
    if "." in wish.tokens and target == "cloudrun":
        raise UsageError(f"Secret Manager takes no dot: '{wish.tokens}'", where="--token-secret", then="write a hyphen")


def commands(target: str, wish: Wish, directory: str) -> list[str]:
    """Give the commands that make the secrets, from files in the current directory that are called as the parts are.

    Args:
        target: Where to.
        wish: What the user wants.
        directory: Where the target's files are.
    """
    parts: dict[str, list[str]] = {}
    for mount in mounts(wish):
        parts.setdefault(mount.secret, []).extend(mount.files.values())
    if target == "compose":
        return _installed(parts, directory)
    by_name = _kubectl if target in _CLUSTER else _gcloud
    return [line for secret, found in parts.items() for line in by_name(secret, found)]


_DRAWN = "openssl rand -hex 32"
"""Draws a token."""


def _gcloud(secret: str, _: list[str]) -> list[str]:
    """Make a secret of Google's Secret Manager, and let the service's account read it."""
    role = "--role=roles/secretmanager.secretAccessor --member=serviceAccount:ACCOUNT"
    return [
        f"{_DRAWN} | gcloud secrets create {secret} --data-file=-",
        f"gcloud secrets add-iam-policy-binding {secret} {role}",
    ]


def _kubectl(secret: str, parts: list[str]) -> list[str]:
    """Make a Secret of the cluster's."""
    drawn = f"{_DRAWN} | " if TOKENS in parts else ""
    kind = " --type=kubernetes.io/tls" if CHAIN in parts else ""
    sources = "".join(f" --from-file={part}{'=/dev/stdin' if part == TOKENS else ''}" for part in parts)
    return [f"{drawn}kubectl create secret generic {secret}{kind}{sources} --namespace NAMESPACE"]


def _installed(parts: Mapping[str, list[str]], directory: str) -> list[str]:
    """Nobody else of the machine may enter the directory; the files are open to the container's own user."""
    root = f"{directory}/secrets"
    lines = [f"install -d -m 700 {shlex.quote(root)}"] if parts else []
    for secret, found in parts.items():
        place, file = shlex.quote(f"{root}/{secret}"), shlex.quote(f"{root}/{secret}/{TOKENS}")
        lines.append(f"install -d -m 755 {place}")
        if TOKENS in found:
            lines.append(f"{_DRAWN} > {file} && chmod 644 {file}")
        if given := [part for part in found if part != TOKENS]:
            lines.append(f"install -m 644 {' '.join(given)} {place}")
    return lines
