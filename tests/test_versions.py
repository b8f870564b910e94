"""A stage whose code changes must raise its version, or say that its results are the same.

``stage_versions.json`` keeps, for every stage and source, its version and the digest of the code that decides its
results. After a change: raise ``version=`` in the declaration when results may differ, then accept the new digests:

    python tests/test_versions.py
"""

import ast
import json
from pathlib import Path

import grimp
import pytest

from modelpack import canonical, registry

KEPT = Path(__file__).with_name("stage_versions.json")
SOURCE = Path(canonical.__file__).parent
ROOMS = ("modelpack.numerics", "modelpack.container", "modelpack.server", "modelpack.stages", "modelpack.sources")


def code(module):
    """Give a module's code without comments, docstrings and layout, none of which change a result."""
    path = SOURCE.parent.joinpath(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value = ast.Constant("")
    return ast.unparse(tree)


def current():
    """Give version and digest of every built-in plugin, by name."""
    graph = grimp.build_graph("modelpack", include_external_packages=False)
    found = {}
    for plugins in (registry.stages(), registry.sources()):
        for name in plugins.names():
            module = plugins.entries[name].value.partition(":")[0]
            if not module.startswith("modelpack."):
                continue
            reached = {module} | {item for item in graph.find_upstream_modules(module) if item.startswith(ROOMS)}
            digest = canonical.digest({item: code(item) for item in sorted(reached)})
            kind = "stage" if plugins is registry.stages() else "source"
            found[f"{kind} {name}"] = {"version": plugins.get(name).version, "code": digest[:16]}
    return found


@pytest.fixture(scope="module")
def now():
    return current()


@pytest.mark.parametrize("name", sorted(json.loads(KEPT.read_text())) if KEPT.exists() else [])
def test_a_stage_that_changed_has_a_new_version_or_was_accepted(now, name):
    kept = json.loads(KEPT.read_text())[name]
    assert now[name] == kept, (
        f"{name} changed: raise its version if results may differ, then `python tests/test_versions.py`"
    )


def test_every_plugin_is_kept(now):
    assert set(now) == set(json.loads(KEPT.read_text()))


if __name__ == "__main__":
    KEPT.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n")
