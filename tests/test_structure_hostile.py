"""Files that tell of a changed tree, written by somebody else: refused unless they hold known changes."""

from __future__ import annotations

import json

import pytest

import nets
from modelpack.errors import StageError
from modelpack.numerics import models, structure
from test_models import imported, reloaded


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return imported(tmp_path_factory.mktemp("source"), "encoder", nets.TOKENS, arguments={"layers": 4})


GOOD = {"operation": "factor", "path": "classifier", "form": "channel", "rank": 2}


@pytest.mark.parametrize(
    "body",
    [
        5,
        {},
        [5],
        [{}],
        [{"operation": "exec", "path": "import os"}],
        [{**GOOD, "rank": True}],
        [{**GOOD, "rank": 10**30}],
        [{**GOOD, "rank": -1}],
        [{**GOOD, "rank": "2"}],
        [{**GOOD, "form": "pickle"}],
        [{**GOOD, "type": "Linear"}],
        [{**GOOD, "path": "__class__"}],
        [{**GOOD, "path": ["classifier"]}],
        [{**GOOD, "path": "layers.0.attention.forward"}],
        [{"operation": "drop", "path": "layers", "items": []}],
        [{"operation": "drop", "path": "layers", "items": [0]}],
        [{"operation": "drop", "path": "layers", "items": ["__init__"]}],
        [{"operation": "bypass", "path": "_modules"}],
        [{"operation": "bypass", "path": ""}],
    ],
)
def test_a_hostile_list_of_changes_is_refused(source, tmp_path, body):
    models.save(models.load(source), tmp_path / "out", like=source)
    (tmp_path / "out" / "structure.json").write_text(json.dumps(body))
    with pytest.raises(StageError):
        reloaded(tmp_path / "out", source)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[", b'[{"operation":"bypass","path":"classifier"}', b"NaN"])
def test_a_damaged_list_of_changes_is_refused_by_name(data):
    with pytest.raises(StageError, match="no list of known changes") as caught:
        structure.decode(data)
    assert caught.value.where == "structure.json"


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"": 5},
        {"": {"forward": 5}},
        {"": {"__class__": "x"}},
        {"": {"_modules": {}}},
        {"": {"layers": None}},
        {"": {"training": False}},
        {"classifier": {"weight": 3}},
        {"classifier": {"register_forward_hook": None}},
        {"classifier": {"T_destination": 1}},
        {"nowhere": {"width": 3}},
    ],
)
def test_hostile_edits_are_refused(source, tmp_path, body):
    models.save(models.load(source), tmp_path / "out", like=source)
    (tmp_path / "out" / "edits.json").write_text(json.dumps(body))
    with pytest.raises(StageError):
        reloaded(tmp_path / "out", source)
