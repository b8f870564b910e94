"""Who the user is to a registry, as `docker login` keeps it (Docker CLI configuration, credential helper protocol)."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_HUB = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_PATIENCE = 60.0
"""Seconds that a credential helper may take; some ask a cloud, or the user."""


@dataclass(frozen=True)
class Login:
    """What proves who the user is: a name with a password, or a token to buy others with; nothing for a stranger."""

    username: str = ""
    password: str = ""
    token: str = ""

    @property
    def basic(self) -> str:
        """The header's value for basic authentication (RFC 7617, in UTF-8)."""
        return f"Basic {base64.b64encode(f'{self.username}:{self.password}'.encode()).decode()}"


def find(registry: str) -> Login:
    """Find what `docker login` stored for a registry, credential helpers asked first; a stranger when nothing.

    Args:
        registry: Host and port, ``docker.io`` for Docker Hub.

    Raises:
        MissingError: When the configuration cannot be read, or a credential helper is missing or fails.
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser()) / "config.json"
    config = _config(path)
    names = _HUB if registry in _HUB else (registry,)
    helpers = _table(config, "credHelpers", path)
    helper = next((helpers[name] for name in names if name in helpers), config.get("credsStore"))
    if helper:
        found = _ask(helper, names[0], path)
        if found is not None:
            return found
    stored = {_host(name): entry for name, entry in _table(config, "auths", path).items()}
    entry = next((stored[name] for name in map(_host, names) if name in stored), None)
    return Login() if entry is None else _stored(entry, registry, path)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise _damaged(path, "is not a JSON object")
    return config


def _damaged(path: Path, what: str) -> MissingError:
    return MissingError(f"docker's configuration {what}", where=str(path), then="correct it, or `docker login` again")


def _table(config: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise _damaged(path, f"has a '{key}' that is no JSON object")
    return value


def _host(name: str) -> str:
    """Reduce a key to its host: older versions wrote whole addresses.

    >>> _host("https://example.org:5000/v2/")
    'example.org:5000'
    """
    return re.sub(r"^https?://", "", name).partition("/")[0]


def _stored(entry: Any, registry: str, path: Path) -> Login:
    """Read what is stored in the file itself: ``auth`` is the name and password in base64."""
    values = entry if isinstance(entry, dict) else {}
    username, password = str(values.get("username", "")), str(values.get("password", ""))
    if values.get("auth"):
        try:
            text = base64.b64decode(str(values["auth"]), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise _damaged(path, f"has an unreadable 'auth' for {registry}") from error
        username, _, password = text.rstrip("\0").partition(":")
    return Login(username, password, str(values.get("identitytoken", "")))


def _ask(helper: Any, server: str, path: Path) -> Login | None:
    """Run ``docker-credential-NAME get``; None where it knows nobody."""
    if not isinstance(helper, str) or not _HELPER.fullmatch(helper):
        raise _damaged(path, f"names a credential helper {helper!r:.60}")
    program = f"docker-credential-{helper}"
    where = f"{program} for {server}"
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=_PATIENCE, check=False
        )
    except FileNotFoundError as error:
        then = f"install {program}, or correct {path}"
        raise MissingError("the credential helper is not installed", where=where, then=then) from error
    except subprocess.TimeoutExpired as error:
        raise MissingError(f"the credential helper is silent for {_PATIENCE:g} seconds", where=where) from error
    except OSError as error:
        raise MissingError(f"the credential helper cannot run: {error.strerror}", where=where) from error
    if done.returncode != 0:
        told = _last_line((done.stdout, done.stderr))
        if "not found" in told:
            return None
        raise MissingError(f"the credential helper fails: {told or f'code {done.returncode}'}", where=where)
    try:
        answer = json.loads(done.stdout)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MissingError("the credential helper answers something else than credentials", where=where) from error
    return Login(token=str(secret)) if username == "<token>" else Login(str(username), str(secret))


def _last_line(streams: Iterable[bytes]) -> str:
    lines = [line for stream in streams for line in stream.decode(errors="replace").split("\n") if line.strip()]
    return lines[-1].strip()[:200] if lines else ""
