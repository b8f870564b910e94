"""Settings that would do nothing beside the others are refused, for a silent one misleads."""

import pytest
from pydantic import ValidationError

from modelpack.stages.prune import PruneConfig
from modelpack.stages.quantize_config import QuantizeConfig


@pytest.mark.parametrize(
    ("idle", "used"),
    [
        ({"percentile": 99.9}, {"ranges": "percentile"}),
        ({"percentile": 99.9, "ranges": "mse"}, {"ranges": "percentile"}),
        ({"correction_rows": 64}, {"correction": "bias"}),
        ({"rows": 64, "method": "dynamic", "data": None}, {"data": "rows"}),
    ],
)
def test_a_setting_needs_the_one_it_belongs_to(idle, used):
    setting = next(iter(idle))
    with pytest.raises(ValidationError, match=f"`{setting}`"):
        QuantizeConfig.model_validate({"data": "rows", **idle})
    assert QuantizeConfig.model_validate({"data": "rows", **idle, **used})


def test_labels_are_for_accuracy_alone():
    with pytest.raises(ValidationError, match="`labels` does nothing"):
        QuantizeConfig.model_validate({"data": "rows", "budget": {"sqnr_db": 20, "labels": "kind"}})
    assert QuantizeConfig.model_validate({"data": "rows", "budget": {"accuracy_drop": 0.01, "labels": "kind"}})


@pytest.mark.parametrize(
    ("idle", "ways"),
    [
        ({"data": "rows", "refit": False}, "taylor, fisher or refit"),
        ({"rows": 64}, "taylor, fisher or refit"),
        ({"loss": "task", "data": "rows"}, "taylor or fisher"),
    ],
)
def test_importance_of_weights_alone_reads_nothing(idle, ways):
    setting = next(iter(idle))
    with pytest.raises(ValidationError, match=f"`{setting}` does nothing with importance l1: take {ways}"):
        PruneConfig.model_validate({"macs": 0.5, "importance": "l1", **idle})
    assert PruneConfig.model_validate({"macs": 0.5, "importance": "taylor", "data": "rows", **idle})


def test_the_truth_is_for_what_asks_for_it():
    with pytest.raises(ValidationError, match="`target` does nothing without loss task, or sensitivity"):
        PruneConfig.model_validate({"macs": 0.5, "target": "kind"})
    assert PruneConfig.model_validate({"macs": 0.5, "target": "kind", "sensitivity": 8, "data": "rows"})


def test_what_blocks_cost_is_for_a_choice_of_blocks():
    with pytest.raises(ValidationError, match="`cost` is that of layers or blocks"):
        PruneConfig.model_validate({"drop": ["a"], "cost": "latency"})
    assert PruneConfig.model_validate({"depth": 0.5, "cost": "latency"})
