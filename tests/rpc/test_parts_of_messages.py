"""Large requests are read in parts."""

import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_pb2 import Appointment

from service.errors import MalformedRequest, RequestTooLarge
from service.rpc.large_requests import MAX_SINGLE_BYTES, PART_BYTES, parts_of

NUMBER = rpc.BatchUpsertAppointmentsRequest.DESCRIPTOR.fields_by_name["requests"].number
MOST = {NUMBER: 1000}


def batch(items: int, title: str = "") -> rpc.BatchUpsertAppointmentsRequest:
    item = rpc.BatchUpsertAppointmentsRequest.Item(appointment=Appointment(title=title))
    return rpc.BatchUpsertAppointmentsRequest(requests=[item] * items, atomic=True)


@pytest.mark.parametrize("items", [0, 1, 1000])
def test_the_parts_together_are_the_message(items: int) -> None:
    message = batch(items, "x" * 500)
    parts = list(parts_of(message.SerializeToString(), MOST))
    read = rpc.BatchUpsertAppointmentsRequest()
    for part in parts:
        read.MergeFromString(part)
    assert read == message
    assert all(len(part) < PART_BYTES + 1000 for part in parts)


def test_a_message_is_cut_off_after_the_first_element_too_many() -> None:
    parts = list(parts_of(batch(500_000).SerializeToString(), MOST))
    read = rpc.BatchUpsertAppointmentsRequest.FromString(b"".join(parts))
    assert len(read.requests) == 1001


@pytest.mark.parametrize(
    ("message", "error", "why"),
    [
        (batch(1, "x" * MAX_SINGLE_BYTES).SerializeToString(), RequestTooLarge, "at most 262144"),
        (b"\x0b", MalformedRequest, "wire type 3"),
        (b"\x08" + b"\x80" * 100_000, MalformedRequest, "more than 64 bits"),
        (b"\x08", MalformedRequest, "in the middle of a field"),
        (b"\x0a\x80", MalformedRequest, "in the middle of a field"),
    ],
    ids=["long", "group", "number", "varint", "length"],
)
def test_what_cannot_be_cut_is_refused(message: bytes, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        list(parts_of(message, MOST))
