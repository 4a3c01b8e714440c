"""Appointments as text of a calendar: iCalendar (RFC 5545) in UTF-8, with lines folded."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

from appointments.v1.appointment_pb2 import Appointment
from google.protobuf.timestamp_pb2 import Timestamp
from icalendar import Calendar, Event, vDatetime, vDuration, vInt, vText

MEDIA_TYPE = "text/calendar"
VERSION = 1
"""Part of the ETag. Increase it if the same appointments get another text."""
REFRESH_INTERVAL = timedelta(minutes=15)
UID_NAMESPACE = UUID("0250b0fe-bfdc-4e71-b468-feea54347d41")
"""Never changes: calendar programs identify events by UID."""

CALENDAR_END = b"END:VCALENDAR\r\n"

# An appointment in any other state occupies nothing.
_STATUSES = {Appointment.ACTIVE: "CONFIRMED", Appointment.HELD: "TENTATIVE"}
_CANCELLED = "CANCELLED"


def calendar_begin(organization_id: str, resource_id: str) -> bytes:
    """Return the text before the events. The resource is empty if they are of several."""
    of = f"{organization_id}, {resource_id}" if resource_id else organization_id
    calendar = Calendar()
    calendar["VERSION"] = vText("2.0")
    calendar["PRODID"] = vText("-//Appointments//Appointments//EN")
    # Each stands twice: with the name of RFC 7986, and with the older one that most programs read.
    # The library's `calendar_name` would not escape the text.
    calendar["NAME"] = calendar["X-WR-CALNAME"] = vText(f"Appointments ({of})")
    calendar["REFRESH-INTERVAL"] = vDuration(REFRESH_INTERVAL, {"VALUE": "DURATION"})
    calendar["X-PUBLISHED-TTL"] = vDuration(REFRESH_INTERVAL)
    text: bytes = calendar.to_ical()
    return text.removesuffix(CALENDAR_END)


def events_text(appointments: Iterable[Appointment]) -> bytes:
    return b"".join(_event(appointment).to_ical() for appointment in appointments)


def _event(appointment: Appointment) -> Event:
    # `Event.add` would choose the same types from the values, and take half as long again.
    event = Event()
    event["UID"] = vText(uid_of(appointment.organization_id, appointment.id))
    # The first version is 0, and every later one is higher (RFC 5545, section 3.8.7.4).
    event["SEQUENCE"] = vInt(appointment.version - 1)
    # iCalendar has no fractions of a second. An event without DTEND ends when it starts.
    start, end = _second(appointment.start), _second(appointment.end)
    event["DTSTART"] = vDatetime(start)
    if end > start:
        event["DTEND"] = vDatetime(end)
    if appointment.title:
        event["SUMMARY"] = vText(appointment.title)
    resources = filter(None, (appointment.resource_id, *appointment.additional_resource_ids))
    if location := ", ".join(resources):
        event["LOCATION"] = vText(location)
    status = _STATUSES.get(appointment.state, _CANCELLED)
    event["STATUS"] = vText(status)
    if status == _CANCELLED:
        event["TRANSP"] = vText("TRANSPARENT")
    event["CREATED"] = vDatetime(_second(appointment.created_at))
    event["LAST-MODIFIED"] = vDatetime(_second(appointment.updated_at))
    # In a calendar without METHOD it has the same meaning (RFC 5545, section 3.8.7.2).
    event["DTSTAMP"] = event["LAST-MODIFIED"]
    return event


def uid_of(organization_id: str, id: str) -> str:
    """Return the UID of an appointment, which is the same wherever and whenever it is made.

    Neither part contains a line break. A UUID discloses nothing (RFC 7986, section 5.3).
    """
    return str(uuid5(UID_NAMESPACE, f"{organization_id}\n{id}"))


def _second(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC).replace(microsecond=0)
