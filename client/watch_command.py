"""`python -m client watch`."""

import json
from threading import Event, Thread
from typing import Any

import click
import grpc
from appointments.v1.appointment_pb2 import Appointment, HistoryEntry
from appointments.v1.appointment_service_pb2 import (
    ListChangesRequest,
    WatchAppointmentsRequest,
    WatchAppointmentsResponse,
)
from rich.console import Console
from rich.text import Text

from client.errors import fault_of
from client.json_lines import time_text, values_of
from client.service import Address, Patience, Service, connected, failed
from client.stopping import stopped_by_signals

_STYLES = {"CREATED": "green", "UPDATED": "yellow", "CANCELLED": "red", "EXPIRED": "red"}


@click.command("watch")
@Address.options
@click.option("--resource", help="Only changes of appointments that occupy it.")
@click.option(
    "--after-revision",
    type=click.IntRange(0),
    help="Begin after it; 0: with the first change. [default: with the next change]",
)
@click.option("--json", "as_json", is_flag=True, help="Print each change as a JSON object.")
def watch_command(
    resource: str | None,
    after_revision: int | None,
    as_json: bool,
    **address: Any,  # noqa: ANN401  the options of Address
) -> None:
    """Show the changes of the organization as they happen, until Ctrl-C.

    No change is left out, also if the connection is lost in between.
    """
    console = Console(highlight=False, soft_wrap=True)
    with stopped_by_signals() as stop, connected(Address(**address), stop) as service:
        if after_revision is None:
            latest = ListChangesRequest(organization_id=service.organization, page_size=1)
            after_revision = service.call("ListChanges", latest).revision
        request = WatchAppointmentsRequest(
            organization_id=service.organization,
            after_revision=after_revision,
            resource_id=resource,
        )
        for entry in _changes(service, request, stop):
            if as_json:
                click.echo(json.dumps(_values(entry), ensure_ascii=False))
            else:
                console.print(_line(entry))


def _changes(service: Service, request: WatchAppointmentsRequest, stop: Event) -> Any:  # noqa: ANN401
    """Yield changes, and begin a stream again where the last one ended."""
    patience = Patience(stop)
    while not stop.is_set():
        stream = service.stream("WatchAppointments", request)
        # Waiting for the next message would not notice a signal.
        Thread(target=lambda call=stream: stop.wait() and call.cancel(), daemon=True).start()
        try:
            response: WatchAppointmentsResponse
            for response in stream:
                patience = Patience(stop)
                yield from response.entries
                request.after_revision = response.revision
                request.epoch = response.epoch
        except grpc.RpcError as error:
            if stop.is_set():
                return
            fault = fault_of(error)
            if not fault.temporary:
                raise failed(fault) from error
            patience.wait(fault)


def _values(entry: HistoryEntry) -> dict[str, Any]:
    return {
        "revision": entry.revision,
        "change": HistoryEntry.Change.Name(entry.change),
        "recordedAt": time_text(entry.recorded_at),
        "actor": entry.actor,
        "appointment": values_of(entry.appointment),
    }


def _line(entry: HistoryEntry) -> Text:
    """Return a change as a line; what callers have written is no markup."""
    change = HistoryEntry.Change.Name(entry.change)
    appointment = entry.appointment
    line = Text(f"{entry.revision:>8}  {time_text(entry.recorded_at)[:19]}  ")
    line.append(f"{change:<9}", style=_STYLES.get(change, ""))
    line.append(f"  {_span(appointment)}  ")
    line.append(appointment.id, style="bold")
    resources = [appointment.resource_id, *appointment.additional_resource_ids]
    for text in (", ".join(filter(None, resources)), appointment.title, entry.actor):
        if text:
            line.append(f"  {text}")
    return line


def _span(appointment: Appointment) -> str:
    """Return start and end, the date of the end only if it is another one."""
    start, end = time_text(appointment.start)[:16], time_text(appointment.end)[:16]
    return f"{start} - {end[11:] if end[:10] == start[:10] else end}"
