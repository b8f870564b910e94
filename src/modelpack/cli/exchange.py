"""Commands that exchange models with registries: push, pull."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelpack import quantities
from modelpack.cli.call import Call
from modelpack.cli.command import complete_run
from modelpack.cli.tables import facts
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelpack.events import Emit
    from modelpack.subjects import Subject


def push(
    call: Call,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] REF",
            help="A run (NAME or NAME@7), a step of it (NAME:STEP) or an artifact; and where to: registry/name:tag.",
            show_default="RUN: the current run of the newest recipe",
            autocompletion=complete_run,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.tar|DIR",
            help="Write it here as an OCI image layout; REF may then be left out.",
        ),
    ] = None,
) -> None:
    """Push a run's last model to a registry.

    It becomes an artifact of the CNCF ModelPack specification, which other tools read too. What the registry has is
    not sent again.

    Examples:
        modelpack push registry.example/models/digits:1.0
        modelpack push quickstart@3 registry.example/models/digits:1.0
        modelpack push quickstart --output digits.tar
    """
    from modelpack import exchange, subjects
    from modelpack.container.bundle import pack

    given = list(words or ())
    reference = given.pop() if given and (output is None or len(given) == 2) else ""
    if len(given) > 1 or not (reference or output):
        raise UsageError("what is pushed, and where to?", then="modelpack push [RUN] REF")
    if reference and "/" not in reference:
        raise UsageError(f"'{reference}' names no registry", then="modelpack push [RUN] registry.example/name:tag")
    found = subjects.find(call.store, given[0] if given else None)
    model = subjects.intact(subjects.model(call.store, found))
    about = exchange.describe(call.store, model, *_title(found, reference))
    with tempfile.TemporaryDirectory() as scratch:
        bundle = pack.pack(model, about, Path(scratch))
        document: dict[str, Any] = {"artifact": model.id, "digest": bundle.digest, "size": bundle.size}
        if output is not None:
            pack.write(bundle, output, about.version)
            document |= {"written": str(output)}
        if reference:
            with call.listen() as emit:
                name, sent = pack.push(bundle, reference, _told(emit, "push"))
            document |= {"reference": name, "sent": sent}
    call.result(document, lambda: _pushed(document))


def _told(emit: Emit, word: str) -> Callable[[int, int], None]:
    from modelpack.events import Progress

    return lambda done, total: emit(Progress(word, "kB", done // 1000, total // 1000))


def _title(found: Subject, reference: str) -> tuple[str, str]:
    """Name a model after its recipe, and give it the tag or the number of its run as version."""
    from modelpack.container.reference import ImageName

    name = ImageName.parse(reference) if reference else None
    usual = str(found.run.number) if found.run else "latest"
    last = name.repository.rpartition("/")[2] if name else "model"
    return found.recipe or last, name.tag or usual if name else usual


def _pushed(document: dict[str, Any]) -> str:
    shown = {"artifact": document["artifact"][:12], "digest": document["digest"]}
    if "written" in document:
        shown |= {"wrote": document["written"]}
    if "reference" in document:
        shown |= {"pushed": document["reference"], "sent": quantities.size(document["sent"])}
    return facts(shown | {"size": quantities.size(document["size"])})


def pull(
    call: Call,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="registry/name:tag, oci:DIR or oci-archive:FILE.tar.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Write its files to a directory that is empty or not there yet; into the store when absent.",
        ),
    ] = None,
) -> None:
    """Pull a model from a registry.

    Into the store it comes under the id that it was pushed with. Models of other tools, in the form of the CNCF
    ModelPack specification or of KitOps, come into a directory. Every byte is compared with its digest.

    Examples:
        modelpack pull registry.example/models/digits:1.0
        modelpack pull registry.example/models/digits:1.0 --output digits
    """
    from modelpack import exchange
    from modelpack.container.bundle import found as finding
    from modelpack.container.bundle.place import appearing
    from modelpack.container.bundle.unpack import unpack
    from modelpack.container.wheels import cache_directory

    with call.listen() as emit:
        found = finding.find(reference, cache_directory(), _told(emit, "pull"))
    document: dict[str, Any] = {"reference": found.where, "digest": found.digest}
    if output is None:
        artifact = exchange.adopt(call.store, found)
        document |= {"artifact": artifact.id, "kind": artifact.kind.value, "path": str(artifact.path)}
        then = call.typed(f"show {artifact.id[:12]}")
        call.result(document, lambda: facts({**_plain(document), "look at it": then}))
        return
    with appearing(output) as draft, _beside(output) as scratch:
        names = unpack(found, draft, Path(scratch))
    document |= {"written": [str(output / name) for name in names]}
    call.result(document, lambda: "\n".join(f"wrote {path}" for path in document["written"]))


def _beside(output: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a directory on the file system that the result will be on."""
    return tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}.")


def _plain(document: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in document.items()}
