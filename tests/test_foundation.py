"""The ground floors: canonical values, places, user code, devices, budgets, plugins, and their documentation."""

import enum
import math
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from modelpack import budget, canonical, device, registry, usercode
from modelpack.errors import MissingError, Place, Problem, StageError, UsageError
from modelpack.stage import Stage
from tiny import Here, lines


class Colour(enum.Enum):
    RED = "red"


class Nested(BaseModel):
    number: float = 1.5
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Known:
    content: str

    def canonical(self) -> object:
        return {"sha": self.content}


class TestCanonical:
    @given(st.dictionaries(st.text(), st.integers() | st.text(), max_size=5))
    def test_order_of_keys_does_not_matter(self, value):
        assert canonical.digest(value) == canonical.digest(dict(reversed(value.items())))

    def test_sets_models_enums_and_values_that_speak_for_themselves(self):
        value = {"a": {3, 1}, "b": Nested(), "c": (Known("x"), None)}
        assert canonical.encode(value) == b'{"a":[1,3],"b":{"colour":"red","number":1.5},"c":[{"sha":"x"},null]}'

    def test_what_has_no_form_is_refused(self):
        with pytest.raises(TypeError, match="object has no canonical form"):
            canonical.encode(object())
        with pytest.raises(ValueError, match="Out of range"):
            canonical.encode(math.nan)

    def test_a_tree_is_its_names_and_bytes(self, tmp_path):
        (tmp_path / "a").write_text("1")
        before = canonical.tree_digest(tmp_path)
        (tmp_path / ".hidden").write_text("x")
        assert canonical.tree_digest(tmp_path) == before
        (tmp_path / "a").rename(tmp_path / "b")
        assert canonical.tree_digest(tmp_path) != before


class TestUserCode:
    @pytest.fixture
    def code(self, tmp_path):
        (tmp_path / "pkg").mkdir()
        (tmp_path / "net.py").write_text(
            "import math\nimport numpy\nfrom parts import block\n\ndef build(width=1):\n    return block(width)\n"
        )
        (tmp_path / "parts.py").write_text("import pkg.deep\n\ndef block(width):\n    return pkg.deep.twice(width)\n")
        (tmp_path / "pkg" / "__init__.py").write_text("")
        (tmp_path / "pkg" / "deep.py").write_text("def twice(x):\n    return 2 * x\n")
        (tmp_path / "unrelated.py").write_text("x = 1\n")
        return tmp_path

    def test_local_imports_travel_and_others_stay(self, code):
        assert list(usercode.closure("net.py:build", code)) == ["net.py", "parts.py", "pkg/__init__.py", "pkg/deep.py"]

    def test_identity_follows_every_file_and_no_other(self, code):
        before = usercode.identity("net.py:build", code)
        assert list(before["versions"]) == ["numpy"]
        (code / "unrelated.py").write_text("x = 2\n")
        assert usercode.identity("net.py:build", code) == before
        (code / "pkg" / "deep.py").write_text("def twice(x):\n    return x + x\n")
        assert usercode.identity("net.py:build", code) != before

    def test_a_copy_is_called_without_the_original(self, code, tmp_path_factory):
        assert usercode.load("net.py:build", code)(3) == 6
        copy = tmp_path_factory.mktemp("copy")
        for name, content in usercode.closure("net.py:build", code).items():
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_bytes(content)
        (copy / "pkg" / "deep.py").write_text("def twice(x):\n    return 20 * x\n")
        assert usercode.load("net.py:build", copy)(3) == 60, "each directory has its own siblings"

    def test_code_that_ends_the_process_is_an_error_with_its_reason(self, code):
        (code / "leave.py").write_text("import sys\n\ndef build():\n    sys.exit(3)\n")
        with pytest.raises(RuntimeError, match=r"it called exit\(3\)"):
            usercode.load("leave.py:build", code)()
        (code / "gone.py").write_text("raise SystemExit(0)\n")
        with pytest.raises(StageError, match="importing it failed: SystemExit"):
            usercode.load("gone.py:build", code)

    def test_a_callable_that_is_not_there_is_compared_with_those_that_are(self, code):
        with pytest.raises(StageError, match="has no callable 'biuld'") as caught:
            usercode.load("net.py:biuld", code)
        assert caught.value.then == "did you mean 'build'?"

    def test_relative_imports_travel_too(self, code):
        (code / "pkg" / "__init__.py").write_text("from . import deep\nfrom .inner.leaf import half\n")
        (code / "pkg" / "inner").mkdir()
        (code / "pkg" / "inner" / "__init__.py").write_text("")
        (code / "pkg" / "inner" / "leaf.py").write_text("from ..deep import twice as half\nfrom ... import beyond\n")
        names = ["net.py", "parts.py", "pkg/__init__.py", "pkg/deep.py", "pkg/inner/__init__.py", "pkg/inner/leaf.py"]
        assert sorted(usercode.closure("net.py:build", code)) == sorted(names)

    def test_a_callable_may_import_siblings_when_it_is_called(self, code):
        (code / "late.py").write_text("def build(width):\n    import parts\n    return parts.block(width)\n")
        assert usercode.load("late.py:build", code)(2) == 4
        assert "parts" not in sys.modules

    def test_a_generator_may_import_siblings_while_it_runs(self, code):
        (code / "gen.py").write_text(
            "def rows():\n    yield 1\n    import parts\n    yield parts.block(2)\n    exit('enough')\n"
        )
        rows = usercode.load("gen.py:rows", code)()
        assert [next(rows), next(rows)] == [1, 4]
        assert "parts" not in sys.modules
        with pytest.raises(RuntimeError, match="enough"):
            next(rows)

    def test_loading_leaves_no_byte_code_behind(self, code, monkeypatch):
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        monkeypatch.setattr(sys, "pycache_prefix", None)
        usercode.load("net.py:build", code)(1)
        assert not list(code.rglob("__pycache__"))

    def test_packages_installed_beside_the_file_stay_loaded(self, code, monkeypatch):
        packages = code / ".venv" / "site-packages"
        packages.mkdir(parents=True)
        (packages / "installed_beside.py").write_text("")
        (code / "own_sibling.py").write_text("")
        (code / "both.py").write_text("import installed_beside, own_sibling\n\ndef build():\n    return 1\n")
        monkeypatch.syspath_prepend(packages)
        usercode.load("both.py:build", code)
        assert "own_sibling" not in sys.modules
        assert sys.modules.pop("installed_beside")

    def test_a_module_that_is_not_installed_is_known_by_its_sources(self, code, monkeypatch):
        monkeypatch.syspath_prepend(code)
        before = usercode.identity("pkg.deep:twice", code)
        (code / "pkg" / "deep.py").write_text("def twice(x):\n    return x + x\n")
        assert usercode.identity("pkg.deep:twice", code) != before
        assert "files" not in usercode.identity("numpy.linalg:norm", code)

    @pytest.mark.parametrize(
        ("reference", "match"),
        [
            ("net.py", "names no callable"),
            ("../net.py:build", "outside the recipe"),
            ("gone.py:build", "cannot read"),
            ("bad.py:build", "not valid Python"),
            ("no_such_module_x.y:build", "no module"),
        ],
    )
    def test_what_cannot_be_found_is_told(self, code, reference, match):
        (code / "bad.py").write_text("def (:\n")
        with pytest.raises(UsageError, match=match):
            usercode.identity(reference, code)

    def test_what_cannot_be_imported_is_told(self, code):
        (code / "boom.py").write_text("1 / 0\n")
        with pytest.raises(StageError, match="ZeroDivisionError"):
            usercode.load("boom.py:build", code)
        with pytest.raises(StageError, match="no callable 'nothing'"):
            usercode.load("net.py:nothing", code)


class TestDevice:
    def test_the_cpu_is_always_there(self):
        assert device.resolve("cpu") == "cpu"

    @pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "cpu:1", ""])
    def test_other_words_are_refused(self, word):
        with pytest.raises(UsageError, match="no device is called"):
            device.resolve(word)

    def test_cuda_is_never_replaced_in_silence(self, monkeypatch):
        monkeypatch.setattr(device, "cuda_devices", lambda: 0)
        assert device.resolve("auto") == "cpu"
        with pytest.raises(MissingError, match="an NVIDIA GPU with its driver"):
            device.resolve("cuda")

    def test_a_device_beyond_the_last_is_missing(self, monkeypatch):
        monkeypatch.setattr(device, "cuda_devices", lambda: 2)
        monkeypatch.setattr(device, "cuda_lacks", list)
        assert device.resolve("auto") == "cuda:0"
        assert device.resolve("cuda:1") == "cuda:1"
        with pytest.raises(MissingError, match="no CUDA device 2"):
            device.resolve("cuda:2")


class TestBudget:
    @pytest.mark.parametrize(
        ("name", "limit", "measured", "met"),
        [
            ("accuracy_drop", 0.01, 0.01, True),
            ("accuracy_drop", 0.01, 0.011, False),
            ("accuracy", 0.9, 0.89, False),
            ("speedup", 2.0, 2.5, True),
            ("size", budget.Size.read("30%", Path()), 300, True),
            ("size", budget.Size.read("30%", Path()), 301, False),
            ("image_size", budget.Size.read("1 MB", Path()), 1_000_001, False),
        ],
    )
    def test_lines_know_their_direction(self, name, limit, measured, met):
        assert budget.judge(name, limit, measured, step="s", original=1000).met is met

    @pytest.mark.parametrize("text", ["", "much", "-5%", "0", "5 XB", "nan", "inf%"])
    def test_what_is_no_size_is_refused(self, text):
        with pytest.raises(ValueError, match="is no size"):
            budget.Size.read(text, Path())


class TestRegistry:
    def test_two_distributions_of_one_name_are_an_error_that_names_both(self):
        entries = [
            EntryPoint("shrink", f"{owner}.stages:shrink", "modelpack.stages")._for(SimpleNamespace(name=owner))
            for owner in ("ours", "theirs")
        ]
        with pytest.raises(UsageError, match="ours and theirs"):
            registry.discover("modelpack.stages", Stage, entries)

    def test_an_entry_point_that_is_no_stage_is_refused(self):
        plugins = registry.discover("stages", Stage, [Here("lines", lines)])
        with pytest.raises(UsageError, match="must be a Stage"):
            plugins.get("lines")

    def test_a_plugin_that_cannot_be_imported_is_missing(self):
        class Broken(Here):
            def load(self):
                raise ImportError("no such thing")

        with pytest.raises(MissingError, match="no such thing"):
            registry.discover("stages", Stage, [Broken("broken", None)]).get("broken")


def test_a_problem_points_at_its_column():
    text = str(Problem(Place("r.yaml", 3, 5), "wrong", "    word: x", 4, "did you mean 'ward'?"))
    assert text.splitlines() == [
        "r.yaml:3:5: error: wrong",
        "    3 |     word: x",
        "            ^^^^ did you mean 'ward'?",
    ]
