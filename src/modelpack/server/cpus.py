"""How many processors this process may really use: the affinity mask and the cgroup's quota, not the host's count."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
SELF = Path("/proc/self/cgroup")


def quota(root: Path = ROOT, own: Path = SELF) -> float | None:
    """Give the tightest processor quota over this process's control groups, in processors; None without one."""
    folders = groups(root, own, ("", "cpu", "cpu,cpuacct"))
    found = [read(folder) for folder in folders for read in (_version2, _version1)]
    return min((value for value in found if value is not None), default=None)


def available(root: Path = ROOT, own: Path = SELF) -> int:
    """Count the threads that can run at once: at least 1, never more than the quota or the affinity mask allow."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    limit = quota(root, own)
    return max(1, count if limit is None else min(count, int(limit)))


def groups(root: Path, own: Path, bases: tuple[str, ...]) -> list[Path]:
    """Give the directories of this process's control groups and of those around them, under each base of the root."""
    found = []
    for line in text(own).splitlines() or ["0::/"]:
        parts = [part for part in line.split(":", 2)[2].split("/") if part not in ("", "..")]
        tails = [Path(*parts[:depth]) for depth in range(len(parts) + 1)]
        found += [root / base / tail for base in bases for tail in tails]
    return found


def _version2(folder: Path) -> float | None:
    limit, _, period = text(folder / "cpu.max").strip().partition(" ")
    return int(limit) / int(period or 100_000) if limit.isdigit() else None


def _version1(folder: Path) -> float | None:
    limit, period = (text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() and int(period) else None


def text(path: Path) -> str:
    """Read a file, or nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
