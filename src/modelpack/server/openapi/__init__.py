"""The OpenAPI 3.1 description of everything this server answers, with the real tensors of its models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..exchange import JSON
from .parts import ERROR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ..model import Model
    from ..router import Protocol, Route
    from ..settings import Settings


def describe(protocols: Iterable[Protocol], models: Mapping[str, Model], settings: Settings) -> dict[str, Any]:
    """Describe every route; one that names a model once for each, in its current version.

    Left out are routes that only refuse, and those that name a version beside the model and are else the same.

    Args:
        protocols: Tables of routes.
        models: The current version of each model.
        settings: Limits.
    """
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {"Error": ERROR}
    for protocol in protocols:
        for route in protocol.routes:
            for path, operation, more in _operations(route, models, settings):
                identity = f"{protocol.name} {route.method.lower()} {path}"
                paths.setdefault(path, {})[route.method.lower()] = {
                    "tags": [protocol.name], "operationId": re.sub(r"\W+", "_", identity), **operation,
                    **_guard(route, operation, settings),
                }  # fmt: skip
                schemas |= more
    info = _info([model.card for model in models.values()])
    components = {"schemas": schemas, **({"securitySchemes": schemes} if (schemes := _schemes(settings)) else {})}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _schemes(settings: Settings) -> dict[str, Any]:
    """Say what clients may have to show."""
    token = {"token": {"type": "http", "scheme": "bearer"}} if settings.guarded else {}
    return token | ({"certificate": {"type": "mutualTLS"}} if settings.tls_client_ca else {})


def _guard(route: Route, operation: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Say that an operation asks for a token or a client's certificate, where it does."""
    schemes = _schemes(settings)
    if route.open or not schemes:
        return {}
    told = {
        "401": ("token", "The request shows no token, or an unknown one."),
        "403": ("certificate", "The connection has shown no certificate."),
    }
    refused = {
        code: {"description": text, "content": {JSON: {}}} for code, (kind, text) in told.items() if kind in schemes
    }
    return {"security": [{kind: [] for kind in schemes}], "responses": {**operation["responses"], **refused}}


def _operations(
    route: Route, models: Mapping[str, Model], settings: Settings
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    if "{version}" in route.path or not route.media:
        return
    if "{model}" not in route.path and (route.describe is None or len(models) != 1):
        yield route.path, _plain(route), {}
        return
    for name, model in models.items():
        path = route.path.replace("{model}", quote(name, safe=""))
        prefix = "" if len(models) == 1 else re.sub(r"[^A-Za-z0-9._-]", "_", name) + "."
        if route.describe is None:
            yield path, _plain(route), {}
        else:
            described = route.describe(model, settings, prefix)
            yield path, described.operation, described.schemas


def _plain(route: Route) -> dict[str, Any]:
    summary = (route.answer.__doc__ or route.path).partition("\n")[0].rstrip(".")
    content: dict[str, Any] = {media: {} for media in route.media}
    return {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": content},
            "default": {"description": "Not possible, or not now.", "content": {JSON: {}}},
        },
    }


def _info(cards: list[Mapping[str, Any]]) -> dict[str, str]:
    if len(cards) != 1:
        return {"title": "models", "version": "1", "description": "Models served by modelpack."}
    about = str(cards[0].get("description", "A model served by modelpack."))
    return {"title": str(cards[0]["name"]), "version": str(cards[0]["version"]), "description": about}
