"""What a deployment is made from, gathered from the store: a model, its image, and what was measured of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from modelpack import subjects
from modelpack.artifact import MODEL_FILE, Artifact, Kind
from modelpack.deploy import facts as deploy
from modelpack.errors import StoreError, UsageError
from modelpack.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelpack.deploy.facts import Bench, Facts, Image
    from modelpack.store import Store
    from modelpack.subjects import Subject


def gather(store: Store, text: str | None, reference: str = "") -> Facts:
    """Tell everything that a deployment needs to know.

    Args:
        store: Where the model is.
        text: A run, or an artifact: a model or an image. The newest recipe's current run when None.
        reference: Where the image was pushed to, or the name of another; what the build called it when empty.

    Raises:
        UsageError: When there is no such thing, or it is no ONNX model.
        StoreError: When the model is damaged.
    """
    subject = subjects.find(store, text)
    built, model = _built(store, subject)
    for artifact in (model, *([built] if built is not None else [])):
        subjects.intact(artifact)
    recipe = subject.recipe or str(model.manifest.record.get("name", ""))
    known = recipe in Runs(store).recipes()
    others = [] if subject.artifact is not None and subject.artifact is built else _images(store, model)
    image = deploy.image(built, reference, others) if built is not None else _named(reference)
    number = str(subject.run.number) if subject.run else model.id[:12]
    return deploy.facts(
        model,
        recipe or "model",
        _version(image, number),
        image=image,
        bench=_bench(store, model),
        recipe=recipe if known else "",
        builds=next((step.id for step in subject.run.steps if step.kind == Kind.IMAGE), "") if subject.run else "",
    )


def _built(store: Store, subject: Subject) -> tuple[Artifact | None, Artifact]:
    """Find the image, and the model in it."""
    if subject.artifact is not None and subject.artifact.kind is Kind.IMAGE:
        return subject.artifact, store.get(str(subject.artifact.manifest.work["model"]))
    if subject.run is not None:
        images = [step.artifact for step in subject.run.steps if step.kind == Kind.IMAGE]
        if images:
            built = store.get(images[-1])
            return built, store.get(str(built.manifest.work["model"]))
    model = subjects.model(store, subject, {Kind.ONNX})
    return next(iter(_images(store, model)), None), model


def _images(store: Store, model: Artifact) -> list[Artifact]:
    """List the images of a model, the newest first."""
    made = [item for item in _artifacts(store, Kind.IMAGE) if item.manifest.work.get("model") == model.id]
    return sorted(made, key=_age, reverse=True)


def _named(reference: str) -> Image | None:
    """Take an image that the store does not have at the user's word."""
    return deploy.Image(reference, named=True) if reference else None


def _version(image: Image | None, number: str) -> str:
    """Give the version: the image's tag, or the run's number."""
    name = image.tag or image.name if image is not None else ""
    tag = name.rpartition("/")[2].partition(":")[2]
    return tag or number


def _bench(store: Store, model: Artifact) -> Bench | None:
    """Give the newest figures of this very model: artifacts with the same model file count as one."""
    file = _file(model)
    same = [item.id for item in _artifacts(store, Kind.ONNX) if _file(item) == file]
    found = (deploy.bench(item, same) for item in sorted(_artifacts(store, Kind.REPORT), key=_age, reverse=True))
    return next((item for item in found if item is not None), None)


def _file(model: Artifact) -> list[tuple[str, str]]:
    main = MODEL_FILE[Kind.ONNX]
    return [(item.name, item.sha256) for item in model.manifest.files if item.name.startswith(main)]


def _artifacts(store: Store, kind: Kind) -> Iterator[Artifact]:
    """Give the artifacts of a kind; damage is for `verify` to tell."""
    for path in store.artifacts():
        with contextlib.suppress(StoreError):
            artifact = Artifact.load(path)
            if artifact.kind is kind:
                yield artifact


def _age(artifact: Artifact) -> tuple[str, str]:
    """Order artifacts by when they were made."""
    return str(artifact.manifest.record.get("finished", "")), artifact.id


def checked(reference: str) -> str:
    """Give an image's name back.

    Raises:
        UsageError: When it is none.
    """
    from modelpack.container.reference import ImageName

    try:
        ImageName.parse(reference)
    except UsageError as error:
        raise UsageError(error.what, where="--image", then=error.then) from error
    return reference
