"""The service compared with the model: any sequence of calls gives the same results."""

import uuid
from typing import Any, ClassVar

import grpc
import hypothesis.strategies as st
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.api import MORNING, Organization, at, batch_request, refusal, refusal_of
from tests.writes.model import Answer, Content, Model, Stored, Write

pytestmark = pytest.mark.slow

MINUTES = st.integers(min_value=0, max_value=12)
FEW_IDS = st.sampled_from(["a", "b", "c", "d"])
RESOURCES = st.sampled_from(["", "r"])
MAYBE_TIME = st.none() | st.integers(min_value=0, max_value=3)
MAYBE_KEY = st.none() | st.sampled_from(["k1", "k2", "k3"])
# Which etag is sent: none, any, the stored one, or that of another version.
ETAGS = st.sampled_from([None, None, None, "*", "stored", "other"])

# The possible error statuses of an item of a batch.
CODES = {
    "TIME_RANGE_CONFLICT": grpc.StatusCode.ALREADY_EXISTS,
    "IDEMPOTENCY_KEY_REUSED": grpc.StatusCode.INVALID_ARGUMENT,
}


@st.composite
def contents(draw: st.DrawFn) -> Content:
    start = draw(MINUTES)
    return Content(
        resource=draw(RESOURCES),
        start=start,
        end=start + draw(st.integers(min_value=1, max_value=6)),
        title=draw(st.sampled_from(["", "t"])),
        created_at=draw(MAYBE_TIME),
        updated_at=draw(MAYBE_TIME),
    )


class ServiceAgainstModel(RuleBasedStateMachine):
    stub: ClassVar[AppointmentServiceStub]

    @initialize()
    def start(self) -> None:
        self.org = Organization(self.stub, f"model-{uuid.uuid4()}")
        self.model = Model()
        self.written: list[Write] = []
        # The etag of each version, by its revision.
        self.etags: dict[int, str] = {}

    @rule(id=FEW_IDS, content=contents(), etag=ETAGS, create_only=st.booleans(), key=MAYBE_KEY)
    def upsert(
        self, id: str, content: Content, etag: str | None, create_only: bool, key: str | None
    ) -> None:
        self.write(id, content, etag=etag, create_only=create_only, key=key)

    @rule(id=FEW_IDS, content=contents())
    def plain_upsert(self, id: str, content: Content) -> None:
        self.write(id, content)

    @rule(id=FEW_IDS, content=contents())
    def validate(self, id: str, content: Content) -> None:
        self.write(id, content, validate_only=True)

    @rule(
        id=FEW_IDS,
        updated_at=MAYBE_TIME,
        etag=ETAGS,
        key=MAYBE_KEY,
        validate_only=st.booleans(),
    )
    def cancel(
        self,
        id: str,
        updated_at: int | None,
        etag: str | None,
        key: str | None,
        validate_only: bool,
    ) -> None:
        self.write(
            id,
            None,
            cancel_updated_at=updated_at,
            etag=etag,
            key=key,
            validate_only=validate_only,
        )

    @precondition(lambda self: self.written)
    @rule(data=st.data(), key=st.none() | st.uuids().map(str))
    def repeat_an_earlier_write(self, data: st.DataObject, key: str | None) -> None:
        """Send it with its key; or with a new key and twice, with another write in between."""
        earlier = data.draw(st.sampled_from(self.written))
        times: dict[str, Any] = {"cancel_updated_at": earlier.cancel_updated_at}
        self.write(earlier.id, earlier.content, **times, key=key or earlier.key)
        if key is not None:
            self.write(earlier.id, data.draw(st.none() | contents()))
            self.write(earlier.id, earlier.content, **times, key=key)

    @rule(items=st.lists(st.tuples(FEW_IDS, contents(), MAYBE_KEY), min_size=1, max_size=6))
    def batch(self, items: list[tuple[str, Content, str | None]]) -> None:
        request = batch_request(self.message(id, content) for id, content, _ in items)
        for item, (_, _, key) in zip(request.requests, items, strict=True):
            item.idempotency_key = key or ""
        results = self.stub.BatchUpsertAppointments(request).results
        for (id, content, key), result in zip(items, results, strict=True):
            write = Write(id=id, content=content, key=key)
            self.written.append(write)
            expected = self.model.apply(write)
            if result.HasField("outcome"):
                self.compare(expected, pb.Outcome.Name(result.outcome), result.appointment)
            else:
                refused = refusal_of(result.error, CODES[expected.result])
                assert refused.reason == expected.result
                assert tuple(c.id for c in refused.conflicts) == expected.conflicts

    @rule(
        resource=st.none() | RESOURCES,
        start=st.none() | MINUTES,
        length=st.none() | st.integers(min_value=1, max_value=8),
        cancelled=st.booleans(),
        page_size=st.integers(min_value=1, max_value=4),
        data=st.data(),
    )
    def list_a_window(  # hypothesis passes them by name
        self,
        resource: str | None,
        start: int | None,
        length: int | None,
        cancelled: bool,
        page_size: int,
        data: st.DataObject,
    ) -> None:
        end = None if length is None else (start or 0) + length
        as_of = data.draw(st.none() | st.integers(min_value=0, max_value=self.model.revision))
        filters: dict[str, Any] = {"include_cancelled": cancelled, "page_size": page_size}
        if resource is not None:
            filters["resource_id"] = resource
        if start is not None:
            filters["from"] = at(start)
        if end is not None:
            filters["to"] = at(end)
        if as_of is not None:
            filters["as_of_revision"] = as_of
        found = list(self.org.listed(**filters).values())
        expected = self.model.listed(
            as_of=as_of, resource=resource, start=start, end=end, cancelled=cancelled
        )
        assert [item.id for item in found] == [item.id for item in expected]
        for item, stored in zip(found, expected, strict=True):
            self.compare_stored(stored, item)

    @invariant()
    def the_state_is_the_models(self) -> None:
        found = self.org.listed()
        assert found.keys() == self.model.stored.keys()
        for id, stored in self.model.stored.items():
            self.compare_stored(stored, found[id])

    def teardown(self) -> None:
        if not hasattr(self, "org"):
            return
        entries = self.org.changes()
        assert [
            (pb.HistoryEntry.Change.Name(entry.change), entry.idempotency_key) for entry in entries
        ] == [(change.change, change.write.key or "") for change in self.model.history]
        for entry, change in zip(entries, self.model.history, strict=True):
            self.compare_stored(change.stored, entry.appointment)
        self.org.check_history()

    def write(
        self,
        id: str,
        content: Content | None,
        *,
        cancel_updated_at: int | None = None,
        etag: str | None = None,
        create_only: bool = False,
        key: str | None = None,
        validate_only: bool = False,
    ) -> None:
        expected_revision, tag = self.choose(id, etag)
        write = Write(
            id=id,
            content=content,
            cancel_updated_at=cancel_updated_at,
            expected=expected_revision,
            create_only=create_only,
            key=key,
            validate_only=validate_only,
        )
        self.written.append(write)
        answer = self.model.apply(write)
        request: Any
        if content is None:
            request = rpc.CancelAppointmentRequest(organization_id=self.org.id, id=id)
            if cancel_updated_at is not None:
                request.updated_at.CopyFrom(at(cancel_updated_at))
            send: Any = self.stub.CancelAppointment
        else:
            request = rpc.UpsertAppointmentRequest(
                appointment=self.message(id, content), create_only=create_only
            )
            send = self.stub.UpsertAppointment
        request.etag = tag
        request.idempotency_key = key or ""
        request.validate_only = validate_only
        try:
            response = send(request)
        except grpc.RpcError as error:
            refused = refusal(error)
            assert refused.reason == answer.result
            assert refused.organization_revision == self.model.revision
            assert tuple(conflict.id for conflict in refused.conflicts) == answer.conflicts
        else:
            self.compare(answer, pb.Outcome.Name(response.outcome), response.appointment)

    def choose(self, id: str, etag: str | None) -> tuple[int | None, str]:
        """Return the revision and etag that a write expects."""
        stored = self.model.stored.get(id)
        if etag is None:
            return None, ""
        if etag == "*":
            return 0, "*"
        if etag == "stored" and stored is not None:
            return stored.revision, self.etags[stored.revision]
        others = dict(self.etags)
        if stored is not None:
            others.pop(stored.revision, None)
        return max(others.items(), default=(-1, "none"))

    def message(self, id: str, content: Content) -> pb.Appointment:
        message = pb.Appointment(
            organization_id=self.org.id,
            resource_id=content.resource,
            id=id,
            start=at(content.start),
            end=at(content.end),
            title=content.title,
        )
        if content.created_at is not None:
            message.created_at.CopyFrom(at(content.created_at))
        if content.updated_at is not None:
            message.updated_at.CopyFrom(at(content.updated_at))
        return message

    def compare(self, expected: Answer, result: str, found: pb.Appointment) -> None:
        assert result == expected.result
        assert expected.stored is not None
        self.compare_stored(expected.stored, found)
        if expected.stored == self.model.stored.get(found.id):
            self.etags[found.revision] = found.etag

    def compare_stored(self, stored: Stored, found: pb.Appointment) -> None:
        content = stored.content
        assert (found.id, found.version, found.revision) == (
            stored.id,
            stored.version,
            stored.revision,
        )
        assert (found.state == pb.Appointment.CANCELLED) == stored.cancelled
        assert (found.resource_id, found.title) == (content.resource, content.title)
        assert (found.start, found.end) == (at(content.start), at(content.end))
        self.compare_time(content.created_at, found.created_at)
        self.compare_time(content.updated_at, found.updated_at)

    def compare_time(self, minute: int | None, found: Timestamp) -> None:
        """A time that is not set is the commit's, which is earlier than the times of the tests."""
        if minute is None:
            assert found.seconds < MORNING.timestamp()
        else:
            assert found == at(minute)


@pytest.mark.timeout(240)
def test_the_service_does_what_the_model_does(stub: AppointmentServiceStub) -> None:
    ServiceAgainstModel.stub = stub
    machine = ServiceAgainstModel.TestCase
    machine.settings = settings(
        max_examples=60,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
