"""Sends what a file contains to the service, in batches, several at a time."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import grpc
from appointments.v1.appointment_pb2 import Appointment, Outcome
from appointments.v1.appointment_service_pb2 import (
    BatchUpsertAppointmentsRequest,
    CancelAppointmentRequest,
)

from client.entries import Entry, Item, Skipped
from client.errors import Fault, fault_of
from client.service import Patience, Service, failed

BATCH_SIZE = 250
IN_FLIGHT = 4
# The service reads longer requests one after another.
MAX_BATCH_BYTES = 240 * 1024
_OUTCOMES = {number: name for name, number in Outcome.items()}


class Listener(Protocol):
    """Is told what became of each entry, in the order of the file."""

    def skipped(self, item: Skipped) -> None:
        """Note what was not sent."""

    def refused(self, entry: Entry, fault: Fault) -> None:
        """Note what the service refused."""

    def done(self, items: int, outcomes: Counter[str]) -> None:
        """Note that so many more items of the file are settled, with these outcomes.

        What was skipped or refused counts under its kind or reason.
        """


@dataclass(slots=True, kw_only=True)
class Group:
    """Items of the file that are settled together, and the call that does so."""

    items: list[Item] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    bytes: int = 0
    call: "grpc.Future[Any] | None" = None

    @property
    def is_full(self) -> bool:
        return self.bytes >= MAX_BATCH_BYTES or len(self.items) >= 10 * BATCH_SIZE

    @property
    def ids(self) -> set[str]:
        return {entry.appointment.id for entry in self.entries}


class Importer:
    """Imports the items of one file.

    An id is never in two calls at once, so the last of several entries with one id is the one
    that stays. Of two entries that overlap, one is refused: the later one in the file if they are
    in one batch or `in_flight` is 1, else whichever comes later.
    """

    def __init__(
        self,
        service: Service,
        listener: Listener,
        *,
        dry_run: bool = False,
        batch_size: int = BATCH_SIZE,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        self._service = service
        self._listener = listener
        self._dry_run = dry_run
        self._batch_size = batch_size
        self._in_flight = in_flight
        self._pending: deque[Group] = deque()

    def run(self, items: Iterable[Item], *, skip: int = 0) -> bool:
        """Import all items but the first `skip`. Returns False if it was told to stop before.

        What is in flight is waited for in both cases. Raises CommandError if the service is away
        for too long, or refuses not an entry but the caller.
        """
        stop = self._service.stop
        for group in self._groups(islice(items, skip, None)):
            if stop.is_set():
                break
            self._make_room(group.ids)
            if group.entries:
                group.call = self._service.start(*self._request(group.entries))
            self._pending.append(group)
        while self._pending:
            self._settle(self._pending.popleft())
        return not stop.is_set()

    def _groups(self, items: Iterable[Item]) -> Iterator[Group]:
        """Put items together: entries to store up to the size of a batch, a cancelled one alone."""
        group = Group()
        for item in items:
            size = 0
            if isinstance(item, Entry):
                item.appointment.organization_id = self._service.organization
                size = item.appointment.ByteSize()
            cancelled = isinstance(item, Entry) and item.cancelled
            if group.entries and (cancelled or group.bytes + size > MAX_BATCH_BYTES):
                yield group
                group = Group()
            group.items.append(item)
            if isinstance(item, Entry):
                group.entries.append(item)
                group.bytes += size
            if cancelled or len(group.entries) >= self._batch_size or group.is_full:
                yield group
                group = Group()
        if group.items:
            yield group

    def _make_room(self, ids: set[str]) -> None:
        """Wait until another call may start, and none in flight has one of the ids."""
        while self._pending and (
            len(self._pending) >= self._in_flight
            or any(not ids.isdisjoint(group.ids) for group in self._pending)
        ):
            self._settle(self._pending.popleft())

    def _request(self, entries: list[Entry]) -> tuple[str, Any]:
        if entries[0].cancelled:
            return "CancelAppointment", _cancel(entries[0].appointment, validate=self._dry_run)
        item = BatchUpsertAppointmentsRequest.Item
        return "BatchUpsertAppointments", BatchUpsertAppointmentsRequest(
            requests=[item(appointment=entry.appointment) for entry in entries],
            validate_only=self._dry_run,
        )

    def _settle(self, group: Group) -> None:
        """Wait for the call of a group, and tell the listener about each item."""
        faults: dict[int, Fault] = {}
        outcomes: Counter[str] = Counter()
        if group.call is not None:
            faults = self._results(group.entries, group.call, outcomes)
        for item in group.items:
            if isinstance(item, Skipped):
                outcomes[item.kind] += 1
                self._listener.skipped(item)
            elif id(item) in faults:
                outcomes[faults[id(item)].reason] += 1
                self._listener.refused(item, faults[id(item)])
        self._listener.done(len(group.items), outcomes)

    def _results(
        self, entries: list[Entry], call: "grpc.Future[Any]", outcomes: Counter[str]
    ) -> dict[int, Fault]:
        """Count the outcomes, and return the faults by the `id()` of their entries.

        Entries that failed temporarily are sent again.
        """
        faults: dict[int, Fault] = {}
        patience = Patience(self._service.stop)
        while True:
            rpc, request = self._request(entries)
            try:
                response = self._service.finish(rpc, request, call, patience)
            except grpc.RpcError as error:
                fault = fault_of(error)
                if entries[0].cancelled and fault.reason == "APPOINTMENT_NOT_FOUND":
                    outcomes["NOT_STORED"] += 1
                    return faults
                raise failed(fault) from error
            if entries[0].cancelled:
                outcomes[_OUTCOMES[response.outcome]] += 1
                return faults
            again: list[Entry] = []
            for entry, result in zip(entries, response.results, strict=True):
                if not result.HasField("error"):
                    outcomes[_OUTCOMES[result.outcome]] += 1
                    continue
                fault = Fault.of(result.error)
                if fault.temporary:
                    again.append(entry)
                else:
                    faults[id(entry)] = fault
            if not again:
                return faults
            entries = again
            patience.wait(fault)
            call = self._service.start(*self._request(entries))


def _cancel(appointment: Appointment, *, validate: bool) -> CancelAppointmentRequest:
    request = CancelAppointmentRequest(
        organization_id=appointment.organization_id, id=appointment.id, validate_only=validate
    )
    if appointment.HasField("updated_at"):
        request.updated_at.CopyFrom(appointment.updated_at)
    return request
