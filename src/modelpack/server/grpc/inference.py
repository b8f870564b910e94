"""The Open Inference Protocol v2 over gRPC, as KServe, Triton and MLServer speak it, with Triton's extensions.

Sources: kserve/open-inference-protocol, `inference_grpc.md`; triton-inference-server/server, `docs/protocol`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict

from .. import descriptions
from ..faults import Invalid
from . import contents
from .schema import message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from ..service import Service
    from .calls import Call


def _made(name: str, content: dict[str, Any]) -> Message:
    return ParseDict(content, message(f"inference.{name}")())


async def live(_service: Service, _request: Any, _call: Call) -> Message:
    """Say that the process is alive."""
    return _made("ServerLiveResponse", {"live": True})


async def ready(service: Service, _request: Any, _call: Call) -> Message:
    """Say whether the models answer and the server is not stopping."""
    return _made("ServerReadyResponse", {"ready": service.ready})


async def model_ready(service: Service, request: Any, _call: Call) -> Message:
    """Say whether a model answers."""
    model = service.catalog.find(_named(request.name), request.version)
    return _made("ModelReadyResponse", {"ready": model.ready and service.state != "draining"})


async def server(_service: Service, _request: Any, _call: Call) -> Message:
    """Say what this server is."""
    return _made("ServerMetadataResponse", descriptions.server())


async def metadata(service: Service, request: Any, _call: Call) -> Message:
    """Describe a model's tensors."""
    model = service.catalog.find(_named(request.name), request.version)
    versions = [request.version] if request.version else service.catalog.versions(model.name)
    return _made("ModelMetadataResponse", descriptions.metadata(model, versions))


async def configuration(service: Service, request: Any, _call: Call) -> Message:
    """Describe a model as Triton's configuration would."""
    model = service.catalog.find(_named(request.name), request.version)
    return _made("ModelConfigResponse", {"config": descriptions.configuration(model, service.settings.max_rows)})


async def statistics(service: Service, request: Any, _call: Call) -> Message:
    """Tell what one model has done, or all of them."""
    chosen = service.catalog.chosen(request.name, request.version)
    totals = service.ledger.totals()
    stats = [descriptions.statistics(model, totals) for model in chosen]
    return _made("ModelStatisticsResponse", {"model_stats": stats})


async def index(service: Service, request: Any, _call: Call) -> Message:
    """List every version of every model with its state."""
    _own(request)
    entries = [entry for entry in service.catalog.index() if not request.ready or entry["state"] == "READY"]
    return _made("RepositoryIndexResponse", {"models": entries})


async def load(service: Service, request: Any, _call: Call) -> Message:
    """Read a model's directory again; off unless the operator allows it."""
    _own(request)
    if request.parameters:
        raise Invalid("a model is loaded from its directory: 'parameters' are not taken")
    name = _named(request.model_name)
    await service.change(lambda: service.catalog.load(name))
    return _made("RepositoryModelLoadResponse", {})


async def unload(service: Service, request: Any, _call: Call) -> Message:
    """Serve a model no longer; off unless the operator allows it."""
    _own(request)
    name = _named(request.model_name)
    await service.change(lambda: service.catalog.unload(name))
    return _made("RepositoryModelUnloadResponse", {})


async def infer(service: Service, request: Any, call: Call) -> Message:
    """Run a model."""
    with service.catalog.find(_named(request.model_name), request.model_version) as model:
        asked = contents.read(request, model.signature)
        answer = await service.infer(model, asked.feed, call.arrived, call.gone)
        written: Message = contents.write(asked, answer, model)
        return written


async def stream(service: Service, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Message]:
    """Run a model for each message, in their order; one that is refused does not end the stream."""
    kind: Any = message("inference.ModelStreamInferResponse")
    async for request in requests:
        call.arrive()
        try:
            response = kind(infer_response=await infer(service, request, call))
        except Exception as error:  # noqa: BLE001 - the client gets the reason and the log the trace
            response = kind(error_message=call.fault(error).message, infer_response={"id": request.id})
        yield response


def _named(name: str) -> str:
    if not name:
        raise Invalid("the model has no name: every call names one")
    return name


def _own(request: Any) -> None:
    if request.repository_name:
        raise Invalid(f"there is one repository, without a name, and none called {request.repository_name[:80]!r}")


METHODS: dict[str, Any] = {
    "ServerLive": live,
    "ServerReady": ready,
    "ModelReady": model_ready,
    "ServerMetadata": server,
    "ModelMetadata": metadata,
    "ModelInfer": infer,
    "ModelStreamInfer": stream,
    "ModelConfig": configuration,
    "ModelStatistics": statistics,
    "RepositoryIndex": index,
    "RepositoryModelLoad": load,
    "RepositoryModelUnload": unload,
}
