"""Operations that wait until a worker starts, with each queue."""

from appointments.v1 import appointment_pb2 as pb
from google.longrunning import operations_pb2 as lro

from tests.api import TIMEOUT
from tests.conftest import StartProgram
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
