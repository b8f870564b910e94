"""What quantize and export do with what the checks find: record it, warn of it, refuse it."""

import contextlib
from dataclasses import replace

import pytest

import failures
from modelpack.errors import StageError
from modelpack.events import Progress
from modelpack.numerics import checks, onnxfile
from modelpack.numerics.checks.finding import failed, passed, unchecked, warned
from modelpack.stages.quantize import quantize
from onnx_support import onnx_artifact
from support import Rows, run_stage


def quantized(root, case, collect=None, **wanted):
    source, data = onnx_artifact(root, case.model), {"val": Rows(case.feed)}
    return run_stage(root, quantize, {"data": "val", **wanted}, model=source, data=data, collect=collect)


def test_every_check_that_was_made_is_recorded(tmp_path):
    made = quantized(tmp_path, failures.convolutions(width=32))
    record = made.manifest.record
    found = {item["check"]: item["verdict"] for item in record["results"]["checks"]}
    assert set(found) == set(checks.CHECKS) - {"saturation", "speed"}
    assert set(found.values()) == {"ok", "not checked"}
    assert record["warnings"] == []


def examined(root, **wanted):
    """How many checks were made, whatever came of it."""
    events = []
    with contextlib.suppress(StageError):
        quantized(root, failures.convolutions(width=32), collect=events, **wanted)
    return {event.total for event in events if isinstance(event, Progress) and event.label == "examine"}


def test_speed_is_measured_unless_it_may_be_slower(tmp_path):
    every = len(checks.CHECKS) - 1  # the method itself tells of saturation
    assert every in examined(tmp_path / "measured", allow_slower=False)
    assert every - 1 in examined(tmp_path / "let")


def test_a_failure_is_refused_and_shipped_only_where_nobody_looks(tmp_path):
    case = failures.convolutions(depth=1, width=4, outputs=4)
    with pytest.raises(StageError, match=r"did not become smaller.*check 'size'") as caught:
        quantized(tmp_path / "looked", case)
    assert "every layer was quantized" in caught.value.then
    made = quantized(tmp_path / "unseen", case, verify=False)
    assert made.metrics["quantize_shrink"] > 1
    assert "checks" not in made.manifest.record["results"]


def test_a_model_is_accepted_when_no_check_fails():
    fine = [passed(), unchecked("no rows"), warned("it is odd", "look at it")]
    named = [type(item)(item.verdict, item.cause, item.remedy, item.where, "batch") for item in fine]
    assert checks.accept(named) == ["batch: it is odd; look at it"]


def test_the_first_failure_is_the_error():
    wrong = failed("it is wrong", "do it right", "conv0")
    named = type(wrong)(wrong.verdict, wrong.cause, wrong.remedy, wrong.where, "levels")
    with pytest.raises(StageError, match=r"it is wrong \(check 'levels'\)") as caught:
        checks.accept([named])
    assert (caught.value.where, caught.value.then) == ("conv0", "do it right")
    with pytest.raises(StageError) as caught:
        checks.accept([named], remedies={"levels": "do something else"})
    assert caught.value.then == "do something else"
    assert checks.accept([named], tolerated=["levels"]) == ["levels: it is wrong; do it right"]


def test_layers_left_out_on_purpose_are_not_missed(tmp_path):
    case = failures.convolutions(outputs=190)
    for number, wanted in enumerate(({"exclude": ["conv*"]}, {"operators": ["Gemm"]})):
        made = quantized(tmp_path / str(number), case, **wanted)
        (found,) = (item for item in made.manifest.record["results"]["checks"] if item["check"] == "coverage")
        assert (found["verdict"], found["cause"]) == ("ok", "1 of 1 Gemm: 100% of the weights")
        alone = replace(case, model=onnxfile.read(made.file("model.onnx"))).subject()
        (missed,) = checks.examine(alone, only=["coverage"])
        assert missed.verdict == "failed", "nobody says that it was meant"
