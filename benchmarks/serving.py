"""What serving costs and what it bears: our server beside others, over the same models, side by side.

Usage: ``python benchmarks/serving.py [--case overhead] [--rounds 10] [--requests 400] [--skip mlflow]``

The cases, which are run one after the other where none is named: ``overhead`` of a small model, latency ``added`` to a
model, natural ``batching``, a ``large`` model, the ``first`` answer after a start, ``rolling`` restarts under load, and
``fuzz``, whatever a client may send. Others are installed with pip into environments of their own under
``.cache/serving``, as ``serving_peers`` has them pinned.
"""

from __future__ import annotations

import argparse

import serving_fuzz
import serving_rolling
import serving_speed
from serving_servers import PEERS
from table import write

CASES = {**serving_speed.CASES, "rolling": serving_rolling.rolling, "fuzz": serving_fuzz.fuzz}
ROUNDS = {"overhead": 10, "added": 10, "batching": 10, "large": 20, "first": 5, "rolling": 20, "fuzz": 1}


def main() -> None:
    """Measure one case or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="only this one")
    parser.add_argument("--rounds", type=int, help="how often servers take turns, or are restarted")
    parser.add_argument("--requests", type=int, default=400, help="requests of a turn")
    parser.add_argument("--skip", nargs="*", choices=PEERS, default=[], help="servers to leave out")
    options = parser.parse_args()
    for case in [options.case] if options.case else CASES:
        measure(case, argparse.Namespace(**{**vars(options), "rounds": options.rounds or ROUNDS[case]}))


def measure(case: str, options: argparse.Namespace) -> None:
    """Measure one case and write its table."""
    title, rows, notes = CASES[case](options)
    command = f"python benchmarks/serving.py --case {case} --rounds {options.rounds} --requests {options.requests}"
    skipped = f" --skip {' '.join(options.skip)}" if options.skip else ""
    write(f"serving-{case}", title, rows, notes, command + skipped)


if __name__ == "__main__":
    main()
