"""What is fuzzed. A target takes bytes, and raises only if the program has a fault.

Input that is refused in the way that callers are told of is no fault.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import orjson
from aiohttp.web import BaseRequest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1 import availability_pb2, webhook_service_pb2
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from icalendar import Calendar
from multidict import CIMultiDict

from gateway.endpoints.calendar_text import CALENDAR_END, calendar_begin, events_text
from gateway.endpoints.submission import read_preferences
from gateway.http.conditions import expected_etags, read_tags
from gateway.http.context import RequestContext
from gateway.http.problems import Errors, ProblemError
from gateway.http.router import decode_percent
from gateway.transcoding.inputs import InputReader
from gateway.transcoding.routes import SERVICES, routes_of
from gateway.transcoding.times import read_time
from gateway.transcoding.values import read_duration
from public_json.rendering import MessageRenderer
from service import messages
from service.availability.opening_hours import weekly
from service.errors import ServiceError
from service.rpc import page_tokens, webhook_messages
from service.rpc.availability_requests import read_query
from service.rpc.status import status_of
from service.rpc.write_requests import WriteReader
from service.rules import CONTROL
from service.webhooks.addresses import AddressRules
from service.webhooks.sender import read_retry_after
from service.webhooks.url import InvalidURL, read_url
from service.writes.store import write_parameter

Target = Callable[[bytes], None]

_ROUTES = routes_of(*SERVICES)
_INPUTS = [InputReader(route) for route in _ROUTES]
_METHODS = [method for service in SERVICES for method in service.methods]
_WRITES = WriteReader(timedelta(days=1))
_WRITTEN = (
    rpc.UpsertAppointmentRequest,
    rpc.UpdateAppointmentRequest,
    rpc.ConfirmAppointmentRequest,
    rpc.CancelAppointmentRequest,
)
_RENDER = MessageRenderer(pb.Appointment.DESCRIPTOR).render


def rest(data: bytes) -> None:
    """A request: the number of its route, then lines of the query, variable and headers, a body."""
    head, _, body = data[1:].partition(b"\n\n")
    query, variable, *lines = [*head.decode("utf-8", "surrogateescape").split("\n"), ""]
    number = data[0] % len(_ROUTES) if data else 0
    headers = CIMultiDict(
        (name, value.strip()) for name, _, value in (line.partition(":") for line in lines) if name
    )
    context = RequestContext(
        request=cast("BaseRequest", SimpleNamespace(headers=headers)),
        request_id="x",
        query=query,
        variables=dict.fromkeys(_ROUTES[number].variables, variable),
    )
    try:
        message: Any = _INPUTS[number].read(context, body)
        if context.if_match is not None:
            expected_etags(context.if_match, "")
        read_preferences(context.request)
    except ProblemError as error:
        orjson.dumps(error.problem.body("x"))
        return
    _serve(type(message).FromString(message.SerializeToString()))


def message(data: bytes) -> None:
    """A serialized request, after the number of its method."""
    method = _METHODS[data[0] % len(_METHODS)] if data else _METHODS[0]
    with suppress(DecodeError):
        _serve(GetMessageClass(method.input_type).FromString(data[1:]))


def _serve(request: Message) -> None:
    """Read a request as the servicer does; every refusal has a status."""
    try:
        _read(request)
    except ServiceError as error:
        status_of(error).SerializeToString()


def _read(request: Any) -> None:  # of any method
    if isinstance(request, _WRITTEN):
        orjson.dumps(write_parameter(_WRITES.read(request, actor="")))
        appointment = getattr(request, "appointment", None)
        if appointment is not None:
            orjson.dumps(_RENDER(appointment))
    elif isinstance(request, rpc.BatchUpsertAppointmentsRequest):
        messages.check(request)
        for item in request.requests:
            write = _WRITES.upsert(item, validate_only=request.validate_only, actor="")
            orjson.dumps(write_parameter(write))
    elif isinstance(request, availability_pb2.QueryAvailabilityRequest):
        read_query(request).answer({})
    elif isinstance(request, rpc.ListChangesRequest | rpc.WatchAppointmentsRequest):
        messages.check_filtered(request)
    elif isinstance(
        request,
        webhook_service_pb2.CreateWebhookRequest | webhook_service_pb2.UpdateWebhookRequest,
    ):
        webhook_messages.content(request, AddressRules(()))
    elif isinstance(request, rpc.ListAppointmentsRequest):
        messages.check(request, "from", "to", "as_of_time")
        parts = (page_tokens.time, page_tokens.appointment_id, page_tokens.revision_or_none)
        page_tokens.decode(request, request.page_token, parts)
    else:
        messages.check(request)


def text(data: bytes) -> None:
    """A text that stands for a time, opening hours, a list of tags and so on."""
    read = data.decode("latin-1")
    errors: Errors = []
    found = read_time(read, "x", errors)
    if found is not None:
        found.ToJsonString()
    read_duration(read, "x", errors)
    for reader in (weekly, read_tags, decode_percent):
        with suppress(ValueError):
            argument = [read] if reader is not decode_percent else read
            cast("Callable[[object], object]", reader)(argument)
    headers = CIMultiDict({"Prefer": read})
    read_preferences(cast("BaseRequest", SimpleNamespace(headers=headers)))
    read_retry_after(read)
    with suppress(InvalidURL):
        AddressRules(()).refusal(read_url(read))


def calendar(data: bytes) -> None:
    """Texts of an appointment, which a calendar program must read as they were written."""
    decoded = data.decode("utf-8", "replace")
    title, resource, id_, *_ = [*CONTROL.split(decoded), "", "", ""]
    appointment = pb.Appointment(
        organization_id="o", id=id_, title=title, resource_id=resource, version=1
    )
    for field in ("start", "end", "created_at", "updated_at"):
        getattr(appointment, field).seconds = 2_000_000_000 + len(data) * 3600
    content = calendar_begin(title, resource) + events_text([appointment] * 2) + CALENDAR_END
    for line in content.split(b"\r\n"):
        if len(line) > 75:
            raise AssertionError(f"a line of {len(line)} bytes (RFC 5545, 3.1)")
    read = Calendar.from_ical(content)
    events = read.walk("VEVENT")
    if len(events) != 2:
        raise AssertionError(f"{len(events)} events")
    for name, written in (("SUMMARY", title), ("LOCATION", resource)):
        if str(events[0].get(name, "")) != written:
            raise AssertionError(f"{name}: {events[0].get(name)!r} instead of {written!r}")


TARGETS: Mapping[str, Target] = {
    "rest": rest,
    "message": message,
    "text": text,
    "calendar": calendar,
}
