"""What a run gained: its first model against its last, and two runs against each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from modelpack.artifact import Kind
from modelpack.errors import ModelpackError
from modelpack.record import way

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.artifact import Artifact
    from modelpack.record import Run, StepRun
    from modelpack.store import Store

COMPARED = (
    ("model size", "model_bytes"),
    ("parameters", "parameters"),
    ("multiply-adds", "mac_count"),
)
"""Figures that both the first and a later model have: label, metric."""

AGAINST = (
    *((name, name) for name in ("accuracy", "top5", "precision", "recall", "f1", "auroc", "mse", "mae", "r2")),
    *((name, name) for name in ("pearson", "spearman", "similarity")),
    ("latency", "latency_ms"),
)
"""Figures given for the model and, as ``<metric>_reference``, for what it was compared with: label, metric."""

ALONE = (
    ("agreement", "agreement"),
    ("cosine", "cosine"),
    ("signal to noise", "sqnr_db"),
    ("agreement when quantized", "quantize_agreement"),
    ("signal to noise when quantized", "quantize_sqnr_db"),
    ("spearman of pairs", "spearman_pairs"),
    ("speedup", "speedup"),
)
"""Figures of the result alone: label, metric."""


@dataclass(frozen=True)
class Change:
    """One figure before and after; `before` is None where only the result has it."""

    label: str
    metric: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Image:
    """The image that a run ended with.

    Attributes:
        id: What engines call it.
        digest: What registries call it.
        tag: Its name.
        platforms: The machines that it is for.
        files: Where its archive lies.
        size: Bytes unpacked; of several, of the largest.
    """

    id: str
    digest: str
    tag: str
    platforms: tuple[str, ...]
    files: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Summary:
    """What a run gained.

    Attributes:
        run: The run.
        executed: How many steps really ran.
        changes: Figures, the most asked for first.
        warnings: Step and text of everything that deserved attention.
        image: The image, when one was built.
    """

    run: Run
    executed: int
    changes: tuple[Change, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    image: Image | None = None

    @property
    def next(self) -> str:
        """The command that goes on from here: look at what cannot be served, package what is not, serve the rest."""
        if not any(step.kind == Kind.ONNX for step in self.run.steps):
            return f"show {self.run.name}"
        return f"build {self.run.name}" if self.image is None else f"serve {self.run.recipe}"

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        image = self.image
        return {
            "run": self.run.name,
            "status": self.run.status,
            "executed": self.executed,
            "steps": len(self.run.steps),
            "seconds": self.run.seconds,
            "changes": [{"metric": item.metric, "before": item.before, "after": item.after} for item in self.changes],
            "budget": [dict(line) for line in self.run.budget],
            "warnings": [{"step": step, "text": text} for step, text in self.warnings],
            "next": self.next,
            "image": asdict(image) if image else None,
        }


def summarize(run: Run, store: Store) -> Summary:
    """Sum a run up from its record and its artifacts' records.

    Artifacts that are gone or damaged only make the summary shorter.
    """
    artifacts = {step.id: artifact for step in run.steps if (artifact := _artifact(store, step)) is not None}
    warnings = [
        (name, text) for name, artifact in artifacts.items() for text in artifact.manifest.record.get("warnings", [])
    ]
    images = [artifact for artifact in artifacts.values() if artifact.kind is Kind.IMAGE]
    return Summary(
        run,
        sum(not step.cached for step in run.steps),
        tuple(changes(run.steps)),
        tuple(dict.fromkeys(warnings)),
        image(images[-1]) if images else None,
    )


def image(artifact: Artifact) -> Image:
    """Describe an image artifact."""
    files = tuple(str(artifact.path / item.name) for item in artifact.manifest.files if item.name.endswith(".tar"))
    known = artifact.manifest.record.get("results", {}).get("image", {})
    size = known.get("size", sum(item.size for item in artifact.manifest.files))
    name, digest, tag, platform = (str(known.get(key, "")) for key in ("id", "digest", "tag", "platform"))
    return Image(name, digest, tag, tuple(platform.split(",")), files, int(size))


def changes(steps: Sequence[StepRun]) -> list[Change]:
    """List what became of the figures between the first step and the last that gives each, on the way to the result."""
    told = way(steps)
    if not told:
        return []
    first, latest = told[0].metrics, _latest(told[1:])
    found = [
        Change(label, metric, first[metric], latest[metric])
        for label, metric in COMPARED
        if metric in first and metric in latest
    ]
    found += [
        Change(label, metric, latest.get(f"{metric}_reference"), latest[metric])
        for label, metric in AGAINST
        if metric in latest
    ]
    found += [Change(label, name, None, latest[name]) for label, name in ALONE if name in latest]
    return found


def _latest(steps: Sequence[StepRun]) -> dict[str, Any]:
    """Give each figure as the last step with it has it; a stage's own repetition of its input is no news."""
    found: dict[str, Any] = {}
    for step in steps:
        found |= step.metrics
    return found


def _artifact(store: Store, step: StepRun) -> Artifact | None:
    try:
        return store.get(step.artifact)
    except ModelpackError:
        return None


@dataclass(frozen=True)
class Difference:
    """What differs between two runs.

    Attributes:
        names: What the two are called.
        recipe: Unified diff of the two recipes, `--set` values included.
        settings: Step and setting → value in each; None where a step is absent.
        metrics: Step and metric → figure in each.
    """

    names: tuple[str, str]
    recipe: str
    settings: Mapping[tuple[str, str], tuple[Any, Any]] = field(default_factory=dict)
    metrics: Mapping[tuple[str, str], tuple[Any, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object."""

        def rows(found: Mapping[tuple[str, str], tuple[Any, Any]]) -> list[dict[str, Any]]:
            return [{"step": at[0], "name": at[1], "a": both[0], "b": both[1]} for at, both in found.items()]

        return {
            "a": self.names[0],
            "b": self.names[1],
            "recipe": self.recipe,
            "settings": rows(self.settings),
            "metrics": rows(self.metrics),
        }


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its name, recipe text, and each step's settings and figures."""

    name: str
    recipe: str
    settings: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, Any]]


def side_of_run(run: Run, store: Store, recipe: str) -> Side:
    """Take a run; settings come from its artifacts, as far as they are still there."""
    text = recipe + "".join(f"# --set {assignment}\n" for assignment in run.overrides)
    artifacts = {step.id: _artifact(store, step) for step in run.steps}
    settings = {name: artifact.manifest.work["config"] for name, artifact in artifacts.items() if artifact is not None}
    return Side(run.name, text, settings, {step.id: step.metrics for step in run.steps})


def side_of_artifact(artifact: Artifact) -> Side:
    """Take one artifact as a run of one step."""
    work, record = artifact.manifest.work, artifact.manifest.record
    size = {"model_bytes": artifact.model_bytes} if artifact.kind.is_model else {}
    metrics = {**size, **artifact.metrics}
    return Side(artifact.id[:12], record.get("recipe", ""), {work["stage"]: work["config"]}, {work["stage"]: metrics})


def differences(first: Side, second: Side) -> Difference:
    """Compare two sides: every setting that differs, and every figure that either has."""
    import difflib

    before, after = first.recipe.splitlines(keepends=True), second.recipe.splitlines(keepends=True)
    lines = difflib.unified_diff(before, after, first.name, second.name, n=1)
    settings = {at: both for at, both in _paired(first.settings, second.settings).items() if both[0] != both[1]}
    recipe = "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
    return Difference((first.name, second.name), recipe, settings, _paired(first.metrics, second.metrics))


def _paired(
    first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], tuple[Any, Any]]:
    paired = {}
    for step in dict.fromkeys([*first, *second]):
        one, two = first.get(step, {}), second.get(step, {})
        for name in dict.fromkeys([*one, *two]):
            paired[step, name] = (one.get(name), two.get(name))
    return paired
