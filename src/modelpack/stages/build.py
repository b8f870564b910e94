"""The image: the model with its server on a base, ready to run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from modelpack.artifact import Artifact, Kind
from modelpack.bind import FilePath, InputPath
from modelpack.container.platforms import Bases, Platforms
from modelpack.container.reference import BaseRef, ImageName
from modelpack.errors import UsageError
from modelpack.stage import Job, Outside, StageConfig, stage


def _image_name(value: str) -> str:
    try:
        name = ImageName.parse(value)
    except UsageError as error:
        raise ValueError(error.what) from error
    if name.digest:
        raise ValueError("a digest cannot be chosen: write name:tag")
    return value


def _beside_recipe(value: Path, info: ValidationInfo) -> Path:
    base: Path = (info.context or {}).get("base", Path())
    return base / value.expanduser()


def _platforms() -> Platforms:
    from modelpack.container.base import host_platform

    return Platforms((host_platform(),))


def _epoch() -> int:
    from modelpack.container.order import source_date

    return source_date()


class BuildConfig(StageConfig):
    """On what base the image stands, who builds it, and where it goes."""

    tag: Annotated[str, AfterValidator(_image_name)] | None = Field(
        None, description="Name and tag of the image; the recipe's name and 'latest' when absent."
    )
    base: Bases = Field(
        Bases((("", BaseRef("docker", "python:3.11-slim")),)),
        description="Base image with Python: docker://REF, oci:DIR, oci-archive:FILE, docker-archive:FILE, "
        "docker-daemon:NAME or rootfs:FILE.tar; or one for each platform: linux/amd64=REF,linux/arm64=REF.",
    )
    builder: Literal["oci", "docker"] = Field(
        "oci", description="'oci' writes the image without any engine; 'docker' builds Dockerfile.template in one."
    )
    platform: Platforms = Field(
        default_factory=_platforms,
        description="System and processor; this machine's when absent. linux/amd64,linux/arm64 is one image for both.",
    )
    output: Annotated[Path, AfterValidator(_beside_recipe)] | None = Field(
        None, description="Also write the image as an archive to this file, relative to the recipe."
    )
    push: Annotated[str, AfterValidator(_image_name)] | None = Field(
        None, description="Also push the image to a registry under this reference."
    )
    sign: Literal["sigstore"] | FilePath | None = Field(
        None,
        description="Sign what is written or pushed, as cosign does: with a private key (ECDSA P-256, PEM), or with "
        "'sigstore', without a key, as whoever runs this.",
    )
    check_reproducible: bool = Field(
        False, description="Build the image twice more from nothing, as others would elsewhere, and compare every byte."
    )
    offline: bool = Field(False, description="Download nothing: wheels and registry bases come from the cache.")
    grpc: bool = Field(False, description="Speak gRPC too, on port 8081; the image grows by 20 MB.")
    opentelemetry: bool = Field(
        False, description="Be able to send spans to an OpenTelemetry collector; the image grows by 11 MB."
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="Where the model runs; 'cuda' brings CUDA 13 and cuDNN 9 along, 2 GB, and is for linux/amd64.",
    )
    labels: dict[str, str] = Field({}, description="More labels, such as org.opencontainers.image.source.")
    template: InputPath | None = Field(None, description="A Dockerfile template of your own, for the docker builder.")
    epoch: int = Field(
        default_factory=_epoch,
        ge=0,
        lt=2**33,
        description="Date of the image in seconds since 1970; SOURCE_DATE_EPOCH, or 0, when absent.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.base.cover(self.platform)
        if self.builder == "docker" and len(self.platform.names) > 1:
            raise ValueError("the docker builder makes an image for one platform: use builder: oci for several")
        if self.sign and not (self.output or self.push):
            raise ValueError("`sign` signs an image on its way out: give `output` or `push` too")
        if self.device == "cuda" and self.platform.names != ("linux/amd64",):
            raise ValueError("onnxruntime has wheels for CUDA on linux/amd64 alone: set platform: linux/amd64")
        if self.builder == "docker" and self.check_reproducible:
            raise ValueError("Docker's builder writes the time into every image: only builder: oci is reproducible")
        return self

    def canonical(self) -> object:
        """Stand for the image's content: what modelpack puts in counts, where the image goes does not."""
        from modelpack.container.order import ingredients

        apart = ("output", "push", "offline", "template", "sign", "check_reproducible")
        values = {name: getattr(self, name) for name in type(self).model_fields if name not in apart}
        return {**values, **ingredients(self.template.path if self.template else None, self.builder)}

    def order(self, name: str) -> Any:
        """Say it in the words of the container tower."""
        from modelpack.container.order import Order, full_tag

        template = self.template.path if self.template else None
        return Order(
            name, full_tag(self.tag, name), self.base, self.platform, self.builder, self.epoch, self.labels, template,
            self.offline, self.grpc, self.device, self.opentelemetry,
        )  # fmt: skip


def _signer(sign: Literal["sigstore"] | InputPath) -> Path | Literal["sigstore"]:
    return sign.path if isinstance(sign, InputPath) else sign


def _preflight(config: BuildConfig, _outside: Outside) -> None:
    from modelpack.container import build as container
    from modelpack.container.proof import seal

    if config.sign:
        seal.check(_signer(config.sign))
    with tempfile.TemporaryDirectory() as scratch:
        container.check(config.order("model"), Path(scratch))


def _facts(model: Artifact) -> dict[str, Any]:
    from modelpack.numerics import graph, onnxfile

    facts = graph.facts(onnxfile.read(model.file("model.onnx")))
    return {"precision": facts.precision, "parameters": facts.parameters, "opset": facts.opset}


def _effect(config: BuildConfig, artifact: Artifact, job: Job) -> None:
    from modelpack.container import reproduce
    from modelpack.container.archive import ARCHIVE
    from modelpack.container.deliver import deliver

    if config.check_reproducible:
        facts, built = _facts(job.source), artifact.file(ARCHIVE)
        job.note(reproduce.check(job.source, config.order(job.name), facts, built, past=job.past()))
    deliver(artifact, config.output, config.push, job.note, sign=_signer(config.sign) if config.sign else None)


@stage(
    version=3,
    accepts={Kind.ONNX},
    produces=Kind.IMAGE,
    named=True,
    gauges=lambda _config: ("image_size",),
    preflight=_preflight,
    effect=_effect,
)
def build(config: BuildConfig, job: Job) -> None:
    """Make a container image of the model and its server."""
    from modelpack.container import build as container

    if not config.base.pinned:
        job.warn(f"the base {config.base} is known by name only: pin it with @sha256:… so that its changes are noticed")
    order, facts = config.order(job.name), _facts(job.source)
    image = container.make(job.source, order, facts, past=job.past(), out=job.out, scratch=job.scratch, tell=job.warn)
    job.note(f"image {image['tag']} has the id {image['id']}")
    job.metric("image_size", image["size"])
    job.result("image", image)
