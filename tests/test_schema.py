"""The JSON Schema of recipes: a real schema, that says yes and no where `check` does, and the settings in words."""

import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import Field

from commands import Shell, install_copy, write_recipe
from modelpack import document as grammar
from modelpack import registry, schema
from modelpack.artifact import Kind
from modelpack.bind import InputPath, UserCode
from modelpack.stage import DataRef, StageConfig, StepRef

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def document():
    registry.stages.cache_clear()
    registry.sources.cache_clear()
    return schema.document()


def errors(document, text):
    """Check a text the way an editor does, which reads YAML by the core rules of its version 1.2."""
    root, problems = grammar.parse(text, "recipe.yaml")
    assert not problems
    return [
        error.message for error in jsonschema.Draft7Validator(document).iter_errors(grammar.core(grammar.data(root)))
    ]


def test_it_is_a_schema(document):
    jsonschema.Draft7Validator.check_schema(document)
    json.dumps(document)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_ours_fits(document, path):
    assert errors(document, path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "model: {onnx: a.onnx}\nstages: [export]",
        "name: 1.10\nmodel: {onnx: a.onnx}\nstages:\n  - export:",
        "model: {onnx: a.onnx}\nstages:\n  - evaluate: {data: x}\n    id: twice\n    from: model",
        "model: {onnx: a.onnx}\nbudget: {size: 30%, accuracy_drop: 0.01, speedup: 2}\nstages: [export]",
        "model: {onnx: a.onnx}\ndata: {x: random, y: {npz: {path: y.npz, limit: 5}}}\nstages: [export]",
        "model: {onnx: a.onnx}\ndata:\nstages: [{bench: {batch: [1, 8]}}]",
    ],
)
def test_what_check_accepts_fits(document, text):
    assert errors(document, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "model: {onnx: a.onnx}",
        "stages: [export]",
        "model: {onnx: a.onnx}\nstages: []",
        "model: {onnx: a.onnx}\nstages: [exprot]",
        "model: {onnx: a.onnx}\nstages: [{export: , bench: }]",
        "model: {onnx: a.onnx}\nstages: [{model: {onnx: a.onnx}}]",
        "model: {onnx: a.onnx}\nstages: [{id: x}]",
        "model: {onnx: a.onnx}\nstages: [{prune: {macs: 2}}]",
        "model: {onnx: a.onnx}\nstages: [{prune: {mcas: 0.5}}]",
        "model: {onnx: a.onnx}\nbudget: {sise: 30%}\nstages: [export]",
        "model: {onnx: a.onnx}\nseed: -1\nstages: [export]",
        "model: {onnx: a.onnx}\ndata: {x: {npz: {}, random: {}}}\nstages: [export]",
        "model: {weights: a.pt}\nstages: [export]",
    ],
)
def test_what_check_refuses_does_not_fit(document, text):
    assert errors(document, text)


def test_plugins_of_others_are_in_it(tmp_path, capsys, monkeypatch):
    shell = Shell(tmp_path / "store", [install_copy(tmp_path / "copy")], capsys, monkeypatch)
    found = shell("schema").json
    text = write_recipe(tmp_path).read_text()
    assert errors(found, text) == []
    assert errors(found, text.replace("drop", "dorp"))
    written = shell("schema", "--output", tmp_path / "schema.json")
    assert written.out == f"wrote {tmp_path}/schema.json\n"
    assert json.loads((tmp_path / "schema.json").read_text()) == found


class Config(StageConfig):
    """Every kind of setting."""

    data: DataRef = Field(description="Rows.")
    others: tuple[StepRef, ...] = Field((), description="Steps.")
    code: UserCode | None = Field(None, description="Code.")
    file: InputPath = Field(description="A file.")
    kind: Kind = Field(Kind.ONNX, description="A kind.")
    share: float = Field(0.5, gt=0, le=1, description="A share.")
    many: int = Field(2**33, lt=2**34, description="A large number.")
    pair: tuple[float, float] | None = Field(None, description="Two numbers.")
    yes: bool = Field(True, description="A truth.")
    names: dict[str, int] = Field({"a": 1}, description="Numbers by name.")


def test_settings_are_told_in_words():
    assert [(item.name, item.type, item.default, item.required) for item in schema.settings(Config)] == [
        ("data", "name of data", "", True),
        ("others", "list of step ids", "[]", False),
        ("code", "file.py:callable", "", False),
        ("file", "path", "", True),
        ("kind", "torch | onnx | calibration | image | report", "onnx", False),
        ("share", "number > 0 and ≤ 1", "0.5", False),
        ("many", "whole number < 17179869184", "8589934592", False),
        ("pair", "[number, number]", "", False),
        ("yes", "true | false", "true", False),
        ("names", "name → whole number", "{a: 1}", False),
    ]


def test_every_setting_of_every_plugin_is_explained():
    for plugins in (registry.stages(), registry.sources()):
        for name in plugins.names():
            plugin = plugins.get(name)
            assert plugin.summary.endswith("."), name
            for item in schema.settings(plugin.config):
                assert item.help.endswith("."), f"{name}.{item.name}"
                assert item.type, f"{name}.{item.name}"
