"""The door of gRPC."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1 import availability_pb2
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.longrunning import operations_pb2 as lro
from google.longrunning.operations_pb2_grpc import OperationsStub
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from public_json.rendering import MessageRenderer
from service.operations.operation import parent_name
from tests.api import at
from tests.torture.doors import Interrupted, held_until, refused
from tests.torture.record import UNKNOWN, Item, Json
from tests.writes.requests import batch_item, request_of

OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)

_appointment = MessageRenderer(pb.Appointment.DESCRIPTOR).render
_entry = MessageRenderer(pb.HistoryEntry.DESCRIPTOR).render
_conflict = MessageRenderer(pb.TimeRangeConflict.DESCRIPTOR).render
_refusal = MessageRenderer(pb.BatchRefusal.DESCRIPTOR).render
_resource = MessageRenderer(availability_pb2.QueryAvailabilityResponse.Resource.DESCRIPTOR).render


class GrpcDoor:
    """Calls a service. See `Door`."""

    def __init__(self, name: str, target: str) -> None:
        self.name = f"grpc {name}"
        self._channel = grpc.aio.insecure_channel(target, OPTIONS)
        self._stub: Any = AppointmentServiceStub(self._channel)
        self._operations: Any = OperationsStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def write(
        self, organization: str, item: Item, *, accepted: bool, actor: str, seconds: float
    ) -> Json:
        request = request_of(
            item.write, item.tag, mask=item.mask, organization=organization, held_until=held_until
        )
        if accepted:
            kind = item.write.kind.lower()
            request = rpc.SubmitAppointmentRequest(**{kind: request})
            answer, _ = await self._call(self._stub.SubmitAppointment, request, seconds, actor)
            return answer if isinstance(answer, dict) else {"operation": answer.name}
        name = f"{item.write.kind.title()}Appointment"
        answer, revision = await self._call(getattr(self._stub, name), request, seconds, actor)
        if isinstance(answer, dict):
            return answer
        return {
            "outcome": pb.Outcome.Name(answer.outcome),
            "appointment": _appointment(answer.appointment),
            "revision": revision,
        }

    async def batch(
        self,
        organization: str,
        items: Sequence[Item],
        *,
        atomic: bool,
        validate_only: bool,
        actor: str,
        seconds: float,
    ) -> Json:
        request = rpc.BatchUpsertAppointmentsRequest(
            requests=[
                batch_item(item.write, item.tag, organization=organization, held_until=held_until)
                for item in items
            ],
            atomic=atomic,
            validate_only=validate_only,
        )
        answer, revision = await self._call(
            self._stub.BatchUpsertAppointments, request, seconds, actor
        )
        if isinstance(answer, dict):
            return answer
        results = [
            {
                "outcome": pb.Outcome.Name(result.outcome),
                "appointment": _appointment(result.appointment),
            }
            if result.HasField("outcome")
            else refused(_problem(result.error), None)
            for result in answer.results
        ]
        return {"results": results, "revision": revision}

    async def read(self, organization: str, kind: str, asks: Json, *, seconds: float) -> Json:
        method, request = self._read_request(organization, kind, asks, seconds)
        answer, revision = await self._call(method, request, seconds, "")
        return answer if isinstance(answer, dict) else self._shown(kind, answer, revision)

    @staticmethod
    def _shown(kind: str, answer: Any, revision: int | None) -> Json:
        match kind:
            case "get":
                return {"appointment": _appointment(answer.appointment), "revision": revision}
            case "list" if answer.not_modified:
                return {"not_modified": True, "etag": answer.etag, "revision": revision}
            case "list":
                return {
                    "appointments": [_appointment(item) for item in answer.appointments],
                    "etag": answer.etag,
                    "shown": answer.revision,
                    "next": answer.next_page_token,
                    "revision": revision,
                }
            case "availability":
                return {
                    "resources": [_resource(item) for item in answer.resources],
                    "shown": answer.revision,
                    "revision": revision,
                }
            case "operation" | "operations":
                return _operations(answer, revision)
        return {
            "entries": [_entry(entry) for entry in answer.entries],
            "more": bool(answer.next_page_token),
            "next": answer.next_page_token,
            "revision": revision,
        }

    def _read_request(
        self, organization: str, kind: str, asks: Json, seconds: float
    ) -> tuple[Any, Any]:
        request: Any
        fields = {name: value for name, value in asks.items() if name != "after"}
        if kind == "operation":
            if not asks["wait"]:
                request = lro.GetOperationRequest(name=asks["operation"])
                return self._operations.GetOperation, request
            request = lro.WaitOperationRequest(name=asks["operation"])
            request.timeout.FromNanoseconds(int(seconds / 2 * 1e9))
            return self._operations.WaitOperation, request
        if kind == "operations":
            request = lro.ListOperationsRequest(name=parent_name(organization), **fields)
            return self._operations.ListOperations, request
        times: dict[str, Any] = {
            name: at(fields.pop(name)) for name in ("from", "to") if name in fields
        }
        if "duration" in fields:
            times["duration"] = Duration(seconds=60 * fields.pop("duration"))
        if "as_of_time" in fields:
            times["as_of_time"] = held_until(fields.pop("as_of_time") - 1)
        method, request = {
            "get": (self._stub.GetAppointment, rpc.GetAppointmentRequest),
            "list": (self._stub.ListAppointments, rpc.ListAppointmentsRequest),
            "history": (self._stub.ListAppointmentHistory, rpc.ListAppointmentHistoryRequest),
            "changes": (self._stub.ListChanges, rpc.ListChangesRequest),
            "availability": (
                self._stub.QueryAvailability,
                availability_pb2.QueryAvailabilityRequest,
            ),
        }[kind]
        request = request(organization_id=organization, **fields)
        for name, time in times.items():
            getattr(request, name).CopyFrom(time)
        return method, request

    async def watch(
        self, organization: str, asks: Json, *, seconds: float
    ) -> AsyncGenerator[Json, None]:
        fields = {name: value for name, value in asks.items() if name != "stream"}
        request = rpc.WatchAppointmentsRequest(organization_id=organization, **fields)
        stream = self._stub.WatchAppointments(request, timeout=seconds)
        try:
            async for message in stream:
                entries = [_entry(entry) for entry in message.entries]
                yield {"entries": entries, "revision": message.revision}
        except grpc.aio.AioRpcError as error:
            answer = _answer_of(error)
            if UNKNOWN not in answer:
                yield answer
            raise Interrupted from error
        finally:
            stream.cancel()

    @staticmethod
    async def _call(
        method: Any, request: Any, seconds: float, actor: str
    ) -> tuple[Any, int | None]:
        """Return the response and the revision, or the answer of an error."""
        call = method(request, timeout=seconds, metadata=(("x-actor", actor),) if actor else ())
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            return _answer_of(error), None
        return response, _revision(await call.trailing_metadata())


def _revision(metadata: Any) -> int | None:
    found = dict(metadata or ()).get("organization-revision")
    return int(found) if found is not None else None


def _answer_of(error: grpc.aio.AioRpcError) -> Json:
    metadata = dict(error.trailing_metadata() or ())
    details = metadata.get("grpc-status-details-bin")
    if not isinstance(details, bytes):
        # Of the library, so about the connection.
        return {UNKNOWN: f"{error.code().name}: {error.details()}"}
    return refused(_problem(Status.FromString(details)), _revision(error.trailing_metadata()))


def _problem(status: Status) -> dict[str, Any]:
    """Return a status with its details as REST has it."""
    problem: dict[str, Any] = {"detail": status.message}
    info, taken, batch = (
        error_details_pb2.ErrorInfo(),
        pb.TimeRangeConflict(),
        pb.BatchRefusal(),
    )
    for detail in status.details:
        if detail.Unpack(info):
            problem["code"] = info.reason
        elif detail.Unpack(taken):
            problem |= _conflict(taken)
        elif detail.Unpack(batch):
            problem |= _refusal(batch)
    return problem


def _operations(answer: Any, revision: int | None) -> Json:
    if isinstance(answer, lro.Operation):
        return _operation(answer, revision)
    listed = [{"operation": one.name, **_operation(one, None)} for one in answer.operations]
    return {"operations": listed, "next": answer.next_page_token}


def _operation(operation: lro.Operation, revision: int | None) -> Json:
    if not operation.done:
        return {"done": False}
    if operation.HasField("error"):
        return {"done": True, "revision": revision, **refused(_problem(operation.error), revision)}
    stored, metadata = pb.Appointment(), rpc.OperationMetadata()
    operation.response.Unpack(stored)
    operation.metadata.Unpack(metadata)
    return {
        "done": True,
        "outcome": pb.Outcome.Name(metadata.outcome),
        "appointment": _appointment(stored),
        "revision": revision,
    }
