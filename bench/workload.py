"""The requests of a load. Each is made from a different number.

The stored appointments of an organization take the first hour of each day, from
2030-01-01 on. New appointments take one second each of the rest of these days: the first
free second of every day in a scattered order of days, then the second one, and so on. With
several resources, the stored ones are of twenty minutes, spread evenly over a year of each.
`rest.lua` and `limits.py` make the same requests in their languages.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from appointments.v1 import appointment_pb2, availability_pb2
from appointments.v1 import appointment_service_pb2 as rpc
from google.protobuf.duration_pb2 import Duration

FIRST_DAY = int(datetime(2030, 1, 1, tzinfo=UTC).timestamp())
DAY = 86_400
HOUR = 3_600
STRIDE = 104_729  # a prime, so that its multiples visit every day
SLOTS = 2_000  # start times of contended requests: half an hour, every ten minutes
BATCH = 100  # writes in a request
HOLDS_AHEAD = 1_000  # more than the calls in flight, so that what is confirmed is stored
WINDOW = 20  # appointments in a list
SHIFTS = 9_973  # of years that are searched for free times; a prime, so that runs differ
# Minutes at which a week begins that is searched. Ten runs ask for 20,000 different ones each.
WEEKS = 382_003

YEAR = 366 * DAY

Operation = Literal[
    "upsert",
    "submit",
    "contend",
    "batch",
    "hold",
    "get",
    "list",
    "page",
    "availability",
    "calendar",
    "booking",
]

_SERVICE = "/appointments.v1.AppointmentService"
METHODS: dict[Operation, str] = {
    "upsert": "UpsertAppointment",
    "submit": "SubmitAppointment",
    "contend": "UpsertAppointment",
    "batch": "BatchUpsertAppointments",
    "hold": "UpsertAppointment",
    "get": "GetAppointment",
    "list": "ListAppointments",
    "page": "ListAppointments",
    "availability": "QueryAvailability",
    "calendar": "QueryAvailability",
    "booking": "QueryAvailability",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests numbered from `first` on, in the organizations `organization`-0 and so on.

    Each organization has `stored` appointments (see stored.py), or 1 stands for none, of so many
    `resources`.
    `rest.lua` takes the fields in this order.
    """

    operation: Operation
    organization: str
    organizations: int = 1
    stored: int = 1
    first: int = 0
    resources: int = 1


def grpc_messages(work: Workload) -> Callable[[int], bytes]:
    """Return a function from a number, counted from 0, to a serialized request."""
    make = {
        "upsert": _upsert,
        "submit": _submit,
        "contend": _contend,
        "batch": _batch,
        "hold": _hold,
        "get": _get,
        "list": _list,
        "page": _page,
        "availability": _availability,
        "calendar": _calendar,
        "booking": _booking,
    }[work.operation]
    return lambda number: make(work, work.first + number)


def method_of(work: Workload) -> Callable[[int], str]:
    """Return a function from a number to the path of the request's method."""
    usual = f"{_SERVICE}/{METHODS[work.operation]}"
    if work.operation != "hold":
        return lambda _: usual
    confirm = f"{_SERVICE}/ConfirmAppointment"
    return lambda number: confirm if _confirms(number) else usual


def http_messages(work: Workload, host: str) -> Callable[[int], bytes]:
    """Return a function from a number to the HTTP/1.1 request of an upsert."""

    def make(number: int) -> bytes:
        number += work.first
        start, end = (datetime.fromtimestamp(second, UTC) for second in _second(work, number))
        body = json.dumps(
            {
                "id": str(number),
                "organizationId": _organization(work, number),
                "start": start.isoformat(),
                "end": end.isoformat(),
            }
        )
        return (
            f"POST /api/appointments HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    return make


def _organization(work: Workload, number: int) -> str:
    return f"{work.organization}-{number % work.organizations}"


def _second(work: Workload, number: int) -> tuple[int, int]:
    """Return start and end of a free second, in Unix time."""
    day = number * STRIDE % work.stored
    start = FIRST_DAY + day * DAY + HOUR + number // work.stored
    return start, start + 1


def _stored_day(work: Workload, number: int, days: int) -> int:
    """Return the start of one of the first `days` (Unix time). Visits all days in turn."""
    return FIRST_DAY + number // work.organizations * STRIDE % days * DAY


def _fill(
    wanted: appointment_pb2.Appointment, organization: str, number: int, start: int, end: int
) -> None:
    wanted.organization_id = organization
    wanted.id = str(number)
    wanted.start.seconds = start
    wanted.end.seconds = end


def _upsert(work: Workload, number: int) -> bytes:
    request = rpc.UpsertAppointmentRequest()
    _fill(request.appointment, _organization(work, number), number, *_second(work, number))
    return request.SerializeToString()


def _submit(work: Workload, number: int) -> bytes:
    request = rpc.SubmitAppointmentRequest()
    wanted = request.upsert.appointment
    _fill(wanted, _organization(work, number), number, *_second(work, number))
    return request.SerializeToString()


def _contend(work: Workload, number: int) -> bytes:
    request = rpc.UpsertAppointmentRequest()
    start = FIRST_DAY + number * STRIDE % SLOTS * 600
    _fill(request.appointment, _organization(work, number), number, start, start + 1_800)
    return request.SerializeToString()


def _batch(work: Workload, number: int) -> bytes:
    request = rpc.BatchUpsertAppointmentsRequest()
    organization = _organization(work, number)
    for each in range(number * BATCH, number * BATCH + BATCH):
        _fill(request.requests.add().appointment, organization, each, *_second(work, each))
    return request.SerializeToString()


def _confirms(number: int) -> bool:
    return number >= HOLDS_AHEAD and (number - HOLDS_AHEAD) % 2 == 1


def _hold(work: Workload, number: int) -> bytes:
    """A hold; every second one after the first HOLDS_AHEAD is the confirmation of one of them."""
    number -= work.first
    pair = (number - HOLDS_AHEAD) // 2
    if _confirms(number):
        return rpc.ConfirmAppointmentRequest(
            organization_id=_organization(work, work.first + pair), id=str(work.first + pair)
        ).SerializeToString()
    held = work.first + (number if number < HOLDS_AHEAD else HOLDS_AHEAD + pair)
    request = rpc.UpsertAppointmentRequest()
    _fill(request.appointment, _organization(work, held), held, *_second(work, held))
    request.appointment.hold_until.seconds = int(time.time()) + HOUR
    return request.SerializeToString()


def _get(work: Workload, number: int) -> bytes:
    day = (_stored_day(work, number, work.stored) - FIRST_DAY) // DAY
    return rpc.GetAppointmentRequest(
        organization_id=_organization(work, number), id=f"stored-{day}"
    ).SerializeToString()


def _list(work: Workload, number: int) -> bytes:
    return _window(work, number, _stored_day(work, number, work.stored - WINDOW + 1))


def _page(work: Workload, number: int) -> bytes:
    """The same for an organization each time."""
    return _window(work, number, FIRST_DAY)


def _window(work: Workload, number: int, start: int) -> bytes:
    request = rpc.ListAppointmentsRequest(organization_id=_organization(work, number))
    getattr(request, "from").seconds = start
    request.to.seconds = start + WINDOW * DAY
    return request.SerializeToString()


def _availability(work: Workload, number: int) -> bytes:
    """A year of all resources, from another minute each time."""
    return _free(work, number, work.resources, FIRST_DAY - number % SHIFTS * 60, YEAR)


def _calendar(work: Workload, number: int) -> bytes:
    """The same year of all resources each time."""
    return _free(work, number, work.resources, FIRST_DAY, YEAR)


def _booking(work: Workload, number: int) -> bytes:
    """Half hours to book with ten resources, in another week each time."""
    return _free(
        work,
        number,
        10,
        FIRST_DAY + number % WEEKS * 60,
        7 * DAY,
        opening_hours=["Mo-Fr 09:00-17:00"],
        time_zone="Europe/Berlin",
        duration=Duration(seconds=1800),
        granularity=Duration(seconds=900),
    )


def _free(
    work: Workload,
    number: int,
    resources: int,
    start: int,
    length: int,
    **fields: Any,  # noqa: ANN401  # of the request
) -> bytes:
    request = availability_pb2.QueryAvailabilityRequest(
        organization_id=_organization(work, number),
        resource_id=[f"resource-{resource}" for resource in range(1, resources + 1)],
        **fields,
    )
    getattr(request, "from").seconds = start
    request.to.seconds = start + length
    return request.SerializeToString()
