"""At the moment when a hold expires, of a confirm and a rival exactly one wins."""

import asyncio
import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from local.programs import Program
from tests.api import TIMEOUT, Organization, appointment, refusal
from tests.conftest import CreateDatabase, StartProgram
from tests.operations.place import Place
from tests.writes.test_safety_layers import without_constraint, without_expiry

RACES = 1000
ORGANIZATIONS = 10
# Holds are made before the first of them expires, and then one after the other does.
LEAD = timedelta(seconds=2)
SPREAD = timedelta(seconds=3)
# Seconds, relative to the end of a hold, within which the confirm is sent.
CONFIRMED = (-0.05, 0.01)
RIVAL_BEGINS = -0.06


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    organization: str
    number: int
    end: datetime

    @property
    def resource(self) -> str:
        return f"resource {self.number}"

    @property
    def held(self) -> str:
        return f"held {self.number}"

    @property
    def rival(self) -> str:
        return f"rival {self.number}"


async def sleep_until(time: datetime, seconds: float) -> None:
    await asyncio.sleep((time - datetime.now(UTC)).total_seconds() + seconds)


async def confirm(stub: Any, race: Race) -> bool:
    """Confirm once, close to the end of the hold. Return whether that succeeded."""
    await sleep_until(race.end, random.uniform(*CONFIRMED))
    request = rpc.ConfirmAppointmentRequest(organization_id=race.organization, id=race.held)
    try:
        await stub.ConfirmAppointment(request, timeout=TIMEOUT)
    except grpc.aio.AioRpcError as error:
        assert refusal(error).reason == "HOLD_EXPIRED"
        return False
    return True


async def book(stub: Any, race: Race, confirmed: asyncio.Task[bool]) -> bool:
    """Repeat a write until it succeeds or the hold is confirmed. Return whether it succeeded."""
    wanted = appointment(race.organization, race.rival, 10, 20, resource_id=race.resource)
    request = rpc.UpsertAppointmentRequest(appointment=wanted)
    await sleep_until(race.end, RIVAL_BEGINS)
    while True:
        last = confirmed.done() and confirmed.result()
        try:
            await stub.UpsertAppointment(request, timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            [conflict] = refusal(error).conflicts
            assert conflict.id == race.held
            if last:
                return False
        else:
            return True


async def run(stub: Any, rivals: Any, race: Race) -> tuple[bool, bool]:
    confirmed = asyncio.create_task(confirm(stub, race))
    booked = await book(rivals, race, confirmed)
    return await confirmed, booked


async def hold(stub: Any, races: list[Race]) -> None:
    async def hold_of(organization: str) -> None:
        items = []
        for race in races:
            if race.organization == organization:
                end = Timestamp()
                end.FromDatetime(race.end)
                held = appointment(
                    organization, race.held, 0, 30, resource_id=race.resource, hold_until=end
                )
                items.append(rpc.BatchUpsertAppointmentsRequest.Item(appointment=held))
        request = rpc.BatchUpsertAppointmentsRequest(requests=items)
        response = await stub.BatchUpsertAppointments(request, timeout=TIMEOUT)
        assert all(result.outcome == pb.CREATED for result in response.results)

    await asyncio.gather(
        *(hold_of(organization) for organization in {r.organization for r in races})
    )


async def race_all(service: Program, rivals_service: Program, count: int) -> None:
    """Run races, and assert that exactly one wins in each, and that history shows it."""
    began = datetime.now(UTC)
    races = [
        Race(
            organization=f"organization {number % ORGANIZATIONS}",
            number=number,
            end=began + LEAD + SPREAD * number / RACES,
        )
        for number in range(count)
    ]
    async with (
        grpc.aio.insecure_channel(service.address) as channel,
        grpc.aio.insecure_channel(rivals_service.address) as rivals_channel,
    ):
        stub, rivals = AppointmentServiceStub(channel), AppointmentServiceStub(rivals_channel)
        await hold(stub, races)
        results = await asyncio.gather(*(run(stub, rivals, race) for race in races))
    both = [race.number for race, result in zip(races, results, strict=True) if all(result)]
    assert not both, "the confirm and the rival won"
    assert all(any(result) for result in results)
    # Each of them wins some of the races.
    assert len(set(results)) == 2
    with grpc.insecure_channel(service.address) as blocking:
        organizations = {
            race.organization: Organization(AppointmentServiceStub(blocking), race.organization)
            for race in races
        }
        for org in organizations.values():
            org.check_history()
        for race, (confirmed, _) in zip(races, results, strict=True):
            check_race(organizations[race.organization], race, confirmed=confirmed)


def check_race(org: Organization, race: Race, *, confirmed: bool) -> None:
    first, last = org.history(race.held).entries
    assert first.change == pb.HistoryEntry.CREATED
    recorded_at = last.recorded_at.ToDatetime(UTC)
    if confirmed:
        assert last.change == pb.HistoryEntry.CONFIRMED
        assert recorded_at < race.end
    else:
        assert last.change == pb.HistoryEntry.EXPIRED
        assert recorded_at >= race.end
        [booked] = org.history(race.rival).entries
        assert booked.revision > last.revision


async def test_of_a_confirm_and_a_rival_exactly_one_wins(
    create_database: CreateDatabase, start_service: StartProgram, start_worker: StartProgram
) -> None:
    """Through two services, while a worker records what has expired."""
    url = create_database()
    start_worker(DATABASE_URL=url)
    await race_all(start_service(DATABASE_URL=url), start_service(DATABASE_URL=url), RACES)


async def test_a_confirm_of_what_has_expired_is_noticed(
    create_database: CreateDatabase, start_service: StartProgram
) -> None:
    """Without the rule and the constraint behind it, both win."""
    url = create_database()
    without_expiry(url)
    without_constraint(url)
    service = start_service(DATABASE_URL=url)
    with pytest.raises(AssertionError, match="the confirm and the rival won"):
        await race_all(service, service, RACES // 4)


@pytest.mark.parametrize("order", [("confirm", "rival"), ("rival", "confirm")])
def test_in_one_batch_of_a_confirm_and_a_rival_exactly_one_wins(
    place: Place, order: tuple[str, str]
) -> None:
    """Batches that are sent while holds expire one after the other."""
    rival_wins = {"confirm": "HOLD_EXPIRED", "rival": "CREATED"}
    confirm_wins = {"confirm": "CONFIRMED", "rival": "TIME_RANGE_CONFLICT"}
    seen = []
    for number in range(200):
        end = datetime.now(UTC) + timedelta(milliseconds=random.uniform(1, 3))
        common: dict[str, object] = {
            "resource_id": f"{number}",
            "title": "",
            "attributes": {},
            "actor": "",
        }
        common |= {"validate_only": False, "start_time": "2030-01-07T09:00:00Z"}
        held = {
            **common,
            "kind": "UPSERT",
            "id": f"held {number}",
            "end_time": "2030-01-07T10:00:00Z",
            "hold_until": end.isoformat(),
            "max_hold": 60,
        }
        writes = {
            "confirm": {**common, "kind": "CONFIRM", "id": f"held {number}"},
            "rival": {
                **common,
                "kind": "UPSERT",
                "id": f"rival {number}",
                "end_time": "2030-01-07T09:30:00Z",
            },
        }
        if outcomes(place, [held]) != ["CREATED"]:
            continue  # it took longer than the hold
        while datetime.now(UTC) < end - timedelta(microseconds=random.uniform(0, 1000)):
            pass
        found = dict(zip(order, outcomes(place, [writes[each] for each in order]), strict=True))
        assert found in (rival_wins, confirm_wins)
        seen.append(found)
    assert rival_wins in seen
    assert confirm_wins in seen
    Organization(AppointmentServiceStub(place.channel), "o").check_history()


def outcomes(place: Place, writes: list[dict[str, object]]) -> list[str]:
    rows = place.sql.execute(
        "SELECT outcome FROM apply_writes('o', %s::json)", (json.dumps(writes),)
    )
    return [outcome for (outcome,) in rows]
