"""The examples of the OpenAPI document.

They are a sequence of requests to the organization `default`, which is new. A request and its
response have the same name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from gateway.http.problems import FieldError, Problem
from public_json.reasons import Reason

Named = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The examples of an operation: request bodies by name, responses by status and name."""

    requests: Named = field(default_factory=dict)
    responses: Mapping[int, Named] = field(default_factory=dict)


def examples_member(examples: Named) -> dict[str, Any]:
    """Return the property of a media type for the examples; empty without examples."""
    named = {name: {"value": value} for name, value in examples.items()}
    return {"examples": named} if named else {}


def _problem(
    reason: Reason,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    details: Named | None = None,
) -> dict[str, Any]:
    problem = Problem(
        status=reason.http, code=reason, detail=detail, errors=errors, details=details or {}
    )
    return problem.body()


_BOOKED_AT = "2026-02-27T14:05:11.250417Z"
_CANCELLED_AT = "2026-02-28T08:30:00.125Z"
_BOOK = {
    "resourceId": "room-1",
    "additionalResourceIds": ["projector"],
    "id": "standup",
    "start": "2026-03-02T09:00:00Z",
    "end": "2026-03-02T09:15:00Z",
    "title": "Stand-up",
    "attributes": {"floor": 3},
}
_BOOKED = {
    "organizationId": "default",
    **_BOOK,
    "createdAt": _BOOKED_AT,
    "updatedAt": _BOOKED_AT,
    "state": "ACTIVE",
    "version": 1,
    "revision": "1",
    "etag": "1",
}
_OVERLAP = {
    "resourceId": "room-1",
    "id": "retro",
    "start": "2026-03-02T09:10:00Z",
    "end": "2026-03-02T10:00:00Z",
    "title": "Retrospective",
}
_OVERLAPPED = _problem(
    Reason.TIME_RANGE_CONFLICT,
    "the time range is taken; choose another",
    details={
        "conflicts": [
            {
                "id": "standup",
                "start": "2026-03-02T09:00:00Z",
                "end": "2026-03-02T09:15:00Z",
                "version": 1,
                "resourceIds": ["room-1"],
            }
        ],
        "moreConflicts": False,
        "alternatives": [],
    },
)
# For room-1 in the morning, with Mo-Fr 09:00-12:00, an hour's duration and a granularity of half
# an hour.
_BOOKABLE = {
    "resources": [
        {
            "resourceId": "room-1",
            "busy": [{"start": "2026-03-02T09:00:00Z", "end": "2026-03-02T09:15:00Z"}],
            "free": [{"start": "2026-03-02T09:15:00Z", "end": "2026-03-02T12:00:00Z"}],
            "starts": [
                "2026-03-02T09:30:00Z",
                "2026-03-02T10:00:00Z",
                "2026-03-02T10:30:00Z",
                "2026-03-02T11:00:00Z",
            ],
        }
    ],
    "moreStarts": False,
    "revision": "1",
}
_BACKWARDS = {**_OVERLAP, "end": "2026-03-02T09:00:00Z"}
_FREE = {
    "resourceId": "room-2",
    "id": "review",
    "start": "2026-03-02T09:00:00Z",
    "end": "2026-03-02T10:00:00Z",
    "title": "Review",
}
_BATCH_REFUSED = _problem(
    Reason.BATCH_REFUSED,
    "nothing was written; refused items: 1",
    details={
        "items": [
            {
                "index": 1,
                "code": "TIME_RANGE_CONFLICT",
                "detail": "the time range is taken; choose another",
                "conflicts": _OVERLAPPED["conflicts"],
                "moreConflicts": False,
            }
        ],
        "moreItems": False,
    },
)
_FREE_BOOKED = {
    **_BOOKED,
    **_FREE,
    "additionalResourceIds": [],
    "attributes": {},
    "revision": "2",
    "etag": "2",
}
_CANCELLED = {**_BOOKED, "state": "CANCELLED", "version": 2, "revision": "3", "etag": "3"}
_CALENDAR = """\
BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//Appointments//Appointments//EN
NAME:Appointments (default)
X-WR-CALNAME:Appointments (default)
REFRESH-INTERVAL;VALUE=DURATION:PT15M
X-PUBLISHED-TTL:PT15M
BEGIN:VEVENT
SUMMARY:Stand-up
DTSTART:20260302T090000Z
DTEND:20260302T091500Z
DTSTAMP:20260227T140511Z
UID:6f04e14c-7987-5237-b158-92922907b292
SEQUENCE:0
CREATED:20260227T140511Z
LAST-MODIFIED:20260227T140511Z
LOCATION:room-1\\, projector
STATUS:CONFIRMED
END:VEVENT
END:VCALENDAR
""".replace("\n", "\r\n")
_REQUEST_ID = {"requestId": "0b8e7d5c4f5d4a5e9f0f6a4c7b1d2e3f"}


def _entry(change: str, recorded_at: str, appointment: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "revision": appointment["revision"],
        "change": change,
        "recordedAt": recorded_at,
        "actor": "",
        "idempotencyKey": "",
        "appointment": appointment,
    }


_HISTORY = [_entry("CREATED", _BOOKED_AT, _BOOKED), _entry("CANCELLED", _CANCELLED_AT, _CANCELLED)]
_OPERATION_ID = "019a2f4e-6c1b-7d0a-9b7e-3f5c2a1d8e64"
_METADATA = {
    "@type": "type.googleapis.com/appointments.v1.OperationMetadata",
    "organizationId": "default",
    "appointmentId": "standup",
    "acceptedAt": "2026-02-28T08:31:00.5Z",
}
_ACCEPTED = {
    "name": f"organizations/default/operations/{_OPERATION_ID}",
    "metadata": _METADATA,
    "done": False,
}
_DONE = {
    "name": _ACCEPTED["name"],
    "metadata": {**_METADATA, "finishedAt": "2026-02-28T08:31:00.625Z", "outcome": "UPDATED"},
    "done": True,
    "response": {
        "@type": "type.googleapis.com/appointments.v1.Appointment",
        **_BOOKED,
        "version": 3,
        "revision": "4",
        "etag": "4",
    },
}
_MOVE = {
    "resourceId": "room-1",
    "start": "2026-03-02T09:30:00Z",
    "end": "2026-03-02T09:45:00Z",
    "title": "Stand-up",
    "attributes": {"floor": 3},
}
_MOVED = {
    **_BOOKED,
    **_MOVE,
    "additionalResourceIds": [],
    "version": 4,
    "revision": "5",
    "etag": "5",
}
_RENAME = {"title": "Daily stand-up", "attributes": {"floor": None, "video": True}}
_RENAMED = {
    **_MOVED,
    "title": "Daily stand-up",
    "attributes": {"video": True},
    "version": 5,
    "revision": "6",
    "etag": "6",
}
_HOLD = {
    "resourceId": "room-3",
    "id": "viewing",
    "start": "2026-03-02T13:00:00Z",
    "end": "2026-03-02T14:00:00Z",
    "title": "Viewing",
    "holdUntil": "2026-02-28T08:47:00Z",
}
_HELD = {
    **_BOOKED,
    **_HOLD,
    "additionalResourceIds": [],
    "attributes": {},
    "state": "HELD",
    "revision": "7",
    "etag": "7",
}
_CONFIRMED = {
    **{name: value for name, value in _HELD.items() if name != "holdUntil"},
    "state": "ACTIVE",
    "version": 2,
    "revision": "8",
    "etag": "8",
}
_REDACTED = {
    **_CONFIRMED,
    "title": "",
    "version": 3,
    "revision": "9",
    "etag": "9",
}
_REGISTER = {
    "url": "https://example.com/hook",
    "changes": ["CREATED", "CANCELLED"],
    "resourceId": "room-1",
}
_REGISTERED = {
    "organizationId": "default",
    "id": "019a2f4e-2b0c-7c55-8a3e-6d1f0e9b4c27",
    **_REGISTER,
    "description": "",
    "disabled": False,
    "disabledReason": "",
    "deliveredRevision": "4",
    "failedAttempts": 0,
    "createdAt": "2026-02-28T09:00:00.5Z",
    "updatedAt": "2026-02-28T09:00:00.5Z",
    "headers": [],
}
_DISABLE = {**_REGISTER, "disabled": True}
_DISABLED = {**_REGISTERED, **_DISABLE}
_REPLAYED = {**_REGISTERED, "deliveredRevision": "0"}
_SECRET = {"secret": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"}

EXAMPLES: Mapping[str, Examples] = {
    "UpsertAppointment": Examples(
        requests={
            "book": _BOOK,
            "overlapping": _OVERLAP,
            "backwards": _BACKWARDS,
            "later": _BOOK,
            "hold": _HOLD,
        },
        responses={
            200: {"again": _BOOKED},
            201: {"book": _BOOKED, "hold": _HELD},
            202: {"later": _ACCEPTED},
        },
    ),
    "PutAppointment": Examples(requests={"move": _MOVE}, responses={200: {"move": _MOVED}}),
    "UpdateAppointment": Examples(
        requests={"rename": _RENAME}, responses={200: {"rename": _RENAMED}}
    ),
    "ConfirmAppointment": Examples(responses={200: {"confirm": _CONFIRMED}}),
    "RedactAppointment": Examples(responses={200: {"redacted": _REDACTED}}),
    "GetAppointment": Examples(responses={200: {"booked": _BOOKED}}),
    "ListAppointments": Examples(
        responses={
            200: {"booked": {"appointments": [_BOOKED], "nextPageToken": "", "revision": "1"}}
        }
    ),
    "QueryAvailability": Examples(responses={200: {"bookable": _BOOKABLE}}),
    "GetCalendar": Examples(responses={200: {"booked": _CALENDAR}}),
    "BatchUpsertAppointments": Examples(
        requests={
            "oneIsRefused": {
                "requests": [{"appointment": _FREE, "createOnly": True}, {"appointment": _OVERLAP}]
            },
            "allOrNothing": {
                "requests": [{"appointment": _FREE}, {"appointment": _OVERLAP}],
                "atomic": True,
            },
        },
        responses={
            200: {
                "oneIsRefused": {
                    "results": [
                        {"appointment": _FREE_BOOKED, "outcome": "CREATED"},
                        {"error": _OVERLAPPED},
                    ]
                }
            }
        },
    ),
    "CancelAppointment": Examples(responses={200: {"cancelled": _CANCELLED}}),
    "ListAppointmentHistory": Examples(
        responses={200: {"both": {"entries": _HISTORY, "nextPageToken": ""}}}
    ),
    "ListChanges": Examples(
        responses={
            200: {"afterTwo": {"entries": _HISTORY[1:], "nextPageToken": "", "revision": "3"}}
        }
    ),
    "GetOperation": Examples(responses={200: {"done": _DONE}}),
    "ListOperations": Examples(
        responses={200: {"done": {"operations": [_DONE], "nextPageToken": ""}}}
    ),
    "CreateWebhook": Examples(
        requests={"register": _REGISTER}, responses={201: {"register": {**_REGISTERED, **_SECRET}}}
    ),
    "GetWebhook": Examples(responses={200: {"registered": _REGISTERED}}),
    "ListWebhooks": Examples(responses={200: {"registered": {"webhooks": [_REGISTERED]}}}),
    "UpdateWebhook": Examples(
        requests={"disable": _DISABLE}, responses={200: {"disable": _DISABLED}}
    ),
    "RotateWebhookSecret": Examples(responses={200: {"rotated": {**_DISABLED, **_SECRET}}}),
    "ReplayWebhook": Examples(
        requests={"all": {"afterRevision": "0"}}, responses={200: {"all": _REPLAYED}}
    ),
    "ListWebhookDeliveries": Examples(
        responses={200: {"none": {"deliveries": [], "nextPageToken": ""}}}
    ),
    "DeleteWebhook": Examples(responses={200: {"deleted": {}}}),
    "IsAlive": Examples(responses={200: {"alive": {"status": "ok"}}}),
    "IsReady": Examples(responses={200: {"ready": {"status": "ready"}}}),
}
PROBLEM_EXAMPLES: Mapping[HTTPStatus, Named] = {
    HTTPStatus.BAD_REQUEST: {
        "backwards": {
            **_problem(
                Reason.INVALID_FIELD,
                "end must be after start",
                errors=[FieldError("end", "must be after start")],
            ),
            **_REQUEST_ID,
        }
    },
    HTTPStatus.NOT_FOUND: {
        "unknown": {
            **_problem(
                Reason.APPOINTMENT_NOT_FOUND, "the organization has no appointment with this id"
            ),
            **_REQUEST_ID,
        }
    },
    HTTPStatus.CONFLICT: {
        "overlapping": {**_OVERLAPPED, **_REQUEST_ID},
        "allOrNothing": {**_BATCH_REFUSED, **_REQUEST_ID},
    },
    HTTPStatus.PRECONDITION_FAILED: {
        "changedMeanwhile": {
            **_problem(
                Reason.ETAG_MISMATCH,
                "no stored appointment has this id and etag; read it again and decide anew",
            ),
            **_REQUEST_ID,
        }
    },
}
