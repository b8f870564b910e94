"""Write what is generated: README's figures, sample plugin and reference, and the schema for editors; `make docs`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from modelpack import reference, schema

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("recipes", "quantization", "image", "startup")


def measured(name: str) -> str:
    """Give a benchmark's page as a part of README: its heading smaller, the machine's description left to the file."""
    lines = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text().strip().splitlines()
    kept = [line for line in lines if not line.startswith("Machine: ")]
    return "\n".join(["##" + kept[0], *kept[1:]]).replace("\n\n\n", "\n\n")


def generated() -> dict[str, str]:
    """Give the generated parts of README, by the name of their markers."""
    package = ROOT / "tests" / "plugin"
    pyproject = (package / "pyproject.toml").read_text().partition("[project.entry-points")
    return {
        "figures": "\n\n".join(measured(name) for name in MEASURED),
        "plugin": (
            f"```python\n{(package / 'modelpack_operators.py').read_text()}```\n\n```toml\n{''.join(pyproject[1:])}```"
        ),
        "reference": reference.markdown().strip(),
    }


def filled(text: str) -> str:
    """Give README's text with every generated part renewed."""
    for name, part in generated().items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if not start or not end:
            sys.exit(f"README.md: no place for '{name}'")
        text = f"{before}{start}\n{part}\n\n{end}{after}"
    return text


def files() -> dict[Path, str]:
    """Give every generated file's path and content."""
    readme = ROOT / "README.md"
    return {
        readme: filled(readme.read_text()),
        ROOT / "recipes" / "recipe.schema.json": json.dumps(schema.document(), indent=1, ensure_ascii=False) + "\n",
    }


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content)
        print(f"wrote {path.relative_to(ROOT)}")
