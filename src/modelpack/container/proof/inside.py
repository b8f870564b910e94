"""What lies inside an image, read from its layers alone: packages of Debian and Python, and the model's files."""

from __future__ import annotations

import email.parser
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelpack.container.blob import MAX_JSON
from modelpack.container.layout import mapping
from modelpack.container.plan import MODEL, SITE
from modelpack.container.tarball import CHUNK, Hashing, members
from modelpack.container.tree import Tree
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from modelpack.container.blob import Blob
    from modelpack.container.tarball import TarMember

CARD = "card.json"
_STATUS = re.compile(r"var/lib/dpkg/(?:status|status\.d/(?!.*\.md5sums$)[^/]+)")
_RELEASE = re.compile(r"(?:etc|usr/lib)/os-release")
_METADATA = re.compile(rf"{SITE}/[^/]+\.dist-info/METADATA")
_MODEL = re.compile(rf"{MODEL}/.+")


@dataclass(frozen=True, order=True)
class Package:
    """A package that a system's package manager installed: name, version and architecture as dpkg has them."""

    name: str
    version: str
    architecture: str


@dataclass(frozen=True, order=True)
class Distribution:
    """A Python distribution below the server's site-packages: normalised name, version, licence as it says itself."""

    name: str
    version: str
    licence: str = ""


@dataclass
class Inside:
    """What was found in an image.

    Attributes:
        diff_ids: ``sha256:`` of every layer's tar, lowest first.
        system: The base's own name, ``debian-12``; empty where it has none.
        packages: What dpkg says is installed, by name.
        distributions: Python distributions of the server, by name.
        model: Files beside the model card, name → SHA-256.
        card: The model card; empty where there is none.
    """

    diff_ids: list[str] = field(default_factory=list)
    system: str = ""
    packages: list[Package] = field(default_factory=list)
    distributions: list[Distribution] = field(default_factory=list)
    model: dict[str, str] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)


def look(layers: Sequence[Blob], where: str) -> Inside:
    """Read an image's layers; each is unpacked in memory, never to disk.

    Args:
        layers: Lowest first.
        where: Names the image in errors.

    Raises:
        StageError: When a layer is damaged or holds what cannot be read.
    """
    tree, inside = Tree(), Inside()
    brought: dict[str, int] = {}
    for number, blob in enumerate(layers):
        with blob.path.open("rb") as stream:
            reader = Hashing(blob.unpacked(stream), where)
            found = list(members(reader, where))
        tree.add(found)
        brought |= {member.name: number for member in found}
        inside.diff_ids.append(reader.digest)
    wanted = {name: node for name, node in tree.nodes.items() if node.kind == "file" and _is_wanted(name)}
    for number, blob in enumerate(layers):
        here = [node for name, node in wanted.items() if brought[name] == number]
        _read(blob, sorted(here, key=lambda node: node.offset), inside, where)
    inside.packages = sorted(set(inside.packages))
    inside.distributions.sort()
    return inside


def _is_wanted(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (_STATUS, _RELEASE, _METADATA, _MODEL))


def _read(blob: Blob, nodes: Iterable[TarMember], inside: Inside, where: str) -> None:
    """Read some files of one layer, in the order in which they lie there."""
    with blob.path.open("rb") as stream:
        reader = Hashing(blob.unpacked(stream), where)
        for node in nodes:
            reader.skip(node.offset - reader.count)
            if _MODEL.fullmatch(node.name) and node.name != f"{MODEL}/{CARD}":
                inside.model[node.name.removeprefix(f"{MODEL}/")] = _digest(reader, node.size)
                continue
            if node.size > MAX_JSON:
                raise StageError(f"{node.name} has {node.size} bytes", where=where)
            _note(node.name, reader.exactly(node.size), inside, where)


def _digest(reader: Hashing, size: int) -> str:
    hasher = hashlib.sha256()
    while size:
        piece = reader.exactly(min(size, CHUNK))
        hasher.update(piece)
        size -= len(piece)
    return hasher.hexdigest()


def _note(name: str, data: bytes, inside: Inside, where: str) -> None:
    """Take from one file what it tells."""
    if _STATUS.fullmatch(name):
        inside.packages += packages(data.decode("utf-8", "replace"))
    elif _RELEASE.fullmatch(name):
        inside.system = inside.system or system(data.decode("utf-8", "replace"))
    elif _METADATA.fullmatch(name):
        inside.distributions.append(distribution(data))
    else:
        try:
            inside.card = mapping(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise StageError(f"the model card is not JSON: {error}", where=where) from error


def packages(status: str) -> Iterator[Package]:
    r"""Read what dpkg keeps of installed packages (deb822, one paragraph each).

    >>> list(packages("Package: libc6\nVersion: 2.36-9\nArchitecture: amd64\n"))
    [Package(name='libc6', version='2.36-9', architecture='amd64')]
    """
    for paragraph in re.split(r"\n\s*\n", status):
        fields = dict(re.findall(r"^(Package|Version|Architecture|Status): *(.*?) *$", paragraph, re.MULTILINE))
        gone = "Status" in fields and not fields["Status"].endswith(" installed") and "unpacked" not in fields["Status"]
        if not gone and fields.get("Package") and fields.get("Version"):
            yield Package(fields["Package"], fields["Version"], fields.get("Architecture", ""))


def system(release: str) -> str:
    r"""Read a system's name and version (os-release(5)).

    >>> system('ID=debian\nVERSION_ID="12"\n')
    'debian-12'
    """
    fields = dict(re.findall(r"^(ID|VERSION_ID)=\"?([^\"\n]*)\"?$", release, re.MULTILINE))
    return "-".join(fields[key] for key in ("ID", "VERSION_ID") if fields.get(key))


def distribution(metadata: bytes) -> Distribution:
    """Read a distribution's name, version and licence (core metadata 2.4; PEP 639 first, then the older ways)."""
    found = email.parser.BytesHeaderParser().parsebytes(metadata)
    short = str(found.get("License", ""))
    classified = [
        line.rpartition(" :: ")[2] for line in found.get_all("Classifier", []) if line.startswith("License :: OSI")
    ]
    licence = str(found.get("License-Expression", "")) or ", ".join(classified) or ("" if "\n" in short else short)
    return Distribution(
        re.sub(r"[-_.]+", "-", str(found.get("Name", ""))).lower(), str(found.get("Version", "")), licence
    )
