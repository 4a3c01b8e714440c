"""What availability offers is booked, or refused because a rival was faster; nothing else."""

import asyncio
import random
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1 import availability_pb2
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from local.programs import Program
from tests.api import MORNING, Organization, Refusal, check_no_overlap, refusal, refusal_of, soon

OFFERS = 10_000
IN_FLIGHT = 256
MATCH = availability_pb2.QueryAvailabilityRequest
RESOURCES = [f"room {number}" for number in range(25)]
# The clocks of New York change on the second day.
START = datetime(2030, 3, 9, tzinfo=UTC)


@pytest.mark.slow
async def test_rivals_book_all_offers_or_meet_each_other(
    service: Program, org: Organization
) -> None:
    """Rivals ask at the same time, then take all that they were offered, at once."""
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed: {seed}\n")  # shown if it fails
    chance = random.Random(seed)
    before = _occupy(org, chance)
    booked: dict[str, pb.Appointment] = {}
    results: Counter[str] = Counter()

    async with grpc.aio.insecure_channel(service.address) as channel:
        stub = AppointmentServiceStub(channel)
        offers: list[pb.Appointment] = []
        while len(offers) < OFFERS:
            request = _question(org, chance)
            response = await stub.QueryAvailability(request, timeout=30)
            offers += _offers(request, response)
        del offers[OFFERS:]
        chance.shuffle(offers)
        conflicts: dict[str, list[str]] = {}

        async def take(numbered: list[tuple[int, pb.Appointment]]) -> None:
            while numbered:
                number, wanted = numbered.pop()
                wanted.id = f"offer {number}"
                if number % 3 == 0:
                    wanted.hold_until.CopyFrom(soon(600))
                try:
                    response = await stub.UpsertAppointment(
                        rpc.UpsertAppointmentRequest(appointment=wanted), timeout=60
                    )
                except grpc.aio.AioRpcError as error:
                    refused = _refusal(error)
                    results[refused.reason] += 1
                    conflicts[wanted.id] = [each.id for each in refused.conflicts]
                else:
                    results[pb.Outcome.Name(response.outcome)] += 1
                    booked[wanted.id] = response.appointment

        wanted = {f"offer {number}": offer for number, offer in enumerate(offers)}
        left = list(enumerate(offers))
        await asyncio.gather(*(take(left) for _ in range(IN_FLIGHT)))

    sys.stdout.write(f"{dict(results)}\n")
    assert results.keys() == {"CREATED", "TIME_RANGE_CONFLICT"}
    assert results.total() == OFFERS
    assert results["CREATED"] > 1000
    assert results["TIME_RANGE_CONFLICT"] > 1000
    for id, ids in conflicts.items():
        assert ids
        for rival in ids:
            assert rival in booked, (rival in before, wanted[id])
            assert _collide(wanted[id], booked[rival])
    stored = org.listed(include_cancelled=False)
    assert stored.keys() == before | booked.keys()
    check_no_overlap(list(stored.values()))


def _occupy(org: Organization, chance: random.Random) -> set[str]:
    """Book, hold, move and cancel at random. Returns the ids of what occupies."""
    occupying = set()
    for number in range(300):
        start = chance.randrange(7 * 96) * 15
        first, *others = chance.sample(RESOURCES, chance.choice([1, 1, 1, 3]))
        id = f"before {number}"
        try:
            org.upsert(
                id,
                _minutes(start),
                _minutes(start + chance.choice([15, 30, 45, 90])),
                resource_id=first,
                additional_resource_ids=others,
                hold_until=soon(600) if chance.random() < 0.2 else None,
            )
        except grpc.RpcError as error:
            assert refusal(error).reason == "TIME_RANGE_CONFLICT"
            continue
        if chance.random() < 0.2:
            org.cancel(id)
        else:
            occupying.add(id)
    return occupying


def _question(
    org: Organization, chance: random.Random
) -> availability_pb2.QueryAvailabilityRequest:
    together = chance.random() < 0.3
    request = availability_pb2.QueryAvailabilityRequest(
        organization_id=org.id,
        to=_time(START + timedelta(days=7)),
        resource_id=chance.sample(RESOURCES, 2 if together else 8),
        match=MATCH.ALL if together else MATCH.EACH,
        duration=Duration(seconds=60 * chance.choice([30, 45, 60])),
        granularity=Duration(seconds=60 * chance.choice([15, 30])),
        opening_hours=["Mo-Fr 08:00-18:00", "Sa-Su 22:00-04:00"],
        time_zone="America/New_York",
        buffer_before=Duration(seconds=60 * chance.choice([0, 10])),
    )
    getattr(request, "from").CopyFrom(_time(START + timedelta(days=chance.randrange(5))))
    return request


def _offers(
    request: availability_pb2.QueryAvailabilityRequest,
    response: availability_pb2.QueryAvailabilityResponse,
) -> list[pb.Appointment]:
    """Return one appointment for each start that was offered."""
    offers = []
    for resource in response.resources:
        first, *others = (
            [resource.resource_id] if resource.HasField("resource_id") else request.resource_id
        )
        offers += [
            pb.Appointment(
                organization_id=request.organization_id,
                resource_id=first,
                additional_resource_ids=others,
                start=start,
                end=Timestamp(seconds=start.seconds + request.duration.seconds),
            )
            for start in resource.starts
        ]
    return offers


def _refusal(error: grpc.aio.AioRpcError) -> Refusal:
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    return refusal_of(Status.FromString(details), error.code())


def _collide(one: pb.Appointment, other: pb.Appointment) -> bool:
    def resources(of: pb.Appointment) -> set[str]:
        return {of.resource_id, *of.additional_resource_ids}

    return (
        one.start.seconds < other.end.seconds
        and other.start.seconds < one.end.seconds
        and not resources(one).isdisjoint(resources(other))
    )


def _minutes(minute: int) -> float:
    """Return a minute from START as the minute of the morning that `Organization` takes."""
    return (START + timedelta(minutes=minute) - MORNING).total_seconds() / 60


def _time(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
