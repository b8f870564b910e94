"""Ask how an exported sentence encoder ranks the 353 word pairs of WordSim-353 beside the people who rated them.

Usage: ``python recipes/minilm/wordsim.py MODEL.onnx [MODEL.onnx ...]``, after ``prepare.py``; the original gives 0.729.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

DATA = Path(__file__).with_name("data")


def pairs() -> tuple[list[str], list[str], np.ndarray]:
    """Give the first words, the second words, and how alike people found them, from 0 to 10."""
    lines = (DATA / "wordsim353.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [row[0] for row in rows], [row[1] for row in rows], np.array([float(row[2]) for row in rows])


def embed(session: onnxruntime.InferenceSession, tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Embed texts, one vector of length 1 a row."""
    parts = []
    for start in range(0, len(texts), 32):
        encoded = tokenizer.encode_batch(texts[start : start + 32])
        feed = {
            "input_ids": np.array([item.ids for item in encoded]),
            "attention_mask": np.array([item.attention_mask for item in encoded]),
        }
        parts.append(session.run(None, feed)[0])
    return np.concatenate(parts)


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank values from 0, equal ones sharing the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def score(model: Path) -> float:
    """Give Spearman's correlation between the model's cosines and people's ratings."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(DATA / "tokenizer.json"))
    tokenizer.enable_padding()
    first, second, rated = pairs()
    cosines = (embed(session, tokenizer, first) * embed(session, tokenizer, second)).sum(axis=1)
    return float(np.corrcoef(ranks(cosines), ranks(rated))[0, 1])


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    for model in parser.parse_args().models:
        print(f"{model}: Spearman {score(model):.4f}")


if __name__ == "__main__":
    main()
