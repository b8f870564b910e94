"""The Docker engine, through its SDK: loads archives, exports images."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from modelpack.errors import MissingError, StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import docker


def _knock() -> None:
    """Try a local engine's socket first: the SDK leaves its own open when nobody listens.

    Raises:
        OSError: When nobody does.
    """
    place = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if place.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(place.removeprefix("unix://"))


@contextlib.contextmanager
def engine() -> Iterator[docker.DockerClient]:
    """Connect to the engine that DOCKER_HOST names, or to the local one.

    Raises:
        MissingError: When none answers.
        StageError: When it fails at what it is asked.
    """
    import docker
    import docker.errors
    import requests

    try:
        _knock()
        client = docker.from_env(timeout=600)
        client.ping()
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise MissingError(
            f"no Docker engine answers: {error}",
            then="start Docker, set DOCKER_HOST, or use --builder oci, which needs none",
        ) from error
    with contextlib.closing(client):
        try:
            yield client
        except docker.errors.BuildError as error:
            lines = [str(item.get("stream", "")).strip() for item in error.build_log if isinstance(item, dict)]
            tail = "\n  ".join(line for line in lines[-8:] if line)
            raise StageError(f"docker build failed: {error.msg}", then=tail) from error
        except docker.errors.APIError as error:
            raise StageError(f"the Docker engine refused: {error.explanation or error}") from error
        except requests.RequestException as error:
            raise MissingError(f"the Docker engine stopped answering: {error}") from error


def ready() -> None:
    """Check that an engine answers.

    Raises:
        MissingError: When none does.
    """
    with engine():
        pass


def present(image: str) -> bool:
    """Tell whether the engine has an image, by id or name.

    Raises:
        MissingError: When no engine answers.
    """
    import docker.errors

    with engine() as client:
        try:
            client.images.get(image)
        except docker.errors.ImageNotFound:
            return False
        return True


def export(name: str, path: Path) -> None:
    """Write an image of the engine into a docker archive.

    Raises:
        MissingError: When no engine answers.
        UsageError: When it has no such image.
    """
    if not present(name):
        raise UsageError(
            "the Docker engine has no such image", where=f"docker-daemon:{name}", then=f"docker pull {name}"
        )
    with engine() as client, path.open("wb") as stream:
        for piece in client.images.get(name).save():
            stream.write(piece)


def load(archive: Path) -> str:
    """Load an archive; gives the id that the engine shows.

    Raises:
        MissingError: When no engine answers.
        StageError: When it refuses the archive.
    """
    with engine() as client, archive.open("rb") as stream:
        images = client.images.load(stream)
    if len(images) != 1:
        raise StageError(f"the Docker engine loaded {len(images)} images", where=str(archive))
    return str(images[0].id)
