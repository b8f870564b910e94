"""How files are written: YAML with comments that reads back as it was said, and names that platforms take."""

import doctest
import re

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelpack.deploy import documents, names
from modelpack.deploy.documents import bare, said, to_yaml

WORDS = st.sampled_from([
    "yes", "No", "on", "null", "~", "1e3", "0x1f", "1_000", "1:30", ".5", "-", "- a", "a: b", "a #b", "#a", "a:", "*a", "&a",
    "!a", "{a}", "[a]", "a\nb", "a\n", " a", "a\n  b\n", "a\n\nb", "\n", "", "…", "\u2028", "\ufeff", "😀", "'a'", "a 'b'", "=",
    "<<", "2026-01-01", "@a", "%a", "`a", "|", ">", "?", "? a", "a ?", "/x y", "true", "12", "y", "\x7f", "\x85", "a\tb", ",",
])  # fmt: skip
SCALARS = st.one_of(
    WORDS,
    st.text(max_size=12),
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False, allow_infinity=False),
)


def nested(children):
    kept = st.one_of(children, st.builds(said, st.text(st.characters(codec="utf-8"), max_size=20), children))
    return st.one_of(
        st.lists(kept, max_size=3), st.dictionaries(st.one_of(WORDS, st.text(max_size=6)), kept, max_size=3)
    )


DOCUMENTS = st.recursive(SCALARS, nested, max_leaves=12)


@example(1e-05)
@example([1e22, 1.5e-7, -0.0])
@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(DOCUMENTS)
def test_any_data_read_back_as_they_were(document):
    assert yaml.safe_load(to_yaml("Why.", document)) == bare(document)


@given(WORDS)
def test_what_reads_as_text_here_reads_as_text_by_yaml_1_2(word):
    """YAML 1.2 takes numbers and truth values in more spellings than PyYAML does: such words are quoted."""
    text = to_yaml("", {"a": word}).splitlines()[0].removeprefix("a: ")
    if not text.startswith(('"', "|")):
        assert not re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|true|false|null|~", text)
        assert text[0].isalpha() or text[0] == "/"


def test_several_documents_are_apart():
    text = to_yaml("Two.", {"a": 1}, {"b": 2})
    assert list(yaml.safe_load_all(text)) == [{"a": 1}, {"b": 2}]
    assert text.startswith("# Two.\n")


def test_comments_stand_above_what_they_speak_of_and_fold():
    text = to_yaml("Head.", {"a": said("why " * 40, [said("first", {"b": said("inner", 1)}), "c"])})
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    place = lines.index("a:")
    assert lines[place - 1].startswith("# why")
    assert lines[place + 1 : place + 5] == ["  # first", "  -", "    # inner", "    b: 1"]


def test_scripts_are_blocks():
    assert to_yaml("", {"run": "set -e\necho\n"}) == "run: |\n  set -e\n  echo\n"
    assert to_yaml("", ["a\nb"]) == "- |-\n  a\n  b\n"


@given(st.text(max_size=80))
def test_names_are_labels(text):
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", names.label(text))
    assert len(names.label(text, 32)) <= 32
    assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", names.value(text))


@pytest.mark.parametrize("module", [documents, names])
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
