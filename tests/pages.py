"""What tests of reports share: a strict reader of pages, and data of all that is drawn."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from modelpack.report import page

TAGS = frozenset(
    re.findall(
        r"\w+",
        "html head meta title style body a main header footer nav section article h1 h2 h3 h4 p span small code pre ul ol "
        "li dl dt dd div table caption thead tbody tr th td details summary figure figcaption svg path line rect circle text",
    )
)
HOSTILE = '"><script>alert(1)</script><img src=x onerror=y>\u202e\x00\ud800'


class Reader(HTMLParser):
    """Reads a page strictly: every element closed in order, its tags, links and texts collected."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.texts, self.ids, self.open = set(), [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        assert len(given) == len(attrs)
        assert not any(name.startswith("on") or name == "style" for name in given)
        self.links += [given[name] for name in ("href", "src", "srcset", "data") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read(document):
    return Reader(page.render(document))


def subject(**fields):
    return {"name": "net@1", "status": "succeeded", "started": "2026-01-02T03:04:05+00:00", "seconds": 12.5, **fields}


def step(name, stage, results, **fields):
    return {"id": name, "stage": stage, "kind": "torch", "artifact": "0123456789abcdef", "seconds": 1.0, "cached": False,
            "metrics": {}, "config": {}, "warnings": [], "results": results, **fields}  # fmt: skip


def about(**results):
    return {"schema": 1, "modelpack": "1", "subjects": [subject(steps=[step("a", "b", results)])]}


HISTORY = [
    {"epoch": 0, "score": 0.5},
    {"epoch": 1, "loss": 9.0, "imitation": 7.0, "lr": 1e-3, "score": 0.875, "eval_accuracy": 0.75},
    {"epoch": 2, "loss": 0.1, "imitation": 0.05, "lr": 1e-4, "score": 0.75, "eval_accuracy": 0.5},
]
LAYERS = [{"layer": "conv1", "type": "Conv2d", "before": [3, 64], "after": [3, 48]}]
QUANTIZED = [
    {"layer": "conv1/Conv", "operator": "Conv", "weights": 1728, "quantized": True, "reason": ""},
    {"layer": "fc/Gemm", "operator": "Gemm", "weights": 640, "quantized": False, "reason": "too small"},
]
FRONT = [
    {"layers_kept": kept, "added": added, "speedup": speed, "sqnr_db": quality, "model_bytes": size, "on_front": front,
     "chosen": chosen, "speedup_low": speed, "speedup_high": speed, "corrected": False}
    for kept, added, speed, quality, size, front, chosen in (
        (0, [], 2.0, 20.0, 1000, True, False), (1, ["conv1"], 1.7, 30.0, 1500, True, True), (2, ["fc"], 1.6, 29.0, 1600, False, False)
    )
]  # fmt: skip
BENCH = {
    "settings": {"reference": "export"},
    "cells": [
        {"subject": "quantize", "batch": 1, "threads": 1, "min_ms": 1.0, "p50_ms": 1.25, "p95_ms": 1.5, "p99_ms": 2.0,
         "rows_per_second": 800.0, "ratio": {"value": 2.0, "low": 1.9, "high": 2.1, "verdict": "faster"}},
        {"subject": "export", "batch": 1, "threads": 1, "min_ms": 2.0, "p50_ms": 2.5, "p95_ms": 3.0, "p99_ms": 4.0,
         "rows_per_second": 400.0, "ratio": None},
    ],
    "subjects": [{"name": "export", "runtime": "onnxruntime", "size": 1000, "macs": 10, "load_ms": 1.0,
                  "runtime_bytes": 5, "peak_bytes": {"1": 7_000_000}}],
    "notes": ["measured at 4"],
}  # fmt: skip
SENSITIVITY = {
    "measure": "accuracy",
    "rows": 128,
    "whole": 0.98,
    "ratios": [0.25, 0.5],
    "groups": [
        {"group": "robust", "units": 16, "values": [0.98, 0.97]},
        {"group": "fragile", "units": 8, "values": [0.9, 0.25]},
    ],
}
LATENCY = {
    "asked": 0.5,
    "measured": 0.51,
    "original_ms": 2.0,
    "exports": 3,
    "seconds": 9.0,
    "trials": [{"macs": 0.5, "measured": 0.7}, {"macs": 0.36, "measured": 0.51}],
    "costs": [{"group": "conv1", "units": 64, "unit_ms": 0.01, "share": 0.32}],
}
