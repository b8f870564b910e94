"""`/models`: SageMaker's contract for several models in one container, and TorchServe's description of a version.

A model is loaded from its own directory below that of the server, which is `/opt/ml/models` on SageMaker. Sources:
Amazon SageMaker, "Custom containers contract for multi-model endpoints"; TorchServe, "Management API".
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import memory
from ..exchange import JSON, Refused, Response, as_json
from ..faults import Invalid
from ..openapi.platforms import several as described
from ..router import Protocol, Route
from ..rows import parse
from .invocations import invoke
from .torchserve import worded

if TYPE_CHECKING:
    from ..model import Model
    from ..request import Request
    from ..service import Service
    from ..settings import Settings

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._ -]{0,200}")
_WHILE_LOADING = 2  # a model takes about twice its file while it is read, in each worker


def protocol(_settings: Settings) -> Protocol:
    """Give the table."""
    routes = (
        Route("GET", "/models", listed),
        Route("POST", "/models", load),
        Route("GET", "/models/{model}", one),
        Route("DELETE", "/models/{model}", unload),
        Route("POST", "/models/{model}/invoke", run, describe=described),
        Route("GET", "/models/{model}/{version}", versions),
    )
    return Protocol("multi_model", routes, fail=worded)


async def listed(service: Service, _request: Request) -> Response:
    """List the models and where they come from."""
    return as_json({"models": [_entry(model) for model in service.catalog.current.values()]})


def _entry(model: Model) -> dict[str, Any]:
    return {"modelName": model.name, "modelUrl": str(model.folder)}


async def one(service: Service, request: Request) -> Response:
    """Say where a model comes from."""
    return as_json(_entry(service.catalog.find(request.parts["model"])))


async def run(service: Service, request: Request) -> Response:
    """Run a model as `/invocations` does."""
    return await invoke(service, request, request.parts["model"])


async def load(service: Service, request: Request) -> Response:
    """Serve one model more; off unless the operator allows it."""
    request.from_here()
    request.expect((JSON,))
    content = parse(await request.body())
    if not isinstance(content, dict) or not all(isinstance(content.get(key), str) for key in ("model_name", "url")):
        raise Invalid('expected a JSON object of two texts: {"model_name": ..., "url": ...}')
    name, folder = content["model_name"], Path(content["url"])

    async def work() -> Model:
        if name in service.catalog.current:
            raise Refused(409, f"model {name[:80]!r} is loaded already")
        _admit(service, name, folder)
        return await service.catalog.load(name)

    model = await service.change(work)
    return as_json({"status": f"model {model.name!r} is loaded"})


def _admit(service: Service, name: str, folder: Path) -> None:
    """Refuse a directory that is not the model's own, or that holds more than memory can take."""
    own = service.catalog.root / name
    if not _NAME.fullmatch(name) or folder not in (own, *own.glob("*")):
        raise Invalid(f"'url' is {str(folder)[:200]!r}: model {name[:80]!r} is loaded from {str(own)[:200]!r} only")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if (takes := service.settings.workers * _WHILE_LOADING * size) > (free := memory.free()):
        needed, left = (math.ceil(count / 2**20) for count in (takes, free))
        raise Refused(507, f"model {name!r} takes {needed} MiB to load, and {left} MiB are free: unload another first")


async def unload(service: Service, request: Request) -> Response:
    """Serve a model no longer; off unless the operator allows it."""
    request.from_here()
    model = await service.change(lambda: service.catalog.unload(request.parts["model"]))
    return as_json({"status": f"model {model.name!r} is unloaded"})


async def versions(service: Service, request: Request) -> Response:
    """Describe a version of a model, or `all`, as TorchServe does."""
    name, version = request.parts["model"], request.parts["version"]
    asked = (service.catalog.versions(name) or [""]) if version == "all" else [version]
    return as_json([_described(service.catalog.find(name, each), service.settings) for each in asked])


def _described(model: Model, settings: Settings) -> dict[str, Any]:
    workers = settings.concurrency
    return {
        "modelName": model.name,
        "modelVersion": model.version,
        "modelUrl": str(model.folder),
        "runtime": "onnxruntime",
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": model.engine.batch if model.engine else settings.max_batch,
        "maxBatchDelay": 0,
        "workers": [{"id": str(at), "status": "READY" if model.ready else "LOADING"} for at in range(workers)],
        "jobQueueStatus": {
            "remainingCapacity": max(0, settings.queue - model.waiting),
            "pendingRequests": model.waiting,
        },
    }
