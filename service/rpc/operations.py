"""The RPCs of google.longrunning.Operations, and SubmitAppointment."""

from uuid import UUID

from appointments.v1 import appointment_service_pb2 as rpc
from google.longrunning import operations_pb2

from service import messages
from service.domain import WriteResult
from service.errors import InvalidFields
from service.operations import operation as names
from service.operations.accepter import Accepter
from service.operations.operation import OperationState, new_operation
from service.operations.results import FILTERS, OperationResults
from service.rpc import page_tokens
from service.rpc.handler import Call
from service.rpc.status import status_of
from service.rpc.write_requests import WriteReader, WriteRequest, organization_of

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

# Seconds. WaitOperation returns this long before the call's deadline.
RESPONSE_MARGIN = 0.5


class OperationsServicer:
    """The servicer of google.longrunning.Operations. `timeout` (seconds) bounds every call."""

    def __init__(self, results: OperationResults, *, timeout: float) -> None:
        self._results = results
        self._timeout = timeout

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, call: Call
    ) -> operations_pb2.Operation:
        call.organization_id, operation_id = names.read_name(request.name)
        return _answer(call, await self._results.get(call.organization_id, operation_id))

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, call: Call
    ) -> operations_pb2.Operation:
        call.organization_id, operation_id = names.read_name(request.name)
        at_most = min(call.context.timeout or self._timeout, self._timeout) - RESPONSE_MARGIN
        if request.HasField("timeout"):
            wanted = request.timeout.seconds + request.timeout.nanos / 1e9
            if wanted < 0:
                raise InvalidFields([("timeout", "must not be negative")])
            at_most = min(at_most, wanted)
        state = await self._results.wait(call.organization_id, operation_id, at_most=at_most)
        return _answer(call, state)

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, call: Call
    ) -> operations_pb2.ListOperationsResponse:
        organization_id = call.organization_id = names.read_parent(request.name)
        request.name = names.parent_name(organization_id)  # page tokens compare it
        violations = []
        if request.filter not in FILTERS:
            known = ", ".join(filter(None, FILTERS))
            violations.append(("filter", f"must be empty or one of {known}"))
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            violations.append(("page_size", f"must be 0 to {MAX_PAGE_SIZE:,}"))
        if violations:
            raise InvalidFields(violations)
        before = None
        if request.page_token:
            [before] = page_tokens.decode(request, request.page_token, (UUID,))
        limit = request.page_size or DEFAULT_PAGE_SIZE
        found = await self._results.list(
            organization_id, filter=request.filter, before=before, limit=limit + 1
        )
        response = operations_pb2.ListOperationsResponse(
            operations=[operation_message(state) for state in found[:limit]]
        )
        if len(found) > limit:
            response.next_page_token = page_tokens.encode(request, [str(found[limit - 1].id)])
        return response


async def submit(
    accepter: Accepter, reader: WriteReader, request: rpc.SubmitAppointmentRequest, call: Call
) -> operations_pb2.Operation:
    """Accept a write. Raises InvalidFields, and the errors of the accepter."""
    kind = request.WhichOneof("write")
    if kind is None:
        raise InvalidFields([("write", "is required: upsert, update, confirm, cancel or redact")])
    wanted: WriteRequest = getattr(request, kind)
    call.organization_id = organization_of(wanted)
    violations = []
    if wanted.validate_only:
        violations.append(
            ("validate_only", "is not supported in an operation; send a synchronous write")
        )
    try:
        write = reader.read(wanted, actor=call.context.actor)
    except InvalidFields as error:
        violations += error.violations
    if violations:
        raise InvalidFields([(f"{kind}.{field}", detail) for field, detail in violations])
    operation = new_operation(call.organization_id, write)
    await accepter.accept(operation)
    return operation_message(
        OperationState(
            organization_id=operation.organization_id,
            id=operation.id,
            appointment_id=write.id,
            accepted_at=operation.accepted_at,
        )
    )


def _answer(call: Call, state: OperationState) -> operations_pb2.Operation:
    if state.result is not None:
        call.organization_revision = state.result.organization_revision
    return operation_message(state)


def operation_message(state: OperationState) -> operations_pb2.Operation:
    metadata = rpc.OperationMetadata(
        organization_id=state.organization_id,
        appointment_id=state.appointment_id,
        accepted_at=messages.timestamp(state.accepted_at),
    )
    message = operations_pb2.Operation(name=state.name, done=state.result is not None)
    if state.finished_at is not None:
        metadata.finished_at.CopyFrom(messages.timestamp(state.finished_at))
    if isinstance(state.result, WriteResult):
        metadata.outcome = messages.OUTCOMES[state.result.outcome]
        message.response.Pack(messages.appointment(state.result.appointment))
    elif state.result is not None:
        message.error.CopyFrom(status_of(state.result))
    message.metadata.Pack(metadata)
    return message
