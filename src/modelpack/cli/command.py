"""What commands there are, and how a function becomes one: the options that every command has, and its help."""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from modelpack.cli.call import DEFAULT_STORE, Call
from modelpack.errors import ModelpackError, UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer._click import Context, HelpFormatter

CONTENTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Recipes": (
        ("init", "recipes", "Write a first recipe, commented and checked."),
        ("check", "recipes", "Tell everything that is wrong with a recipe."),
        ("plan", "recipes", "Tell what `compress` would run, and why."),
        ("compress", "recipes", "Run a recipe, and say what it gained."),
    ),
    "Results": (
        ("runs", "history", "List the runs in the store, the newest last."),
        ("show", "history", "Show a run, an artifact or an ONNX file."),
        ("diff", "history", "Compare two runs or artifacts side by side."),
        ("report", "report", "Make a page of what was done and gained."),
        ("get", "history", "Copy a model or an image out of the store."),
        ("verify", "verify", "Examine a model or an image, or compare the store with its hashes."),
    ),
    "Delivery": (
        ("bench", "deliver", "Measure models side by side."),
        ("build", "deliver", "Make a container image of a run's last model."),
        ("serve", "deliver", "Serve a run's last model over HTTP."),
        ("push", "exchange", "Push a run's last model to a registry."),
        ("pull", "exchange", "Pull a model from a registry."),
        ("deploy", "deploy", "Write what a platform needs to serve a model."),
    ),
    "The store": (
        ("rollback", "keeping", "Make an earlier run the current one."),
        ("gc", "keeping", "Remove artifacts that no kept run was made from."),
    ),
    "Reference": (
        ("stages", "learn", "List the stages, or explain one."),
        ("sources", "learn", "List the data sources, or explain one."),
        ("schema", "learn", "Give the JSON Schema of recipes, for editors."),
        ("doctor", "learn", "Tell what this machine offers and lacks."),
    ),
}
"""The overview by theme: command, the module it lives in, and the first line of its help.

It is written down so that the overview needs none of the modules.
"""

SETTINGS = {"help_option_names": ["--help", "-h"], "max_content_width": 100}
COMMON = "Options of every command"

StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        envvar="MODELPACK_STORE",
        metavar="DIR",
        help="Where artifacts and runs are kept.",
        rich_help_panel=COMMON,
        file_okay=True,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write only JSON to standard output.", rich_help_panel=COMMON)]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.", rich_help_panel=COMMON)]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Say more: every figure, and where an error arose.", rich_help_panel=COMMON),
]

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Replace one value, such as stages.prune.macs=0.5. Repeatable."),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="What to compute on: auto, cpu, cuda or cuda:N.")
]
UntilOption = Annotated[
    str,
    typer.Option(
        "--until", metavar="STEP", show_default=False, help="End with this step; the last one when not given."
    ),
]

NprocOption = Annotated[
    int, typer.Option("--nproc", min=1, metavar="N", help="Processes on this host that share what trains.")
]
NnodesOption = Annotated[
    int, typer.Option("--nnodes", min=1, metavar="N", help="Hosts that share what trains; each types this command.")
]


def complete_run(incomplete: str) -> list[str]:
    """Offer the names of recipes that have run, and of their runs."""
    from modelpack.runs import Runs
    from modelpack.store import Store

    try:
        runs = Runs(Store(Path(os.environ.get("MODELPACK_STORE", DEFAULT_STORE))))
        names = [f"{name}@{number}" for name in runs.recipes() for number in runs.numbers(name)]
    except (ModelpackError, OSError):
        return []
    return [name for name in [*runs.recipes(), *names] if name.startswith(incomplete)]


RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="A run (NAME or NAME@7), a step of it (NAME:STEP), or 6 or more digits of an artifact's id.",
        show_default="the current run of the newest recipe",
        autocompletion=complete_run,
    ),
]


def command(function: Callable[..., None]) -> Command:
    """Make a function a command.

    Its first parameter receives the `Call`; the options that every command has are added to the others. The docstring
    is the help; what follows a line `Examples:` is shown below the options, word for word.
    """
    text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\nExamples:\n")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(
        function.__name__,
        cls=Command,
        help=text.strip(),
        epilog=inspect.cleandoc("\n" + examples) or None,
        context_settings=SETTINGS,
    )(_with_common_options(function))
    made = typer.main.get_command(app)
    assert isinstance(made, Command), "an application of one command is that command"
    return made


def _with_common_options(function: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(function, eval_str=True)
    _, *own = signature.parameters.values()

    def command(store: Path, as_json: bool, quiet: bool, verbose: bool, **settings: Any) -> None:
        function(Call(store, as_json, quiet, verbose), **settings)

    def option(name: str, kind: Any, default: object) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)

    common = [
        option("store", StoreOption, Path(DEFAULT_STORE)),
        option("as_json", JsonOption, default=False),
        option("quiet", QuietOption, default=False),
        option("verbose", VerboseOption, default=False),
    ]
    parameters = [*(item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own), *common]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}
    return command


class Command(TyperCommand):
    """A command whose help shows its own options before those of every command, and its examples word for word."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write arguments and options by panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if param.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(param, "rich_help_panel", None) or kind, []).append(record)
        helping = next((row for row in panels.get("Options", []) if "--help" in row[0]), None)
        if helping:
            panels["Options"].remove(helping)
            panels.setdefault(COMMON, []).append(helping)
        for title in sorted(panels, key=("Arguments", "Options", COMMON).index):
            if panels[title]:
                with formatter.section(title):
                    formatter.write_dl(panels[title])

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        """Write the examples without refilling their lines."""
        _verbatim(self.epilog, formatter)


class Group(TyperGroup):
    """The overview: commands by theme, in the order of a day's work; one is imported when it is called."""

    def list_commands(self, ctx: Context) -> list[str]:  # noqa: ARG002
        """Name the commands in the order of the overview."""
        return [name for entries in CONTENTS.values() for name, _, _ in entries]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:  # noqa: ARG002
        """Import a command."""
        for name, module, _ in (entry for entries in CONTENTS.values() for entry in entries):
            if name == cmd_name:
                return command(getattr(importlib.import_module(f"modelpack.cli.{module}"), name))
        return None

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the first argument names, or say which one may be meant."""
        names = self.list_commands(ctx)
        if args[0] not in names:
            hint = did_you_mean(args[0], names)
            raise UsageError(f"no command is called '{args[0]}'", then=hint or "`modelpack --help` lists them")
        return args[0], self.get_command(ctx, args[0]), args[1:]

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the commands by theme."""
        width = max(len(name) for name in self.list_commands(ctx))
        for title, entries in CONTENTS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), summary) for name, _, summary in entries])

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        """Write examples and the last words without refilling their lines."""
        examples, _, rest = (self.epilog or "").partition("\n\n")
        _verbatim(examples, formatter)
        formatter.write(f"\n{rest}")


def _verbatim(text: str | None, formatter: HelpFormatter) -> None:
    if text:
        formatter.write("\nExamples:\n" + inspect.cleandoc(text).replace("\n", "\n  ").join(("  ", "\n")))
