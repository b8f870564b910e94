"""The command that writes what platforms need to serve a model, and on one of them does it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelpack.cli.call import Call
from modelpack.cli.command import RunArgument
from modelpack.cli.tables import table
from modelpack.deploy import TARGETS
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from modelpack.deploy.facts import Facts, Wish
    from modelpack.deploy.output import Outcome


def _complete_target(incomplete: str) -> list[str]:
    return [name for name in TARGETS if name.startswith(incomplete)]


def deploy(
    call: Call,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Where to.", show_default=False, autocompletion=_complete_target)
    ],
    run: RunArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where the files go.", show_default="deploy/TARGET"),
    ] = None,
    image: Annotated[
        str,
        typer.Option(metavar="REF", help="Where the image was pushed to; without a digest it gets the image's own."),
    ] = "",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What it is called there; the model's name if absent.")
    ] = "",
    recipe: Annotated[
        str, typer.Option(metavar="FILE", help="For ci: the recipe as a pipeline finds it; NAME.yaml if absent.")
    ] = "",
    token_secret: Annotated[
        str, typer.Option(metavar="NAME", help="The platform's secret with the tokens that clients must show.")
    ] = "",
    tls_secret: Annotated[
        str, typer.Option(metavar="NAME", help="The one with the server's certificate and private key.")
    ] = "",
    client_ca_secret: Annotated[
        str, typer.Option(metavar="NAME", help="The one with the authorities of clients' certificates.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that modelpack did not write, or that were edited.")
    ] = False,
    role: Annotated[str, typer.Option(metavar="ARN", help="For sagemaker: the role that it runs the model in.")] = "",
    apply: Annotated[bool, typer.Option("--apply", help="For sagemaker: create the endpoint, or update it.")] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="For sagemaker: back to what was served before.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="For sagemaker: delete the endpoint and what was made for it.")
    ] = False,
    wait: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", min=0, help="For sagemaker: how long to wait for it.", show_default="1800"),
    ] = None,
) -> None:
    """Write what a platform needs to serve a model.

    The files are made from the run's image and from what its bench measured. The same run gives the same files; what
    others wrote or edited is not overwritten. Secrets are named and never read; the commands that make them are told.

    TARGETS

    Examples:
        modelpack deploy kubernetes quickstart --image registry.example.com/digits:1.0
        modelpack deploy compose --token-secret tokens --tls-secret certificate
        modelpack deploy compose --output compose
        modelpack deploy ci quickstart --output . --recipe recipes/quickstart.yaml
        modelpack deploy sagemaker --apply --role ARN --image REF
    """
    from modelpack.deploy import checked, fitting
    from modelpack.deploy.facts import Wish

    wish = Wish(name, role, recipe, token_secret, tls_secret, client_ca_secret)
    checked(target, wish)
    acts = {"--apply": apply, "--rollback": rollback, "--delete": delete}
    asked = [option for option, wanted in acts.items() if wanted]
    files = {"--output": output is not None, "--force": force}
    given = {**acts, "--role": role, "--recipe": recipe, "--wait": wait is not None, "--image": image}
    fitting(target, [option for option, value in given.items() if value])
    if len(asked) > 1:
        raise UsageError("one of --apply, --rollback and --delete at a time", then=f"{asked[0]} first")
    for option in (option for option, wanted in files.items() if wanted and asked):
        raise UsageError(f"{asked[0]} writes no files", where=option, then=f"leave out {option} or {asked[0]}")
    if wait is not None and not asked:
        raise UsageError("files need no waiting", where="--wait", then="it goes with --apply, --rollback or --delete")
    if asked:
        _act(call, asked[0], run, image, wish, _PATIENCE if wait is None else wait)
        return
    _write(call, target, _facts(call, run, image), wish, output or Path("deploy") / target, force=force)


_PATIENCE = 1800
"""Seconds to wait for an endpoint."""

_WIDTH = max(len(name) for name in TARGETS)
deploy.__doc__ = (deploy.__doc__ or "").replace(
    "TARGETS", "\b\n" + "\n".join(f"    {name.ljust(_WIDTH)}  {text}" for name, text in TARGETS.items())
)


def _facts(call: Call, run: str | None, image: str) -> Facts:
    from modelpack import deployment

    return deployment.gather(call.store, run, deployment.checked(image) if image else "")


def _write(call: Call, target: str, facts: Facts, wish: Wish, output: Path, *, force: bool) -> None:
    from modelpack.deploy import access, render
    from modelpack.deploy.output import write

    outcome = write(render(target, facts, wish), output, target, force=force)
    warnings = _warnings(target, facts)
    for text in warnings:
        call.say(f"warning: {text}")
    later = access.commands(target, wish, str(output))
    document = {
        "target": target,
        "model": facts.artifact,
        "image": facts.image.reference if facts.image else None,
        "directory": str(output),
        **vars(outcome),
        "warnings": warnings,
        "next": later,
    }
    call.result(document, lambda: "\n".join([_told(outcome, output), *_next(later)]))


def _warnings(target: str, facts: Facts) -> list[str]:
    """Say what makes files that will not do as they are."""
    found: list[str] = []
    if target in {"triton", "ci"} or facts.image is None:
        return found
    if not facts.image.pinned:
        found.append(f"{facts.image.name} is known by name only, and may mean another image tomorrow")
    if facts.image.local and target != "compose":
        found.append(f"no registry has {facts.image.name} yet: `modelpack build --push REF`, and --image REF here")
    if facts.bench is None:
        found.append("this model was not measured, so its resources are plain defaults: see `modelpack stages bench`")
    return found


def _told(outcome: Outcome, output: Path) -> str:
    rows = [
        (word, str(output / name))
        for word, names in (("wrote", outcome.wrote), ("as it was", outcome.unchanged), ("removed", outcome.removed))
        for name in names
    ]
    return table((), rows)


def _next(commands: list[str]) -> list[str]:
    return ["", "next, unless these secrets are there:", *(f"  {command}" for command in commands)] if commands else []


def _act(call: Call, act: str, run: str | None, image: str, wish: Wish, wait: int) -> None:
    """Change the endpoint; what exists needs no more than its name."""
    from modelpack.deploy import endpoint, sagemaker

    facts = None if wish.name and act != "--apply" else _facts(call, run, image)
    asked = sagemaker.requests(facts, wish) if facts is not None and act == "--apply" else None
    name = sagemaker.endpoint_name(facts.name if facts is not None else "", wish)
    found = endpoint.connect(name, wait, call.say)
    if asked is not None:
        found.apply(asked)
    elif act == "--rollback":
        found.rollback()
    else:
        found.delete()
    call.result({"endpoint": name, "done": found.done}, lambda: found.done[-1])
