"""Fixtures for every test."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from tiny import folder, tiny

__all__ = ["folder", "tiny"]
