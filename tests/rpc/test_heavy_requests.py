"""Messages that are small on the wire, and would be expensive to read."""

import zlib
from collections.abc import Callable

import pytest
from appointments.relay.v1.relay_pb2 import Call, RelayRequest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_pb2 import Appointment, HistoryEntry
from appointments.v1.availability_pb2 import QueryAvailabilityRequest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value

from local.programs import Program
from tests.rpc.http2 import Connection, framed
from tests.rpc.test_request_reader import APPOINTMENTS, RELAY, cpu_seconds

MOST_SECONDS = 0.2
"""Of processor time; each took from 0.25 s to minutes."""
MAX_BYTES = 3 * 1024 * 1024
MAX_SINGLE_BYTES = 256 * 1024
INVALID, EXHAUSTED = "3", "8"

BATCH = f"{APPOINTMENTS}/BatchUpsertAppointments"
UPSERT = f"{APPOINTMENTS}/UpsertAppointment"
UPDATE = f"{APPOINTMENTS}/UpdateAppointment"
AVAILABILITY = f"{APPOINTMENTS}/QueryAvailability"


def many(message: Message, *, most: int = MAX_SINGLE_BYTES) -> bytes:
    """Return the message as often as fits: its repeated fields then have all the elements."""
    one = message.SerializeToString()
    return one * (most // len(one))


HEAVY: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "empty items": (
        BATCH,
        "must have at most 1,000 elements",
        lambda: many(
            rpc.BatchUpsertAppointmentsRequest(
                requests=[rpc.BatchUpsertAppointmentsRequest.Item()]
            ),
            most=MAX_BYTES,
        ),
    ),
    "resources": (
        UPSERT,
        "must have at most 15 elements",
        lambda: many(
            rpc.UpsertAppointmentRequest(appointment=Appointment(additional_resource_ids=[""]))
        ),
    ),
    "paths": (
        UPDATE,
        "must name only",
        lambda: many(
            rpc.UpdateAppointmentRequest(
                appointment=Appointment(), update_mask=FieldMask(paths=["x"])
            )
        ),
    ),
    "queried resources": (
        AVAILABILITY,
        "must have at most 100 elements",
        lambda: many(QueryAvailabilityRequest(resource_id=[""])),
    ),
    "opening hours": (
        AVAILABILITY,
        "must have at most 50 elements",
        lambda: many(QueryAvailabilityRequest(opening_hours=["Mo-Su"])),
    ),
    "spaces in opening hours": (
        AVAILABILITY,
        "must have at most 256 characters",
        lambda: QueryAvailabilityRequest(
            opening_hours=["Mo" + " " * 250_000 + "x"]
        ).SerializeToString(),
    ),
    "changes": (
        f"{APPOINTMENTS}/ListChanges",
        "must have at most 6 elements",
        lambda: many(rpc.ListChangesRequest(changes=[HistoryEntry.CREATED])),
    ),
    "watched changes": (
        f"{APPOINTMENTS}/WatchAppointments",
        "must have at most 6 elements",
        lambda: many(rpc.WatchAppointmentsRequest(changes=[HistoryEntry.CREATED])),
    ),
}


def send(
    service: Program, path: str, message: bytes, *, compressed: bool = True
) -> tuple[dict[str, str], float]:
    """Send a message; return its status, and the processor time of the service."""
    if compressed:
        packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
        message = packer.compress(message) + packer.flush()
    with Connection(service.address) as connection:
        before = cpu_seconds(service)
        call = connection.open(path, grpc_encoding="gzip")
        connection.data(call, framed(message, compressed=compressed), end=True)
        return connection.status(call), cpu_seconds(service) - before


@pytest.mark.parametrize("name", HEAVY)
def test_a_request_with_too_many_parts_is_refused_without_reading_them(
    service: Program, name: str
) -> None:
    path, why, make = HEAVY[name]
    status, spent = send(service, path, make())
    assert (status["grpc-status"], why in status["grpc-message"]) == (INVALID, True), status
    assert spent < MOST_SECONDS


@pytest.mark.parametrize(
    "value",
    [Value(null_value=NULL_VALUE), Value(list_value=ListValue()), Value(struct_value=Struct())],
    ids=["null", "array", "object"],
)
def test_attributes_of_a_million_values_are_refused_without_reading_them(
    service: Program, value: Value
) -> None:
    status, spent = send(service, BATCH, batch_of(value, most=MAX_BYTES - 1000))
    assert status["grpc-status"] == EXHAUSTED
    assert "a field of the request must have at most 262144 bytes" in status["grpc-message"]
    assert spent < MOST_SECONDS
    status, spent = send(service, BATCH, batch_of(value, most=MAX_SINGLE_BYTES - 1000))
    assert status["grpc-status"] == INVALID
    assert "attributes: must be at most 16,384 bytes as JSON text" in status["grpc-message"]
    assert spent < MOST_SECONDS


def batch_of(value: Value, *, most: int) -> bytes:
    """Return a batch of one appointment whose attributes have the value as often as fits."""
    values = ListValue.FromString(many(ListValue(values=[value]), most=most))
    item = rpc.BatchUpsertAppointmentsRequest.Item(
        appointment=Appointment(attributes=Struct(fields={"a": Value(list_value=values)}))
    )
    return rpc.BatchUpsertAppointmentsRequest(requests=[item], atomic=True).SerializeToString()


@pytest.mark.parametrize("path", [UPSERT, UPDATE, AVAILABILITY, f"{APPOINTMENTS}/ListChanges"])
@pytest.mark.parametrize("compressed", [False, True])
def test_only_a_request_with_a_list_may_be_long(
    service: Program, path: str, *, compressed: bool
) -> None:
    status, spent = send(service, path, bytes(MAX_SINGLE_BYTES + 1), compressed=compressed)
    assert status["grpc-status"] == EXHAUSTED
    assert "262144 bytes" in status["grpc-message"]
    assert spent < MOST_SECONDS


@pytest.mark.parametrize(
    "message",
    [RelayRequest(calls=[Call()]), RelayRequest(cancelled=[1])],
    ids=["calls", "cancelled"],
)
def test_a_relay_message_with_too_many_calls_ends_its_stream(
    service: Program, message: RelayRequest
) -> None:
    one = message.SerializeToString()
    status, spent = send(service, RELAY, one * 10_001)
    assert status["grpc-status"] == EXHAUSTED
    assert "more than 10,000 calls" in status["grpc-message"]
    assert spent < MOST_SECONDS


def test_the_largest_attributes_are_within_the_limits(service: Program) -> None:
    """A digit and its comma are two bytes of JSON text, and eleven of a message."""
    digits = (16 * 1024 - len('{"a":[]}') + 1) // 2
    values = ListValue(values=[Value(number_value=1)] * digits)
    request = rpc.UpsertAppointmentRequest(
        appointment=Appointment(attributes=Struct(fields={"a": Value(list_value=values)})),
        validate_only=True,
    )
    request.appointment.start.FromSeconds(2_000_000_000)
    request.appointment.end.FromSeconds(2_000_000_060)
    status, _ = send(service, UPSERT, request.SerializeToString())
    assert status["grpc-status"] == "0", status
    values.values.add(number_value=1)
    request.appointment.attributes.fields["a"].list_value.CopyFrom(values)
    status, _ = send(service, UPSERT, request.SerializeToString())
    assert "16,384 bytes" in status["grpc-message"]
