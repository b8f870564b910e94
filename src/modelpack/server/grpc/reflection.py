"""What the server speaks, for tools that read it from the server itself, such as grpcurl and Postman.

Source: grpc/grpc, `doc/server-reflection.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from . import schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from ..service import Service
    from .calls import Call

OLD = "grpc.reflection.v1alpha.ServerReflection"
"""The name before; its messages are the same."""


async def describe(_service: Service, requests: AsyncIterator[Any], _call: Call) -> AsyncIterator[Message]:
    """Answer each question about services, files and symbols."""
    kind: Any = schema.message("grpc.reflection.v1.ServerReflectionResponse")
    async for request in requests:
        yield kind(valid_host=request.host, original_request=request, **_answer(request))


def _answer(request: Any) -> dict[str, Any]:
    asked = request.WhichOneof("message_request")
    text = getattr(request, asked) if asked else ""
    try:
        match asked:
            case "list_services":
                names = (schema.INFERENCE, schema.HEALTH, schema.REFLECTION)
                return {"list_services_response": {"service": [{"name": name} for name in names]}}
            case "file_by_filename":
                return _file(schema.pool().FindFileByName(text))
            case "file_containing_symbol":
                return _file(schema.pool().FindFileContainingSymbol(text))
            case "all_extension_numbers_of_type":
                known = schema.pool().FindMessageTypeByName(text)
                return {"all_extension_numbers_response": {"base_type_name": known.full_name}}
    except KeyError:
        pass
    return _error(grpc.StatusCode.NOT_FOUND, "there is nothing of this name")


def _file(found: Any) -> dict[str, Any]:
    return {"file_descriptor_response": {"file_descriptor_proto": [found.serialized_pb]}}


def _error(code: grpc.StatusCode, message: str) -> dict[str, Any]:
    return {"error_response": {"error_code": code.value[0], "error_message": message}}


METHODS: dict[str, Any] = {"ServerReflectionInfo": describe}
