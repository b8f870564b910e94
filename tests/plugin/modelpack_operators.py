"""A stage for modelpack: what a model is made of, and whether its target can run that."""

from collections import Counter

from pydantic import Field

from modelpack import canonical
from modelpack.artifact import Kind
from modelpack.errors import StageError
from modelpack.stage import Job, StageConfig, stage


class OperatorsConfig(StageConfig):
    """What the target cannot run."""

    forbid: tuple[str, ...] = Field((), description="Operators that must not occur, such as Softmax.")


@stage(version=1, accepts={Kind.ONNX}, produces=Kind.REPORT, needs=("onnx",))
def operators(config: OperatorsConfig, job: Job) -> None:
    """Count the model's operators, and refuse those that the target cannot run."""
    import onnx

    model = onnx.load(job.source.file("model.onnx"), load_external_data=False)
    counts = Counter(node.op_type for node in model.graph.node)
    for name in config.forbid:
        if name in counts:
            raise StageError(f"the model has {counts[name]} × {name}, which the target cannot run")
    job.metric("operator_count", counts.total())
    (job.out / "operators.json").write_bytes(canonical.encode(counts))
