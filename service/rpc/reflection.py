"""Server reflection, v1 and v1alpha, which differ only in their package name.

grpcio's own servicer does not find methods, omits `json_name`, and serves v1alpha only.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2 as pb

V1ALPHA: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["ServerReflection"]

Context = grpc.aio.ServicerContext[pb.ServerReflectionRequest, pb.ServerReflectionResponse]
Found = TypeVar("Found")


def v1() -> ServiceDescriptor:
    """Return `grpc.reflection.v1.ServerReflection`, from its own descriptor pool."""
    text = json_format.MessageToJson(FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb))
    file = json_format.Parse(text.replace("v1alpha", "v1"), FileDescriptorProto())
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    service: ServiceDescriptor = pool.FindServiceByName(V1ALPHA.full_name.replace("v1alpha", "v1"))
    return service


def reflection_of(*services: ServiceDescriptor) -> dict[ServiceDescriptor, object]:
    """Return the servicers of reflection, which describe `services` and themselves."""
    reflections = (v1(), V1ALPHA)
    return dict.fromkeys(reflections, ReflectionServicer([*services, *reflections]))


class ReflectionServicer:
    """Lists the services, and returns every file descriptor of this program.

    A file is returned first, followed by all files that it imports, directly or not.
    """

    def __init__(self, services: Iterable[ServiceDescriptor]) -> None:
        by_name = {service.full_name: service for service in services}
        self._names = sorted(by_name)
        # Types that no service refers to, such as those of errors, are in the default pool.
        pools = {id(pool): pool for pool in [Default(), *(s.file.pool for s in by_name.values())]}
        self._pools = list(pools.values())

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[pb.ServerReflectionRequest], context: Context
    ) -> None:
        """Respond to each request of the stream."""
        async for request in requests:
            response = pb.ServerReflectionResponse(valid_host=request.host)
            # Copied as bytes, since v1 has its own class of requests.
            response.original_request.MergeFromString(request.SerializeToString())
            try:
                self._answer(request, response)
            except LookupError as error:
                response.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
                response.error_response.error_message = str(error.args[0])
            await context.write(response)

    def _answer(
        self, request: pb.ServerReflectionRequest, response: pb.ServerReflectionResponse
    ) -> None:
        """Fill in the response. Raises LookupError for an unknown file, symbol or type."""
        match request.WhichOneof("message_request"):
            case "list_services":
                response.list_services_response.service.extend(
                    pb.ServiceResponse(name=name) for name in self._names
                )
            case "file_by_filename":
                name = request.file_by_filename
                _add_files(self._find(name, lambda pool: pool.FindFileByName(name)), response)
            case "file_containing_symbol":
                name = request.file_containing_symbol
                _add_files(self._find(name, lambda pool: _file_containing(pool, name)), response)
            case "file_containing_extension":
                wanted = request.file_containing_extension
                name, number = wanted.containing_type, wanted.extension_number
                file = self._find(
                    f"extension {number} of {name}",
                    lambda pool: pool.FindFileContainingSymbol(
                        pool.FindExtensionByNumber(
                            pool.FindMessageTypeByName(name), number
                        ).full_name
                    ),
                )
                _add_files(file, response)
            case "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                numbers = response.all_extension_numbers_response
                numbers.extension_number.extend(
                    self._find(
                        name,
                        lambda pool: sorted(
                            extension.number
                            for extension in pool.FindAllExtensions(
                                pool.FindMessageTypeByName(name)
                            )
                        ),
                    )
                )
                numbers.base_type_name = name
            case _:
                raise LookupError("the request is empty")

    def _find(self, name: str, find: Callable[[DescriptorPool], Found]) -> Found:
        for pool in self._pools:
            try:
                return find(pool)
            except KeyError:
                continue
        raise LookupError(f"not found: {name}")


def _file_containing(pool: DescriptorPool, symbol: str) -> FileDescriptor:
    """Return the file that defines a symbol. Raises KeyError if there is none.

    The pool does not find methods. In protobuf, an enum's values are in the scope that contains
    the enum; they are also found under the enum's name, as many people write them.
    """
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:
        owner, _, member = symbol.rpartition(".")
    try:
        service = pool.FindServiceByName(owner)
        return service.methods_by_name[member].containing_service.file
    except KeyError:
        enum = pool.FindEnumTypeByName(owner)
        return enum.values_by_name[member].type.file


def _add_files(file: FileDescriptor, response: pb.ServerReflectionResponse) -> None:
    """Add a file and all its imports to a response."""
    files = {file.name: file}
    waiting = [file]
    while waiting:
        for imported in waiting.pop().dependencies:
            if imported.name not in files:
                files[imported.name] = imported
                waiting.append(imported)
    response.file_descriptor_response.file_descriptor_proto.extend(map(_serialized, files.values()))


@cache
def _serialized(file: FileDescriptor) -> bytes:
    """Return a serialized file, with the JSON names of its fields."""
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    for message_proto, message in _messages(proto.message_type, file.message_types_by_name):
        for field in message_proto.field:
            field.json_name = message.fields_by_name[field.name].json_name
        for extension in message_proto.extension:
            extension.json_name = message.extensions_by_name[extension.name].json_name
    for extension in proto.extension:
        extension.json_name = file.extensions_by_name[extension.name].json_name
    return proto.SerializeToString()


def _messages(
    protos: Iterable[DescriptorProto], descriptors: Mapping[str, Descriptor]
) -> Iterator[tuple[DescriptorProto, Descriptor]]:
    for each in protos:
        message = descriptors[each.name]
        yield each, message
        yield from _messages(each.nested_type, message.nested_types_by_name)
