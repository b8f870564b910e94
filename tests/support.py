"""What many tests share: running one stage the way the engine does, on a store of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelpack import canonical, registry
from modelpack.artifact import Artifact
from modelpack.stage import Job, Stage
from modelpack.store import Store
from modelpack.tensors import TensorSpec

DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.cuda)]
"""For tests of what every device must do."""


class Rows:
    """A data source over arrays in memory."""

    def __init__(self, columns: dict[str, np.ndarray], batch: int = 32) -> None:
        self.columns, self.batch = columns, batch

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def batches(self):
        for start in range(0, len(self), self.batch):
            yield {name: column[start : start + self.batch] for name, column in self.columns.items()}

    def digest(self) -> str:
        return canonical.digest({name: column.tobytes().hex() for name, column in self.columns.items()})


def run_stage(
    root: Path,
    stage: Stage[Any],
    settings: dict[str, Any],
    *,
    model: Artifact | None = None,
    inputs: dict[str, TensorSpec] | None = None,
    base: Path | None = None,
    collect: list[Any] | None = None,
    **job: Any,
) -> Artifact:
    """Run one stage, and before it the one that it implies, and seal what it leaves in a store below `root`.

    `collect` receives the events.
    """
    store = Store(root / "store")
    store.prepare()
    if "allow_slower" in stage.config.model_fields:
        settings = {"allow_slower": True, **settings}  # the nets are tiny, and no timing decides a test
    config = stage.config.model_validate(settings, context={"base": base or root})
    wanted = stage.implies(config)
    if wanted is not None:
        before = registry.stages().get(wanted.stage)
        made = run_stage(
            root, before, dict(wanted.settings), model=model, inputs=inputs, base=base, collect=collect, **job
        )
        job["steps"] = {**job.get("steps", {}), wanted.stage: made}
        config = config.model_copy(update={wanted.field: wanted.stage})
    work = {
        "stage": stage.name,
        "version": stage.version,
        "config": canonical.plain(config),
        "inputs": [model.id] if model else [],
        "steps": {name: item.id for name, item in job.get("steps", {}).items()},
        "data": {name: item.digest() for name, item in job.get("data", {}).items()},
    }
    if inputs is None and model is not None:
        inputs = {
            name: TensorSpec.model_validate(spec) for name, spec in model.read_json("signature.json")["inputs"].items()
        }
    if inputs is None:
        inputs = dict(getattr(config, "inputs", None) or {})  # of a stage that brings a model in
    with store.claim(canonical.digest(work)) as scratch, store.draft() as draft:
        current = Job(
            model=model,
            inputs=inputs or {},
            out=draft.path,
            scratch=scratch,
            shared=store.shared,
            emit=collect.append if collect is not None else (lambda _event: None),
            name="test",
            step=stage.name,
            **job,
        )
        stage.run(config, current)
        record = {"metrics": current.metrics, "results": current.results, "warnings": current.warnings}
        return store.commit(draft, stage.produces, work, record)
