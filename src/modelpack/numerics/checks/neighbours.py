"""How much a row's answer may change with the rows beside it, and who is to blame when it does.

Rows are independent: a float model's answers move by some 1e-6. Ranges that are found at run time span the whole
batch, so that dynamic quantization always moves them a little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.numerics.checks.finding import failed, passed, warned
from modelpack.numerics.checks.subject import alike

if TYPE_CHECKING:
    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject

INDEPENDENT = 30.0
"""Signal-to-noise ratio in decibels from which an answer counts as the same: a cosine of .9995."""
ANOTHER = 12.0
"""Below this it is another answer: a cosine of .97."""

_DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")


def judge(subject: Subject, likeness: float, usual: float | None, *, what: str, remedy: str, where: str) -> Finding:
    """Turn a likeness into a verdict.

    Args:
        subject: The model.
        likeness: Of the worst row's answers, in decibels.
        usual: The same of the float model; None when there is none.
        what: What was compared.
        remedy: What helps where the answers differ and ranges are not dynamic.
        where: The output.
    """
    told = f"{what}: {alike(likeness)}"
    if likeness >= INDEPENDENT:
        return passed(told)
    if usual is not None and usual < INDEPENDENT and likeness >= usual - 3:
        return passed(f"{told}, as in the float model")
    dynamic = any(node.op_type in _DYNAMIC for node in subject.model.graph.node)
    if dynamic:
        remedy = "activations take their range from the whole batch (dynamic quantization): use static quantization"
    meant = (dynamic and likeness >= ANOTHER) or (usual is None and not subject.quantized)
    return (warned if meant else failed)(told, remedy, where)
