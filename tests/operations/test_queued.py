"""Operations that wait until a worker starts, with each queue."""

from dataclasses import replace

from appointments.v1 import appointment_pb2 as pb
from google.longrunning import operations_pb2 as lro

from tests.api import TIMEOUT, refused, soon
from tests.conftest import StartProgram
from tests.observing import until
from tests.operations.submissions import metadata_of, response_of
from tests.operations.submitter import Submitter, problem


def test_results_are_in_order_and_those_of_synchronous_calls(
    client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    names = [
        client.upsert(organization, "a", 0, 10, title="Cut"),
        client.upsert(organization, "b", 5, 15),
        client.upsert(organization, "a", 0, 10, title="Cut"),
        client.upsert(organization, "a", 0, 20),
        client.cancel(organization, "a"),
        client.cancel(organization, "nowhere"),
    ]
    assert not any(client.get(name).done for name in names)
    assert client.organization(organization).changes() == []
    start_consumer()
    ended = [client.ended(name) for name in names]
    org = client.organization(organization)
    assert [metadata_of(ended[n]).outcome for n in (0, 2, 3, 4)] == [
        pb.CREATED,
        pb.UNCHANGED,
        pb.UPDATED,
        pb.CANCELLED,
    ]
    assert response_of(ended[4]) == org.get("a")
    taken = problem(ended[1])
    assert (taken.reason, [each.id for each in taken.conflicts]) == ("TIME_RANGE_CONFLICT", ["a"])
    assert problem(ended[5]).reason == "APPOINTMENT_NOT_FOUND"
    assert [entry.appointment for entry in org.changes()] == [
        response_of(ended[n]) for n in (0, 3, 4)
    ]
    org.check_history()


def test_a_worker_of_any_queue_records_expired_holds(
    client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    org = client.organization(organization)
    org.upsert("a", 0, 10, hold_until=soon(2.5))
    start_consumer()
    until(lambda: len(org.changes()) > 1)
    assert [entry.change for entry in org.changes()] == [
        pb.HistoryEntry.CREATED,
        pb.HistoryEntry.EXPIRED,
    ]
    org.check_history()


def test_holds_and_confirms_end_as_synchronous_ones_do(
    client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    later, org = client.of(organization), client.organization(organization)
    org.upsert("firm", 50, 60)
    org.upsert("short", 60, 70, hold_until=(end := soon(2.5)))
    operations = [
        later.upsert("a", 0, 10, hold_until=soon(600)),
        later.upsert("b", 5, 15),
        later.confirm("a"),
        later.confirm("a"),
        later.confirm("nowhere"),
        later.upsert("firm", 50, 60, hold_until=soon(600)),
        # Valid when it is accepted, not when it is applied.
        later.upsert("late", 20, 30, hold_until=end),
        later.upsert("far", 30, 40, hold_until=soon(2 * 24 * 3600)),
        later.confirm("short"),
    ]
    until(lambda: org.get("short").state == pb.Appointment.EXPIRED)
    start_consumer()
    ended = [later.wait(operation) for operation in operations]
    held, confirmed = response_of(ended[0]), response_of(ended[2])
    assert (held.state, confirmed.state) == (pb.Appointment.HELD, pb.Appointment.ACTIVE)
    assert [metadata_of(ended[n]).outcome for n in (0, 2, 3)] == [
        pb.CREATED,
        pb.CONFIRMED,
        pb.UNCHANGED,
    ]
    assert confirmed == response_of(ended[3]) == org.get("a")
    problems = [problem(ended[n]) for n in (1, 4, 5, 6, 7, 8)]
    assert [each.reason for each in problems] == [
        "TIME_RANGE_CONFLICT",
        "APPOINTMENT_NOT_FOUND",
        "APPOINTMENT_FIRM",
        "INVALID_FIELD",
        "INVALID_FIELD",
        "HOLD_EXPIRED",
    ]
    for number, call in (
        (2, lambda: org.upsert("firm", 50, 60, hold_until=soon(600))),
        (3, lambda: org.upsert("late", 20, 30, hold_until=end)),
        (5, lambda: org.confirm("short")),
    ):
        # The very same error, its revision apart.
        assert replace(refused(call), organization_revision=None) == problems[number]
    until(lambda: org.history("short").entries[-1].change == pb.HistoryEntry.EXPIRED)
    org.check_history()


def test_wait_returns_when_the_operation_is_done_or_the_time_is_over(
    client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    later = client.of(organization)
    accepted = later.upsert("a", 0, 10)
    for seconds in (0, 0.2):
        waited = later.wait(accepted, timeout=seconds)
        assert (waited.name, waited.done) == (accepted.name, False)
    call = later.operations.WaitOperation.future(
        lro.WaitOperationRequest(name=accepted.name), timeout=TIMEOUT
    )
    assert not call.done()
    start_consumer()
    done = call.result()
    assert done.done
    assert later.wait(done, timeout=0) == done
    assert dict(call.trailing_metadata())["organization-revision"] == "1"


def test_wait_ends_before_the_callers_own_deadline(client: Submitter, organization: str) -> None:
    later = client.of(organization)
    accepted = later.upsert("a", 0, 10)
    request = lro.WaitOperationRequest(name=accepted.name)
    waited = later.operations.WaitOperation(request, timeout=1.0)
    assert (waited.name, waited.done) == (accepted.name, False)
