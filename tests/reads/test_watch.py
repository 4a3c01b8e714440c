"""Watching an organization: the changes after a revision, then every new change."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import grpc
import pytest
from appointments.relay.v1 import relay_pb2
from appointments.relay.v1.relay_pb2_grpc import RelayServiceStub
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_pb2 import Appointment, HistoryEntry
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program
from local.stack import DATABASE
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.rows import Row
from service.reads.store import ReadStore
from service.reads.watch import MAX_ENTRIES, MAX_MESSAGE_BYTES, Watch
from tests.api import Organization, appointment, batch_request, refusal, soon
from tests.conftest import OwnPostgres, StartProgram
from tests.databases import database_of
from tests.load import UNCOMPRESSED, Load
from tests.observing import metric, until

ENTRY_BYTES = 15_000


class Watcher:
    """A call of WatchAppointments as a context manager, which cancels it at the end."""

    def __init__(
        self, stub: AppointmentServiceStub, organization: str, after: int = 0, **filters: Any
    ) -> None:
        request = rpc.WatchAppointmentsRequest(
            organization_id=organization, after_revision=after, **filters
        )
        self._call: Any = stub.WatchAppointments(request, timeout=60)

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._call.cancel()

    def message(self) -> rpc.WatchAppointmentsResponse:
        message: rpc.WatchAppointmentsResponse = next(self._call)
        return message

    def entries_up_to(self, revision: int) -> list[HistoryEntry]:
        entries: list[HistoryEntry] = []
        seen = -1
        while seen < revision:
            message = self.message()
            entries += message.entries
            seen = message.revision
        return entries

    def end(self) -> grpc.RpcError:
        """Return the error that ends the stream."""
        try:
            while True:
                self.message()
        except grpc.RpcError as error:
            return error


@contextmanager
def connected(service: Program) -> Iterator[AppointmentServiceStub]:
    with grpc.insecure_channel(service.address, UNCOMPRESSED) as channel:
        yield AppointmentServiceStub(channel)


def write_large(org: Organization, count: int) -> None:
    """Make more changes than the buffers of a reader can hold."""
    for start in range(0, count, 50):
        request = batch_request(
            appointment(
                org.id, f"{minute}", minute, minute + 1, attributes={"a": "x" * ENTRY_BYTES}
            )
            for minute in range(start, start + 50)
        )
        org.stub.BatchUpsertAppointments(request, timeout=30)


def test_first_what_there_is_then_what_changes(org: Organization) -> None:
    org.upsert("a", 0, 1)
    org.upsert("b", 1, 2)
    with Watcher(org.stub, org.id) as all_of_it, Watcher(org.stub, org.id, 1) as rest:
        assert all_of_it.entries_up_to(2) == org.changes()
        assert rest.entries_up_to(2) == org.changes(1)
        started = time.monotonic()
        org.cancel("a")
        [cancelled] = all_of_it.message().entries
        assert time.monotonic() - started < 1
        assert [cancelled] == org.changes(2) == list(rest.message().entries)
        assert cancelled.change == HistoryEntry.CANCELLED


def test_watchers_get_confirmed_and_expired_holds(org: Organization) -> None:
    with Watcher(org.stub, org.id) as watcher:
        org.upsert("a", 0, 1, hold_until=soon(60))
        org.confirm("a")
        org.upsert("b", 1, 2, hold_until=soon(2.5))
        until(lambda: org.get("b").state == Appointment.EXPIRED)
        org.upsert("c", 1, 2)
        entries = watcher.entries_up_to(5)
    assert entries == org.changes()
    assert [entry.change for entry in entries][1::2] == [
        HistoryEntry.CONFIRMED,
        HistoryEntry.EXPIRED,
    ]


def test_the_first_message_comes_at_once_even_without_entries(org: Organization) -> None:
    with Watcher(org.stub, org.id) as never_written:
        assert never_written.message() == rpc.WatchAppointmentsResponse()
        org.upsert("a", 0, 1)
        assert never_written.message().revision == 1
    with Watcher(org.stub, org.id, 1) as up_to_date:
        assert up_to_date.message() == rpc.WatchAppointmentsResponse(revision=1)


def test_nothing_of_other_organizations_is_seen(org: Organization) -> None:
    other = Organization(org.stub, f"{org.id}-other")
    with Watcher(org.stub, org.id) as watcher:
        watcher.message()
        other.upsert("a", 0, 1)
        org.upsert("b", 0, 1)
        [entry] = watcher.message().entries
        assert entry.appointment.organization_id == org.id


def test_no_gap_and_no_repetition_while_many_write(
    service: Program, org: Organization, organization: str
) -> None:
    """Watchers start at different revisions, so that many pass from history to new changes."""
    with Load(service.address, organization, writers=4) as load, ThreadPoolExecutor(24) as pool:
        until(lambda: len(load.accepted) > 300)

        def watch(number: int) -> tuple[int, list[int]]:
            until(lambda: len(load.accepted) > 300 + number * 20)
            # At and near the organization's current revision.
            latest = org.changes(len(load.accepted) - 1)[-1].revision
            after = latest - random.Random(number).choice([0, 0, 1, 2, 50, latest])
            with connected(service) as stub, Watcher(stub, organization, after) as watcher:
                entries = watcher.entries_up_to(latest + 300)
            return after, [entry.revision for entry in entries]

        for after, revisions in pool.map(watch, range(24)):
            assert revisions == list(range(after + 1, after + 1 + len(revisions)))
        load.stop()


def test_messages_are_bounded_in_number_and_bytes(org: Organization) -> None:
    write_large(org, 100)
    for minute in range(1000, 1000 + 2 * MAX_ENTRIES, 100):
        small = (appointment(org.id, f"{n}", n, n + 1) for n in range(minute, minute + 100))
        org.stub.BatchUpsertAppointments(batch_request(small), timeout=30)
    latest = 100 + 2 * MAX_ENTRIES
    sizes, counts, seen = [], [], 0
    with Watcher(org.stub, org.id) as watcher:
        while seen < latest:
            message = watcher.message()
            assert [entry.revision for entry in message.entries] == list(
                range(seen + 1, message.revision + 1)
            )
            seen = message.revision
            sizes.append(message.ByteSize())
            counts.append(len(message.entries))
    assert max(sizes) < MAX_MESSAGE_BYTES + 1024
    assert max(counts) == MAX_ENTRIES


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"after_revision": 2}, {"after_revision"}),
        ({"after_revision": -1}, {"after_revision"}),
        ({"organization_id": ""}, {"organization_id"}),
        (
            {"organization_id": "x" * 129, "after_revision": -1},
            {"organization_id", "after_revision"},
        ),
    ],
)
def test_what_cannot_be_watched_is_refused(
    org: Organization, fields: dict[str, Any], names: set[str]
) -> None:
    org.upsert("a", 0, 1)
    request = rpc.WatchAppointmentsRequest(**{"organization_id": org.id, **fields})
    with pytest.raises(grpc.RpcError) as caught:
        next(org.stub.WatchAppointments(request, timeout=10))
    refused = refusal(caught.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refused.fields.keys() == names
    assert refused.organization_revision == (1 if fields == {"after_revision": 2} else None)


def test_the_surroundings_are_those_of_every_call(service: Program, org: Organization) -> None:
    request = rpc.WatchAppointmentsRequest(organization_id=org.id, after_revision=5)
    metadata = (("x-request-id", f"r-{org.id}"),)
    call: Any = org.stub.WatchAppointments(request, timeout=10, metadata=metadata)
    with pytest.raises(grpc.RpcError):
        next(call)
    assert dict(call.trailing_metadata())["x-request-id"] == f"r-{org.id}"
    line = service.wait_for_event(lambda event: event.get("request_id") == f"r-{org.id}")
    assert line["method"] == "WatchAppointments"
    assert (line["code"], line["reason"]) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert line["organization"] == org.id
    with pytest.raises(grpc.RpcError) as caught:
        next(org.stub.WatchAppointments(request, metadata=(("x-actor", "x" * 257),)))
    assert refusal(caught.value).fields.keys() == {"x-actor"}


def test_a_caller_that_goes_away_frees_its_place(
    start_service: StartProgram, organization: str
) -> None:
    service = start_service(MAX_WATCHERS="2")

    def watchers() -> float:
        return metric(service, "appointments_watchers")

    def entries() -> float:
        return metric(service, "appointments_watched_entries_total")

    with connected(service) as stub:
        Organization(stub, organization).upsert("a", 0, 1)
        with Watcher(stub, organization) as first, Watcher(stub, organization) as second:
            first.message()
            second.message()
            # What was received is counted a moment later, if its caller is still there.
            until(lambda: entries() == 2)
            with Watcher(stub, organization) as third:
                refused = refusal(third.end())
            assert (refused.code, refused.reason, refused.retry_after) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "OVERLOADED",
                1,
            )
            assert watchers() == 2
        until(lambda: watchers() == 0)
        with Watcher(stub, organization) as again:
            again.message()
            until(lambda: entries() == 3)
    left = service.wait_for_event(lambda event: event.get("code") == "CANCELLED")
    assert (left["method"], left["entries"]) == ("WatchAppointments", 1)


def test_a_slow_reader_holds_one_message_and_nobody_else(
    start_service: StartProgram, organization: str
) -> None:
    service = start_service()
    count = 1500
    with connected(service) as stub, connected(service) as slow:
        org = Organization(stub, organization)
        write_large(org, count)
        with Watcher(slow, organization) as slow_watcher:
            seen = slow_watcher.message().revision
            with Watcher(stub, organization) as watcher:
                assert len(watcher.entries_up_to(count)) == count
                sent = metric(service, "appointments_watched_entries_total")
                org.upsert("live", 5000, 5001)
                assert watcher.message().revision == count + 1
            # gRPC buffers only a part of the changes.
            assert sent < 1.6 * count
            assert len(slow_watcher.entries_up_to(count + 1)) == count + 1 - seen


@pytest.mark.parametrize("slow", [False, True], ids=["readers", "a slow reader"])
def test_sigterm_ends_streams_at_once(
    start_service: StartProgram, organization: str, slow: bool
) -> None:
    service = start_service()
    with connected(service) as stub:
        org = Organization(stub, organization)
        if slow:
            write_large(org, 1000)
        else:
            org.upsert("a", 0, 1)
        with Watcher(stub, organization) as watcher:
            watcher.message()
            if slow:
                # It has sent what the buffers can hold, and waits.
                sent = -1.0
                while sent != (sent := metric(service, "appointments_watched_entries_total")):
                    time.sleep(0.3)
            started = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            if not slow:
                ended = refusal(watcher.end())
                assert (ended.code, ended.reason) == (
                    grpc.StatusCode.UNAVAILABLE,
                    "SERVICE_STOPPING",
                )
                assert ended.organization_revision == 1
            assert service.process.wait(timeout=20) == 0
            assert time.monotonic() - started < 5


def test_a_watcher_goes_on_with_a_service_that_was_killed(
    start_service: StartProgram, org: Organization
) -> None:
    service = start_service()
    org.upsert("a", 0, 1)
    with connected(service) as stub, Watcher(stub, org.id) as watcher:
        seen = watcher.message().revision
        service.kill()
        ended = watcher.end()
        assert isinstance(ended, grpc.Call)
        assert ended.code() is grpc.StatusCode.UNAVAILABLE
    org.upsert("b", 1, 2)
    with connected(start_service()) as stub, Watcher(stub, org.id, seen) as watcher:
        assert [entry.revision for entry in watcher.message().entries] == [2]


def test_a_database_away_is_waited_for(
    own_postgres: OwnPostgres, start_service: StartProgram, organization: str
) -> None:
    postgres = own_postgres()
    patient = start_service(DATABASE_URL=postgres.url(DATABASE))
    hasty = start_service(DATABASE_URL=postgres.url(DATABASE), WATCH_PATIENCE="1")
    with connected(patient) as stub, connected(hasty) as hasty_stub:
        org = Organization(stub, organization)
        org.upsert("a", 0, 1)
        with (
            Watcher(stub, organization) as watcher,
            Watcher(hasty_stub, organization) as hasty_watcher,
        ):
            watcher.message()
            hasty_watcher.message()
            postgres.stop(immediate=True)
            ended = refusal(hasty_watcher.end())
            assert (ended.code, ended.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "DATABASE_UNAVAILABLE",
            )
            postgres.start()

            def written() -> bool:
                try:
                    org.upsert("b", 1, 2)
                except grpc.RpcError:
                    return False
                return True

            until(written)
            assert [entry.revision for entry in watcher.message().entries] == [2]
            assert metric(patient, "appointments_watchers") == 1
        until(lambda: metric(patient, "appointments_watchers") == 0)


class CountingDatabase(Database):
    """A real database that records its queries."""

    asked: list[Any]

    async def fetch_across(
        self,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        self.asked.append(parameters)
        return await super().fetch_across(statement, parameters, raw=raw)


async def test_one_question_for_all_and_none_when_nobody_watches(
    database_url: str, org: Organization
) -> None:
    metrics = Metrics()
    database = database_of(CountingDatabase, database_url, metrics, connections=2, max_waiting=100)
    database.asked = []
    reads = ReadStore(database, None)
    watch = Watch(database, reads, metrics, interval=0.01, outage_timeout=5, max_watchers=100)
    async with database:
        watchers = [watch.changes(f"{org.id}-{n}", after=0) for n in range(10)]
        shared = [watch.changes(org.id, after=0) for _ in range(20)]
        for watcher in (*watchers, *shared):
            await anext(watcher)
        database.asked.clear()
        news = [asyncio.ensure_future(anext(watcher)) for watcher in shared]
        await asyncio.to_thread(org.upsert, "a", 0, 1)
        assert {(await one).response.revision for one in news} == {1}
        polls = [len(asked[0]) for asked in database.asked if isinstance(asked, tuple)]
        assert set(polls) == {11}
        # The page for which twenty watchers waited was read once.
        assert len(database.asked) == len(polls) + 1
        for watcher in (*watchers, *shared):
            await watcher.aclose()
        await asyncio.sleep(0.1)  # the question that was being asked
        database.asked.clear()
        await asyncio.sleep(0.1)
        assert database.asked == []


def test_the_relay_takes_no_method_with_a_stream(channel: grpc.Channel, org: Organization) -> None:
    request = rpc.WatchAppointmentsRequest(organization_id=org.id).SerializeToString()
    method = "/appointments.v1.AppointmentService/WatchAppointments"
    call = relay_pb2.Call(number=1, method=method, request=request)
    messages = iter([relay_pb2.RelayRequest(calls=[call])])
    [response] = RelayServiceStub(channel).Relay(messages, timeout=10)
    [answer] = response.answers
    assert answer.error.code == grpc.StatusCode.UNIMPLEMENTED.value[0]


def test_grpcurl_watches(service: Program, org: Organization) -> None:
    org.upsert("a", 0, 1)
    command = [str(Path(sys.executable).with_name("grpcurl")), "-plaintext", "-max-time", "1"]
    command += ["-d", json.dumps({"organizationId": org.id}), service.address]
    command += ["appointments.v1.AppointmentService/WatchAppointments"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["revision"] == "1"
    assert "DeadlineExceeded" in done.stderr
