"""The routes of the REST interface, from the `google.api.http` annotations in the protos."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from appointments.v1 import appointment_service_pb2, webhook_service_pb2
from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor

# The health of the first service decides whether the gateway is ready.
SERVICES: tuple[ServiceDescriptor, ...] = (
    appointment_service_pb2.DESCRIPTOR.services_by_name["AppointmentService"],
    webhook_service_pb2.DESCRIPTOR.services_by_name["WebhookService"],
)


# An RPC that returns a page of changes, and the RPC that streams the changes after it.
_STREAMS = {"ListChanges": "WatchAppointments"}

# A variable names an input field, or a field of the message in the body.
_VARIABLE = re.compile(r"\{(?:([a-z_0-9]+)\.)?([a-z_0-9]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One HTTP binding of an RPC. The names are those of `google.api.HttpRule`."""

    rpc: MethodDescriptor
    http_method: str
    template: str
    """The path; a variable has the name of its field, without that of the message in the body."""
    body: str
    """The input field that the body sets; `*` for the whole input, empty for no body."""
    response_body: str
    """The output field that is the response body; empty for the whole output."""
    name: str
    """The name in logs, metrics and the OpenAPI document: the RPC's name, or its full name if
    an earlier service has an RPC of that name. A further route of an RPC is named after its
    method and body, such as `PutAppointment`."""
    stream: MethodDescriptor | None = None
    """The RPC whose messages are sent to clients that accept server-sent events."""
    stream_name: str = ""
    """The name of `stream` in logs and metrics."""
    without: frozenset[str] = frozenset()
    """The input fields that no part of a request sets."""
    identifying: frozenset[str] = frozenset()
    """The fields of the message in the body that the path sets."""

    @property
    def variables(self) -> tuple[str, ...]:
        """The fields in the path: of the input, or of the message in the body if they are
        `identifying`.
        """
        return tuple(name for _, name in _VARIABLE.findall(self.template))

    @property
    def writes(self) -> bool:
        return self.http_method != "GET"

    @property
    def takes_list(self) -> bool:
        """Whether the input has a list of messages, as a batch has."""
        return any(field.is_repeated and field.message_type for field in self.rpc.input_type.fields)

    @property
    def patches(self) -> bool:
        """Whether the body is a merge patch (RFC 7396)."""
        return self.http_method == "PATCH"

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
    methods, and templates with variables other than a plain `{field}`, or `{message.field}` with
    the message in the body.
    """
    names = _names_of(services)
    return tuple(
        _route(method, rule, names, is_first=index == 0)
        for service in services
        for method in service.methods
        for index, rule in enumerate(_rules(method.GetOptions().Extensions[annotations_pb2.http]))
    )


def location_template(route: Route, routes: Sequence[Route]) -> str | None:
    """Return the path below which what this route creates can be read by its id, or None."""
    readable = {other.template for other in routes if other.http_method == "GET"}
    if route.http_method == "POST" and f"{route.template}/{{id}}" in readable:
        return route.template
    if route.identifying and route.template in readable:
        return route.template.removesuffix("/{id}")
    return None


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


def _route(
    method: MethodDescriptor, rule: http_pb2.HttpRule, names: Mapping[str, str], *, is_first: bool
) -> Route:
    pattern = rule.WhichOneof("pattern")
    if method.client_streaming or method.server_streaming or pattern == "custom":
        raise NotImplementedError(f"{method.full_name}: no route of this kind")
    template = getattr(rule, pattern)
    variables = _VARIABLE.findall(template)
    if set("{}*") & set(_VARIABLE.sub("", template)) or any(
        message not in {"", rule.body} for message, _ in variables
    ):
        raise NotImplementedError(f"{method.full_name}: no path of this kind: {template}")
    stream = method.containing_service.methods_by_name.get(_STREAMS.get(method.name, ""))
    name = names[method.full_name]
    return Route(
        rpc=method,
        http_method=pattern.upper(),
        template=_VARIABLE.sub(r"{\2}", template),
        body=rule.body,
        response_body=rule.response_body,
        name=name if is_first else f"{pattern.title()}{rule.body.title()}",
        stream=stream,
        stream_name=names[stream.full_name] if stream else "",
        identifying=frozenset(name for message, name in variables if message),
    )
