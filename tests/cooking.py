"""Running the recipes that ship, in copies of their directories and stores of their own."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[1] / "recipes"
FASHION = Path("/usr/share/datasets/fashion-mnist")
STAMPS = Path("/usr/share/tuxpaint/stamps")


def module(path: str):
    """Import a recipe's file under a name of its own; its neighbours are importable while it is being read."""
    file = RECIPES / path
    spec = importlib.util.spec_from_file_location("recipe_" + re.sub(r"\W", "_", path), file)
    found = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    before = set(sys.modules)
    try:
        spec.loader.exec_module(found)
    finally:
        sys.path.remove(str(file.parent))
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(RECIPES):
                del sys.modules[name]
    return found


def run(*arguments: str | Path, cwd: Path = RECIPES.parent) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def copied(name: str, folder: str, place: Path) -> Path:
    """Copy a recipe and its directory, without what scripts made there."""
    ignored = shutil.ignore_patterns("data", "__pycache__")
    shutil.copytree(RECIPES / folder, place / "recipes" / folder, ignore=ignored)
    return Path(shutil.copy(RECIPES / name, place / "recipes"))


def compressed(recipe: Path, *settings: str) -> dict[str, dict]:
    """Run a recipe in a store of its own, all but the image, and give its steps as the run tells them."""
    store = recipe.parents[1] / "store"
    # Timings never decide a test: another process may have the processor while bench runs.
    quick = ("budget.speedup=0.01", "stages.bench.rounds=10", "stages.bench.batch=[1]")
    assignments = [part for setting in (*settings, *quick) for part in ("--set", setting)]
    run("-m", "modelpack", "compress", recipe, "--until", "bench", "--store", store, *assignments)
    shown = run("-m", "modelpack", "show", recipe.stem, "--json", "--store", store)
    return {step["id"]: step for step in json.loads(shown.stdout)["steps"]}


def taken_out(folder: Path, recipe: str, step: str) -> Path:
    run("-m", "modelpack", "get", recipe, step, "--output", folder / step, "--store", folder / "store")
    return folder / step


def installed(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: pip install --no-deps -r recipes/requirements.txt")
