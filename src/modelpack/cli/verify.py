"""The command that verifies: that a store or an image holds what was written, and that a model does what it should."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelpack.cli import pages
from modelpack.cli.call import Call
from modelpack.cli.command import DeviceOption, complete_run
from modelpack.device import Target
from modelpack.errors import StageError, StoreError, UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.container.proof.statements import Trust
    from modelpack.container.reference import BaseRef
    from modelpack.events import Emit
    from modelpack.numerics.checks import Subject as Examined
    from modelpack.subjects import Subject
    from modelpack.verification import Report, Tell


def verify(
    call: Call,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE.onnx|IMAGE|RUN|ARTIFACT]",
            help="A model to examine; an image: an archive FILE.tar, an OCI layout, docker://REF; or what to compare "
            "with its hashes: a run with all that it was made from, or one artifact.",
            show_default="the whole store",
            autocompletion=complete_run,
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(metavar="FILE.npz|RECIPE:NAME", help="Rows to run the model on; made up for a file when absent."),
    ] = "",
    against: Annotated[
        str, typer.Option(metavar="MODEL", help="The float model it was made from: a file, a run's step, an artifact.")
    ] = "",
    key: Annotated[
        str, typer.Option(metavar="KEY.pub", help="The public key whose signature an image must bear.")
    ] = "",
    certificate_identity: Annotated[
        str,
        typer.Option(metavar="WHO", help="Who must have signed an image through Sigstore: a mail address or a URI."),
    ] = "",
    certificate_oidc_issuer: Annotated[
        str, typer.Option(metavar="URL", help="The OIDC provider that must have vouched for them.")
    ] = "",
    trusted_root: Annotated[
        str, typer.Option(metavar="FILE", help="The Sigstore instance to trust; the public one's when absent.")
    ] = "",
    skip: Annotated[list[str] | None, typer.Option(metavar="CHECK", help="Leave out a check. Repeatable.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to read, at most.")] = 32,
    target: Annotated[Target, typer.Option(help="The hardware it shall run on; auto is this machine.")] = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Examine a model or an image, or compare the store with its hashes.

    An ONNX file, from any tool, is run and examined for what quantizers and exporters get wrong without a word. For
    runs and artifacts every byte is compared; with --data or --against their model is examined as well.

    Of an image every byte is compared with its digests, the model in it with the artifact it was made from, and what is
    attached to it with what is in it; with --key or --certificate-identity, who signed that.

    The exit code is 3 when a check fails, and 5 when a byte of the store differs.

    Examples:
        modelpack verify model.onnx --data rows.npz --against float.onnx
        modelpack verify quickstart:quantize --data quickstart.yaml:val --skip speed
        modelpack verify digits.tar --key modelpack.pub
        modelpack verify docker://registry.example/digits:1.0 --key modelpack.pub
        modelpack verify
        modelpack verify quickstart@3
    """
    from modelpack import subjects
    from modelpack.container.proof import found as images
    from modelpack.events import Progress

    image = images.meant(subject) if subject is not None else None
    signers = {
        "--key": key,
        "--certificate-identity": certificate_identity,
        "--certificate-oidc-issuer": certificate_oidc_issuer,
        "--trusted-root": trusted_root,
    }
    if image is not None:
        _image(call, image, signers, other={"--data": data, "--against": against, "--skip": skip})
        return
    for option in (name for name, value in signers.items() if value):
        raise UsageError("only images are signed", where=option, then="name an archive FILE.tar or docker://REF")
    found = subjects.find(call.store, subject) if subject is not None or data or against else None
    if found is not None and (found.file is not None or data or against):
        _examine(call, found, data=data, against=against, skip=skip or (), rows=rows, target=target, device=device)
        return
    with call.listen() as emit:
        report = _compared(call, found, lambda done, total: emit(Progress("verify", "artifacts", done, total)))
    _tell(report)
    document = {"ok": True, "artifacts": report.artifacts, "bytes": report.size}
    call.result(document, lambda: pages.verified(report))


def _image(call: Call, ref: BaseRef, signers: Mapping[str, str], *, other: Mapping[str, object]) -> None:
    from modelpack.container import wheels
    from modelpack.container.proof import examine

    for option in (name for name, value in other.items() if value):
        raise UsageError("this is about models, and the subject is an image", where=option, then="leave it out")
    report = examine.examine(ref, _trust(*signers.values()), wheels.cache_directory())
    document = {"ok": report.ok, "image": str(ref), "digest": report.digest, "checks": examine.as_json(report)}
    call.result(document, lambda: pages.examined({**document, "model": str(ref)}))
    if not report.ok:
        raise typer.Exit(StageError.exit_code)


def _trust(key: str, identity: str, issuer: str, root: str) -> Trust | None:
    """Read whom to trust: a key, an identity, or nobody."""
    from modelpack.container.proof import keyed, keyless, keys

    if key and (identity or issuer or root):
        raise UsageError(
            "an image is checked with a key or an identity", where="--key", then="verify it once with each"
        )
    if bool(identity) != bool(issuer) or (root and not identity):
        raise UsageError(
            "an identity is someone whom an issuer vouches for",
            where="--certificate-identity",
            then="give --certificate-identity and --certificate-oidc-issuer",
        )
    if identity:
        return keyless.trusted(identity, issuer, Path(root) if root else None)
    return keyed.KeyTrust(keys.verifier(Path(key))) if key else None


def _tell(report: Report) -> None:
    if report.problems:
        raise StoreError(
            "\n".join([f"{len(report.problems)} problem{'s' * (len(report.problems) > 1)} found:", *report.problems]),
            then="delete a damaged artifact's directory, and the next run makes it again",
        )


def _compared(call: Call, found: Subject | None, tell: Tell) -> Report:
    from modelpack import verification

    if found is None:
        if not call.root.exists():
            raise UsageError("there is no store", where=str(call.root), then="name one with --store")
        return verification.verify_store(call.store, tell)
    if found.artifact is not None:
        return verification.verify_artifacts([found.artifact.path], tell)
    assert found.run is not None, "a subject is a run, an artifact or a file"
    return verification.verify_run(call.store, found.run, tell)


def _examine(call: Call, found: Subject, *, skip: Sequence[str], **wanted: Any) -> None:
    from modelpack.numerics import checks

    for name in skip:
        if name not in checks.CHECKS:
            raise UsageError(f"no check is called '{name}'", where="--skip", then=did_you_mean(name, checks.CHECKS))
    with call.listen() as emit:
        subject = _subject(call, found, emit, **wanted)
        findings = checks.examine(subject, skip=skip, track=lambda names: _progress(names, emit))
    bad = any(item.verdict == "failed" for item in findings)
    document = {
        "ok": not bad,
        "model": found.text,
        "made_up_rows": subject.made_up,
        "checks": [item.to_json() for item in findings],
    }
    call.result(document, lambda: pages.examined(document))
    if bad:
        raise typer.Exit(StageError.exit_code)


def _progress(names: Sequence[str], emit: Emit) -> Any:
    from modelpack.events import Progress

    for done, name in enumerate(names):
        emit(Progress("verify", name, done, len(names)))
        yield name
    emit(Progress("verify", "checks", len(names), len(names)))


def _subject(
    call: Call, found: Subject, emit: Emit, *, data: str, against: str, rows: int, target: Target, device: str
) -> Examined:
    """Read the model, the float one and the rows."""
    from modelpack import device as devices
    from modelpack import subjects
    from modelpack.events import Note
    from modelpack.numerics import rows as reading
    from modelpack.numerics.checks import Subject, opening

    where = devices.resolve(device)
    model, inputs = _read(call, found, where)
    reference = _read(call, subjects.find(call.store, against), where)[0] if against else None
    feeds, lacks = [], ""
    if data:
        try:
            feeds = list(reading.feeds(subjects.data(data, inputs).batches(), inputs, rows))
        except StageError as error:  # the model was not asked yet: the rows were named wrongly
            raise UsageError(error.what, where=error.where or data, then=error.then) from error
        opening.tried(model, feeds[0], where)
    else:
        emit(Note("verify", "the rows are made up within what the model says it takes; name real ones with --data"))
        try:
            feeds = opening.made_up(model, inputs, seed=0, device=where)
        except StageError as error:
            lacks = f"no rows could be made up ({error.what}): name real ones with --data"
    return Subject(model, inputs, feeds, reference, where, not data, lacks, target)


def _read(call: Call, found: Subject, device: str) -> Any:
    """Give a model and its inputs: a file's as they are, an artifact's once its bytes are what they were."""
    from modelpack import subjects, verification
    from modelpack.artifact import Kind
    from modelpack.numerics import onnxfile, prediction
    from modelpack.numerics.checks import opening

    if found.file is not None:
        return opening.read(found.file, device)
    artifact = subjects.model(call.store, found, {Kind.ONNX})
    _tell(verification.verify_artifacts([artifact.path]))
    return onnxfile.read(artifact.file(onnxfile.NAME)), prediction.signature(artifact)[0]
