"""The Dockerfile template: filled in so that the classic builder reads back what was meant."""

import json
import re

import pytest

from modelpack.container import dockerfile
from modelpack.container.plan import ENV, Healthcheck, ImageContents
from modelpack.errors import StageError, UsageError

COMMAND = ("/usr/bin/python3.11", "-m", "modelpack_server")


def contents(**labels: str) -> ImageContents:
    return ImageContents((), COMMAND, ENV, labels, Healthcheck((*COMMAND, "--healthcheck")), "1970-01-01T00:00:00Z")


def instructions(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines}


def test_the_template_fills_in_every_setting_and_explains_every_line():
    text = dockerfile.template().read_text("utf-8")
    filled = instructions(dockerfile.render(text, contents(a="b"), "mine:1", "template"))
    assert filled["FROM"] == "mine:1"
    assert json.loads(filled["ENTRYPOINT"]) == list(COMMAND)
    assert json.loads(filled["HEALTHCHECK"].partition("CMD ")[2]) == [*COMMAND, "--healthcheck"]
    assert filled["USER"] == "65532:65532"
    assert 'ORT_DISABLE_TELEMETRY="1"' in filled["ENV"]
    assert set(re.findall(r"\{\{(.*?)\}\}", text)) == set(dockerfile.WORDS)
    for above, line in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        assert not line or line.startswith("#") or above.startswith("#"), f"{line} is not explained"
    assert not re.search(r"--mount|<<|--chmod", re.sub(r"^#.*", "", text, flags=re.MULTILINE))


def test_quotes_dollars_and_backslashes_survive():
    filled = instructions(dockerfile.render("LABEL {{labels}}", contents(odd='a "b" $HOME \\ c'), "x", "t"))
    assert filled["LABEL"] == r'odd="a \"b\" \$HOME \\ c"'


@pytest.mark.parametrize("labels", [{"two": "a\nRUN evil"}, {"a b": "x"}, {"": "x"}])
def test_a_label_that_could_become_an_instruction_is_refused(labels):
    with pytest.raises(UsageError, match="cannot be written in a Dockerfile"):
        dockerfile.render("LABEL {{labels}}", contents(**labels), "x", "t")


def test_an_unknown_word_is_named_with_its_line():
    with pytest.raises(UsageError, match="entrpoint") as caught:
        dockerfile.check("FROM {{base}}\nENTRYPOINT {{entrpoint}}", "Mine")
    assert (caught.value.where, caught.value.then) == ("Mine:2", "did you mean 'entrypoint'?")


def test_an_installation_without_the_template_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(dockerfile, "_PLACES", (tmp_path / "none",))
    with pytest.raises(StageError, match=r"lacks Dockerfile.template"):
        dockerfile.template()
