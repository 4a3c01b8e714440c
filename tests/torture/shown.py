"""Appointments as callers see them (JSON), and as the model has them."""

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from gateway.endpoints.calendar_text import uid_of
from tests.api import MORNING, at
from tests.torture.doors import held_until
from tests.torture.record import Json
from tests.writes.values import Conflict, Content, Stored

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
MICROSECONDS = 1_000_000
# Seconds by which the clocks of processes on one machine may differ from that of the record.
SLACK = 0.1


@lru_cache(maxsize=100_000)
def microseconds(time: str) -> int:
    """Return a time as microseconds since 1970."""
    found = datetime.fromisoformat(time) - EPOCH
    return (found.days * 86_400 + found.seconds) * MICROSECONDS + found.microseconds


@lru_cache(maxsize=10_000)
def minute_of(time: str) -> int:
    """Return a time as minutes of the model; those that no caller has given have fractions."""
    return round((datetime.fromisoformat(time) - MORNING).total_seconds() / 60)


@lru_cache(maxsize=10_000)
def time_of(minute: int) -> str:
    return at(minute).ToJsonString()


def hold_tick(shown: Json) -> int | None:
    """Return the last tick of a hold."""
    until = shown.get("holdUntil")
    return microseconds(until) - 1 if until is not None else None


def stored_of(shown: Json) -> Stored:
    """Return an appointment of the history as stored, for want of the write that made it."""
    return Stored(
        id=shown["id"],
        content=Content(
            resource_id=shown["resourceId"],
            additional_resource_ids=tuple(shown["additionalResourceIds"]),
            start=minute_of(shown["start"]),
            end=minute_of(shown["end"]),
            title=shown["title"],
            attributes=shown["attributes"],
            hold_until=hold_tick(shown),
        ),
        state=shown["state"],
        version=shown["version"],
        revision=int(shown["revision"]),
    )


def differences(stored: Stored, shown: Json) -> list[str]:
    """Return what a shown appointment has that is not as stored, apart from its etag.

    Times that no caller has given are those of changes, and not compared here.
    """
    content = stored.content
    expected: dict[str, Any] = {
        "id": stored.id,
        "resourceId": content.resource_id,
        "additionalResourceIds": list(content.additional_resource_ids),
        "start": time_of(content.start),
        "end": time_of(content.end),
        "title": content.title,
        "attributes": content.attributes,
        "state": stored.state,
        "version": stored.version,
        "revision": str(stored.revision),
    }
    for name, minute in (("createdAt", content.created_at), ("updatedAt", content.updated_at)):
        if minute is not None:
            expected[name] = time_of(minute)
    expected["holdUntil"] = (
        held_until(content.hold_until).ToJsonString() if content.hold_until is not None else None
    )
    return [
        f"{name} is {shown.get(name)!r}, not {value!r}"
        for name, value in expected.items()
        if shown.get(name) != value
    ]


def conflicts_of(problem: Mapping[str, Any]) -> tuple[Conflict, ...]:
    """Return the conflicts that an error names."""
    return tuple(
        Conflict(
            id=item["id"],
            start=minute_of(item["start"]),
            end=minute_of(item["end"]),
            version=item["version"],
            resource_ids=tuple(item["resourceIds"]),
            index=item.get("index"),
        )
        for item in problem.get("conflicts", ())
    )


def event_of(shown: Json, organization: str) -> Json:
    """Return the event of a calendar that shows an appointment, without what it does not have."""
    resources = filter(None, [shown["resourceId"], *shown["additionalResourceIds"]])
    states = {"ACTIVE": "CONFIRMED", "HELD": "TENTATIVE"}
    event = {
        "UID": uid_of(organization, shown["id"]),
        "SEQUENCE": str(shown["version"] - 1),
        "STATUS": states.get(shown["state"], "CANCELLED"),
        "DTSTART": _basic(shown["start"]),
        "DTEND": _basic(shown["end"]),
        "SUMMARY": shown["title"],
        "LOCATION": ", ".join(resources),
        "CREATED": _basic(shown["createdAt"]),
        "LAST-MODIFIED": _basic(shown["updatedAt"]),
    }
    return {name: value for name, value in event.items() if value}


def _basic(time: str) -> str:
    """Return a time as iCalendar has it (RFC 5545, section 3.3.5)."""
    return datetime.fromisoformat(time).strftime("%Y%m%dT%H%M%SZ")
