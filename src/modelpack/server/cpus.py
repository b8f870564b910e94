"""How many processors this process may really use: the affinity mask and the cgroup's quota, not the host's count."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
SELF = Path("/proc/self/cgroup")


def quota(root: Path = ROOT, own: Path = SELF) -> float | None:
    """Give the tightest processor quota over this process's control groups, in processors; None without one."""
    found = []
    for line in _text(own).splitlines() or ["0::/"]:
        _, _, path = line.split(":", 2)
        for folder in _folders(root, path):
            found += [value for value in (_version2(folder), _version1(folder)) if value is not None]
    return min(found, default=None)


def available(root: Path = ROOT, own: Path = SELF) -> int:
    """Count the threads that can run at once: at least 1, never more than the quota or the affinity mask allow."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    limit = quota(root, own)
    return max(1, count if limit is None else min(count, int(limit)))


def _folders(root: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    tails = [Path(*parts[:depth]) for depth in range(len(parts) + 1)]
    return [base / tail for base in (root, root / "cpu", root / "cpu,cpuacct") for tail in tails]


def _version2(folder: Path) -> float | None:
    limit, _, period = _text(folder / "cpu.max").strip().partition(" ")
    return int(limit) / int(period or 100_000) if limit.isdigit() else None


def _version1(folder: Path) -> float | None:
    limit, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() and int(period) else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
