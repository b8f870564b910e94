"""Commands that use a finished model: package it, measure it, serve it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelpack.cli import pages
from modelpack.cli.call import Call
from modelpack.cli.command import DeviceOption, RunArgument, complete_run
from modelpack.errors import MissingError, RecipeError, StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelpack.numerics.measure.subjects import Subject as Measured


def build(
    call: Call,
    run: RunArgument = None,
    tag: Annotated[str, typer.Option(metavar="NAME:TAG", help="The image's name; the recipe's when absent.")] = "",
    base: Annotated[
        str, typer.Option(metavar="REF", help="The base: docker://REF, oci-archive:FILE, rootfs:FILE.tar, …")
    ] = "",
    builder: Annotated[str, typer.Option(metavar="oci|docker", help="Who builds it; oci needs no engine.")] = "",
    platform: Annotated[
        str, typer.Option(metavar="OS/ARCH,…", help="linux/amd64, linux/arm64 or both; this machine's when absent.")
    ] = "",
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where the model runs; cuda adds 2 GB.")] = "",
    grpc: Annotated[bool, typer.Option("--grpc", help="Speak gRPC too.")] = False,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE.tar", help="Also write the archive here.")
    ] = "",
    push: Annotated[str, typer.Option(metavar="REF", help="Also push the image to a registry.")] = "",
    sign: Annotated[str, typer.Option(metavar="KEY.pem|sigstore", help="Sign what is written or pushed.")] = "",
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing; use the cache.")] = False,
    check_reproducible: Annotated[
        bool, typer.Option("--check-reproducible", help="Build it twice more from nothing and compare every byte.")
    ] = False,
    template: Annotated[str, typer.Option(metavar="FILE", help="Your own Dockerfile template.")] = "",
) -> None:
    """Make a container image of a run's last model.

    The model is compared with its hashes first. The same image is not made twice.

    Examples:
        modelpack build quickstart --tag digits:1.0
        modelpack build quickstart@3 --base rootfs:base.tar --output digits.tar
        modelpack build --platform linux/amd64,linux/arm64 --check-reproducible
    """
    from modelpack import engine, registry, subjects, summary
    from modelpack.artifact import Kind

    found = subjects.find(call.store, run)
    model = subjects.intact(subjects.model(call.store, found, {Kind.ONNX}))
    stage = registry.stages().get("build")
    given = {
        "tag": tag,
        "base": base,
        "builder": builder,
        "platform": platform,
        "device": device,
        "grpc": "true" if grpc else "",
        "output": output,
        "push": push,
        "sign": sign,
        "offline": "true" if offline else "",
        "check_reproducible": "true" if check_reproducible else "",
        "template": template,
    }
    config = _bound(stage.config, {name: value for name, value in given.items() if value})
    name = found.recipe or model.manifest.record.get("name", "model")
    with call.listen() as emit:
        artifact = engine.once(call.store, stage, config, model, name=name, emit=emit)
    image = summary.image(artifact)
    document = {
        "artifact": artifact.id,
        "model": model.id,
        "id": image.id,
        "digest": image.digest,
        "tag": image.tag,
        "platforms": [*image.platforms],
        "files": [*image.files],
        "size": image.size,
    }
    call.result(document, lambda: pages.image(image))


def _bound(kind: Any, given: dict[str, str]) -> Any:
    """Read options by the code that reads recipes, so that they mean the same."""
    from modelpack.bind import bind
    from modelpack.document import Scalar, Table
    from modelpack.errors import Place, Problem

    def words(name: str, text: str) -> Scalar:
        return Scalar(Place(f"--{name}", 1), text, len(text), text, quoted=True)

    entries = tuple((words(name, name), words(name, text)) for name, text in given.items())
    problems: list[Problem] = []
    config = bind(Table(Place("options", 1), "", 1, entries), kind, problems, base=Path.cwd())
    if problems:
        raise RecipeError(problems)
    return config


def bench(
    call: Call,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|RUN:STEP|ARTIFACT|FILE.onnx]…",
            help="What to measure.",
            show_default="the newest recipe's current model",
            autocompletion=complete_run,
        ),
    ] = None,
    against: Annotated[str, typer.Option(metavar="MODEL", help="What to compare them with, named the same way.")] = "",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Rows per call.")] = "1",
    threads: Annotated[str, typer.Option(metavar="N,N", help="Threads inside one operator.")] = "1",
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Size of a dynamic dimension, such as sequence=128. Repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=10, help="Turns of each model.")] = 50,
    seconds: Annotated[float, typer.Option(help="Time limit for each batch size and number of threads.")] = 10.0,
    device: DeviceOption = "cpu",
) -> None:
    """Measure models side by side.

    Tells latency, throughput, memory, load time and size. The models take turns, so that noise meets all alike.

    It always measures; nothing comes from the store. Ratios carry their 95 % interval.

    Examples:
        modelpack bench quickstart:quantize --against quickstart:export --batch 1,8
        modelpack bench mine.onnx theirs.onnx --threads 1,2
    """
    from dataclasses import replace

    from modelpack import device as devices
    from modelpack.events import Progress
    from modelpack.numerics.measure import bench as measuring
    from modelpack.numerics.measure.figures import Settings

    settings = Settings(
        batches=_numbers("--batch", batch),
        threads=_numbers("--threads", threads),
        rounds=rounds,
        seconds=seconds,
        dimensions=_sizes(size or ()),
        device=devices.resolve(device),
    )
    measured = [_measured(call, text) for text in models] if models else [_measured(call, None)]
    reference = _measured(call, against) if against else None
    settings = replace(settings, reference=reference.name if reference else "")
    subjects = {item.name: item for item in [*([reference] if reference else []), *measured]}
    with call.listen() as emit:
        found = measuring.measure(
            list(subjects.values()), settings, lambda label, done, total: emit(Progress("bench", label, done, total))
        )
    document = found.to_json()
    call.result(document, lambda: pages.bench(document))


def _measured(call: Call, text: str | None) -> Measured:
    from modelpack import subjects
    from modelpack.numerics.measure.subjects import Subject

    found = subjects.find(call.store, text)
    if found.file is not None:
        return Subject.of_file(found.file, found.text)
    return Subject.of(subjects.model(call.store, found), found.text)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UsageError(f"'{text}' is no list of numbers", where=option, then=f"write {option} 1,8")
    return numbers


def _sizes(texts: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not name or not number.isdigit() or int(number) < 1:
            raise UsageError(f"'{text}' is no size", where="--size", then="write --size sequence=128")
        sizes[name] = int(number)
    return sizes


def serve(
    call: Call,
    run: RunArgument = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8080,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference; all cores when absent.")] = None,
) -> None:
    """Serve a run's last model over HTTP.

    It is the server that the image has inside.

    It runs until Ctrl-C or SIGTERM.

    Examples:
        modelpack serve quickstart --port 9000
        curl --json '{"instances": [...]}' localhost:9000/predict
    """
    from modelpack import inspection, server, subjects
    from modelpack.artifact import Kind
    from modelpack.container import card as cards

    found = subjects.find(call.store, run)
    model = subjects.intact(subjects.model(call.store, found, {Kind.ONNX}))
    inside = inspection.contents(model)
    known = {key: inside[key] for key in ("precision", "parameters", "opset")}
    version = str(found.run.number) if found.run else "0"
    card = json.loads(cards.card(model, found.recipe or "model", version, known))
    try:
        code = server.serve(model.path, host=host, port=port, threads=threads, card=card)
    except ImportError as error:
        raise MissingError(f"serving needs '{error.name}'", then="pip install 'modelpack[serve]'") from error
    except server.StartError as error:
        raise StageError(str(error), where=found.text) from error
    raise typer.Exit(code)
