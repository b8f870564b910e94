"""Recipes: sound ones load, wrong ones say everything that is wrong, each thing at its place."""

import contextlib
import textwrap

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpack import recipe as recipes
from modelpack.errors import RecipeError, UsageError
from tiny import RECIPE

pytestmark = pytest.mark.usefixtures("tiny")


def problems(folder, text, overrides=()):
    (folder / "recipe.yaml").write_text(textwrap.dedent(text))
    with pytest.raises(RecipeError) as caught:
        recipes.load(folder / "recipe.yaml", overrides)
    return [
        (problem.place.line, problem.place.column, problem.message, problem.hint) for problem in caught.value.problems
    ]


def changed(folder, old, new):
    assert old in RECIPE
    return problems(folder, RECIPE.replace(old, new))


def test_a_sound_recipe_says_who_reads_what_and_who_decides(folder):
    loaded = recipes.load(folder / "recipe.yaml")
    assert [(step.id, step.reads, step.steps, step.data) for step in loaded.steps] == [
        ("model", None, (), ()),
        ("shrink", "model", (), ("train",)),
        ("heal", "shrink", ("model",), ()),
        ("convert", "heal", (), ()),
        ("score", "convert", ("model",), ()),
        ("pack", "convert", (), ()),
    ]
    assert loaded.deciding == {"accuracy": "score", "size": "convert"}
    assert loaded.inputs["x"].shape == ("batch", 2)


def test_everything_wrong_is_reported_at_once_in_reading_order(folder):
    found = problems(
        folder,
        """\
        name: Bad Name
        nmae: x
        model:
          weights: gone.txt
        data:
          train: {line: {path: train.txt}}
        budget: {acuracy: 0.5, latency_ms: fast}
        stages:
          - shrink: {kep: 0.5}
          - heal: {teacher: modle}
          - score: {data: trian}
          - shrink: {keep: 2}
          - convert:
            from: nobody
        """,
    )
    assert [(line, column) for line, column, _, _ in found] == [
        (1, 7), (2, 1), (4, 12), (6, 11), (7, 10), (7, 36), (9, 14), (10, 21), (11, 19), (12, 5), (12, 20), (14, 11),
    ]  # fmt: skip
    texts = "\n".join(f"{message} | {hint}" for _, _, message, hint in found)
    assert "unknown key 'nmae' | did you mean 'name'?" in texts
    assert "no such file or directory" in texts
    assert "no source is named 'line' | did you mean 'lines'?" in texts
    assert "unknown key 'acuracy' | did you mean 'accuracy'?" in texts
    assert "unknown key 'kep' | did you mean 'keep'?" in texts
    assert "no earlier step is named 'modle' | did you mean 'model'?" in texts
    assert "no data is named 'trian' | did you mean 'train'?" in texts
    assert "a step is already named 'shrink' | give this one another `id:`" in texts
    assert "no earlier step is named 'nobody'" in texts


def test_a_problem_is_drawn_under_its_source_line(folder):
    (folder / "recipe.yaml").write_text(RECIPE.replace("keep: 0.5", "keeep: 0.5"))
    with pytest.raises(RecipeError) as caught:
        recipes.load(folder / "recipe.yaml")
    assert str(caught.value).splitlines() == [
        f"{folder / 'recipe.yaml'}:9:14: error: unknown key 'keeep'",
        "    9 |   - shrink: {keeep: 0.5, data: train}",
        "                     ^^^^^ did you mean 'keep'?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  - heal: {teacher: model}\n", "", "'shrink' leaves the model unrecovered"),
        ("  - convert:\n", "", "'pack' reads onnx but 'heal' gives torch"),
        ("  - pack:", "  - pack:\n  - shrink:\n    id: again", "'shrink' reads torch but 'convert' gives onnx"),
        ("  - score: {against: model}\n", "", "no step of this recipe measures 'accuracy'"),
        ("  - pack:\n", "  - squeeze:\n  - polish:\n", "'polish' cannot work on a squeezed model"),
        ("  - score: {against: model}\n  - pack:", "  - pack:\n  - score:", "'pack' would package before the budget is checked: accuracy"),
        ("teacher: model", "teacher: convert", "no earlier step is named 'convert'"),
        ("  - convert:\n", "  - convert:\n  - heal: {teacher: convert}\n    from: shrink\n    id: second\n", "'teacher' must be torch but 'convert' gives onnx"),
        ("  - pack:", "  - model: {weights: weights.txt}", "'model' brings a model in and cannot be a step"),
        ("size: 50%", "size: much", "'much' is no size"),
        ("keep: 0.5", "keep: nan", "'keep' should be a finite number"),
        ("keep: 0.5", "keep: 1.5", "'keep' should be less than or equal to 1"),
        ("[batch, 2]", "[batch, 0-3]", "'shape' should be"),
    ],
)  # fmt: skip
def test_what_cannot_end_well_is_refused_before_anything_runs(folder, old, new, message):
    found = changed(folder, old, new)
    assert any(message in text for _, _, text, _ in found), found


def test_the_author_may_allow_what_the_planner_refuses(folder):
    text = RECIPE.replace("  - heal: {teacher: model}\n", "") + "allow: [unrecovered]\n"
    (folder / "recipe.yaml").write_text(text)
    assert len(recipes.load(folder / "recipe.yaml").steps) == 5


def test_scalars_mean_what_their_field_says(folder):
    text = RECIPE.replace("name: tiny", "name: no").replace(
        "inputs:", "arguments: {a: 1.10, b: '1', c: no, d: [true]}\n  inputs:"
    )
    (folder / "recipe.yaml").write_text(text.replace("keep: 0.5", "keep: 5e-1"))
    loaded = recipes.load(folder / "recipe.yaml")
    assert loaded.name == "no"
    assert loaded.steps[0].config.arguments == {"a": 1.1, "b": "1", "c": "no", "d": [True]}
    assert loaded.steps[1].config.keep == 0.5


def test_a_number_beyond_all_floats_is_a_problem_at_its_place(folder):
    ((line, _, message, _),) = changed(folder, "inputs:", "arguments: {a: 1e999}\n  inputs:")
    assert line == 4
    assert "1e999 is larger than any number" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe is empty"),
        ("- a", "a recipe is a mapping"),
        ("a: [", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("? [a]\n: b", "a key must be a word"),
        ("name: !!python/object/apply:os.system [ls]", "tags such as"),
        ("name: a\nname: b", "duplicate key 'name'"),
        ("a: &a [*a]", "nested"),
        ("a: &a [1,1,1,1,1,1,1,1]\n" + "".join(f"{c}: &{c} [{','.join(['*' + p] * 8)}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)), "expands to too many"),
        ("<<: {name: a}", "merge keys"),
        ("a: " + "[" * 5000, "nested too deeply"),
    ],
)  # fmt: skip
def test_hostile_documents_are_refused_with_a_place(folder, text, message):
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        recipes.load(folder / "recipe.yaml")


def test_a_file_that_is_not_text_or_not_there(folder):
    (folder / "recipe.yaml").write_bytes(b"name: \xff")
    with pytest.raises(RecipeError, match="not UTF-8"):
        recipes.load(folder / "recipe.yaml")
    with pytest.raises(UsageError, match="No such file"):
        recipes.load(folder / "none.yaml")


def test_a_model_has_one_origin(folder):
    both = RECIPE.replace("  weights: weights.txt\n", "  factory: a.py:b\n  onnx: c.onnx\n")
    (found,) = [item for item in problems(folder, both) if item[0] == 3]
    assert found[2] == "a model has a `factory` or is an `onnx` file, not both"


def test_a_default_may_name_a_step(folder):
    (folder / "recipe.yaml").write_text(RECIPE.replace("{teacher: model}", "{}"))
    assert recipes.load(folder / "recipe.yaml").steps[2].steps == ("model",)


def test_a_recipe_may_end_early_unless_its_budget_would_go_unchecked(folder):
    loaded = recipes.load(folder / "recipe.yaml")
    assert [step.id for step in loaded.upto("score").steps] == ["model", "shrink", "heal", "convert", "score"]
    with pytest.raises(UsageError, match="accuracy would not be checked"):
        loaded.upto("convert")
    with pytest.raises(UsageError, match="no step 'scor'"):
        loaded.upto("scor")


class TestOverrides:
    def test_they_bind_through_the_same_code(self, folder):
        loaded = recipes.load(
            folder / "recipe.yaml",
            [
                "stages.shrink.keep=25%".replace("25%", "0.25"),
                "stages.convert.level=3",
                "data.train.limit=1",
                "budget.size=90%",
                "seed=7",
            ],
        )
        assert loaded.steps[1].config.keep == 0.25
        assert loaded.steps[3].config.level == 3
        assert loaded.data["train"].config.limit == 1
        assert loaded.budget.size.fraction == 0.9
        assert loaded.seed == 7

    @pytest.mark.parametrize(
        ("override", "column", "message"),
        [
            ("stages.shrink.keep=x", 20, "'keep' should be a valid number"),
            ("stages.shrnk.keep=1", 1, "no step is named 'shrnk'"),
            ("stags.shrink.keep=1", 1, "unknown key 'stags'"),
            ("stages.shrink.kep=1", 1, "unknown key 'kep'"),
            ("nonsense", 1, "write dotted.path=value"),
            ("seed.deeper=1", 1, "cannot be set inside a plain value"),
            ("seed=[", 1, "not valid YAML"),
        ],
    )
    def test_a_wrong_one_has_a_place_too(self, folder, override, column, message):
        if override.startswith("seed.deeper"):
            (folder / "recipe.yaml").write_text("seed: 1\n" + RECIPE)
        with pytest.raises(RecipeError) as caught:
            recipes.load(folder / "recipe.yaml", ["stages.convert.level=2", override])
        (problem,) = caught.value.problems
        assert problem.place.source == "--set:2"
        assert message in problem.message
        if column > 1:
            assert problem.place.column == column


edits = st.lists(st.tuples(st.integers(0, len(RECIPE)), st.integers(0, 4), st.text(max_size=4)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits)
def test_any_edit_of_a_good_recipe_is_a_recipe_or_a_recipe_error(folder, edits):
    text = RECIPE
    for start, drop, insert in edits:
        text = text[:start] + insert + text[start + drop :]
    path = folder / "edited.yaml"
    path.write_bytes(text.encode(errors="replace"))
    with contextlib.suppress(UsageError):
        assert recipes.load(path).steps


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=60)
    | st.recursive(
        st.text(max_size=5) | st.integers() | st.none(),
        lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=8), s, max_size=4),
    ).map(yaml.safe_dump)
)
def test_any_text_is_a_recipe_or_a_recipe_error(folder, text):
    path = folder / "any.yaml"
    path.write_bytes(text.encode(errors="replace"))
    with pytest.raises(UsageError):
        recipes.load(path)
