"""The .proto files of this folder as descriptors and message classes, read when gRPC is switched on.

Reading the text itself leaves no generated code to keep in step with it and with protobuf's versions. It takes what
these files need of the language (proto3): messages, maps, `oneof`, enumerations and services.
Source: protobuf.dev, "Protocol Buffers Language Specification (Proto3)".
"""

from __future__ import annotations

import re
from collections import deque
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import EnumDescriptorProto, ServiceDescriptorProto
    from google.protobuf.message import Message

    Words = deque[str]

FILES = ("inference", "health", "reflection")
INFERENCE, HEALTH, REFLECTION = (
    "inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
)  # fmt: skip
_WORD = re.compile(r"//[^\n]*|\"[^\"]*\"|[\w.]+|[{}=;<>,()]")
_SCALARS = ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")


@cache
def pool() -> Any:
    """Give a pool of its own with all files: another part of the process may know the same names."""
    found = descriptor_pool.DescriptorPool()
    for name in FILES:
        path = Path(__file__).with_name(f"{name}.proto")
        found.AddSerializedFile(parse(path.name, path.read_text("utf-8")).SerializeToString())
    return found


@cache
def message(name: str) -> type[Message]:
    """Give the class of a message by its full name."""
    made: type[Message] = message_factory.GetMessageClass(pool().FindMessageTypeByName(name))
    return made


def parse(name: str, text: str) -> FileDescriptorProto:
    """Read the text of a .proto file.

    Raises:
        ValueError: For what is not part of the language that is read here.
    """
    words = deque(word for word in _WORD.findall(text) if not word.startswith("//"))
    file = FileDescriptorProto(name=name, syntax="proto3")
    while words:
        match words.popleft():
            case "syntax":
                _expect(words, "=", '"proto3"', ";")
            case "package":
                file.package = words.popleft()
                _expect(words, ";")
            case "message":
                _message(words, file.message_type.add())
            case "enum":
                _enum(words, file.enum_type.add())
            case "service":
                _service(words, file.service.add())
            case other:
                raise ValueError(f"{name}: {other!r} is not known here")
    return file


def _expect(words: Words, *wanted: str) -> None:
    for word in wanted:
        if (found := words.popleft()) != word:
            raise ValueError(f"{found!r} stands where {word!r} is expected")


def _message(words: Words, into: DescriptorProto) -> None:
    into.name = words.popleft()
    _expect(words, "{")
    while (word := words.popleft()) != "}":
        match word:
            case "message":
                _message(words, into.nested_type.add())
            case "enum":
                _enum(words, into.enum_type.add())
            case "oneof":
                into.oneof_decl.add(name=words.popleft())
                _expect(words, "{")
                while (kind := words.popleft()) != "}":
                    _field(words, kind, into).oneof_index = len(into.oneof_decl) - 1
            case "map":
                _map(words, into)
            case "repeated":
                _field(words, words.popleft(), into).label = FieldDescriptorProto.LABEL_REPEATED
            case kind:
                _field(words, kind, into)


def _field(words: Words, kind: str, into: DescriptorProto) -> FieldDescriptorProto:
    made = into.field.add(name=words.popleft(), label=FieldDescriptorProto.LABEL_OPTIONAL)
    _expect(words, "=")
    made.number = int(words.popleft())
    _expect(words, ";")
    _type(made, kind)
    return made


def _type(field: FieldDescriptorProto, kind: str) -> None:
    """Set a field's type; whether a name is a message or an enumeration is found out by the pool."""
    if kind in _SCALARS:
        field.type = getattr(FieldDescriptorProto, f"TYPE_{kind.upper()}")
    else:
        field.type_name = kind


def _map(words: Words, into: DescriptorProto) -> None:
    """Read a map, which is a repeated message of keys and values."""
    _expect(words, "<", "string", ",")
    kind = words.popleft()
    _expect(words, ">")
    name = words[0].title().replace("_", "") + "Entry"
    _field(words, name, into).label = FieldDescriptorProto.LABEL_REPEATED
    entry = into.nested_type.add(name=name)
    entry.options.map_entry = True
    for number, (part, type_) in enumerate((("key", "string"), ("value", kind)), 1):
        _type(entry.field.add(name=part, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL), type_)


def _enum(words: Words, into: EnumDescriptorProto) -> None:
    into.name = words.popleft()
    _expect(words, "{")
    while (name := words.popleft()) != "}":
        _expect(words, "=")
        into.value.add(name=name, number=int(words.popleft()))
        _expect(words, ";")


def _service(words: Words, into: ServiceDescriptorProto) -> None:
    into.name = words.popleft()
    _expect(words, "{")
    while words.popleft() != "}":  # it is "rpc"
        method = into.method.add(name=words.popleft())
        method.client_streaming, method.input_type = _side(words)
        _expect(words, "returns")
        method.server_streaming, method.output_type = _side(words)
        _expect(words, ";")


def _side(words: Words) -> tuple[bool, str]:
    """Read one side of a method: whether it is a stream, and of what."""
    _expect(words, "(")
    word = words.popleft()
    streams = word == "stream"
    name = words.popleft() if streams else word
    _expect(words, ")")
    return streams, name
