"""A rollout: the programs of the last release and these, at the same time on one database.

The order is the documented one: the database is migrated while the programs of the last release
run, then they are replaced one by one. `old` and `new` are the programs of both.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.longrunning import operations_pb2
from google.longrunning.operations_pb2_grpc import OperationsStub
from standardwebhooks import Webhook

from local.postgres import EmbeddedPostgres, migrate
from local.programs import Program, StartError
from local.stack import DATABASE
from tests.api import (
    TIMEOUT,
    Organization,
    appointment,
    at,
    batch_request,
    refusal_of,
    refused,
    soon,
)
from tests.conftest import (
    StartProgram,
    listening,
    postgres_starts,
)
from tests.databases import Clusters, temporary_data_directory
from tests.observing import until
from tests.receiver import Receiver
from tests.rest_client import END, START, Client
from tests.upgrades.released import Release
from tests.verify.verified import check_sound
from tests.webhooks.hooked import QUICK, Hooked

# Programs and servers that start, with the machine busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# How many replace functions that the programs of the last release call.
MIGRATIONS_OF_FUNCTIONS = 5
BEFORE = "written before the migration"
DURING = "written during the migration"
PAIRS = [("old", "new"), ("new", "old")]
SERVICE_SETTINGS = {"WEBHOOK_ALLOWED_NETWORKS": QUICK["WEBHOOK_ALLOWED_NETWORKS"]}


class Writer(threading.Thread):
    """Writes one appointment after another until it is stopped.

    A write that is refused is sent again, and must then be the first one.
    """

    def __init__(self, org: Organization) -> None:
        super().__init__(daemon=True)
        self.written: list[str] = []
        self.refused: list[grpc.StatusCode] = []
        self._org = org
        self._stopping = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            try:
                written = self._org.upsert(f"{number}", number, number + 1, title="during")
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)
                self.refused.append(error.code())
            else:
                assert written.outcome == pb.CREATED
                self.written.append(f"{number}")
                number += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join(30)
        assert not self.is_alive()


@dataclass(frozen=True, slots=True)
class Rollout:
    """The programs of both by `old` and `new`; gateways by their own and their service's."""

    url: str
    services: dict[str, Program]
    workers: dict[str, Program]
    gateways: dict[tuple[str, str], Program]
    channels: dict[str, grpc.Channel]
    during: Writer
    start_new_worker: Callable[[], Program]

    def org(self, which: str, id: str) -> Organization:
        return Organization(AppointmentServiceStub(self.channels[which]), id)

    def operations(self, which: str) -> OperationsStub:
        return OperationsStub(self.channels[which])


@pytest.fixture(scope="module")
def release() -> Iterator[Release]:
    with temporary_data_directory() as directory:
        yield Release(directory / "released")


@pytest.fixture(scope="module")
def server(clusters: Clusters) -> Iterator[EmbeddedPostgres]:
    with postgres_starts(clusters) as start:
        yield start(migrated=False)


@pytest.fixture(scope="module")
def rollout(release: Release, server: EmbeddedPostgres, fork: StartProgram) -> Iterator[Rollout]:
    url = server.url(DATABASE)
    release.migrate(url)
    settings = {"DATABASE_URL": url}
    with ExitStack() as stack:
        services = {
            "old": listening(stack, release.program("service", {**settings, **SERVICE_SETTINGS}))
        }
        workers = {
            "old": listening(stack, release.program("service", {**settings, **QUICK}, "worker"))
        }
        channels = {"old": stack.enter_context(grpc.insecure_channel(services["old"].address))}
        before = Organization(AppointmentServiceStub(channels["old"]), BEFORE)
        for number in range(20):
            before.upsert(
                f"{number}", number, number + 1, title="before", idempotency_key=f"k{number}"
            )
        before.cancel("1")
        writer = Writer(Organization(before.stub, DURING))
        writer.start()
        until(lambda: len(writer.written) > 10)
        migrate(url)
        count = len(writer.written)
        until(lambda: len(writer.written) > count + 10)
        writer.stop()
        services["new"] = listening(stack, fork("service", {**settings, **SERVICE_SETTINGS}))

        def start_new_worker() -> Program:
            return listening(stack, fork("service", {**settings, **QUICK}, "worker"))

        workers["new"] = start_new_worker()
        channels["new"] = stack.enter_context(grpc.insecure_channel(services["new"].address))
        gateways = {}
        for of_service, service in services.items():
            address = {"SERVICE_ADDRESS": service.address}
            gateways["old", of_service] = listening(stack, release.program("gateway", address))
            gateways["new", of_service] = listening(stack, fork("gateway", address))
        yield Rollout(url, services, workers, gateways, channels, writer, start_new_worker)


def test_new_programs_refuse_the_schema_of_the_release(
    release: Release, server: EmbeddedPostgres, fork: StartProgram
) -> None:
    """Migrations come first. Nothing of the old schema is changed by the attempt."""
    url = server.create_database("not_migrated")
    release.migrate(url)
    for arguments in ((), ("worker",)):
        program = fork("service", {"DATABASE_URL": url}, *arguments)
        with pytest.raises(StartError, match=r"lacks the migration.*run 'make migrate' first"):
            program.wait_until_listening()
    with ExitStack() as stack:
        old = listening(stack, release.program("service", {"DATABASE_URL": url}))
        with grpc.insecure_channel(old.address) as channel:
            Organization(AppointmentServiceStub(channel), "o").upsert("a", 0, 1)


def test_writes_go_on_during_the_migration(rollout: Rollout) -> None:
    # A function that is replaced in the middle of a call, of which nothing is written then.
    assert set(rollout.during.refused) <= {grpc.StatusCode.INTERNAL}
    assert len(rollout.during.refused) <= MIGRATIONS_OF_FUNCTIONS
    for which in ("old", "new"):
        org = rollout.org(which, DURING)
        assert set(org.listed()) == set(rollout.during.written)
        org.check_history()


def test_what_was_written_before_is_as_it_was(rollout: Rollout) -> None:
    old, new = (rollout.org(which, BEFORE) for which in ("old", "new"))
    assert old.listed() == new.listed()
    assert old.changes() == new.changes()
    new.check_history()
    # The digests of idempotency keys have kept their meaning.
    again = new.upsert("3", 3, 4, title="before", idempotency_key="k3")
    assert again.outcome == pb.CREATED
    other = new.refused("3", 3, 5, title="before", idempotency_key="k3")
    assert other.reason == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_writes_of_both_follow_the_same_rules(
    rollout: Rollout, first: str, second: str, organization: str
) -> None:
    one, two = (rollout.org(which, organization) for which in (first, second))
    created = one.upsert(
        "a", 0, 10, title="one", attributes={"n": 1.5}, resource_id="r", idempotency_key="key"
    )
    assert created.outcome == pb.CREATED
    assert two.get("a") == created.appointment
    # Repetitions.
    assert (
        two.upsert(
            "a", 0, 10, title="one", attributes={"n": 1.5}, resource_id="r", idempotency_key="key"
        )
        == created
    )
    unchanged = two.upsert("a", 0, 10, title="one", attributes={"n": 1.5}, resource_id="r")
    assert unchanged.outcome == pb.UNCHANGED
    assert two.refused("a", 0, 11, idempotency_key="key").reason == "IDEMPOTENCY_KEY_REUSED"
    # Conflicts.
    conflict = two.refused("b", 9, 12, resource_id="r")
    assert conflict.reason == "TIME_RANGE_CONFLICT"
    assert [each.id for each in conflict.conflicts] == ["a"]
    two.upsert("b", 10, 12, resource_id="r")
    assert one.refused("a", 0, 11, resource_id="r").reason == "TIME_RANGE_CONFLICT"
    # Etags and createOnly.
    etag = created.appointment.etag
    moved = two.upsert("a", 1, 10, title="two", resource_id="r", etag=etag)
    assert moved.outcome == pb.UPDATED
    assert one.refused("a", 2, 10, resource_id="r", etag=etag).reason == "ETAG_MISMATCH"
    assert (
        one.upsert("a", 2, 10, resource_id="r", etag=moved.appointment.etag).appointment.version
        == 3
    )
    assert two.refused("a", 0, 1, create_only=True).reason == "APPOINTMENT_EXISTS"
    # The caller's times.
    one.upsert("c", 20, 30, updated_at=at(10))
    assert two.upsert("c", 21, 30, updated_at=at(9)).outcome == pb.STALE
    assert two.cancel("c", updated_at=at(12)).outcome == pb.CANCELLED
    assert one.upsert("c", 22, 30, updated_at=at(12)).outcome == pb.STALE
    assert one.upsert("c", 22, 30, updated_at=at(13)).outcome == pb.UPDATED
    # Dry runs, invalid fields, what is not there.
    assert two.upsert("d", 40, 50, validate_only=True).outcome == pb.CREATED
    assert one.refused("d", 50, 40).reason == "INVALID_FIELD"
    assert refused(one.cancel, "d").reason == "APPOINTMENT_NOT_FOUND"
    # Batches.
    batch = batch_request(
        [
            appointment(organization, "e", 60, 70),
            appointment(organization, "f", 65, 75),
            appointment(organization, "g", 70, 80),
        ]
    )
    results = two.stub.BatchUpsertAppointments(batch, timeout=TIMEOUT).results
    assert [result.HasField("error") for result in results] == [False, True, False]
    again = one.stub.BatchUpsertAppointments(batch, timeout=TIMEOUT).results
    assert [result.outcome for result in again] == [pb.UNCHANGED, 0, pb.UNCHANGED]
    assert one.cancel("e").outcome == pb.CANCELLED
    assert two.cancel("e").outcome == pb.UNCHANGED
    for each in (one, two):
        each.check_history()
    assert one.changes() == two.changes()


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_reads_of_both_are_equal(
    rollout: Rollout, first: str, second: str, organization: str
) -> None:
    one, two = (rollout.org(which, organization) for which in (first, second))
    for number in range(12):
        (one, two)[number % 2].upsert(
            f"{number}", 2 * number, 2 * number + 1, resource_id=f"r{number % 3}"
        )
    two.upsert("0", 100, 101)
    one.cancel("1")
    middle = one.changes()[6].recorded_at
    filters: list[dict[str, Any]] = [
        {},
        {"resource_id": "r1"},
        {"from": at(5), "to": at(12)},
        {"include_cancelled": True},
        {"as_of_revision": 7},
        {"as_of_time": middle},
        {"min_revision": 14},
    ]
    for each in filters:
        pages = [org.list_page(page_size=4, **each) for org in (one, two)]
        assert list(pages[0].appointments) == list(pages[1].appointments)
        assert pages[0].revision == pages[1].revision
        # The next page at the other one.
        if token := pages[0].next_page_token:
            here, there = (
                org.list_page(page_size=4, page_token=token, **each) for org in (one, two)
            )
            assert list(here.appointments) == list(there.appointments)
        assert one.listed(**each) == two.listed(**each)
    assert one.get("0", as_of_revision=1) == two.get("0", as_of_revision=1)
    histories = [org.history("0", page_size=1) for org in (one, two)]
    assert histories[0].entries == histories[1].entries
    token = histories[0].next_page_token
    assert two.history("0", page_size=1, page_token=token).entries[0].revision == 13
    assert one.changes(3, page_size=2) == two.changes(3, page_size=2)
    request = rpc.ListChangesRequest(organization_id=organization, page_size=5)
    request.page_token = one.stub.ListChanges(request, timeout=TIMEOUT).next_page_token
    assert two.stub.ListChanges(request, timeout=TIMEOUT).entries[0].revision == 6


def test_watchers_of_both_get_every_change(rollout: Rollout, organization: str) -> None:
    old, new = (rollout.org(which, organization) for which in ("old", "new"))
    old.upsert("a", 0, 1)
    request = rpc.WatchAppointmentsRequest(organization_id=organization)
    streams = [org.stub.WatchAppointments(request, timeout=TIMEOUT) for org in (old, new)]
    new.upsert("b", 1, 2)
    old.cancel("a")
    seen: list[list[pb.HistoryEntry]] = []
    for stream in streams:
        entries: list[pb.HistoryEntry] = []
        for message in stream:
            entries.extend(message.entries)
            if message.revision == 3:
                break
        stream.cancel()
        seen.append(entries)
    assert seen[0] == seen[1] == new.changes()


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_operations_of_one_are_done_and_read_by_both(
    rollout: Rollout, first: str, second: str, organization: str
) -> None:
    one, two = (rollout.org(which, organization) for which in (first, second))
    operations = []
    for number in range(6):
        request = rpc.SubmitAppointmentRequest()
        if number < 4:
            request.upsert.appointment.CopyFrom(
                appointment(organization, f"{number}", number, number + 1)
            )
        elif number == 4:
            request.cancel.organization_id, request.cancel.id = organization, "0"
        else:
            request.upsert.appointment.CopyFrom(appointment(organization, "x", 1, 2))
        org = (one, two)[number % 2]
        operations.append(org.stub.SubmitAppointment(request, timeout=TIMEOUT).name)
    for name in operations:
        request = operations_pb2.WaitOperationRequest(name=name)
        request.timeout.FromSeconds(20)
        done = [
            rollout.operations(which).WaitOperation(request, timeout=TIMEOUT)
            for which in (second, first)
        ]
        assert done[0].done
        if name != operations[-1]:
            assert done[0] == done[1]
            assert done[0].HasField("response")
            continue
        # These programs also say which resources are taken.
        for each in done:
            error = refusal_of(each.error, grpc.StatusCode.ALREADY_EXISTS)
            assert error.reason == "TIME_RANGE_CONFLICT"
            assert [conflict.id for conflict in error.conflicts] == ["1"]
    listed = [
        rollout.operations(which).ListOperations(
            operations_pb2.ListOperationsRequest(name=f"organizations/{organization}"),
            timeout=TIMEOUT,
        )
        for which in ("old", "new")
    ]
    for page in listed:
        assert [each.name for each in page.operations] == operations[::-1]
    two.check_history()


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_webhooks_of_both(rollout: Rollout, first: str, second: str, organization: str) -> None:
    with Receiver() as receiver:
        one, two = (
            Hooked(
                Client(rollout.gateways[which, which], organization),
                rollout.org(which, organization),
                receiver,
            )
            for which in (first, second)
        )
        hook = one.hook("/hook", headers=[{"name": "Authorization", "value": "mine"}])
        one.write(3)
        two.write(3, first=3)
        until(lambda: two.reached(hook) == 6)
        assert {**one.read(hook)} == two.read(hook)
        for received in receiver.at("/hook"):
            assert received.headers["Authorization"] == "mine"
            Webhook(hook["secret"]).verify(received.text, dict(received.headers))
        assert one.deliveries(hook) == two.deliveries(hook)
        two.replace(hook, url=receiver.url("/moved"))
        one.write(1, first=6)
        until(lambda: one.reached(hook) == 7)
        assert [received.revision for received in receiver.at("/moved")] == [7]
        two.replay(hook, 5)
        until(lambda: [each.revision for each in receiver.at("/moved")][1:] == [6, 7])
        assert one.rest.call("DELETE", f"/webhooks/{hook['id']}").status == 200
        assert two.rest.call("GET", "/webhooks").json["webhooks"] == []


@pytest.mark.parametrize("of_service", ["old", "new"])
@pytest.mark.parametrize("of_gateway", ["old", "new"])
def test_gateways_of_both_work_with_services_of_both(
    rollout: Rollout, of_gateway: str, of_service: str, organization: str
) -> None:
    rest = Client(rollout.gateways[of_gateway, of_service], organization)
    created = rest.upsert("a", title="A", Idempotency_Key="key", X_Actor="somebody")
    assert (created.status, created.json["version"]) == (201, 1)
    assert rest.upsert("a", title="A", Idempotency_Key="key").status == 201
    assert rest.upsert("b").json["code"] == "TIME_RANGE_CONFLICT"
    assert rest.upsert("a", title="B", If_Match='"zz"').status == 412
    etag = created.headers["ETag"]
    assert rest.upsert("a", title="B", If_Match=etag).status == 200
    read = rest.call("GET", "/appointments/a")
    assert read.json["title"] == "B"
    assert rest.call("GET", "/appointments/a", If_None_Match=read.headers["ETag"]).status == 304
    assert rest.call("GET", "/appointments/none").status == 404
    assert rest.post(b"{", "").json["code"] == "MALFORMED_REQUEST"
    assert len(rest.stored()) == 1
    history = rest.call("GET", "/appointments/a/history").json["entries"]
    assert [entry["actor"] for entry in history] == ["somebody", ""]
    accepted = rest.upsert("c", resourceId="other", Prefer="respond-async")
    assert accepted.status == 202
    done = rest.send("GET", f"{accepted.headers['Location']}&wait=20s")
    assert done.json["done"], done.json
    assert rest.call("DELETE", "/appointments/a").json["state"] == "CANCELLED"
    assert len(rest.call("GET", "/changes").json["entries"]) == 4
    wanted = {"organizationId": organization, "id": "d", "start": START, "end": END}
    batch = {"requests": [{"appointment": wanted}]}
    answer = rest.send(
        "POST",
        "/api/appointments:batchUpsert",
        json.dumps(batch).encode(),
        Content_Type="application/json",
    )
    assert answer.json["results"][0]["outcome"] == "CREATED"


def test_new_features_book_nothing_twice(rollout: Rollout, organization: str) -> None:
    """Callers should wait with them until the last program is replaced. If they do not, then:"""
    old, new = (rollout.org(which, organization) for which in ("old", "new"))
    new.upsert("held", 0, 10, resource_id="r", hold_until=soon(600))
    new.upsert("both", 20, 30, resource_id="r", additional_resource_ids=["s"])
    for id, start, resource in (("a", 5, "r"), ("b", 25, "r"), ("c", 25, "s")):
        assert (
            old.refused(id, start, start + 1, resource_id=resource).reason == "TIME_RANGE_CONFLICT"
        )
    old.upsert("d", 30, 40, resource_id="s")
    # The old service cannot read a confirmation, the new one can; neither has trouble with others.
    new.confirm("held")
    new.check_history()
    with pytest.raises(grpc.RpcError) as failed:
        old.changes()
    assert isinstance(failed.value, grpc.Call)
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert rollout.org("old", BEFORE).changes() == rollout.org("new", BEFORE).changes()


def test_new_rows_hold_up_an_old_worker_in_their_organization_only(
    rollout: Rollout, organization: str
) -> None:
    """A worker of this version continues."""
    gateway = rollout.gateways["new", "new"]
    with Receiver() as receiver:
        assert rollout.workers["new"].stop() == 0
        with_new_rows, other = (
            Hooked(Client(gateway, id), rollout.org("new", id), receiver)
            for id in (organization, f"{organization}, another")
        )
        hooks = [each.hook(f"/{path}") for path, each in (("new", with_new_rows), ("other", other))]
        with_new_rows.org.upsert("held", 0, 10, hold_until=soon(600))
        with_new_rows.org.confirm("held")
        other.write(2)
        until(lambda: other.reached(hooks[1]) == 2)
        until(lambda: any(entry["error"] for entry in with_new_rows.deliveries(hooks[0])))
        assert with_new_rows.reached(hooks[0]) < 2
        # Both read the queue by functions, so operations of any kind are applied.
        request = rpc.SubmitAppointmentRequest()
        request.confirm.organization_id, request.confirm.id = organization, "held"
        name = with_new_rows.org.stub.SubmitAppointment(request, timeout=TIMEOUT).name
        waiting = operations_pb2.WaitOperationRequest(name=name)
        waiting.timeout.FromSeconds(20)
        assert (
            rollout.operations("new").WaitOperation(waiting, timeout=TIMEOUT).HasField("response")
        )
        assert rollout.workers["old"].stop() == 0
        rollout.workers["new"] = rollout.start_new_worker()
        until(lambda: with_new_rows.reached(hooks[0]) == 2)


def test_everything_is_sound(rollout: Rollout, capsys: pytest.CaptureFixture[str]) -> None:
    check_sound(rollout.url, capsys)
