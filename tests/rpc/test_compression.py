"""Compression of responses, as it is seen on the wire."""

import gzip
import time

import grpc
import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1 import availability_pb2
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from local.programs import Program
from tests.api import Organization
from tests.rpc.http2 import Connection, framed

GET = "/appointments.v1.AppointmentService/GetAppointment"
AVAILABILITY = "/appointments.v1.AppointmentService/QueryAvailability"
WATCH = "/appointments.v1.AppointmentService/WatchAppointments"
PLAIN_LIMIT = 1024

CREATED_AT = Timestamp(seconds=1_700_000_000)


def get(
    service: Program, organization: str, *, accepted: str | None
) -> tuple[str | None, bool, bytes]:
    """Return the encoding of a call, whether its message is compressed, and the message."""
    request = rpc.GetAppointmentRequest(organization_id=organization, id="a")
    headers = {} if accepted is None else {"grpc_accept_encoding": accepted}
    with Connection(service.address) as connection:
        call = connection.open(GET, **headers)
        connection.data(call, framed(request.SerializeToString()), end=True)
        assert connection.status(call)["grpc-status"] == "0"
        [(compressed, message)] = connection.messages(call)
        return connection.headers(call).get("grpc-encoding"), compressed, message


@pytest.mark.parametrize("accepted", ["gzip", "identity,deflate,gzip", "identity, gzip"])
def test_gzip_is_used_if_it_is_accepted(service: Program, org: Organization, accepted: str) -> None:
    org.upsert("a", 0, 1, attributes={"notes": "much to say " * 200})
    encoding, compressed, message = get(service, org.id, accepted=accepted)
    assert (encoding, compressed) == ("gzip", True)
    assert len(message) < 1000
    stored = rpc.GetAppointmentResponse.FromString(gzip.decompress(message)).appointment
    assert stored == org.get("a")


@pytest.mark.parametrize("accepted", [None, "identity", "identity,br"])
def test_gzip_is_not_used_unless_it_is_accepted(
    service: Program, org: Organization, accepted: str | None
) -> None:
    org.upsert("a", 0, 1, attributes={"notes": "much to say " * 200})
    encoding, compressed, message = get(service, org.id, accepted=accepted)
    assert (encoding, compressed) == (None, False)
    assert rpc.GetAppointmentResponse.FromString(message).appointment == org.get("a")


def test_small_messages_are_not_compressed(service: Program, org: Organization) -> None:
    def store(length: int, second: int) -> None:
        # A time of the database's clock takes one byte less in a quarter of each second.
        updated_at = Timestamp(seconds=1_700_000_000 + second)
        org.upsert("a", 0, 1, title="x" * length, updated_at=updated_at, created_at=CREATED_AT)

    store(500, 1)
    others = len(get(service, org.id, accepted="gzip")[2]) - 500
    store(PLAIN_LIMIT - others, 2)
    _, compressed, message = get(service, org.id, accepted="gzip")
    assert (compressed, len(message)) == (False, PLAIN_LIMIT)
    store(PLAIN_LIMIT - others + 1, 3)
    _, compressed, message = get(service, org.id, accepted="gzip")
    assert (compressed, len(gzip.decompress(message))) == (True, PLAIN_LIMIT + 1)


def test_large_availability_is_not_compressed(service: Program, org: Organization) -> None:
    """It would take a tenth of a second, in which no other call is answered."""

    def ask(days: int) -> tuple[bool, int]:
        request = availability_pb2.QueryAvailabilityRequest(
            organization_id=org.id,
            to=Timestamp(seconds=2_000_000_000 + days * 86_400),
            resource_id=[str(number) for number in range(100)],
            opening_hours=["Mo-Su 08:00-09:00,10:00-11:00,12:00-13:00"],
            time_zone="UTC",
        )
        getattr(request, "from").CopyFrom(Timestamp(seconds=2_000_000_000))
        with Connection(service.address) as connection:
            call = connection.open(AVAILABILITY, grpc_accept_encoding="gzip")
            connection.data(call, framed(request.SerializeToString()), end=True)
            assert connection.status(call)["grpc-status"] == "0"
            [(compressed, message)] = connection.messages(call)
            return compressed, len(gzip.decompress(message) if compressed else message)

    compressed, size = ask(180)
    assert compressed
    assert 900_000 < size <= 1_048_576
    compressed, size = ask(200)
    assert not compressed
    assert size > 1_048_576


def test_each_message_of_a_stream_is_judged_by_its_size(
    service: Program, org: Organization
) -> None:
    org.upsert("a", 0, 1, attributes={"notes": "much to say " * 200})
    request = rpc.WatchAppointmentsRequest(organization_id=org.id)
    with Connection(service.address) as connection:
        call = connection.open(WATCH, grpc_accept_encoding="gzip")
        connection.data(call, framed(request.SerializeToString()), end=True)
        seen: dict[int, bool] = {}
        written = 1
        give_up = time.monotonic() + 30
        while seen.keys() != {1, 2, 3}:
            assert time.monotonic() < give_up
            connection.frames()
            for compressed, message in connection.messages(call):
                plain = gzip.decompress(message) if compressed else message
                for entry in rpc.WatchAppointmentsResponse.FromString(plain).entries:
                    seen[entry.revision] = compressed
            if len(seen) == written < 3:
                written += 1
                notes = "more to say " * (200 if written == 3 else 40)
                org.upsert("a", 0, 1, attributes={"notes": notes})
        assert connection.headers(call)["grpc-encoding"] == "gzip"
    assert seen == {1: True, 2: False, 3: True}


def test_grpcs_own_clients_read_what_they_accept(service: Program, org: Organization) -> None:
    org.upsert("a", 0, 1, attributes={"notes": "much to say " * 200})
    request = rpc.GetAppointmentRequest(organization_id=org.id, id="a")
    answers = []
    for options in ([], [("grpc.compression_enabled_algorithms_bitset", 1)]):
        with grpc.insecure_channel(service.address, options=options) as channel:
            answers.append(AppointmentServiceStub(channel).GetAppointment(request, timeout=30))
    assert answers[0] == answers[1]
    assert answers[0].appointment.attributes["notes"] == "much to say " * 200
