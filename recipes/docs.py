"""Write what is generated: figures and reference in README and docs, the schema for editors; `make docs`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack import reference, schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
QUANTIZED = ("lite0", "fashion", "resnet18", "minilm", "bbc")
SERVED = ("overhead", "added", "batching", "first", "large", "rolling", "fuzz")
PRUNED = ("fashion", "mnist", "movies", "lite0", "onnxsim", "onnxsim-fashion", "refit")


def measured(name: str) -> str:
    """Give a benchmark's page as a part of README: its heading smaller, the machine's description left to the file."""
    lines = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text().strip().splitlines()
    kept = [line for line in lines if not line.startswith("Machine: ")]
    return "\n".join(["##" + kept[0], *kept[1:]]).replace("\n\n\n", "\n\n")


def together(names: Sequence[str]) -> str:
    """Give several benchmarks' pages, one after the other; a paragraph that all of them have comes once, at the end."""
    pages = [measured(name).split("\n\n") for name in names]
    shared = [part for part in pages[0] if all(part in page for page in pages)]
    return "\n\n".join([part for page in pages for part in page if part not in shared] + shared)


def readme() -> dict[str, str]:
    """Give the generated parts of README, by the name of their markers."""
    package = ROOT / "tests" / "plugin"
    pyproject = (package / "pyproject.toml").read_text().partition("[project.entry-points")
    return {
        "figures": "\n\n".join(
            [measured("recipes"), pruning(), quantization(), measured("image"), measured("startup")]
        ),
        "plugin": (
            f"```python\n{(package / 'modelpack_operators.py').read_text()}```\n\n```toml\n{''.join(pyproject[1:])}```"
        ),
        "reference": reference.markdown().strip(),
    }


def quantization() -> str:
    """Give the tables that compare quantizers."""
    return together([f"quantization-{name}" for name in QUANTIZED])


def pruning() -> str:
    """Give the tables that compare ways of pruning, and what each of several steps gains."""
    return "\n\n".join([together([f"pruning-{name}" for name in PRUNED]), measured("composition")])


def serving() -> str:
    """Give the tables of what serving costs and bears."""
    return together([f"serving-{name}" for name in SERVED])


def filled(path: Path, parts: Mapping[str, str]) -> str:
    """Give a page's text with every generated part renewed."""
    text = path.read_text()
    for name, part in parts.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if not start or not end:
            sys.exit(f"{path.name}: no place for '{name}'")
        text = f"{before}{start}\n{part}\n\n{end}{after}"
    return text


def files() -> dict[Path, str]:
    """Give every generated file's path and content."""
    docs = ROOT / "docs"
    pages = {
        ROOT / "README.md": readme(),
        docs / "pruning.md": {"figures": pruning()},
        docs / "distillation.md": {"figures": measured("distillation-minilm")},
        docs / "quantization.md": {"figures": quantization()},
        docs / "serving.md": {"figures": serving()},
    }
    editors = json.dumps(schema.document(), indent=1, ensure_ascii=False) + "\n"
    return {path: filled(path, parts) for path, parts in pages.items()} | {
        ROOT / "recipes" / "recipe.schema.json": editors
    }


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content)
        print(f"wrote {path.relative_to(ROOT)}")
