"""What a model is, at `/`: JSON for programs; for people a page that shows it, asks it and watches it.

The page is the same bytes for every model and tells nothing by itself: its script asks for the JSON, with a token where
the server wants one, and for `/metrics`. It loads nothing from elsewhere, and its policy names what may run by hash.

Source: W3C, "Content Security Policy Level 3".
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exchange import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..settings import Settings
    from ..signature import Signature, Tensor

_FOLDER = Path(__file__).parent
_SCRIPTS = ("parts.js", "form.js", "answer.js", "figures.js", "model.js")
_ROUTES = {
    "/predict": "POST rows, columns or a tensor",
    "/openapi.json": "the API, with this model's tensors",
    "/readyz": "is the model ready?",
    "/livez": "is the process alive?",
    "/metrics": "Prometheus metrics",
}
_LIMITS = ("max_body", "max_rows", "queue", "deadline")


def describe(card: Mapping[str, Any], signature: Signature, settings: Settings) -> dict[str, Any]:
    """Give the card with what the server knows itself: tensors, limits, routes."""
    return {
        **card,
        "inputs": {name: _facts(tensor) for name, tensor in signature.inputs.items()},
        "outputs": {name: _facts(tensor) for name, tensor in signature.outputs.items()},
        "limits": {name: getattr(settings, name) for name in _LIMITS},
        "routes": _ROUTES,
    }


def _facts(tensor: Tensor) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(tensor).items() if name != "name" and value is not None}


def answer(status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Give the page; whoever shows no token gets it too, with another status, and can type one."""
    content, policy = _page()
    named = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "vary": "accept",
        **(headers or {}),
    }
    return Response(status, content, "text/html; charset=utf-8", named)


@functools.cache
def _page() -> tuple[bytes, str]:
    """Put the page together from its files; give it with the policy that lets nothing else run."""
    style = (_FOLDER / "page.css").read_text("utf-8")
    script = "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)
    page = (_FOLDER / "page.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src 'self'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.replace("STYLE", style, 1).replace("SCRIPT", script, 1).encode(), policy


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
