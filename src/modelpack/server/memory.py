"""How many bytes of memory this process may still take: what its control groups leave, at most what the machine has."""

from __future__ import annotations

import re
from pathlib import Path

from .cpus import ROOT, SELF, groups, text

MACHINE = Path("/proc/meminfo")


def free(root: Path = ROOT, own: Path = SELF, machine: Path = MACHINE) -> int:
    """Give the bytes that are free under the tightest limit; pages of files that were read count as free."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text(machine), re.MULTILINE)
    left = [2**62 if found is None else 1024 * int(found[1])]
    for folder in groups(root, own, ("", "memory")):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = (text(folder / name).strip() for name in (limit, used))
            if most.isdigit() and now.isdigit():
                pages = re.search(rf"^{cache} (\d+)$", text(folder / "memory.stat"), re.MULTILINE)
                left.append(int(most) - int(now) + (int(pages[1]) if pages else 0))
    return max(0, min(left))
