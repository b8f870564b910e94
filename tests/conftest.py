"""Fixtures for every test."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from tiny import folder, tiny  # noqa: E402

__all__ = ["folder", "tiny"]
