"""Builds an image as `modelpack.container.reproduce` does, with wheels of the tests; may spoil it by where it runs."""

import os
import sys
from pathlib import Path

from modelpack.container import bytecode, plan, reproduce, wheels
from modelpack.container.layers import Entry

wheels.LOCK = Path(os.environ["TESTS_LOCK"])
spoiled = os.environ.get("TESTS_SPOIL", "")
if spoiled == "environment":
    plan.ENV["WHERE"] = os.environ["TZ"]
if spoiled == "file":
    compiled = bytecode.compiled
    bytecode.compiled = lambda *given: [
        Entry(entry.name, entry.content[:40] + os.environ["TZ"][:3].encode() + entry.content[43:])
        if entry.name.endswith("/alpha/__pycache__/__init__.cpython-311.pyc")
        else entry
        for entry in compiled(*given)
    ]

if __name__ == "__main__":
    sys.exit(reproduce.main(sys.argv[1:]))
