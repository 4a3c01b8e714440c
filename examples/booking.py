"""Books a room, gets a conflict for a second booking, and reads the history.

Needs only the stubs: `pip install ./protos`, then `python examples/booking.py
localhost:50051`. With TLS, name the file of the authority that signed the service's certificate,
and if the service demands one, a certificate and its key: `localhost:50051 ca.crt tls.crt tls.key`.
Errors have typed details, so there is no text to parse. test_booking.py tests this program without
a server.
"""

import json
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import grpc
from appointments.v1.appointment_pb2 import Appointment, HistoryEntry, Outcome, TimeRangeConflict
from appointments.v1.appointment_service_pb2 import (
    GetAppointmentRequest,
    ListAppointmentHistoryRequest,
    UpsertAppointmentRequest,
)
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

# In seconds. Every call has a deadline. A write that exceeded it can be sent again safely,
# because it has an idempotency key.
DEADLINE = 10
RETRY_FOR = 30
FIRST_DELAY = 0.1


def main(address: str = "localhost:50051", *tls: str) -> None:
    with connect(address, *tls) as channel:
        stub = AppointmentServiceStub(channel)
        organization = f"example-{uuid.uuid4()}"
        ten = datetime(2030, 1, 1, 10, tzinfo=UTC)

        meeting = appointment(organization, "meeting", ten, minutes=30, title="Planning")
        print(book(stub, meeting))
        print(book(stub, meeting), "because it is stored already: retries are safe")

        late = ten + timedelta(minutes=15)
        print(book(stub, appointment(organization, "other", late, minutes=30, title="Interview")))
        print(book(stub, appointment(organization, "backwards", ten, minutes=-5, title="No")))

        # The etag makes the change fail if somebody else has changed the appointment since.
        get = GetAppointmentRequest(organization_id=organization, id="meeting")
        stored = stub.GetAppointment(get, timeout=DEADLINE).appointment
        stored.end.FromDatetime(ten + timedelta(minutes=15))
        print(book(stub, stored))
        print(book(stub, stored), "because the etag is no longer the stored one")
        print(book(stub, appointment(organization, "other", late, minutes=30, title="Interview")))

        history = ListAppointmentHistoryRequest(organization_id=organization, id="meeting")
        for entry in stub.ListAppointmentHistory(history, timeout=DEADLINE).entries:
            change = HistoryEntry.Change.Name(entry.change)
            print(f"revision {entry.revision}: {change} {describe(entry.appointment)}")


# All addresses of a name take turns (gRPC's default is to use one), and those that come and go are
# noticed within seconds.
OPTIONS = (
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 5000),
)


def connect(
    address: str, ca: str | None = None, certificate: str | None = None, key: str | None = None
) -> grpc.Channel:
    """Return a channel, with TLS if given the file of an authority."""
    if ca is None:
        return grpc.insecure_channel(address, OPTIONS)
    files = [Path(path).read_bytes() if path else None for path in (ca, key, certificate)]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*files), OPTIONS)


def appointment(
    organization: str, id: str, start: datetime, *, minutes: int, title: str
) -> Appointment:
    made = Appointment(organization_id=organization, resource_id="room-1", id=id, title=title)
    made.start.FromDatetime(start)
    made.end.FromDatetime(start + timedelta(minutes=minutes))
    return made


def book(
    stub: AppointmentServiceStub,
    wanted: Appointment,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> str:
    """Upsert an appointment and return the outcome or the error as text.

    Temporary errors are retried with exponential backoff for about RETRY_FOR seconds. Jitter
    keeps callers that failed together from retrying together.
    """
    request = UpsertAppointmentRequest(appointment=wanted, idempotency_key=str(uuid.uuid4()))
    end = now() + RETRY_FOR
    backoff = FIRST_DELAY
    while True:
        try:
            response = stub.UpsertAppointment(request, timeout=DEADLINE)
        except grpc.RpcError as error:
            delay = max(backoff, retry_delay(error)) * random.uniform(1, 1.5)  # noqa: S311
            if not is_temporary(error) or now() + delay > end:
                return f"refused, {refusal(error)}"
            sleep(delay)
            backoff *= 2
        else:
            return f"{Outcome.Name(response.outcome)} {describe(response.appointment)}"


def is_temporary(error: grpc.RpcError) -> bool:
    """Return whether the same request may succeed later."""
    unanswered = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return error.code() in unanswered or retry_delay(error) > 0


def retry_delay(error: grpc.RpcError) -> float:
    """Return the delay that the service asks for before a retry (seconds), or 0."""
    retry = RetryInfo()
    if any(detail.Unpack(retry) for detail in status_of(error).details):
        return float(retry.retry_delay.ToTimedelta().total_seconds())
    return 0


def status_of(error: grpc.RpcError) -> Status:
    """Decode the `google.rpc.Status` with the details from the trailing metadata."""
    trailers = cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ())
    return Status.FromString(dict(trailers).get("grpc-status-details-bin", b""))


def refusal(error: grpc.RpcError) -> str:
    """Describe an error by its typed details."""
    info, conflict, bad, retry = ErrorInfo(), TimeRangeConflict(), BadRequest(), RetryInfo()
    parts = [error.code().name]
    for detail in status_of(error).details:
        if detail.Unpack(info):
            parts.append(info.reason)
        elif detail.Unpack(conflict):
            parts += [f"by {c.id} {span(c.start, c.end)}" for c in conflict.conflicts]
        elif detail.Unpack(bad):
            parts += [f"{v.field}: {v.description}" for v in bad.field_violations]
        elif detail.Unpack(retry):
            parts.append(f"again in {retry.retry_delay.ToMilliseconds()} ms")
    return ", ".join(parts)


def describe(shown: Appointment) -> str:
    return f"{shown.id} {span(shown.start, shown.end)} version {shown.version}"


def span(start: Timestamp, end: Timestamp) -> str:
    return f"{start.ToDatetime():%H:%M}-{end.ToDatetime():%H:%M}"


if __name__ == "__main__":
    main(*sys.argv[1:])
