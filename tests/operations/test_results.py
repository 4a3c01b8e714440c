"""The results of operations, by gRPC, with each queue."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from google.longrunning import operations_pb2 as lro
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from google.rpc.status_pb2 import Status

from service.operations.operation import parent_name
from tests.api import TIMEOUT, Organization, appointment, refusal
from tests.api import soon as in_seconds
from tests.conftest import StartProgram, listening
from tests.operations.queues import Queue
from tests.operations.submissions import Submissions, metadata_of, response_of


@pytest.fixture(scope="module")
def served(shared_queue: Queue, database_url: str, fork: StartProgram) -> Iterator[grpc.Channel]:
    """A channel to a service whose operations a worker applies."""
    settings = {"DATABASE_URL": database_url, **shared_queue.settings}
    with ExitStack() as stack:
        service = listening(stack, fork("service", settings))
        listening(stack, fork("service", settings, "worker"))
        yield stack.enter_context(grpc.insecure_channel(service.address))


@pytest.fixture
def soon(served: grpc.Channel, organization: str) -> Submissions:
    """A fresh organization."""
    return Submissions(served, organization)


@pytest.fixture
def org(soon: Submissions) -> Organization:
    """The same, with synchronous calls."""
    return soon.org


def sync_status(error: grpc.RpcError) -> Status:
    assert isinstance(error, grpc.Call)
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    return Status.FromString(details)


def test_an_operation_ends_with_the_stored_appointment(
    soon: Submissions, org: Organization
) -> None:
    accepted = soon.upsert("a", 0, 10, title="first", attributes={"room": 3}, resource_id="r")
    assert not accepted.done
    assert accepted.name.startswith(f"{parent_name(org.id)}/operations/")
    assert metadata_of(accepted) == rpc.OperationMetadata(
        organization_id=org.id,
        appointment_id="a",
        accepted_at=metadata_of(accepted).accepted_at,
    )
    done = soon.wait(accepted)
    metadata = metadata_of(done)
    assert response_of(done) == org.get("a")
    assert metadata.outcome == pb.CREATED
    assert metadata.accepted_at == metadata_of(accepted).accepted_at
    assert metadata.finished_at.ToNanoseconds() > metadata.accepted_at.ToNanoseconds()
    assert soon.get(done.name) == done
    assert response_of(soon.wait(soon.cancel("a"))) == org.get("a")
    assert org.get("a").state == pb.Appointment.CANCELLED


def test_an_accepted_update_is_merged_when_it_is_applied(
    soon: Submissions, org: Organization
) -> None:
    org.upsert("a", 0, 10, title="x", attributes={"a": 1, "b": 2})
    patches = [
        rpc.UpdateAppointmentRequest(
            attributes_patch=Struct(fields={"a": Value(null_value=NULL_VALUE)})
        ),
        rpc.UpdateAppointmentRequest(update_mask=FieldMask(paths=["title"])),
        rpc.UpdateAppointmentRequest(
            appointment=pb.Appointment(end=_at(20)), update_mask=FieldMask(paths=["end"])
        ),
    ]
    accepted = []
    for request in patches:
        request.appointment.MergeFrom(pb.Appointment(organization_id=org.id, id="a"))
        accepted.append(soon.submit(update=request))
    last = [soon.wait(operation) for operation in accepted][-1]
    stored = org.get("a")
    assert response_of(last) == stored
    assert (stored.title, stored.version, stored.end) == ("", 4, _at(20))
    assert dict(stored.attributes) == {"b": 2}


def test_an_accepted_confirmation_makes_a_hold_firm(soon: Submissions, org: Organization) -> None:
    org.upsert("a", 0, 10, hold_until=in_seconds(60))
    confirmed = soon.wait(soon.confirm("a", idempotency_key="key"))
    assert metadata_of(confirmed).outcome == pb.CONFIRMED
    assert response_of(confirmed) == org.get("a")
    assert org.get("a").state == pb.Appointment.ACTIVE
    assert org.confirm("a", idempotency_key="key").outcome == pb.CONFIRMED
    assert metadata_of(soon.wait(soon.confirm("a"))).outcome == pb.UNCHANGED


@pytest.mark.parametrize("reason", ["APPOINTMENT_CANCELLED", "APPOINTMENT_NOT_FOUND"])
def test_the_error_of_an_update_or_confirmation_equals_that_of_the_synchronous_call(
    soon: Submissions, org: Organization, reason: str
) -> None:
    if reason == "APPOINTMENT_CANCELLED":
        org.upsert("a", 0, 10)
        org.cancel("a")
    for accepted, call in (
        (soon.update("a", {"title": "x"}), lambda: org.update("a", {"title": "x"})),
        (soon.confirm("a"), lambda: org.confirm("a")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert soon.wait(accepted).error == sync_status(caught.value)
        assert refusal(caught.value).reason == reason


def test_an_appointment_without_id_and_organization_gets_them(soon: Submissions) -> None:
    wanted = appointment("", None, 0, 1, resource_id=str(uuid.uuid4()))
    wanted.ClearField("organization_id")
    accepted = soon.submit(upsert=rpc.UpsertAppointmentRequest(appointment=wanted))
    stored = response_of(soon.wait(accepted))
    assert stored.organization_id == metadata_of(accepted).organization_id == "default"
    assert stored.id == metadata_of(accepted).appointment_id
    assert uuid.UUID(stored.id).version == 7


def test_a_write_that_changes_nothing_says_why(soon: Submissions, org: Organization) -> None:
    stored = org.upsert("a", 0, 10, updated_at=_at(5)).appointment
    late = soon.wait(soon.upsert("a", 0, 20, updated_at=_at(4)))
    same = soon.wait(soon.upsert("a", 0, 10, updated_at=_at(5)))
    assert [metadata_of(late).outcome, metadata_of(same).outcome] == [pb.STALE, pb.UNCHANGED]
    assert response_of(late) == response_of(same) == stored
    org.cancel("a")
    again = soon.wait(soon.cancel("a"))
    assert metadata_of(again).outcome == pb.UNCHANGED
    assert response_of(again) == org.get("a")
    assert len(org.changes()) == 2


def test_the_key_of_a_write_without_change_is_stored_by_both_kinds_of_writes(
    soon: Submissions, org: Organization
) -> None:
    org.upsert("a", 0, 10)
    org.upsert("b", 20, 30)
    org.cancel("b")
    unchanged = soon.wait(soon.upsert("a", 0, 10, idempotency_key="soon"))
    assert metadata_of(unchanged).outcome == pb.UNCHANGED
    cancelled = soon.wait(soon.cancel("b", idempotency_key="cancel"))
    assert metadata_of(cancelled).outcome == pb.UNCHANGED
    at_once = org.upsert("a", 0, 10, idempotency_key="at once")
    assert at_once.outcome == pb.UNCHANGED
    moved = org.upsert("a", 40, 50).appointment
    booked = org.upsert("b", 20, 30).appointment
    for key in ("soon", "at once"):
        again = soon.wait(soon.upsert("a", 0, 10, idempotency_key=key))
        assert metadata_of(again).outcome == pb.UNCHANGED
        assert response_of(again) == at_once.appointment
        assert org.upsert("a", 0, 10, idempotency_key=key) == at_once
    again = soon.wait(soon.cancel("b", idempotency_key="cancel"))
    assert response_of(again) == response_of(cancelled)
    assert (org.get("a"), org.get("b")) == (moved, booked)


def test_an_accepted_cancel_has_its_time(soon: Submissions, org: Organization) -> None:
    org.upsert("a", 0, 10, updated_at=_at(5))
    late = soon.wait(soon.cancel("a", updated_at=_at(4)))
    assert metadata_of(late).outcome == pb.STALE
    assert metadata_of(soon.wait(soon.cancel("a", updated_at=_at(8)))).outcome == pb.CANCELLED
    overtaken = soon.wait(soon.upsert("a", 0, 20, updated_at=_at(7)))
    assert metadata_of(overtaken).outcome == pb.STALE
    assert org.get("a").state == pb.Appointment.CANCELLED


def _at(minute: int) -> Any:
    return appointment("", None, minute, minute + 1).start


@pytest.mark.parametrize(
    ("reason", "id", "start", "options"),
    [
        ("TIME_RANGE_CONFLICT", "b", 5, {}),
        ("ETAG_MISMATCH", "a", 0, {"etag": "ff"}),
        ("ETAG_MISMATCH", "b", 50, {"etag": "*"}),
        ("APPOINTMENT_EXISTS", "a", 0, {"create_only": True}),
        ("IDEMPOTENCY_KEY_REUSED", "b", 50, {"idempotency_key": "key"}),
    ],
)
def test_an_error_equals_that_of_the_synchronous_call(
    soon: Submissions, org: Organization, reason: str, id: str, start: int, options: dict[str, Any]
) -> None:
    org.upsert("a", 0, 10, idempotency_key="key")
    org.upsert("other", 10, 12)
    done = soon.wait(soon.upsert(id, start, start + 10, **options))
    with pytest.raises(grpc.RpcError) as caught:
        org.upsert(id, start, start + 10, **options)
    assert done.error == sync_status(caught.value)
    assert refusal(caught.value).reason == reason
    assert not metadata_of(done).HasField("outcome")
    assert metadata_of(done).HasField("finished_at")
    assert len(org.changes()) == 2
    assert soon.listed(filter="error:*") == [done.name]


def test_cancelling_an_unknown_id_is_refused_as_by_the_synchronous_call(
    soon: Submissions, org: Organization
) -> None:
    done = soon.wait(soon.cancel("a"))
    with pytest.raises(grpc.RpcError) as caught:
        org.cancel("a")
    assert done.error == sync_status(caught.value)
    assert refusal(caught.value).reason == "APPOINTMENT_NOT_FOUND"


def test_a_conflict_lists_as_many_as_the_synchronous_call(
    soon: Submissions, org: Organization
) -> None:
    for number in range(25):
        org.upsert(f"{number:02}", number, number + 1)
    done = soon.wait(soon.upsert("long", 0, 60))
    with pytest.raises(grpc.RpcError) as caught:
        org.upsert("long", 0, 60)
    assert done.error == sync_status(caught.value)
    assert len(refusal(caught.value).conflicts) == 20
    assert refusal(caught.value).more_conflicts


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (rpc.SubmitAppointmentRequest(), {"write"}),
        (
            rpc.SubmitAppointmentRequest(upsert=rpc.UpsertAppointmentRequest()),
            {"upsert.appointment"},
        ),
        (
            rpc.SubmitAppointmentRequest(
                upsert=rpc.UpsertAppointmentRequest(
                    appointment=pb.Appointment(id="x" * 257, title="\n", end=_at(0)),
                    validate_only=True,
                )
            ),
            {
                "upsert.validate_only",
                "upsert.appointment.id",
                "upsert.appointment.title",
                "upsert.appointment.start",
            },
        ),
        (
            rpc.SubmitAppointmentRequest(cancel=rpc.CancelAppointmentRequest(validate_only=True)),
            {"cancel.id", "cancel.validate_only"},
        ),
        (
            rpc.SubmitAppointmentRequest(
                update=rpc.UpdateAppointmentRequest(
                    appointment=pb.Appointment(title="\n"),
                    update_mask=FieldMask(paths=["start", "id"]),
                    validate_only=True,
                )
            ),
            {
                "update.validate_only",
                "update.appointment.id",
                "update.appointment.title",
                "update.appointment.start",
                "update.update_mask",
            },
        ),
        (
            rpc.SubmitAppointmentRequest(
                confirm=rpc.ConfirmAppointmentRequest(etag="x" * 65, validate_only=True)
            ),
            {"confirm.id", "confirm.etag", "confirm.validate_only"},
        ),
    ],
)
def test_the_fields_rules_are_checked_before_it_is_accepted(
    soon: Submissions, request_: rpc.SubmitAppointmentRequest, fields: set[str]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        soon.appointments.SubmitAppointment(request_, timeout=TIMEOUT)
    refused = refusal(caught.value)
    assert refused.reason == "INVALID_FIELD"
    assert set(refused.fields) == fields


def test_an_idempotency_key_takes_effect_once_by_both_kinds_of_writes(
    soon: Submissions, org: Organization
) -> None:
    first = org.upsert("a", 0, 10, idempotency_key="sync first").appointment
    assert response_of(soon.wait(soon.upsert("a", 0, 10, idempotency_key="sync first"))) == first
    second = response_of(soon.wait(soon.upsert("a", 1, 10, idempotency_key="async first")))
    assert org.upsert("a", 1, 10, idempotency_key="async first").appointment == second
    twice = [soon.upsert(None, 20, 30, idempotency_key="no id") for _ in range(2)]
    third, fourth = [soon.wait(operation) for operation in twice]
    assert twice[0].name != twice[1].name
    assert third.response == fourth.response
    assert metadata_of(fourth).outcome == pb.CREATED
    assert len(org.changes()) == 3


def test_an_etag_guards_an_operation(soon: Submissions, org: Organization) -> None:
    etag = org.upsert("a", 0, 10).appointment.etag
    first, second = soon.upsert("a", 0, 11, etag=etag), soon.upsert("a", 0, 12, etag=etag)
    assert metadata_of(soon.wait(first)).outcome == pb.UPDATED
    assert soon.wait(second).error.code == grpc.StatusCode.ABORTED.value[0]
    assert org.get("a").version == 2


def test_the_actor_of_the_caller_is_recorded(soon: Submissions, org: Organization) -> None:
    soon.wait(soon.upsert("a", 0, 10, actor="somebody"))
    assert org.changes()[0].actor == "somebody"


def test_a_negative_time_to_wait_is_refused(soon: Submissions) -> None:
    accepted = soon.upsert("a", 0, 10)
    request = lro.WaitOperationRequest(name=accepted.name, timeout=Duration(seconds=-1))
    with pytest.raises(grpc.RpcError) as caught:
        soon.operations.WaitOperation(request, timeout=TIMEOUT)
    assert set(refusal(caught.value).fields) == {"timeout"}


@pytest.mark.parametrize("odd", ["a/b", "50%", "%2F", "Zürich 東京 🗓", "a?b#c", " ", "..", "+"])
def test_any_organization_has_a_name(served: grpc.Channel, odd: str) -> None:
    named = Submissions(served, f"{odd}{uuid.uuid4()}")
    done = named.wait(named.upsert("a", 0, 1))
    assert response_of(done).organization_id == named.id
    assert done.name.count("/") == 3
    assert named.listed() == [done.name]


ID = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "INVALID_FIELD"),
        (ID, "INVALID_FIELD"),
        (f"operations/{ID}", "INVALID_FIELD"),
        (f"organizations//operations/{ID}", "INVALID_FIELD"),
        (f"organizations/a/b/operations/{ID}", "INVALID_FIELD"),
        ("organizations/a/operations/", "INVALID_FIELD"),
        (f"organizations/%00/operations/{ID}", "INVALID_FIELD"),
        (f"organizations/\0/operations/{ID}", "INVALID_FIELD"),
        (f"organizations/{'a' * 129}/operations/{ID}", "INVALID_FIELD"),
        (f"organizations/%ff/operations/{ID}", "OPERATION_NOT_FOUND"),
        (f"organizations/a/operations/{ID}", "OPERATION_NOT_FOUND"),
        (f"organizations/a/operations/{{{ID}}}", "OPERATION_NOT_FOUND"),
        ("organizations/a/operations/none", "OPERATION_NOT_FOUND"),
    ],
)
@pytest.mark.parametrize("wait", [False, True])
def test_an_unknown_or_invalid_name_is_refused(
    soon: Submissions, name: str, reason: str, wait: bool
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        soon.wait(lro.Operation(name=name)) if wait else soon.get(name)
    assert refusal(caught.value).reason == reason


def test_finished_operations_are_listed_filtered_and_paged(soon: Submissions) -> None:
    accepted = [soon.upsert(str(number), 0, 1) for number in range(9)]
    # Sorted by id: operations of the same millisecond have no order.
    names = sorted((soon.wait(operation).name for operation in accepted), reverse=True)
    assert soon.listed(page_size=1) == soon.listed(page_size=0) == names
    assert soon.listed(filter="done=true", page_size=4) == names
    assert soon.listed(filter="done=false") == []
    refused = sorted((operation.name for operation in accepted[1:]), reverse=True)
    assert soon.listed(filter="error:*", page_size=3) == refused


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"filter": "done"}, {"filter"}),
        ({"page_size": -1, "filter": "x"}, {"page_size", "filter"}),
        ({"page_size": 1001}, {"page_size"}),
        ({"page_token": "x"}, {"page_token"}),
        ({"name": ""}, {"name"}),
        ({"name": "organizations/%00"}, {"name"}),
        ({"name": "organizations/a/operations"}, {"name"}),
    ],
)
def test_an_invalid_list_request_is_refused(
    soon: Submissions, fields: dict[str, Any], named: set[str]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        soon.page(**fields)
    assert set(refusal(caught.value).fields) == named


def test_a_page_token_is_valid_for_its_filter_only(soon: Submissions) -> None:
    for number in range(3):
        soon.wait(soon.upsert(str(number), 0, 1))
    token = soon.page(page_size=1).next_page_token
    with pytest.raises(grpc.RpcError) as caught:
        soon.page(page_size=1, page_token=token, filter="error:*")
    assert set(refusal(caught.value).fields) == {"page_token"}
    encoded = "".join(f"%{byte:02x}" for byte in soon.id.encode())  # the same name
    further = soon.page(page_size=1, page_token=token, name=f"organizations/{encoded}")
    assert len(further.operations) == 1


@pytest.mark.parametrize("method", ["DeleteOperation", "CancelOperation"])
def test_an_accepted_operation_cannot_be_cancelled_or_deleted(
    soon: Submissions, method: str
) -> None:
    accepted = soon.upsert("a", 0, 1)
    request = getattr(lro, f"{method}Request")(name=accepted.name)
    with pytest.raises(grpc.RpcError) as caught:
        getattr(soon.operations, method)(request, timeout=TIMEOUT)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    kept = soon.get(accepted.name)
    assert kept.name == accepted.name
    assert not kept.HasField("error")
