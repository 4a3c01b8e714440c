"""The RPCs of AppointmentService: read the request, call the committer or store, respond."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any

import structlog
from appointments.v1 import appointment_service_pb2 as rpc
from google.longrunning import operations_pb2

from service import messages
from service.domain import Appointment, HistoryEntry, Upsert, Write, WriteResult
from service.errors import InvalidFields, ServiceError
from service.operations.accepter import Accepter
from service.reads.page_cache import PageCache
from service.reads.store import ReadStore, Window
from service.reads.watch import Watch
from service.rpc import page_tokens
from service.rpc.handler import Call
from service.rpc.operations import submit
from service.rpc.status import status_of
from service.writes.committer import Committer

DEFAULT_PAGE_SIZE = 100
# Below the 4 MiB that a gRPC client accepts by default. A page of large appointments has fewer
# items than requested, instead of being refused by the client.
MAX_PAGE_BYTES = 3 * 1024 * 1024

# Keeps the response to a batch whose items are all refused below 4 MiB too.
MAX_ITEM_DETAILS = 1024

log = structlog.get_logger()


class AppointmentServicer:
    def __init__(
        self,
        committer: Committer,
        accepter: Accepter,
        reads: ReadStore,
        pages: PageCache,
        watch: Watch,
    ) -> None:
        self._committer = committer
        self._accepter = accepter
        self._reads = reads
        self._pages = pages
        self._watch = watch

    async def UpsertAppointment(
        self, request: rpc.UpsertAppointmentRequest, call: Call
    ) -> rpc.UpsertAppointmentResponse:
        organization_id = call.organization_id = messages.organization_of(request.appointment)
        write = messages.upsert(
            request, validate_only=request.validate_only, actor=call.context.actor
        )
        result = await self._decide(call, organization_id, write)
        return rpc.UpsertAppointmentResponse(
            appointment=messages.appointment(result.appointment),
            outcome=messages.OUTCOMES[result.outcome],
        )

    async def CancelAppointment(
        self, request: rpc.CancelAppointmentRequest, call: Call
    ) -> rpc.CancelAppointmentResponse:
        organization_id = call.organization_id = messages.organization_of(request)
        write = messages.cancel(request, actor=call.context.actor)
        result = await self._decide(call, organization_id, write)
        return rpc.CancelAppointmentResponse(
            appointment=messages.appointment(result.appointment),
            outcome=messages.OUTCOMES[result.outcome],
        )

    async def _decide(self, call: Call, organization_id: str, write: Write) -> WriteResult:
        """Submit a write. Sets the call's outcome and revision."""
        result = await self._committer.submit(organization_id, write)
        call.outcome = result.outcome
        call.organization_revision = result.organization_revision
        return result

    async def SubmitAppointment(
        self, request: rpc.SubmitAppointmentRequest, call: Call
    ) -> operations_pb2.Operation:
        return await submit(self._accepter, request, call)

    async def BatchUpsertAppointments(
        self, request: rpc.BatchUpsertAppointmentsRequest, call: Call
    ) -> rpc.BatchUpsertAppointmentsResponse:
        call.organization_id = _one_organization(request)
        results: dict[int, WriteResult | Exception] = {}
        writes: dict[int, Upsert] = {}
        for index, item in enumerate(request.requests):
            try:
                writes[index] = messages.upsert(
                    item, validate_only=request.validate_only, actor=call.context.actor
                )
            except InvalidFields as error:
                results[index] = error
        if writes:
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
    ) -> rpc.GetAppointmentResponse:
        organization_id = call.organization_id = messages.organization_of(request)
        [time] = messages.check(request, "as_of_time")
        found, call.organization_revision = await self._reads.get(
            organization_id,
            request.id,
            as_of=await self._as_of(organization_id, request, time),
            min_revision=_min_revision(request),
        )
        return rpc.GetAppointmentResponse(appointment=messages.appointment(found))

    async def ListAppointments(
        self, request: rpc.ListAppointmentsRequest, call: Call
    ) -> rpc.ListAppointmentsResponse:
        organization_id = call.organization_id = messages.organization_of(request)
        start, end, time = messages.check(request, "from", "to", "as_of_time")
        if start and end and end < start:
            raise InvalidFields([("to", "must not be before from")])
        cache_key = request.SerializeToString(deterministic=True)
        # Not with a time: later changes may still be recorded at or before it.
        cacheable = not request.HasField("min_revision") and time is None
        if cacheable and (cached := await self._pages.current(cache_key, organization_id)):
            call.organization_revision, _ = cached.moment
            return cached.response
        after = None
        if request.page_token:
            *after, as_of = page_tokens.decode(
                request,
                request.page_token,
                (page_tokens.time, page_tokens.appointment_id, page_tokens.revision_or_none),
            )
        else:
            as_of = await self._as_of(organization_id, request, time)
        limit = request.page_size or DEFAULT_PAGE_SIZE
        page = await self._reads.list(
            organization_id,
            Window(
                resource_id=request.resource_id if request.HasField("resource_id") else None,
                start=start,
                end=end,
                include_cancelled=request.include_cancelled,
            ),
            after=(after[0], after[1]) if after else None,
            limit=limit + 1,
            as_of=as_of,
            min_revision=_min_revision(request),
        )
        call.organization_revision = page.revision
        shown = messages.fitting(page.items, limit, messages.appointment, max_bytes=MAX_PAGE_BYTES)
        response = rpc.ListAppointmentsResponse(
            appointments=shown, revision=page.revision if as_of is None else as_of
        )
        if len(shown) < len(page.items):
            last: Appointment = page.items[len(shown) - 1]
            position = [last.start.isoformat(), last.id, as_of]
            response.next_page_token = page_tokens.encode(request, position)
        if cacheable:
            self._pages.put(cache_key, page.moment, response)
        return response

    async def ListAppointmentHistory(
        self, request: rpc.ListAppointmentHistoryRequest, call: Call
    ) -> rpc.ListAppointmentHistoryResponse:
        entries, token, _ = await self._history(call, request, request.id, after=0)
        return rpc.ListAppointmentHistoryResponse(entries=entries, next_page_token=token)

    async def ListChanges(
        self, request: rpc.ListChangesRequest, call: Call
    ) -> rpc.ListChangesResponse:
        entries, token, revision = await self._history(
            call, request, None, after=request.after_revision
        )
        return rpc.ListChangesResponse(entries=entries, next_page_token=token, revision=revision)

    async def WatchAppointments(
        self, request: rpc.WatchAppointmentsRequest, call: Call
    ) -> AsyncGenerator[rpc.WatchAppointmentsResponse, None]:
        call.organization_id = messages.organization_of(request)
        messages.check(request)
        call.entries = 0
        async with aclosing(
            self._watch.changes(call.organization_id, after=request.after_revision)
        ) as stream:
            async for changes in stream:
                call.organization_revision = changes.organization_revision
                yield changes.response
                call.entries += len(changes.response.entries)

    async def _history(
        self,
        call: Call,
        request: rpc.ListAppointmentHistoryRequest | rpc.ListChangesRequest,
        id: str | None,
        *,
        after: int,
    ) -> tuple[list[Any], str, int]:
        call.organization_id = messages.organization_of(request)
        messages.check(request)
        if request.page_token:
            [after] = page_tokens.decode(request, request.page_token, (page_tokens.revision,))
        limit = request.page_size or DEFAULT_PAGE_SIZE
        page = await self._reads.history(
            call.organization_id,
            id,
            after=after,
            limit=limit + 1,
            min_revision=_min_revision(request),
        )
        call.organization_revision = page.revision
        shown = messages.fitting(
            page.items, limit, messages.history_entry, max_bytes=MAX_PAGE_BYTES
        )
        token = ""
        if len(shown) < len(page.items):
            last: HistoryEntry = page.items[len(shown) - 1]
            token = page_tokens.encode(request, [last.revision])
        return shown, token, page.revision

    async def _as_of(
        self,
        organization_id: str,
        request: rpc.GetAppointmentRequest | rpc.ListAppointmentsRequest,
        time: datetime | None,
    ) -> int | None:
        """Return the revision to read at, None for the latest. Raises InvalidFields."""
        if request.HasField("as_of_revision"):
            if time is not None:
                raise InvalidFields([("as_of_time", "must not be given with as_of_revision")])
            return request.as_of_revision
        if time is not None:
            return await self._reads.revision_at(organization_id, time)
        return None


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


def _min_revision(
    request: rpc.GetAppointmentRequest
    | rpc.ListAppointmentsRequest
    | rpc.ListAppointmentHistoryRequest
    | rpc.ListChangesRequest,
) -> int | None:
    return request.min_revision if request.HasField("min_revision") else None
