"""Appointments as iCalendar (RFC 5545), event by event."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid5

from appointments.v1.appointment_pb2 import Appointment
from google.protobuf.timestamp_pb2 import Timestamp
from icalendar import Event, vDatetime, vInt, vText

from client.event import ID, RESOURCE

# The calendar that the gateway serves has the same UIDs, so that programs know an event again.
UID_NAMESPACE = UUID("0250b0fe-bfdc-4e71-b468-feea54347d41")
_STATUSES = {Appointment.ACTIVE: "CONFIRMED", Appointment.HELD: "TENTATIVE"}
_BEGIN = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Appointments//Client//EN\r\n"
_END = "END:VCALENDAR\r\n"


def calendar_lines(appointments: Iterable[Appointment]) -> Iterator[str]:
    """Write appointments as the events of one calendar. Times lose fractions of a second."""
    yield _BEGIN
    for appointment in appointments:
        yield _event(appointment).to_ical().decode()
    yield _END


def _event(appointment: Appointment) -> Event:
    event = Event()
    event["UID"] = vText(uid_of(appointment))
    event["SEQUENCE"] = vInt(appointment.version - 1)
    start, end = _second(appointment.start), _second(appointment.end)
    event["DTSTART"] = vDatetime(start)
    if end > start:
        event["DTEND"] = vDatetime(end)
    if appointment.title:
        event["SUMMARY"] = vText(appointment.title)
    resources = [appointment.resource_id, *appointment.additional_resource_ids]
    if location := ", ".join(filter(None, resources)):
        event["LOCATION"] = vText(location)
    for name in ("description", "url"):
        value = appointment.attributes.fields.get(name)
        if value is not None and value.string_value:
            event[name.upper()] = vText(value.string_value)
    event["STATUS"] = vText(_STATUSES.get(appointment.state, "CANCELLED"))
    event["CREATED"] = vDatetime(_second(appointment.created_at))
    event["LAST-MODIFIED"] = event["DTSTAMP"] = vDatetime(_second(appointment.updated_at))
    event[ID] = vText(appointment.id)
    event[RESOURCE] = [vText(name) for name in resources]
    return event


def uid_of(appointment: Appointment) -> str:
    """Return the UID of an appointment."""
    return str(uuid5(UID_NAMESPACE, f"{appointment.organization_id}\n{appointment.id}"))


def _second(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC).replace(microsecond=0)
