"""The model card at `/`: JSON for programs, one self-contained page for people."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .settings import Settings
    from .signature import Signature, Tensor

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "vary": "accept",
}
_LINKS = {
    "/predict": "POST rows, columns or a tensor",
    "/openapi.json": "the API, with this model's tensors",
    "/readyz": "is the model ready?",
    "/livez": "is the process alive?",
    "/metrics": "Prometheus metrics",
}
_OWN = ("name", "version", "description", "inputs", "outputs", "limits", "routes", "schema", "signature")
_LIMITS = ("max_body", "max_rows", "queue", "deadline")
_UNITS = {"size": "bytes", "max_body": "bytes", "deadline": "seconds"}

_STYLE = """
:root{--ink:#16202c;--soft:#5b6878;--line:#dfe5ec;--paper:#f6f8fa;--card:#fff;--accent:#0b6e6e;--code:#10202b;--glow:#e3f4f1}
@media (prefers-color-scheme:dark){:root{--ink:#e8eef4;--soft:#93a2b3;--line:#263341;--paper:#0d141b;--card:#141d27;
--accent:#4fd1c0;--code:#0a1118;--glow:#12302f}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:58rem;margin:0 auto;padding:3.5rem 1.5rem 4rem}
header{margin-bottom:2.2rem}header p{margin-top:.9rem;font-size:1.08rem}
h1{font-size:2.3rem;line-height:1.15;letter-spacing:-.02em;margin:0 0 .6rem;
overflow-wrap:anywhere}
h2{font-size:.8rem;text-transform:uppercase;letter-spacing:.1em;color:var(--soft);margin:0 0 .9rem;font-weight:600}
p{margin:0 0 .8rem;max-width:44rem}
.tag{display:inline-block;padding:.1rem .65rem;margin:0 .35rem .35rem 0;border-radius:1rem;background:var(--glow);
color:var(--accent);font-size:.85rem;font-weight:600}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:1.4rem 1.6rem;margin:0 0 1.2rem;
overflow-x:auto}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.5rem 1.2rem .5rem 0;
border-top:1px solid var(--line)}tr:first-child>*{border-top:0}th{font-weight:600;white-space:nowrap;width:13rem}
td table th{font-weight:400;color:var(--soft)}td table{margin-top:-.5rem}
td{overflow-wrap:anywhere}td.quiet,.quiet{color:var(--soft)}
@media (max-width:40rem){main{padding:2rem 1rem}section{padding:1.1rem}th{width:auto;white-space:normal}}
code,pre{font:.86rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
pre.run{background:var(--code);color:#dcebe8;border-radius:10px;padding:1rem 1.2rem}
a{color:var(--accent);text-decoration:none}a:hover,a:focus-visible{text-decoration:underline}
footer{color:var(--soft);font-size:.85rem;margin-top:1.8rem}
"""


def describe(card: Mapping[str, Any], signature: Signature, settings: Settings) -> dict[str, Any]:
    """Give the card with what the server knows itself: tensors, limits, routes."""
    return {
        **card,
        "inputs": {name: _facts(tensor) for name, tensor in signature.inputs.items()},
        "outputs": {name: _facts(tensor) for name, tensor in signature.outputs.items()},
        "limits": {name: getattr(settings, name) for name in _LIMITS},
        "routes": _LINKS,
    }


def _facts(tensor: Tensor) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(tensor).items() if name != "name" and value is not None}


def render(content: Mapping[str, Any], signature: Signature, host: str) -> bytes:
    """Write the page as seen at `host`: no script, no external resource, every value escaped."""
    name, version = escape(str(content["name"])), escape(str(content["version"]))
    about = content.get("description")
    parts = [
        f"<header><h1>{name}</h1><span class=tag>version {version}</span>",
        *(f"<span class=tag>{escape(str(content[key]))}</span>" for key in ("precision",) if content.get(key)),
        f"<p>{escape(str(about))}</p>" if about else "",
        "</header>",
        _section("Ask it", f"<pre class=run>{escape(example(signature, host))}</pre>"),
        _section("Inputs", _tensors(signature.inputs)),
        _section("Outputs", _tensors(signature.outputs)),
        _section("Routes", _rows({f'<a href="{path}">{path}</a>' if path != "/predict" else path: escape(text)
                                  for path, text in _LINKS.items()})),
        _section("About this model", _rows({escape(_words(key)): _value(value) for key, value in content.items()
                                            if key not in _OWN})),
        _section("Limits", _rows({escape(_words(key)): _value(value) for key, value in content["limits"].items()})),
    ]  # fmt: skip
    page = (
        '<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f'<link rel=icon href="data:,"><title>{name} {version}</title><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}<footer>Served by modelpack</footer></main></body></html>"
    )
    return page.encode("utf-8", "replace")


def example(signature: Signature, host: str) -> str:
    """Write a command that asks for a prediction; a tensor too large to print is sent as a file."""
    named = {name: _sample(tensor) for name, tensor in signature.inputs.items()}
    count = sum(math.prod(_sizes(tensor)) for tensor in signature.inputs.values())
    only = signature.only
    known = host if re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,255}", host) else "localhost:8080"
    command = f"curl http://{known}/predict"
    if only is not None and only.dtype == "bytes":
        return f"{command} \\\n  -H 'content-type: image/jpeg' \\\n  --data-binary @picture.jpg"
    if count <= 48 or signature.only is None:
        body = json.dumps({"inputs": named}) if count <= 256 else json.dumps({"inputs": dict.fromkeys(named, "…")})
        return f"{command} \\\n  -H 'content-type: application/json' \\\n  -d '{body}'"
    save = f"np.save('input.npy', np.zeros({_sizes(signature.only)}, '{signature.only.dtype}'))"
    return (
        f'python -c "import numpy as np; {save}"\n'
        f"{command} \\\n  -H 'content-type: application/x-npy' \\\n  --data-binary @input.npy"
    )


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else 1 for size in tensor.shape)


def _sample(tensor: Tensor) -> Any:
    named = {"bool": False, "string": "a text", "bytes": "base64"}
    value: Any = named.get(tensor.dtype, 0 if "int" in tensor.dtype else 0.0)
    if tensor.range is not None and tensor.dtype != "bool":
        value = type(value)(min(max(0, tensor.range[0]), tensor.range[1]))
    for size in reversed(_sizes(tensor) if math.prod(_sizes(tensor)) <= 256 else ()):
        value = [value] * size
    return value


def _tensors(tensors: Mapping[str, Tensor]) -> str:
    rows = {}
    for name, tensor in tensors.items():
        limits = "" if tensor.range is None else f" · {tensor.range[0]:g} to {tensor.range[1]:g}"
        rows[f"<code>{escape(name)}</code>"] = (
            f"{escape(tensor.dtype)} <code>{escape(tensor.wanted)}</code><span class=quiet>{limits}</span>"
        )
    return _rows(rows)


def _rows(rows: Mapping[str, str]) -> str:
    return "".join(
        ["<table>", *(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in rows.items()), "</table>"]
    )


def _value(value: Any, depth: int = 0) -> str:
    if isinstance(value, dict) and value and depth < 2:
        return _rows({escape(_words(key)): _value(item, depth + 1) for key, item in value.items()})
    if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
        return escape(", ".join(map(str, value)))
    if isinstance(value, (dict, list)):
        return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,}", value):
        return f"<code>{value}</code>"
    return escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))


def _words(key: str) -> str:
    unit = f", {_UNITS[key]}" if key in _UNITS else ""
    return str(key).replace("_", " ") + unit


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content != "<table></table>" else ""
