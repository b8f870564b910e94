"""How long modelpack takes before it does anything: ``--help``, ``check``, ``plan`` and a fully cached ``compress``.

Usage: ``python benchmarks/startup.py [--rounds 15]``

Commands take turns, so that a busy machine slows all of them alike; CPU time of the process and its children is
compared, not wall time.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from table import ratio, write

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "recipes/quickstart.yaml"
MODELPACK = [sys.executable, "-m", "modelpack"]
REFERENCE = "import typer"


def cpu_seconds(command: list[str]) -> float:
    """Run a command quietly and give the CPU time, user and system, that it and its children took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Fill a store, time everything in turns, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as store:
        # The image is left out: its base may need a registry.
        cached = [*MODELPACK, "compress", RECIPE, "--until", "bench", "--store", store, "--quiet"]
        subprocess.run(cached, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        commands = {
            f'python -c "{REFERENCE}"': [sys.executable, "-c", REFERENCE],
            "modelpack --help": [*MODELPACK, "--help"],
            "modelpack check": [*MODELPACK, "check", RECIPE],
            "modelpack plan": [*MODELPACK, "plan", RECIPE, "--store", store],
            "modelpack compress, everything cached": cached,
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(rounds + 1):
            for name, command in commands.items():
                taken = cpu_seconds(command)
                if turn:  # the first round fills the file cache
                    seconds[name].append(taken)
    reference = next(iter(seconds.values()))
    rows = [
        {
            "command": f"`{name}`",
            "CPU time": ratio(values, reference),
            "under a second": "yes" if max(values) < 1 else "no",
        }
        for name, values in seconds.items()
    ]
    note = (
        f"CPU time as a multiple of `{next(iter(commands))}`: median and quartiles of {rounds} rounds in which the "
        "commands take turns. The last column says whether every round took less than one second of CPU time."
    )
    write("startup", "Start-up", rows, [note], f"python benchmarks/startup.py --rounds {rounds}")


if __name__ == "__main__":
    main()
