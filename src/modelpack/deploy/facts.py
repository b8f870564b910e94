"""What is known of a model, its image and its speed: all that files are made from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.artifact import MODEL_FILE, Artifact, Kind
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Files = dict[str, str | Path]
"""Name relative to the output directory → text, or the file that is copied there."""
_SHOWN = 5
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Image:
    """An image as platforms pull it.

    Attributes:
        reference: ``[registry/]name[:tag][@sha256:…]``.
        tag: ``name:tag`` under which an engine on this machine knows it.
        named: Whether the user said where it was pushed to.
        platforms: ``os/architecture`` of each image under that name; empty when unknown.
        grpc: Whether it listens for gRPC too.
        size: Unpacked bytes; 0 when unknown.
        rivals: The same name with the digest of each image that it may mean; empty where it can mean but one.
    """

    reference: str
    tag: str = ""
    named: bool = False
    platforms: tuple[str, ...] = ()
    grpc: bool = False
    size: int = 0
    rivals: tuple[str, ...] = ()

    @property
    def pinned(self) -> bool:
        """Whether it can only ever mean the same bytes."""
        return bool(_DIGEST.fullmatch(self.reference.partition("@")[2]))

    @property
    def registry(self) -> str:
        """Host that it is pulled from; empty when the reference names none."""
        head, slash, _ = self.reference.partition("/")
        return head if slash and ("." in head or ":" in head or head == "localhost") else ""

    @property
    def name(self) -> str:
        """The reference without its digest."""
        return self.reference.partition("@")[0]

    @property
    def local(self) -> bool:
        """Whether, for all that is known, no registry has it."""
        return not self.named and not self.registry

    @property
    def architectures(self) -> tuple[str, ...]:
        """Processors that it runs on, as Kubernetes calls them."""
        return tuple(platform.partition("/")[2] for platform in self.platforms)


@dataclass(frozen=True)
class Bench:
    """What the bench of a recipe measured of this very model on a processor.

    Attributes:
        threads: Threads inside one operator.
        batch: Rows of a call.
        latency_ms: Median time of such a call.
        rows_per_second: Rows that one stream of such calls gets through.
        growth: Bytes that the process grew by, from before the model was opened to its peak.
        processor: Where that was.
    """

    threads: int
    batch: int
    latency_ms: float
    rows_per_second: float
    growth: int
    processor: str


@dataclass(frozen=True)
class Facts:
    """Everything about one model.

    Attributes:
        name: What the server calls it.
        version: Its version, as in the image's tag.
        artifact: Id of the artifact inside.
        inputs: Name → shape and dtype; a dimension with a name is dynamic.
        outputs: The same of what it gives.
        payload: The model's files by name.
        prepared: Kinds of inputs that the server makes tensors of: ``image``, ``text``.
        size: Bytes of the model.
        image: Its image; None where there is none.
        bench: Its speed; None where it was not measured.
        recipe: Name of the recipe that made it.
        builds: Id of that recipe's step that makes an image; empty when it has none.
    """

    name: str
    version: str
    artifact: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    payload: Mapping[str, Path] = field(default_factory=dict)
    prepared: frozenset[str] = frozenset()
    size: int = 0
    image: Image | None = None
    bench: Bench | None = None
    recipe: str = ""
    builds: str = ""

    @property
    def served(self) -> Image:
        """The image.

        Raises:
            UsageError: When there is none, or its name may mean another one of the same model.
        """
        if self.image is None:
            raise UsageError(
                "this model has no image yet",
                where=self.name,
                then=f"`modelpack build {self.recipe or self.artifact[:12]} --push REF` makes one; --image names one",
            )
        if rivals := self.image.rivals:
            more = [f"and {len(rivals) - _SHOWN} more"] if len(rivals) > _SHOWN else []
            raise UsageError(
                f"this model has {len(rivals)} images, and nothing tells which of them was pushed there",
                where="--image",
                then="\n  ".join(("write the one that the push printed, with its digest:", *rivals[:_SHOWN], *more)),
            )
        return self.image


@dataclass(frozen=True)
class Wish:
    """What only the user knows.

    Attributes:
        name: What the deployment is called; the model's name when empty.
        role: ARN of the role that SageMaker runs it as.
        recipe: The recipe's file, as a pipeline finds it.
        tokens: The platform's secret with tokens that clients must show; they need none when empty.
        tls: Its secret with the server's certificate and private key; the server speaks plain HTTP when empty.
        clients: Its secret with the authorities that vouch for clients' certificates; they need none when empty.
    """

    name: str = ""
    role: str = ""
    recipe: str = ""
    tokens: str = ""
    tls: str = ""
    clients: str = ""


def image(artifact: Artifact, reference: str = "", others: Iterable[Artifact] = ()) -> Image:
    """Describe an image artifact.

    Args:
        artifact: What a build made.
        reference: Where it was pushed to; under the name that it was built with when empty. Without a digest it gets
            the image's own, which is what `modelpack build --push` gives it in a registry.
        others: Images of the same model, one of which may have been pushed there instead.
    """
    known = artifact.manifest.record["results"]["image"]
    config = artifact.manifest.work.get("config", {})
    named = reference or str(known["tag"])
    digests = dict.fromkeys(str(item.manifest.record["results"]["image"]["digest"]) for item in (artifact, *others))
    unclear = reference and "@" not in reference and len(digests) > 1
    return Image(
        named if "@" in named else f"{named}@{known['digest']}",
        str(known["tag"]),
        bool(reference),
        tuple(str(known["platform"]).split(",")),
        bool(config.get("grpc", False)),
        int(known["size"]),
        tuple(f"{reference}@{digest}" for digest in digests) if unclear else (),
    )


def bench(report: Artifact, models: Iterable[str]) -> Bench | None:
    """Take the figures of one of some models out of a bench's record; None when it has none on a processor.

    The first number of threads counts, and of its batch sizes the one that gets most rows through.
    """
    found = report.manifest.record.get("results", {}).get("bench")
    if not found or found["settings"]["device"] != "cpu":
        return None
    ids = set(models)
    subject = next((item for item in found["subjects"] if item["id"] in ids), None)
    if subject is None:
        return None
    threads = found["settings"]["threads"][0]
    cells = [cell for cell in found["cells"] if cell["subject"] == subject["name"] and cell["threads"] == threads]
    best = max(cells, key=lambda cell: (cell["rows_per_second"], -cell["batch"]))
    growth = max(subject["peak_bytes"].values()) - subject["runtime_bytes"]
    processor = found["machine"].get("processor", {})
    return Bench(
        threads,
        best["batch"],
        best["p50_ms"],
        best["rows_per_second"],
        max(growth, 0),
        str(processor.get("name", "") if isinstance(processor, dict) else processor),
    )


def facts(model: Artifact, name: str, version: str, **known: Any) -> Facts:
    """Describe an ONNX artifact, and what else is known of it."""
    signature = model.read_json("signature.json")
    names = {item.name for item in model.manifest.files}
    prepared = model.read_json("interface.json")["inputs"] if "interface.json" in names else {}
    parts = [item for item in sorted(names) if item.startswith(MODEL_FILE[Kind.ONNX])]
    return Facts(
        name,
        version,
        model.id,
        signature["inputs"],
        signature["outputs"],
        {part: model.file(part) for part in parts},
        frozenset(kind for entry in prepared.values() for kind in entry),
        model.model_bytes,
        **known,
    )
