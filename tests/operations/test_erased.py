"""Accepted writes, and what was erased before or after they are applied; with each queue."""

import subprocess
import sys

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from google.longrunning import operations_pb2 as lro

from local.programs import ROOT, Program
from local.stack import base_environment
from service.operations.rabbitmq.messages import PARTITIONS
from tests.api import Organization, at, refusal, refused
from tests.conftest import StartProgram
from tests.observing import until
from tests.operations.consuming import Settings, waiting
from tests.operations.queues import Queue
from tests.operations.submissions import Submissions, metadata_of, response_of
from tests.operations.submitter import Submitter, problem

Kind = pb.HistoryEntry


@pytest.fixture
def soon(client: Submitter, organization: str) -> Submissions:
    return client.of(organization)


@pytest.fixture
def org(soon: Submissions) -> Organization:
    """The synchronous calls of the same organization."""
    return soon.org


def ended(soon: Submissions, *operations: lro.Operation) -> list[lro.Operation]:
    return [soon.wait(operation) for operation in operations]


def stored_text(settings: Settings, organization: str) -> str:
    """Return all that the tables have of an organization's operations and history."""
    tables = ("operations", "queued_operations", "appointment_history", "appointments")
    with psycopg.connect(settings["DATABASE_URL"]) as connection:
        return "\n".join(
            row[0]
            for table in tables
            for row in connection.execute(
                f"SELECT t::text FROM {table} t WHERE organization_id = %s".encode(),
                (organization,),
            )
        )


def history(org: Organization) -> list[tuple[str, str, str]]:
    return [
        (Kind.Change.Name(entry.change), entry.appointment.title, entry.actor)
        for entry in org.history("a").entries
    ]


def test_what_was_accepted_before_a_redaction_is_applied_without_its_text(
    soon: Submissions,
    org: Organization,
    queue: Queue,
    settings: Settings,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    org.upsert("a", 0, 30, title="Anna 0", attributes={"phone": 7})
    org.upsert("b", 100, 110)
    moved = soon.upsert("a", 30, 60, title="Anna 1", attributes={"phone": 8}, actor="Eve")
    place = {"organization_id": organization, "id": "a"}
    named = soon.submit(update={"appointment": {**place, "title": "Anna 2"}}, actor="Eve")
    patched = soon.submit(
        update={"appointment": place, "attributes_patch": {"phone": 9}}, actor="Eve"
    )
    other = soon.upsert("b", 110, 120, title="Ben", actor="Bob")
    assert org.redact("a").outcome == pb.REDACTED
    if queue.name == "postgres":
        assert "Anna" not in stored_text(settings, organization)
        assert "Eve" not in stored_text(settings, organization)
    # Nothing to erase, but what is queued is redacted again.
    late = soon.upsert("a", 60, 90, title="Anna 3", actor="Eve")
    assert org.redact("a").outcome == pb.UNCHANGED
    after = soon.upsert("a", 90, 100, title="Carl", actor="Carl")

    start_consumer()
    results = ended(soon, moved, named, patched, late, after)
    assert [response_of(result).title for result in results] == ["", "", "", "", "Carl"]
    assert response_of(results[0]).start == at(30)
    assert [pb.Outcome.Name(metadata_of(result).outcome) for result in results] == [
        "UPDATED",
        "UNCHANGED",
        "UNCHANGED",
        "UPDATED",
        "UPDATED",
    ]
    assert history(org) == [
        ("CREATED", "", ""),
        ("REDACTED", "", ""),
        ("UPDATED", "", ""),
        ("UPDATED", "", ""),
        ("UPDATED", "Carl", "Carl"),
    ]
    assert response_of(soon.wait(other)).title == "Ben"
    text = stored_text(settings, organization)
    assert "Anna" not in text
    assert "Eve" not in text
    assert "Bob" in text
    org.check_history()


def test_an_accepted_redaction_erases_what_was_accepted_before_it_alone(
    soon: Submissions, org: Organization, start_consumer: StartProgram
) -> None:
    operations = [
        soon.upsert("a", 0, 30, title="Anna"),
        soon.redact("a", idempotency_key="erase"),
        soon.upsert("a", 0, 30, title="Ben"),
        soon.redact("a", idempotency_key="erase"),
        soon.redact("nobody"),
    ]
    start_consumer()
    *done, repeated, missing = ended(soon, *operations)
    assert [response_of(operation).title for operation in done] == ["", "", "Ben"]
    assert metadata_of(done[1]).outcome == pb.REDACTED
    assert response_of(repeated) == response_of(done[1])
    assert problem(missing).reason == "APPOINTMENT_NOT_FOUND"
    assert history(org) == [("CREATED", "", ""), ("REDACTED", "", ""), ("UPDATED", "Ben", "")]
    # Also those that a worker takes later.
    later = [soon.redact("a"), soon.upsert("a", 0, 30, title="Carl")]
    assert [response_of(operation).title for operation in ended(soon, *later)] == ["", "Carl"]


def test_the_key_of_a_write_that_was_accepted_before_stays_used(
    soon: Submissions, org: Organization, start_consumer: StartProgram
) -> None:
    org.upsert("a", 0, 30, title="Anna", idempotency_key="first")
    again = soon.upsert("a", 0, 30, title="Anna", idempotency_key="first")
    fresh = soon.upsert("a", 30, 60, title="Anna", idempotency_key="second")
    org.redact("a")
    start_consumer()
    assert problem(soon.wait(again)).reason == "IDEMPOTENCY_KEY_REUSED"
    assert response_of(soon.wait(fresh)).start == at(30)
    for key in ("first", "second"):
        assert org.refused("a", 0, 30, title="Anna", idempotency_key=key).reason == (
            "IDEMPOTENCY_KEY_REUSED"
        )
    assert {entry.idempotency_key for entry in org.changes()} == {""}


def test_a_failed_write_is_stored_without_its_text(
    soon: Submissions,
    org: Organization,
    settings: Settings,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    worker = start_consumer()
    failed = soon.wait(soon.upsert("a", 0, 30, title="poison", actor="Eve"))
    assert problem(failed).reason == "OPERATION_FAILED"
    assert "poison" in stored_text(settings, organization)
    org.upsert("a", 0, 30)
    org.redact("a")
    assert "poison" not in stored_text(settings, organization)
    assert "redacted" in problem(soon.get(failed.name)).message
    assert not any("Eve" in line or '"poison"' in line for line in worker.log_lines())


def purge(settings: Settings, organization: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "service", "purge", organization, "--yes-delete", organization],
        cwd=ROOT,
        env={**base_environment(), "DATABASE_URL": settings["DATABASE_URL"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_what_was_accepted_before_a_purge_is_not_applied(
    soon: Submissions,
    client: Submitter,
    org: Organization,
    queue: Queue,
    queue_service: Program,
    settings: Settings,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    org.upsert("a", 0, 30, title="Anna")
    before = [soon.upsert(f"{n}", 60 + n, 61 + n, title="Anna") for n in range(5)]
    others = client.of(f"{organization}-2")
    other = others.upsert("a", 0, 30, title="Ben")
    purge(settings, organization)
    after = soon.upsert("b", 0, 30, title="Carl")

    start_consumer()
    assert response_of(soon.wait(after)).revision == 1
    assert response_of(others.wait(other)).title == "Ben"
    assert [entry.appointment.title for entry in org.changes()] == ["Carl"]
    assert "Anna" not in stored_text(settings, organization)
    if queue.name == "postgres":
        with pytest.raises(grpc.RpcError) as error:
            soon.get(before[0].name)
        assert refusal(error.value).reason == "OPERATION_NOT_FOUND"
    else:
        until(lambda: waiting(settings, *PARTITIONS) == 0)
    assert refused(org.get, "a").reason == "APPOINTMENT_NOT_FOUND"
