"""``Dockerfile.template`` filled in with the image's settings, and built by an engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack.container import engine
from modelpack.container.layers import Entry, chunks
from modelpack.errors import StageError, UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.container.plan import ImageContents

_WORD = re.compile(r"\{\{(.*?)\}\}")
WORDS = (
    "base",
    "cuda",
    "env",
    "labels",
    "port",
    "user",
    "workdir",
    "stop_signal",
    "healthcheck_times",
    "healthcheck",
    "entrypoint",
)
"""What a template may hold in double braces."""
_PLACES = (Path(__file__).with_name("Dockerfile.template"), Path(__file__).parents[3] / "Dockerfile.template")


def template() -> Path:
    """Find the template: beside this module when installed, at the top of the checkout otherwise.

    Raises:
        StageError: When the installation lacks it.
    """
    for path in _PLACES:
        if path.is_file():
            return path
    raise StageError(
        "the installation lacks Dockerfile.template", where=str(_PLACES[0]), then="install modelpack again"
    )


def check(text: str, where: str) -> None:
    """Refuse a template with a word in double braces that nothing fills in.

    Raises:
        UsageError: Naming its line.
    """
    for number, line in enumerate(text.splitlines(), 1):
        for word in _WORD.findall(line):
            if word not in WORDS:
                raise UsageError(
                    f"'{{{{{word}}}}}' is not filled in by anything",
                    where=f"{where}:{number}",
                    then=did_you_mean(word, WORDS),
                )


def render(text: str, contents: ImageContents, base: str, where: str) -> str:
    """Fill in a template.

    Args:
        text: The template.
        contents: The image.
        base: Name that the engine knows the base by.
        where: Names the template in errors.

    Raises:
        UsageError: When the template has a word in double braces that nothing fills in.
    """
    health = contents.healthcheck
    words = {
        "base": base,
        "cuda": "".join(f"ADD {layer.name}.tar /" for layer in contents.layers if layer.name == "cuda"),
        "env": _pairs(contents.env),
        "labels": _pairs(contents.labels),
        "port": " ".join(contents.ports),
        "user": contents.user,
        "workdir": contents.workdir,
        "stop_signal": contents.stop_signal,
        "healthcheck_times": f"--interval={health.interval}s --timeout={health.timeout}s "
        f"--start-period={health.start_period}s --retries={health.retries}",
        "healthcheck": json.dumps(health.command),
        "entrypoint": json.dumps(contents.entrypoint),
    }
    check(text, where)
    return _WORD.sub(lambda match: words[match[1]], text)


def _pairs(values: Mapping[str, str]) -> str:
    """Write ``KEY="value"`` items; the classic builder expands ``$`` and backslashes inside the quotes."""
    quoted = []
    for name, value in values.items():
        if "\n" in value or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise UsageError(f"the label or variable {name!r} cannot be written in a Dockerfile")
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
        quoted.append(f'{name}="{escaped}"')
    return " ".join(quoted)


def build(contents: ImageContents, base: str, tag: str, template: Path, scratch: Path) -> str:
    """Build an image with the engine's classic builder.

    Args:
        contents: The image.
        base: Name that the engine knows the base by.
        tag: Name for the result.
        template: A Dockerfile with words in double braces, see ``Dockerfile.template``.
        scratch: Directory for the build context.

    Returns:
        The id that the engine gives it.

    Raises:
        MissingError: When no engine answers.
        StageError: When a step of the Dockerfile fails.
        UsageError: When the template has an unknown word.
    """
    dockerfile = render(template.read_text("utf-8"), contents, base, str(template))
    context = scratch / "context.tar"
    with context.open("wb") as stream:
        for piece in chunks(_context(contents, dockerfile, scratch)):
            stream.write(piece)
    with engine.engine() as client, context.open("rb") as stream:
        # rm and forcerm: a failed step would leave its container behind
        image, _ = client.images.build(
            fileobj=stream, custom_context=True, dockerfile="Dockerfile", tag=tag, rm=True, forcerm=True, pull=False
        )
    return str(image.id)


def _context(contents: ImageContents, dockerfile: str, scratch: Path) -> list[Entry]:
    files = [Entry("Dockerfile", dockerfile.encode())]
    for layer in contents.layers:
        path = scratch / f"{layer.name}.tar"
        with path.open("wb") as stream:
            for piece in chunks(layer.entries, layer.epoch):
                stream.write(piece)
        files.append(Entry(path.name, path))
    return files
