"""How images are named: registry references, and the places a base can come from."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from modelpack import canonical
from modelpack.bind import FromText
from modelpack.errors import UsageError

FILES = ("oci", "oci-archive", "docker-archive", "rootfs")
SCHEMES = ("docker", "docker-daemon", *FILES)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_REGISTRY = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::\d{1,5})?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class ImageName:
    """A registry reference, written out in full.

    >>> print(ImageName.parse("python:3.11-slim"))
    docker.io/library/python:3.11-slim

    Attributes:
        registry: Host and port, ``docker.io`` when the user named none.
        repository: Path in the registry.
        tag: Tag, ``latest`` when the user gave neither tag nor digest.
        digest: ``sha256:…`` of a manifest, or empty.
    """

    registry: str
    repository: str
    tag: str
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read ``[registry/]repository[:tag][@sha256:…]``.

        Raises:
            UsageError: When it is no such reference.
        """
        rest, _, digest = text.partition("@")
        head, slash, tail = rest.partition("/")
        named = bool(slash) and ("." in head or ":" in head or head == "localhost")
        registry, path = (head, tail) if named else ("docker.io", rest)
        repository, colon, tag = path.partition(":")
        tag = tag if colon else "" if digest else "latest"
        if registry == "docker.io" and "/" not in repository:
            repository = f"library/{repository}"
        right = (
            _REGISTRY.fullmatch(registry)
            and _REPOSITORY.fullmatch(repository)
            and (_TAG.fullmatch(tag) or (digest and not colon))
            and (not digest or DIGEST.fullmatch(digest))
        )
        if not right:
            raise UsageError(f"'{text}' is no image reference", then="write [registry/]name[:tag][@sha256:…]")
        return cls(registry, repository, tag, digest)

    @property
    def loopback(self) -> bool:
        """Whether the registry is this machine, which is spoken to without TLS."""
        host = self.registry.rpartition(":")[0] if re.search(r":\d+$", self.registry) else self.registry
        try:
            return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


@dataclass(frozen=True)
class BaseRef(FromText):
    """Where a base image comes from.

    Attributes:
        scheme: One of `SCHEMES`.
        name: Registry reference, engine's image name, or the file's name as the user wrote it.
        path: The file or directory, for those schemes.
        tag: Which image inside a file that holds several; empty for the only one.
    """

    wanted: ClassVar[str] = "a base image is expected, such as docker://python:3.11-slim"
    scheme: str
    name: str
    path: Path | None = None
    tag: str = ""

    @classmethod
    def parse(cls, text: str, base: Path | None = None) -> BaseRef:
        """Read the place of a base.

        Args:
            text: ``docker://REF``, ``oci:DIR``, ``oci-archive:FILE``, ``docker-daemon:NAME``, ``docker-archive:FILE``,
                ``rootfs:FILE.tar`` or a bare registry reference.
            base: Directory that file names are relative to; the working directory when absent.

        Raises:
            UsageError: When it is none of them, the file does not exist, or a bare name is that of a file.
        """
        scheme, colon, rest = text.strip().partition(":")
        if not colon or scheme not in SCHEMES or (scheme == "docker" and not rest.startswith("//")):
            if ((base or Path()) / text.strip()).is_file():
                what = f"'{text.strip()}' is a file here: say which kind, such as oci-archive:{text.strip()}"
                raise UsageError(what, then=f"docker://{text.strip()} is the image of that name in a registry")
            ImageName.parse(text.strip())
            return cls("docker", text.strip())
        if scheme == "docker":
            ImageName.parse(rest[2:])
            return cls("docker", rest[2:])
        if scheme == "docker-daemon":
            if not rest:
                raise UsageError("'docker-daemon:' names no image", then="write docker-daemon:NAME[:TAG]")
            return cls(scheme, rest)
        return cls._file(scheme, rest, base or Path())

    @classmethod
    def _file(cls, scheme: str, rest: str, base: Path) -> BaseRef:
        path, tag = base / Path(rest).expanduser(), ""
        cuts = [index for index, char in enumerate(rest) if char == ":" and scheme != "rootfs" and not path.exists()]
        for cut in cuts:  # a tag may hold a colon itself, and so may a file's name
            if (base / Path(rest[:cut]).expanduser()).exists():
                path, tag = base / Path(rest[:cut]).expanduser(), rest[cut + 1 :]
                break
        if not rest or not path.exists():
            raise UsageError(f"no such file or directory: {base / rest}", where=f"{scheme}:{rest}")
        if (scheme == "oci") != path.is_dir():
            kind = "a directory" if scheme == "oci" else "a file"
            raise UsageError(f"{scheme}: names {kind}, {path} is none", where=f"{scheme}:{rest}")
        return cls(scheme, rest, path, tag)

    def __str__(self) -> str:
        return f"docker://{self.name}" if self.scheme == "docker" else f"{self.scheme}:{self.name}"

    @property
    def label(self) -> str:
        """A name that says the same on every machine: the full reference, or the file's own name."""
        if self.scheme == "docker":
            return str(ImageName.parse(self.name))
        return f"{self.scheme}:{self.path.name}" if self.path else str(self)

    @property
    def pinned(self) -> bool:
        """Whether it can only ever mean the same bytes: a file, or a registry reference with a digest."""
        return self.path is not None or (self.scheme == "docker" and bool(ImageName.parse(self.name).digest))

    def canonical(self) -> object:
        """Stand for a file's content, or for the name where the content is elsewhere."""
        if self.path is None:
            return str(self)
        return {"base": self.label, "tag": self.tag, "sha256": canonical.tree_digest(self.path)}

    @classmethod
    def read(cls, text: str, base: Path) -> BaseRef:
        """Read it from a recipe; files are relative to `base`."""
        try:
            return cls.parse(text, base)
        except UsageError as error:
            raise ValueError(error.what) from error
