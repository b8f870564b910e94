"""Models that take images or texts, and data of both, to record interfaces from."""

from __future__ import annotations

import io

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from modelpack import canonical
from modelpack.artifact import Artifact, Kind
from modelpack.sources.image_folder import image_folder
from modelpack.sources.text import text
from modelpack.stages.interface import interface
from modelpack.store import Store
from modelpack.tensors import TensorSpec
from sources import opened
from support import run_stage
from test_sources_text import tokenizer

PIXELS = {"size": 10, "crop": 8, "resample": "bicubic", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def sealed(root, model, inputs, outputs) -> Artifact:
    store = Store(root / "models")
    store.prepare()
    with store.draft() as draft:
        onnx.save(model, draft.path / "model.onnx")
        (draft.path / "signature.json").write_bytes(canonical.encode({"inputs": inputs, "outputs": outputs}))
        return store.commit(draft, Kind.ONNX, {"stage": "planted"}, {})


def seeing(root, classes=3) -> Artifact:
    """Scores are the means of blue, green and red; `pixels` is what came in."""
    nodes = [
        helper.make_node("Identity", ["image"], ["pixels"]),
        helper.make_node("ReduceMean", ["image"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Gather", ["means", "order"], ["scores"], axis=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "seeing", [value("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [value("scores", TensorProto.FLOAT, ["batch", classes]), value("pixels", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor("order", TensorProto.INT64, [classes], [2, 1, 0][:classes])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    shape = ["batch", 3, 8, 8]
    return sealed(
        root, model, {"image": {"shape": shape, "dtype": "float32", "range": None}},
        {"scores": {"shape": ["batch", classes], "dtype": "float32"}, "pixels": {"shape": shape, "dtype": "float32"}},
    )  # fmt: skip


def reading(root, length="length") -> Artifact:
    """Every output is an input, so that an answer shows what was made of a text."""
    names = {"ids": "input_ids", "attention_mask": "attention_mask", "token_type_ids": "token_type_ids"}
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in names]
    shape = ["batch", length]
    graph = helper.make_graph(
        nodes, "reading", [value(name, TensorProto.INT64, shape) for name in names],
        [value(f"{name}_out", TensorProto.INT64, shape) for name in names],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return sealed(
        root, model, {name: {"shape": shape, "dtype": "int64", "range": [0, 7]} for name in names},
        {f"{name}_out": {"shape": shape, "dtype": "int64"} for name in names},
    )  # fmt: skip


def photos(root, count=2):
    """Photographs of one colour each in directories, noisy and of different sizes; gives their paths."""
    rng, found = np.random.default_rng(0), []
    for name, colour in COLOURS.items():
        (root / "photos" / name).mkdir(parents=True)
        for number in range(count):
            sizes = (int(rng.integers(12, 40)), int(rng.integers(12, 40)))
            noisy = np.clip(np.array(colour) * 0.7 + rng.integers(0, 60, (*sizes, 3)), 0, 255).astype(np.uint8)
            found.append(root / "photos" / name / f"{number}.{'jpg' if number % 2 else 'png'}")
            Image.fromarray(noisy).save(found[-1])
    return found


def pictures(root, model, **settings):
    """Open the photographs as data for a model."""
    specs = {
        name: TensorSpec.model_validate(spec) for name, spec in model.read_json("signature.json")["inputs"].items()
    }
    return opened(image_folder, root, {"path": "photos", **PIXELS, **settings}, specs)


def sentences(root, model, **settings):
    """Open three sentences as data for a model."""
    tokenizer().save(str(root / "tokenizer.json"))
    (root / "t.csv").write_text("say,other\ngood film,bad\nvery very bad film,good\nodd,film\n")
    specs = {
        name: TensorSpec.model_validate(spec) for name, spec in model.read_json("signature.json")["inputs"].items()
    }
    given = {"path": "t.csv", "column": "say", "tokenizer": "tokenizer.json", "rename": {"input_ids": "ids"}}
    return opened(text, root, {**given, **settings}, specs)


def made(root, model, settings, **data) -> Artifact:
    return run_stage(root, interface, settings, model=model, base=root, data=data)


def encoded(size=(10, 10), kind="PNG", mode="RGB", **more):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind, **more)
    return stream.getvalue()


def objects(values):
    return np.array(values, object)
