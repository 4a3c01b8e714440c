"""A valid request of every RPC, by every way there is to make it, from the descriptors.

A new RPC with the fields that others have needs nothing here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlencode

from appointments.relay.v1.relay_pb2 import DESCRIPTOR as RELAY_FILE
from appointments.v1 import access_pb2
from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2 import BatchUpsertAppointmentsRequest
from appointments.v1.webhook_service_pb2 import Webhook
from google.api import field_behavior_pb2
from google.longrunning import operations_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.endpoints.calendar import CALENDAR_PATH, calendar_route
from gateway.endpoints.operations import OPERATION_PATH, OPERATIONS_PATH
from gateway.endpoints.pages import calendar_pages
from gateway.endpoints.submission import submission_kind
from gateway.transcoding.bindings import query_fields
from gateway.transcoding.routes import SERVICES as ROUTED
from gateway.transcoding.routes import Route, routes_of
from service.rpc.handler import path_of

OPERATIONS = operations_pb2.DESCRIPTOR.services_by_name["Operations"]
SERVICES: Sequence[ServiceDescriptor] = (*ROUTED, OPERATIONS)
NOT_SERVED = {"CancelOperation", "DeleteOperation"}
"""Of the operations."""
# They carry the calls of others, or say nothing of what is stored.
OPEN_PATHS = {
    *(("GET", path) for path in ("/healthz", "/readyz", "/api/openapi.json")),
    *(("GET", path) for path in calendar_pages()),
}
OPEN_SERVICES = {
    RELAY_FILE.services_by_name["RelayService"].full_name,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}

MORNING, NOON = Timestamp(seconds=1_893_999_600), Timestamp(seconds=1_894_003_200)
CHANGED = "changed by the walk"
URL = "https://127.0.0.1:9/hook"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What the requests name: an organization, and what it has stored."""

    organization: str
    appointment: str = "stored"
    held: str = "held"
    webhook: str = ""
    operation: str = ""
    """The name of an operation."""

    @property
    def parent(self) -> str:
        return f"organizations/{quote(self.organization, safe='')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcCall:
    """A call by gRPC, plain or on a relay stream."""

    method: MethodDescriptor
    request: Message
    name: str
    scope: str
    """What its callers need."""

    @property
    def path(self) -> str:
        return path_of(self.method)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCall:
    """A call by HTTP. `scope` is what its callers need."""

    name: str
    scope: str
    method: str
    template: str
    """As the router knows it."""
    target: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    password: bool = False
    """Whether bearer tokens are sent as the password of Basic credentials."""


def rpc_calls(place: Place) -> list[RpcCall]:
    """Return a call of every RPC; of one with a `oneof`, a call with each of its fields."""
    return [
        RpcCall(
            method=method,
            request=request,
            name=f"{method.name}({carried.name})" if carried else method.name,
            scope=scope_of(carried or method),
        )
        for service in SERVICES
        for method in service.methods
        if method.name not in NOT_SERVED
        for carried, request in _requests(method, place)
    ]


def http_calls(place: Place) -> list[HttpCall]:
    """Return a call of every route, and the ways that the gateway adds to some of them."""
    routes = routes_of(*ROUTED)
    calls: list[HttpCall] = []
    for route in (*routes, calendar_route(routes)):
        [(_, request)] = _requests(route.rpc, place)
        calls += _variants(_http_call(route, request), route)
    organization = urlencode({"organizationId": place.organization})
    operation = place.operation.rpartition("/")[2]
    of_operations = {
        "GetOperation": (OPERATION_PATH, f"/api/operations/{operation}?{organization}"),
        "WaitOperation": (OPERATION_PATH, f"/api/operations/{operation}?{organization}&wait=0.01"),
        "ListOperations": (OPERATIONS_PATH, f"{OPERATIONS_PATH}?{organization}"),
    }
    for name, (template, target) in of_operations.items():
        calls += _reads(
            HttpCall(
                name=name,
                scope=scope_of(OPERATIONS.methods_by_name[name]),
                method="GET",
                template=template,
                target=target,
            )
        )
    return calls


def scope_of(method: MethodDescriptor) -> str:
    """Return the scope that an RPC needs, by its option."""
    if method.containing_service is OPERATIONS:
        return "appointments.write"
    scope: str = method.GetOptions().Extensions[access_pb2.access].scope
    assert scope, f"{method.full_name} has no rule of access"
    return scope


def _requests(
    method: MethodDescriptor, place: Place
) -> Iterator[tuple[MethodDescriptor | None, Any]]:
    """Yield requests of an RPC, with the RPC whose request they carry, if any."""
    request = GetMessageClass(method.input_type)()
    for each in method.input_type.fields:
        if each.containing_oneof is None or _is_optional(each):
            _fill(request, each, method, place)
    oneofs = [one for one in method.input_type.oneofs if not _is_optional(one.fields[0])]
    if not oneofs:
        yield None, request
    for one in oneofs:
        for each in one.fields:
            carried = GetMessageClass(method.input_type)()
            carried.CopyFrom(request)
            [owner] = (
                other
                for other in method.containing_service.methods
                if other.input_type is each.message_type
            )
            [(_, inner)] = _requests(owner, place)
            getattr(carried, each.name).CopyFrom(inner)
            yield owner, carried


def _is_optional(each: FieldDescriptor) -> bool:
    """Whether a field is `optional`, which is a oneof of its own."""
    return each.containing_oneof is not None and each.containing_oneof.name == f"_{each.name}"


def _fill(request: Message, each: FieldDescriptor, method: MethodDescriptor, place: Place) -> None:
    value = _values(method, place).get(each.name)
    if value is None:
        option = each.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        assert field_behavior_pb2.REQUIRED not in option, f"say in _values what {each.name} is"
    elif each.is_repeated:
        getattr(request, each.name).extend(value)
    elif each.message_type is not None:
        getattr(request, each.name).CopyFrom(value)
    else:
        setattr(request, each.name, value)


def _values(method: MethodDescriptor, place: Place) -> dict[str, Any]:
    """Return the values of the fields of a request. Others need none."""
    content = Appointment(
        organization_id=place.organization,
        id=place.appointment,
        start=MORNING,
        end=NOON,
        title=CHANGED,
    )
    of_webhooks = method.containing_service.name == "WebhookService"
    appointment = place.held if method.name == "ConfirmAppointment" else place.appointment
    return {
        "organization_id": place.organization,
        "id": place.webhook if of_webhooks else appointment,
        "appointment": content,
        "requests": [BatchUpsertAppointmentsRequest.Item(appointment=content)],
        "webhook": Webhook(organization_id=place.organization, url=URL, description=CHANGED),
        "after_revision": 0,
        "update_mask": FieldMask(paths=["title"]),
        "name": place.parent if method.name == "ListOperations" else place.operation,
        "timeout": Duration(nanos=10_000_000),  # of WaitOperation: nothing applies operations
        "from": Timestamp(seconds=MORNING.seconds - 3600),
        "to": Timestamp(seconds=NOON.seconds + 3600),
        "resource_id": [""] if method.name == "QueryAvailability" else None,
    }


def _http_call(route: Route, request: Message) -> HttpCall:
    values = MessageToDict(request)
    body: Any = None
    if route.body == "*":
        body = {name: value for name, value in values.items() if name not in route.variables}
    elif route.body:
        body = values[route.rpc.input_type.fields_by_name[route.body].json_name]
    in_path = {**values, **(body or {})}
    path = route.template
    for name in route.variables:
        path = path.replace(f"{{{name}}}", quote(str(in_path[name]), safe=""))
    query = {
        parameter.json_name: values[parameter.json_name]
        for parameter in query_fields(route)
        if parameter.json_name in values and parameter.name != "update_mask"
    }
    return HttpCall(
        name=route.name,
        scope=scope_of(route.rpc),
        method=route.http_method,
        template=route.template,
        target=f"{path}?{urlencode(query, doseq=True)}" if query else path,
        body=None if body is None else json.dumps(body).encode(),
        headers={} if body is None else {"Content-Type": "application/json"},
    )


def _variants(call: HttpCall, route: Route) -> Iterator[HttpCall]:
    yield from _reads(call)
    if call.template == CALENDAR_PATH:
        yield replace(call, name=f"{call.name}, by password", password=True)
    if route.stream is not None:
        events = {**call.headers, "Accept": "text/event-stream"}
        yield replace(call, name=route.stream_name, scope=scope_of(route.stream), headers=events)
    if submission_kind(route.rpc.input_type):
        submitted = {**call.headers, "Prefer": "respond-async"}
        yield replace(call, name=f"{call.name}, submitted", headers=submitted)
        waited = {**call.headers, "Prefer": "respond-async, wait=0.01"}
        yield replace(call, name=f"{call.name}, submitted and awaited", headers=waited)


def _reads(call: HttpCall) -> Iterator[HttpCall]:
    yield call
    if call.method == "GET":
        yield replace(call, name=f"{call.name}, head", method="HEAD")
        unchanged = {**call.headers, "If-None-Match": "*"}
        yield replace(call, name=f"{call.name}, unchanged", headers=unchanged)
