"""What tools and people read about a model artifact: its configuration, its card, a Kitfile and a Modelfile.

CNCF ModelPack specification, "Model Artifact Configuration"; KitOps "Kitfile format"; modctl "Modelfile".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.container.plan import timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SCALES = (("k", 10**3), ("m", 10**6), ("b", 10**9), ("t", 10**12), ("q", 10**15))
_FRAMEWORKS = {"onnx": "onnxruntime", "safetensors": "pytorch"}


@dataclass(frozen=True)
class Description:
    """What is said of a model.

    Attributes:
        name: What it is called.
        version: Its version.
        artifact: Its id in a store.
        format: ``onnx`` or ``safetensors``.
        parameters: How many it has; 0 when unknown.
        precision: Element types, separated by commas; empty when unknown.
        quantization: Method, such as ``static``; empty when it was not quantized.
        inputs: What it takes: ``image``, ``text`` or ``other``.
        signature: Its inputs and outputs.
        epoch: Its date, seconds since 1970; None for none.
    """

    name: str
    version: str
    artifact: str
    format: str
    parameters: int = 0
    precision: str = ""
    quantization: str = ""
    inputs: tuple[str, ...] = ("other",)
    signature: Mapping[str, Any] | None = None
    epoch: int | None = None


def size(parameters: int) -> str:
    """Write a number of parameters as the specification has it; empty for fewer than it has a word for.

    >>> size(203_530), size(7_000_000), size(999_960), size(12)
    ('203.5k', '7m', '1m', '')
    """
    for letter, scale in _SCALES:
        value = round(parameters / scale, 1)
        if value < 1000:
            return f"{value:g}{letter}" if value else ""
    return ""


def config(about: Description, digests: Sequence[str]) -> bytes:
    """Write the configuration; `digests` are those of the layers' uncompressed content."""
    descriptor = {"name": about.name, "version": about.version, "title": about.name, "revision": about.artifact}
    if about.epoch is not None:
        descriptor["createdAt"] = timestamp(about.epoch)
    technical = {
        "format": about.format,
        "paramSize": size(about.parameters),
        "precision": about.precision,
        "quantization": about.quantization,
        "capabilities": {"inputTypes": list(about.inputs), "outputTypes": ["other"]},
    }
    return canonical.encode(
        {
            "descriptor": descriptor,
            "config": {key: value for key, value in technical.items() if value},
            "modelfs": {"type": "layers", "diffIds": list(digests)},
        }
    )


def card(about: Description, sizes: Mapping[str, int]) -> bytes:
    """Write the model card in Markdown; `sizes` are those of the model's own files in bytes."""
    facts = {
        "version": about.version,
        "artifact": f"`{about.artifact}`",
        "format": about.format,
        "parameters": f"{about.parameters:,}" if about.parameters else "",
        "precision": about.precision,
        "quantization": about.quantization,
    }
    lines = [f"# {_flat(about.name)}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_flat(value)} |" for key, value in facts.items() if value]
    for side, word in (("inputs", "Takes"), ("outputs", "Gives")):
        tensors = (about.signature or {}).get(side) or {}
        lines += ["", f"## {word}", "", "| name | type | shape |", "|---|---|---|"] if tensors else []
        lines += [
            f"| {_flat(name)} | {spec['dtype']} | {_flat(' × '.join(map(str, spec['shape'])))} |"
            for name, spec in tensors.items()
        ]
    lines += ["", "## Files", "", "| file | bytes |", "|---|---|"]
    lines += [f"| {_flat(name)} | {count:,} |" for name, count in sorted(sizes.items())]
    return ("\n".join(lines) + "\n").encode()


def _flat(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def kitfile(about: Description, weights: Sequence[str], settings: Sequence[str], documents: Sequence[str]) -> bytes:
    """Write a Kitfile, from which `kit pack` makes a ModelKit of the same files."""
    import yaml

    package = {"name": about.name, "version": about.version, "description": f"modelpack artifact {about.artifact}"}
    model = {
        "name": about.name,
        "path": weights[0],
        "framework": _FRAMEWORKS[about.format],
        "format": about.format,
        "version": about.version,
        "parts": [{"path": path} for path in (*weights[1:], *settings)],
    }
    body = {
        "manifestVersion": "1.0.0",
        "package": package,
        "model": {key: value for key, value in model.items() if value},
        "docs": [{"path": path} for path in documents],
    }
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=10**6).encode()


def modelfile(about: Description, weights: Sequence[str], settings: Sequence[str], documents: Sequence[str]) -> bytes:
    """Write a Modelfile, from which `modctl build` makes an artifact of the same files."""
    named = {
        "NAME": about.name,
        "FORMAT": about.format,
        "PARAMSIZE": size(about.parameters),
        "PRECISION": about.precision,
        "QUANTIZATION": about.quantization,
    }
    lines = [(word, value) for word, value in named.items() if value]
    lines += [("MODEL", path) for path in weights]
    lines += [("CONFIG", path) for path in settings]
    lines += [("DOC", path) for path in documents]
    return "".join(f"{word} {_quoted(value)}\n" for word, value in lines).encode()


def _quoted(value: str) -> str:
    text = value.replace("\n", " ").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if " " in text or "\t" in text else text
