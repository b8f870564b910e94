"""Figures as people read them: one place that knows which metric has which unit."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MISSING = "–"

_BYTES = re.compile(r"(^|_)(bytes|size|compressed|unpacked)$")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_SIZES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


def figure(name: str, value: Any, *, like: str = "") -> str:
    """Write a metric in its unit.

    Args:
        name: The metric's or budget line's name, which says the unit.
        value: The figure.
        like: A limit that the figure is shown beside; a percentage there makes a percentage here.

    >>> figure("size", 0.247, like="≤ 25%"), figure("model_bytes", 41234), figure("accuracy_drop", 0.0021)
    ('24.7 %', '41.2 kB', '0.21 pp')
    >>> figure("latency_ms", 0.1234), figure("speedup", 1.912), figure("cosine", 0.99871)
    ('0.123 ms', '1.91×', '0.9987')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return MISSING if value is None else str(value)
    if like.rstrip().endswith("%"):
        return percent(value)
    # A limit such as `size: 0.3` is a fraction of the original, and so is what is measured against it.
    if like and value <= 1 and _BYTES.search(name):
        return percent(value)
    return next((write(value) for pattern, write in _UNITS if pattern.search(name)), _plain(value))


def _plain(value: float) -> str:
    return count(value) if isinstance(value, int) else f"{value:.4g}"


def limit(name: str, text: str) -> str:
    """Write a budget's limit in the unit of what is measured against it.

    >>> limit("accuracy_drop", "≤ 0.01"), limit("size", "≤ 25%"), limit("size", "≤ 5 MB"), limit("speedup", "≥ 1.5")
    ('≤ 1.00 pp', '≤ 25%', '≤ 5 MB', '≥ 1.50×')
    """
    sign, _, number = text.partition(" ")
    try:
        return f"{sign} {figure(name, float(number), like=text)}"
    except ValueError:
        return text


def size(value: float) -> str:
    """Write bytes with decimal units.

    >>> size(999), size(1000), size(41234567)
    ('999 B', '1.0 kB', '41.2 MB')
    """
    return f"{value:.0f} B" if abs(value) < 1000 else _scaled(value, ("kB", "MB", "GB", "TB"))


def parsed_size(text: str) -> int | None:
    """Read bytes with their unit; None for anything else.

    >>> parsed_size("5 MB"), parsed_size("1.5GiB"), parsed_size("5"), parsed_size("5 apples")
    (5000000, 1610612736, None, None)
    """
    match = _SIZE.fullmatch(text.strip())
    return round(float(match[1]) * _SIZES[match[2]]) if match and match[2] in _SIZES else None


def count(value: float) -> str:
    """Write a large count with a unit letter.

    >>> count(640), count(1_234_000)
    ('640', '1.2 M')
    """
    return f"{value:.0f}" if abs(value) < 10_000 else _scaled(value, ("k", "M", "G", "T"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        value /= 1000
        if abs(value) < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} {units[-1]}"


def percent(value: float) -> str:
    """Write a fraction as a percentage with one decimal, two below one per cent."""
    scaled = value * 100
    return f"{scaled:.2f} %" if 0 < abs(scaled) < 1 else f"{scaled:.1f} %"


def significant(value: float) -> str:
    """Write a figure with three significant digits and no exponent.

    >>> significant(0.012345), significant(12.345), significant(1234.5)
    ('0.0123', '12.3', '1234')
    """
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    digits = min(9, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Write seconds as people say them.

    >>> duration(0.0421), duration(4.26), duration(75), duration(7260)
    ('42 ms', '4.3 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def ratio(before: float, after: float) -> str:
    """Say how much smaller or larger something became.

    >>> ratio(400, 100), ratio(100, 150), ratio(100, 100)
    ('4.00× smaller', '1.50× larger', 'the same')
    """
    if before <= 0 or after <= 0:
        return ""
    if before == after:
        return "the same"
    return f"{significant(before / after)}× smaller" if before > after else f"{significant(after / before)}× larger"


def moment(iso: str) -> str:
    """Shorten a UTC moment to the minute.

    >>> moment("2026-01-02T03:04:05+00:00")
    '2026-01-02 03:04'
    """
    return iso[:16].replace("T", " ")


def shift(name: str, before: Any, after: Any) -> str:
    """Say by how much a figure moved: points for shares, a percentage for everything else.

    >>> shift("accuracy", 0.98, 0.975), shift("latency_ms", 2.0, 1.0), shift("cosine", 1, 1)
    ('-0.50 pp', '-50.0 %', '')
    """
    numbers = [item for item in (before, after) if isinstance(item, (int, float)) and not isinstance(item, bool)]
    if len(numbers) < 2 or before == after or not all(math.isfinite(item) for item in numbers):
        return ""
    if figure(name, 0.5).endswith((" %", " pp")):
        return f"{(after - before) * 100:+.2f} pp"
    return f"{(after - before) / abs(before) * 100:+.1f} %" if before else ""


_UNITS: tuple[tuple[re.Pattern[str], Callable[[float], str]], ...] = (
    (_BYTES, size),
    (re.compile(r"_(drop|drop_stderr)$"), lambda value: f"{value * 100:.2f} pp"),
    (
        re.compile(
            r"^(quantize_|eval_)?(accuracy|top5|precision|recall|f1|auroc|agreement|macs)(_reference|_stderr)?$"
            r"|^(sparsity|parameters_kept)$|_(share|fraction)$"
        ),
        percent,
    ),
    (re.compile(r"_ms(_reference)?$"), lambda value: f"{significant(value)} ms"),
    (re.compile(r"seconds$"), duration),
    (re.compile(r"^speedup$|_ratio$"), lambda value: f"{significant(value)}×"),
    (re.compile(r"_db(_before|_after)?$"), lambda value: f"{value:.1f} dB"),
    (re.compile(r"^(parameters|mac_count|rows|opset)$|_(count|parameters|per_second)$"), count),
)
