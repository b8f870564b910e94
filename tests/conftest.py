"""Fixtures for every test."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import pytest

from modelpack import device
from tiny import folder, tiny

__all__ = ["folder", "tiny"]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Give tables all the room they want; pytest-xdist says that its workers' terminals are 80 columns wide."""
    monkeypatch.delenv("COLUMNS", raising=False)


def pytest_runtest_setup(item):
    """Skip what this machine cannot do, with the reason."""
    if item.get_closest_marker("cuda") and (lacks := device.cuda_lacks()):
        pytest.skip(f"needs {', '.join(lacks)}")
