"""Reads the comments of the .proto files."""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from public_json.rendering import camel_case

Path = tuple[int, ...]

_PROTO_NAME = re.compile(r"`[a-z]+(?:_[a-z]+)+`")


def read_comments() -> Mapping[str, str]:
    """Return the comments in the descriptors of the stubs, by the full names of elements.

    Field names in backquotes are converted to their JSON names.
    """
    file = resources.files("appointments.v1") / "descriptors.binpb"
    descriptors = FileDescriptorSet.FromString(file.read_bytes())
    return dict(_comments_of(descriptors.file))


def _comments_of(files: Iterable[FileDescriptorProto]) -> Iterator[tuple[str, str]]:
    for file in files:
        comments = {
            tuple(location.path): location.leading_comments
            for location in file.source_code_info.location
            if location.leading_comments
        }
        for path, name in _names(file):
            if path in comments:
                yield f"{file.package}.{name}", _for_rest(comments[path])


def _for_rest(comment: str) -> str:
    text = "\n".join(line.strip() for line in comment.strip().splitlines())
    return _PROTO_NAME.sub(lambda match: camel_case(match[0]), text)


# The numbers in paths are field numbers in descriptor.proto.
def _names(file: FileDescriptorProto) -> Iterator[tuple[Path, str]]:
    for index, message in enumerate(file.message_type):
        yield from _message_names(message, (4, index), message.name)
    for index, enum in enumerate(file.enum_type):
        yield from _enum_names(enum, (5, index), enum.name)
    for index, service in enumerate(file.service):
        yield (6, index), service.name
        for number, method in enumerate(service.method):
            yield (6, index, 2, number), f"{service.name}.{method.name}"


def _message_names(message: DescriptorProto, path: Path, name: str) -> Iterator[tuple[Path, str]]:
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, 2, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _message_names(nested, (*path, 3, index), f"{name}.{nested.name}")
    for index, enum in enumerate(message.enum_type):
        yield from _enum_names(enum, (*path, 4, index), f"{name}.{enum.name}")


def _enum_names(enum: EnumDescriptorProto, path: Path, name: str) -> Iterator[tuple[Path, str]]:
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, 2, index), f"{name}.{value.name}"
