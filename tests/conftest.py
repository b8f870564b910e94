"""Fixtures for every test."""

import os
import signal

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a shell in the background says so; tests send it to their children
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings

from modelpack import device, registry
from tiny import folder, tiny

__all__ = ["folder", "tiny"]

# A busy machine is no fault, and a suite that passed passes again; `--hypothesis-profile default` looks further.
settings.register_profile("steady", settings.default, deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Give tables all the room they want; pytest-xdist says that its workers' terminals are 80 columns wide."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Export each of the small nets once, when it is asked for."""
    from exported import Exported  # loads torch

    return Exported(tmp_path_factory.mktemp("exported"))


@pytest.fixture(autouse=True)
def plugins():
    """Look for plugins anew in every test: some tests install one, and the next must not see it."""
    real = registry.stages, registry.sources
    for found in real:
        found.cache_clear()
    yield
    for found in real:
        found.cache_clear()


def pytest_runtest_setup(item):
    """Skip what this machine cannot do, with the reason."""
    if item.get_closest_marker("cuda") and (lacks := device.cuda_lacks()):
        pytest.skip(f"needs {', '.join(lacks)}")
