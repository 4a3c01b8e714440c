"""The routes of the REST interface, from the `google.api.http` annotations in the protos."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor

# An RPC that returns a page of changes, and the RPC that streams the changes after it.
_STREAMS = {"ListChanges": "WatchAppointments"}

_VARIABLE = re.compile(r"\{([a-z_0-9]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One HTTP binding of an RPC. The names are those of `google.api.HttpRule`."""

    rpc: MethodDescriptor
    http_method: str
    template: str
    body: str
    """The input field that the body sets; `*` for the whole input, empty for no body."""
    response_body: str
    """The output field that is the response body; empty for the whole output."""
    name: str
    """The name in logs, metrics and the OpenAPI document: the RPC's name, or its full name if
    an earlier service has an RPC of that name."""
    stream: MethodDescriptor | None = None
    """The RPC whose messages are sent to clients that accept server-sent events."""
    stream_name: str = ""
    """The name of `stream` in logs and metrics."""

    @property
    def variables(self) -> tuple[str, ...]:
        """The input fields in the path."""
        return tuple(_VARIABLE.findall(self.template))

    @property
    def writes(self) -> bool:
        return self.http_method != "GET"

    @property
    def body_message(self) -> Descriptor | None:
        """The type of the request body; None if there is no body."""
        if self.body in {"", "*"}:
            return self.rpc.input_type if self.body else None
        return self.rpc.input_type.fields_by_name[self.body].message_type

    @property
    def response_message(self) -> Descriptor:
        """The type of the response body."""
        if not self.response_body:
            return self.rpc.output_type
        message = self.rpc.output_type.fields_by_name[self.response_body].message_type
        if message is None:
            raise NotImplementedError(f"{self.rpc.full_name}: a response must be a message")
        return message

    @property
    def rpc_path(self) -> str:
        """The path of the RPC in gRPC."""
        return f"/{self.rpc.containing_service.full_name}/{self.rpc.name}"


def routes_of(*services: ServiceDescriptor) -> tuple[Route, ...]:
    """Return the routes of every annotated method of the services.

    Raises `NotImplementedError` for annotations that this gateway does not support: streaming
    methods, and templates with variables other than a plain `{field}`.
    """
    names = _names_of(services)
    return tuple(
        _route(method, rule, names)
        for service in services
        for method in service.methods
        for rule in _rules(method.GetOptions().Extensions[annotations_pb2.http])
    )


def location_template(route: Route, routes: Sequence[Route]) -> str | None:
    """Return the path below which the result of a POST can be read by its id, or None."""
    readable = {other.template for other in routes if other.http_method == "GET"}
    stores = route.http_method == "POST" and f"{route.template}/{{id}}" in readable
    return route.template if stores else None


def batch_of(route: Route, routes: Sequence[Route]) -> Route | None:
    """Return the batch route of a route, or None."""
    for other in routes:
        if other.http_method == route.http_method and other.template.startswith(
            f"{route.template}:batch"
        ):
            return other
    return None


def _rules(rule: http_pb2.HttpRule) -> Iterator[http_pb2.HttpRule]:
    if rule.WhichOneof("pattern"):
        yield rule
    yield from rule.additional_bindings


def _names_of(services: Sequence[ServiceDescriptor]) -> dict[str, str]:
    """Return the name of every RPC for logs, metrics and documents, by its full name."""
    owners: dict[str, str] = {}
    return {
        method.full_name: method.name
        if owners.setdefault(method.name, method.full_name) == method.full_name
        else method.full_name
        for service in services
        for method in service.methods
    }


def _route(method: MethodDescriptor, rule: http_pb2.HttpRule, names: Mapping[str, str]) -> Route:
    pattern = rule.WhichOneof("pattern")
    if method.client_streaming or method.server_streaming or pattern == "custom":
        raise NotImplementedError(f"{method.full_name}: no route of this kind")
    template = getattr(rule, pattern)
    if set("{}*") & set(_VARIABLE.sub("", template)):
        raise NotImplementedError(f"{method.full_name}: no path of this kind: {template}")
    stream = method.containing_service.methods_by_name.get(_STREAMS.get(method.name, ""))
    return Route(
        rpc=method,
        http_method=pattern.upper(),
        template=template,
        body=rule.body,
        response_body=rule.response_body,
        name=names[method.full_name],
        stream=stream,
        stream_name=names[stream.full_name] if stream else "",
    )
