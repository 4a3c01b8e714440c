"""Sends the writes of the model to the service."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from tests.api import TIMEOUT, Refusal, refusal, refusal_of
from tests.operations.place import Place
from tests.operations.submissions import metadata_of, response_of
from tests.writes.requests import batch_item, request_of, timestamp
from tests.writes.strategies import OVER, TOO_LONG
from tests.writes.values import Write

# How long a hold lasts that is to expire, in seconds.
BRIEF = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Responded:
    """What the service responds to a write: its outcome, or the reason of its refusal.

    `revision` is the organization's after the call; None for an operation.
    """

    result: str
    revision: int | None = None
    appointment: pb.Appointment | None = None
    refusal: Refusal | None = None


class Caller:
    """Calls the service for one organization, and ends ticks by the clock of its database."""

    def __init__(self, place: Place, organization: str) -> None:
        self._place = place
        self._submissions = place.organization(organization)
        self.org = self._submissions.org
        self.tick = 0
        # When each tick began, and when it ends if a hold lasts until then.
        self.began = {0: self._clock()}
        self._ends: dict[int, float] = {}

    def send(self, write: Write, tag: str, *, mask: str, way: str) -> Responded:
        """Send a write with an etag. A hold until the end of this tick decides when it ends."""
        brief = write.content is not None and write.content.hold_until == self.tick
        seconds = BRIEF
        while True:
            if brief:
                self._ends[self.tick] = self._clock() + seconds
            request = request_of(
                write, tag, mask=mask, organization=self.org.id, held_until=self.held_until
            )
            found = self._submit(request) if way == "accepted" else self._call(request)
            # On a busy machine the service may read a brief hold too late.
            if (
                found.result != "INVALID_FIELD"
                or not brief
                or self._clock() < self._ends[self.tick]
            ):
                return found
            seconds *= 2

    def send_batch(
        self, writes: Sequence[tuple[Write, str]], *, atomic: bool, validate_only: bool
    ) -> Responded | list[Responded]:
        """Send upserts with their etags, and return their results or the refusal of all."""
        request = rpc.BatchUpsertAppointmentsRequest(
            requests=[
                batch_item(write, tag, organization=self.org.id, held_until=self.held_until)
                for write, tag in writes
            ],
            atomic=atomic,
            validate_only=validate_only,
        )
        try:
            response, call = self.org.stub.BatchUpsertAppointments.with_call(
                request, timeout=TIMEOUT
            )
        except grpc.RpcError as error:
            return _refused(error)
        revision = _revision(call)
        return [
            Responded(
                result=pb.Outcome.Name(result.outcome),
                revision=revision,
                appointment=result.appointment,
            )
            if result.HasField("outcome")
            else replace(_failed(result.error), revision=revision)
            for result in response.results
        ]

    def record_expiry(self, id: str) -> None:
        """Record that a hold has expired, as a worker does."""
        writes = [{"kind": "EXPIRE", "id": id, "actor": "", "validate_only": False}]
        self._place.sql.execute("SELECT apply_writes(%s, %s)", (self.org.id, json.dumps(writes)))

    def end_tick(self) -> None:
        """Wait until the holds of this tick have expired."""
        self._place.sql.execute(
            "SELECT pg_sleep_until(to_timestamp(%s))", (self._ends.get(self.tick, 0.0),)
        )
        self.tick += 1
        self.began[self.tick] = self._clock()

    def held_until(self, tick: int) -> Timestamp:
        if tick == OVER:
            return timestamp(self.began[0] - 60)
        if tick == TOO_LONG:
            return timestamp(self.began[0] + 25 * 3600)
        return timestamp(self._ends.get(tick) or self.began[0] + 3600 + tick)

    def _clock(self) -> float:
        """Return the time of the database."""
        [(now,)] = self._place.sql.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        seconds: float = now
        return seconds

    def _call(self, request: Any) -> Responded:
        name = type(request).__name__.removesuffix("Request")
        try:
            response, call = getattr(self.org.stub, name).with_call(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            return _refused(error)
        return Responded(
            result=pb.Outcome.Name(response.outcome),
            revision=_revision(call),
            appointment=response.appointment,
        )

    def _submit(self, request: Any) -> Responded:
        """Send a write in the accepted way, and apply it as a worker does."""
        kind = type(request).__name__.removesuffix("AppointmentRequest").lower()
        operation = self._submissions.submit(**{kind: request})
        leases = [
            {"organization_id": organization, "fence": fence, "only_one": False}
            for organization, fence in self._place.sql.execute(
                "SELECT organization_id, fence FROM lease_operations('', 1, '1 minute')"
            )
        ]
        self._place.sql.execute(
            "SELECT apply_queued_operations(%s, 10, '1 minute')", (json.dumps(leases),)
        )
        done = self._submissions.wait(operation)
        if done.HasField("error"):
            return _failed(done.error)
        return Responded(
            result=pb.Outcome.Name(metadata_of(done).outcome), appointment=response_of(done)
        )


def _revision(call: grpc.Call) -> int:
    return int(dict(call.trailing_metadata())["organization-revision"])


def _refused(error: grpc.RpcError) -> Responded:
    found = refusal(error)
    return Responded(result=found.reason, revision=found.organization_revision, refusal=found)


def _failed(error: Status) -> Responded:
    code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
    found = refusal_of(error, code)
    return Responded(result=found.reason, refusal=found)
