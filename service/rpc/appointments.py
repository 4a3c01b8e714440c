"""The RPCs of AppointmentService: read the request, call the committer or store, respond."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from time import monotonic
from typing import TypeVar

import structlog
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1 import availability_pb2
from google.longrunning import operations_pb2

from service import messages
from service.domain import (
    AtomicBatch,
    HistoryEntry,
    Upsert,
    WriteResult,
)
from service.errors import EpochEnded, InvalidFields, ServiceError
from service.operations.accepter import Accepter
from service.reads.store import Page, ReadStore
from service.reads.watch import Watch
from service.rpc import page_tokens
from service.rpc.appointment_encoding import encoded
from service.rpc.availability import AvailabilityReader
from service.rpc.handler import Call
from service.rpc.lists import DEFAULT_PAGE_SIZE, MAX_PAGE_BYTES, AppointmentLists
from service.rpc.moments import as_of_revision, min_revision
from service.rpc.operations import submit
from service.rpc.status import status_of
from service.rpc.wire import EncodedResponse, tag, with_length
from service.rpc.write_requests import WriteReader, WriteRequest, organization_of
from service.writes.committer import Committer

_OF_GET = tag(rpc.GetAppointmentResponse.APPOINTMENT_FIELD_NUMBER)

# Keeps the response to a batch whose items are all refused below 4 MiB too.
MAX_ITEM_DETAILS = 1024

# Seconds for which a batch may be read without a pause.
MAX_UNINTERRUPTED = 0.01

log = structlog.get_logger()

Response = TypeVar("Response")


class AppointmentServicer:
    def __init__(  # noqa: PLR0917  # what it calls
        self,
        committer: Committer,
        accepter: Accepter,
        reads: ReadStore,
        lists: AppointmentLists,
        availability: AvailabilityReader,
        watch: Watch,
        reader: WriteReader,
    ) -> None:
        self._committer = committer
        self._accepter = accepter
        self._reads = reads
        self._lists = lists
        self._availability = availability
        self._watch = watch
        self._reader = reader

    async def UpsertAppointment(
        self, request: rpc.UpsertAppointmentRequest, call: Call
    ) -> rpc.UpsertAppointmentResponse:
        return await self._write(request, call, rpc.UpsertAppointmentResponse)

    async def UpdateAppointment(
        self, request: rpc.UpdateAppointmentRequest, call: Call
    ) -> rpc.UpdateAppointmentResponse:
        return await self._write(request, call, rpc.UpdateAppointmentResponse)

    async def ConfirmAppointment(
        self, request: rpc.ConfirmAppointmentRequest, call: Call
    ) -> rpc.ConfirmAppointmentResponse:
        return await self._write(request, call, rpc.ConfirmAppointmentResponse)

    async def CancelAppointment(
        self, request: rpc.CancelAppointmentRequest, call: Call
    ) -> rpc.CancelAppointmentResponse:
        return await self._write(request, call, rpc.CancelAppointmentResponse)

    async def RedactAppointment(
        self, request: rpc.RedactAppointmentRequest, call: Call
    ) -> rpc.RedactAppointmentResponse:
        return await self._write(request, call, rpc.RedactAppointmentResponse)

    async def _write(
        self, request: WriteRequest, call: Call, response: Callable[..., Response]
    ) -> Response:
        """Apply a write and respond. Sets the call's outcome and revision."""
        call.organization_id = organization_of(request)
        write = self._reader.read(request, actor=call.context.actor)
        result = await self._committer.submit(call.organization_id, write)
        call.outcome = result.outcome
        call.organization_revision = result.organization_revision
        return response(
            appointment=messages.appointment(result.appointment),
            outcome=messages.OUTCOMES[result.outcome],
        )

    async def SubmitAppointment(
        self, request: rpc.SubmitAppointmentRequest, call: Call
    ) -> operations_pb2.Operation:
        return await submit(self._accepter, self._reader, request, call)

    async def BatchUpsertAppointments(
        self, request: rpc.BatchUpsertAppointmentsRequest, call: Call
    ) -> rpc.BatchUpsertAppointmentsResponse:
        call.organization_id = _one_organization(request)
        results: dict[int, WriteResult | Exception] = {}
        writes: dict[int, Upsert] = {}
        pause = monotonic() + MAX_UNINTERRUPTED
        for index, item in enumerate(request.requests):
            if monotonic() > pause:
                await asyncio.sleep(0)  # lets other calls continue
                pause = monotonic() + MAX_UNINTERRUPTED
            try:
                writes[index] = self._reader.upsert(
                    item,
                    # An atomic batch is validated as a whole.
                    validate_only=request.validate_only and not request.atomic,
                    actor=call.context.actor,
                )
            except InvalidFields as error:
                # Its frames have the batch and these results, which would be a cycle.
                results[index] = error.with_traceback(None)
        if request.atomic:
            _check_atomic(request, results)
            batch = AtomicBatch(upserts=list(writes.values()), validate_only=request.validate_only)
            results |= enumerate(await self._committer.submit_batch(call.organization_id, batch))
        elif writes:
            decided = await self._committer.submit_all(call.organization_id, list(writes.values()))
            results |= zip(writes, decided, strict=True)
        # Writes are applied in order, so the highest revision is the latest.
        call.organization_revision = max(
            (revision for revision in map(_revision_of, results.values()) if revision is not None),
            default=None,
        )
        return rpc.BatchUpsertAppointmentsResponse(
            results=[_batch_result(call, results[index]) for index in range(len(request.requests))]
        )

    async def GetAppointment(
        self, request: rpc.GetAppointmentRequest, call: Call
    ) -> EncodedResponse:
        organization_id = call.organization_id = messages.organization_of(request)
        [time] = messages.check(request, "as_of_time")
        found, call.organization_revision = await self._reads.get(
            organization_id,
            request.id,
            as_of=await as_of_revision(self._reads, organization_id, request, time),
            at=time,
            min_revision=min_revision(request),
        )
        return EncodedResponse(_OF_GET + with_length(encoded(found)))

    async def ListAppointments(
        self, request: rpc.ListAppointmentsRequest, call: Call
    ) -> rpc.ListAppointmentsResponse | EncodedResponse:
        return await self._lists.answer(request, call)

    async def QueryAvailability(
        self, request: availability_pb2.QueryAvailabilityRequest, call: Call
    ) -> EncodedResponse:
        return await self._availability.answer(request, call)

    async def ListAppointmentHistory(
        self, request: rpc.ListAppointmentHistoryRequest, call: Call
    ) -> rpc.ListAppointmentHistoryResponse:
        organization_id = call.organization_id = messages.organization_of(request)
        messages.check(request)
        limit = request.page_size or DEFAULT_PAGE_SIZE
        page = await self._reads.history(
            organization_id,
            request.id,
            after=_after_page(request, 0, self._reads.epoch),
            limit=limit + 1,
            min_revision=min_revision(request),
        )
        call.organization_revision = page.revision
        shown = _entries(page, limit)
        response = rpc.ListAppointmentHistoryResponse(entries=shown)
        if len(shown) < len(page.items):
            response.next_page_token = page_tokens.encode(
                request, [shown[-1].revision], self._reads.epoch
            )
        return response

    async def ListChanges(
        self, request: rpc.ListChangesRequest, call: Call
    ) -> rpc.ListChangesResponse:
        organization_id = call.organization_id = messages.organization_of(request)
        selected = messages.check_filtered(request)
        limit = request.page_size or DEFAULT_PAGE_SIZE
        page = await self._reads.changes(
            organization_id,
            selected,
            after=_after_page(request, request.after_revision, self._reads.epoch),
            limit=limit,
            min_revision=min_revision(request),
        )
        call.organization_revision = page.revision
        epoch = self._reads.epoch
        if _is_of_another_epoch(request, epoch):
            raise EpochEnded.of("after_revision", organization_revision=page.revision)
        shown = _entries(page, limit)
        response = rpc.ListChangesResponse(
            entries=shown, revision=page.revision, epoch=epoch or None
        )
        reached = page.reached if len(shown) == len(page.items) else shown[-1].revision
        if reached < page.revision:
            response.next_page_token = page_tokens.encode(request, [reached], epoch)
        return response

    async def WatchAppointments(
        self, request: rpc.WatchAppointmentsRequest, call: Call
    ) -> AsyncGenerator[rpc.WatchAppointmentsResponse, None]:
        call.organization_id = messages.organization_of(request)
        selected = messages.check_filtered(request)
        call.entries = 0
        async with aclosing(
            self._watch.changes(
                call.organization_id,
                selected,
                after=request.after_revision,
                is_of_epoch=lambda epoch: not _is_of_another_epoch(request, epoch),
            )
        ) as stream:
            async for changes in stream:
                call.organization_revision = changes.organization_revision
                yield changes.response
                call.entries += len(changes.response.entries)


def _batch_result(
    call: Call, result: WriteResult | Exception
) -> rpc.BatchUpsertAppointmentsResponse.Result:
    if isinstance(result, WriteResult):
        return rpc.BatchUpsertAppointmentsResponse.Result(
            appointment=messages.appointment(result.appointment),
            outcome=messages.OUTCOMES[result.outcome],
        )
    if not isinstance(result, ServiceError):
        log.error("write failed", request_id=call.context.request_id, exc_info=result)
    return rpc.BatchUpsertAppointmentsResponse.Result(
        error=status_of(result, max_details=MAX_ITEM_DETAILS)
    )


def _revision_of(result: WriteResult | Exception) -> int | None:
    return result.organization_revision if isinstance(result, WriteResult | ServiceError) else None


def _one_organization(request: rpc.BatchUpsertAppointmentsRequest) -> str:
    """Return the organization of a batch. Raises InvalidFields if it is empty or has several."""
    messages.check(request)
    if not request.requests:
        raise InvalidFields([("requests", "must not be empty")])
    organizations = [messages.organization_of(item.appointment) for item in request.requests]
    others = [
        (f"requests[{index}].appointment.organization_id", "must be the same in the whole batch")
        for index, organization_id in enumerate(organizations)
        if organization_id != organizations[0]
    ]
    if others:
        raise InvalidFields(others)
    return organizations[0]


def _check_atomic(
    request: rpc.BatchUpsertAppointmentsRequest, results: Mapping[int, WriteResult | Exception]
) -> None:
    """Check what an atomic batch must not contain. Raises InvalidFields, naming all of it."""
    violations = [
        (f"requests[{index}].{field}", detail)
        for index, error in results.items()
        if isinstance(error, InvalidFields)
        for field, detail in error.violations
    ]
    for field, value_of in _DISTINCT.items():
        first: dict[str, int] = {}
        for index, item in enumerate(request.requests):
            value = value_of(item)
            if value and first.setdefault(value, index) != index:
                violations.append(
                    (
                        f"requests[{index}].{field}",
                        f"must differ from that of requests[{first[value]}]",
                    )
                )
    if violations:
        raise InvalidFields(violations)


_DISTINCT: Mapping[str, Callable[[rpc.BatchUpsertAppointmentsRequest.Item], str]] = {
    "appointment.id": lambda item: item.appointment.id,
    "idempotency_key": lambda item: item.idempotency_key,
}


def _is_of_another_epoch(
    request: rpc.ListChangesRequest | rpc.WatchAppointmentsRequest, epoch: str
) -> bool:
    """Return whether `after_revision` is of another epoch, if the caller says of which it is."""
    return request.after_revision > 0 and request.HasField("epoch") and request.epoch != epoch


def _after_page(
    request: rpc.ListAppointmentHistoryRequest | rpc.ListChangesRequest, first: int, epoch: str
) -> int:
    """Return the revision that the previous page reached, or `first` for the first page."""
    if not request.page_token:
        return first
    [after] = page_tokens.decode(request, request.page_token, (page_tokens.revision,), epoch)
    reached: int = after
    return reached


def _entries(page: Page[HistoryEntry], limit: int) -> list[pb.HistoryEntry]:
    return messages.fitting(
        page.items,
        limit,
        messages.history_entry,
        size_of=pb.HistoryEntry.ByteSize,
        max_bytes=MAX_PAGE_BYTES,
    )
