"""What commands print: results as headings and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelpack import quantities
from modelpack.cli.tables import facts, heading, page, table
from modelpack.quantities import MISSING, figure, moment

if TYPE_CHECKING:
    from modelpack.record import Run
    from modelpack.summary import Change, Image, Summary
    from modelpack.verification import Report

Row = Mapping[str, Any]
Typed = Callable[[str], str]
"""Spells a command for the user to type."""

SHORT = 12
"""Digits of an id that are shown."""


def summary(found: Summary, typed: Typed) -> str:
    """Show what a run gained, what deserves attention, and what to type next."""
    run = found.run
    took = f"{run.name} {run.status} in {quantities.duration(run.seconds)} on {run.device}"
    done = (
        f"{found.executed} of {len(run.steps)} steps executed"
        if found.executed
        else ("everything was in the store; nothing executed")
    )
    warnings = table((), [(f"{step}:", text) for step, text in found.warnings], indent="  ")
    return page(
        f"{took}: {done}",
        table(("", "before", "after", ""), [_change(item) for item in found.changes], right=(1, 2)),
        budget(run.budget),
        heading("warnings", warnings),
        image(found.image) if found.image else "",
        facts({"next": typed(found.next)}),
    )


def _change(item: Change) -> tuple[str, str, str, str]:
    before, after = figure(item.metric, item.before), figure(item.metric, item.after)
    if not isinstance(item.before, (int, float)) or not isinstance(item.after, (int, float)):
        return (item.label, before, after, "")
    if item.metric in ("model_bytes", "parameters", "mac_count"):
        return (item.label, before, after, quantities.ratio(item.before, item.after))
    return (item.label, before, after, quantities.shift(item.metric, item.before, item.after))


def image(found: Image) -> str:
    """Show an image and how to run it."""
    from modelpack.container.base import host_platform

    shown = {"image": found.tag, "id": found.id, "size": quantities.size(found.size)}
    if found.platforms != (host_platform(),):
        shown |= {"for": ", ".join(found.platforms)}
    runs = f"docker run --rm -p 8080:8080 {found.tag}"
    for file in found.files:
        shown |= {"archive": file}
        runs = f"docker load -i {file} && {runs}"
    return facts(shown | {"run it": runs})


def budget(lines: Sequence[Row]) -> str:
    """Show every line of a budget with its verdict."""
    rows = [
        (
            str(line["name"]),
            quantities.limit(line["name"], line["limit"]),
            figure(line["name"], line["measured"], like=line["limit"]),
            "met" if line["met"] else "NOT MET",
            str(line["step"]),
        )
        for line in lines
    ]
    return table(("budget", "limit", "measured", "", "by"), rows, right=(1, 2)) if rows else ""


def plan(steps: Sequence[Row]) -> str:
    """Show each step, whether it will run and why."""
    rows = [
        (
            step["id"],
            "in the store" if step["cached"] else "to run",
            step["why"],
            ", ".join([*step["reads"], *(f"data {name}" for name in step["data"])]),
            step["fingerprint"][:SHORT] or MISSING,
        )
        for step in steps
    ]
    left = sum(not step["cached"] for step in steps)
    told = f"{left} of {len(steps)} steps to run" if left else "everything is in the store; nothing to run"
    assumed = [
        f"{step['id']} assumes {name} {item['value']}: {item['why']}"
        for step in steps
        for name, item in step["assumes"].items()
    ]
    return page(table(("step", "state", "why", "reads", "fingerprint"), rows), "\n".join([told, *assumed]))


def runs(found: Sequence[Run], current: Mapping[str, int]) -> str:
    """Show the history, the newest run last."""
    if not found:
        return "no runs yet; `modelpack compress RECIPE` makes one"
    rows = []
    for run in found:
        models = [step.metrics["model_bytes"] for step in run.steps if "model_bytes" in step.metrics]
        sizes = f"{quantities.size(models[0])} → {quantities.size(models[-1])}" if models else MISSING
        mark = "current" if current.get(run.recipe) == run.number else ""
        executed = sum(not step.cached for step in run.steps)
        took = quantities.duration(run.seconds)
        rows.append((run.name, run.status, mark, moment(run.started), took, f"{executed}/{len(run.steps)}", sizes))
    return table(("run", "status", "", "started (UTC)", "took", "executed", "model"), rows, right=(4, 5))


def run(found: Run, current: bool) -> str:
    """Show one run: its steps, their figures, and how it ended."""
    head = {
        "run": found.name + (" (current)" if current else ""),
        "status": found.status,
        "started": f"{moment(found.started)} UTC",
        "took": quantities.duration(found.seconds),
        "device": found.device,
        "changed": ", ".join(found.overrides),
        "why": found.error,
    }
    steps = [
        (
            step.id,
            step.stage,
            step.kind,
            "store" if step.cached else quantities.duration(step.seconds),
            figure("model_bytes", step.metrics.get("model_bytes")),
            step.artifact[:SHORT],
        )
        for step in found.steps
    ]
    return page(
        facts({name: value for name, value in head.items() if value}),
        table(("step", "stage", "kind", "took", "size", "artifact"), steps, right=(3, 4)) if steps else "",
        metrics({step.id: step.metrics for step in found.steps}),
        budget(found.budget),
    )


def metrics(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Show the figures of steps, one a line."""
    rows = [(step, name, figure(name, value)) for step, values in found.items() for name, value in values.items()]
    named = [(step if at == 0 or rows[at - 1][0] != step else "", *rest) for at, (step, *rest) in enumerate(rows)]
    return table(("step", "metric", "value"), named, right=(2,)) if named else ""


def bench(found: Row) -> str:
    """Show times, ratios and memory."""
    times = [
        (
            cell["subject"],
            str(cell["batch"]),
            str(cell["threads"]),
            *(figure(name, cell[name]) for name in ("min_ms", "p50_ms", "p95_ms", "p99_ms")),
            quantities.significant(cell["rows_per_second"]),
            ratio(cell["ratio"]),
        )
        for cell in found["cells"]
    ]
    weights = [
        (
            item["name"],
            item["runtime"],
            quantities.size(item["size"]),
            figure("mac_count", item["macs"]),
            figure("load_ms", item["load_ms"]),
            quantities.size(max(item["peak_bytes"].values())),
            quantities.size(item["runtime_bytes"]),
        )
        for item in found["subjects"]
    ]
    reference = found["settings"]["reference"]
    columns = (
        "model",
        "batch",
        "threads",
        "min",
        "p50",
        "p95",
        "p99",
        "rows/s",
        f"against {reference}" if reference else "",
    )
    return page(
        table(columns, times, right=(1, 2, 3, 4, 5, 6, 7)),
        table(
            ("model", "runtime", "size", "multiply-adds", "load", "peak memory", "of it runtime"),
            weights,
            right=(2, 3, 4, 5, 6),
        ),
        "\n".join(f"note: {text}" for text in found["notes"]),
    )


def ratio(found: Row | None) -> str:
    """Show a ratio with the interval that holds it, or that no difference was shown."""
    if found is None:
        return ""
    interval = f"{quantities.significant(found['low'])}–{quantities.significant(found['high'])}"
    if found["verdict"] == "no difference shown":
        return f"{found['verdict']} ({interval})"
    return f"{quantities.significant(found['value'])}×, {found['verdict']} ({interval})"


def verified(report: Report) -> str:
    """Say that all is well."""
    return f"ok: {report.artifacts} artifacts, {quantities.size(report.size)}, every byte as it was written"


def examined(found: Row) -> str:
    """Show what each check found, and how many failed."""
    rows = [
        (
            item["check"],
            item["verdict"].upper() if item["verdict"] == "failed" else item["verdict"],
            item["cause"] + (f" ({item['where']})" if item["where"] else ""),
            item["remedy"],
        )
        for item in found["checks"]
    ]
    counts = Counter(item["verdict"] for item in found["checks"])
    told = ", ".join(f"{counts[name]} {name}" for name in ("failed", "warning", "ok", "not checked") if counts[name])
    return page(table(("check", "verdict", "cause", "remedy"), rows), f"{found['model']}: {told}")


def collected(found: Row) -> str:
    """Say what cleaning removed."""
    verb = "would be removed" if found["dry_run"] else "removed"
    freed = f"{len(found['removed'])} artifacts {verb}, {quantities.size(found['bytes'])}"
    return page("\n".join(f"  {name[:SHORT]}" for name in found["removed"]), f"{freed}; {found['kept']} kept")
