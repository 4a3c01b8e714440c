"""Books with the client of openapi-python-client."""

import sys
from datetime import UTC, datetime

from appointments_client import AuthenticatedClient
from appointments_client.api.appointments import (
    cancel_appointment,
    get_appointment,
    list_appointment_history,
    list_appointments,
    upsert_appointment,
)
from appointments_client.models import (
    Appointment,
    AppointmentInput,
    ErrorCode,
    JsonObject,
    ListAppointmentHistoryResponse,
    ListAppointmentsResponse,
    Problem,
)

START, END = datetime(2030, 1, 7, 8, tzinfo=UTC), datetime(2030, 1, 7, 8, 30, tzinfo=UTC)


def printed(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def main(url: str, organization: str, token: str) -> None:
    client = AuthenticatedClient(base_url=url, token=token)
    wanted = AppointmentInput(
        organization_id=organization,
        id="a",
        start=START,
        end=END,
        title="Planning",
        attributes=JsonObject.from_dict({"floor": 3}),
    )
    booked = upsert_appointment.sync_detailed(client=client, body=wanted)
    assert isinstance(booked.parsed, Appointment), booked
    first = booked.parsed
    revision: str = first.revision
    print(
        f"booked {first.id} from {printed(first.start)} to {printed(first.end)},"
        f" version {first.version}, revision {revision}, {booked.headers['Appointment-Outcome']}"
    )

    taken = AppointmentInput(organization_id=organization, id="b", start=START, end=END)
    problem = upsert_appointment.sync(client=client, body=taken)
    assert isinstance(problem, Problem), problem
    assert problem.code is ErrorCode.TIME_RANGE_CONFLICT
    for conflict in problem.conflicts or ():
        by = f"{conflict.id} from {printed(conflict.start)} to {printed(conflict.end)}"
        print(f"refused, {problem.status} {problem.code}, by {by}")

    page = list_appointments.sync(
        client=client, organization_id=organization, min_revision=revision
    )
    assert isinstance(page, ListAppointmentsResponse), page
    print(f"listed {','.join(one.id for one in page.appointments)} at revision {page.revision}")

    read = get_appointment.sync("a", client=client, organization_id=organization)
    assert isinstance(read, Appointment), read
    change = AppointmentInput.from_dict({**read.to_dict(), "title": "Retrospective"})
    second = upsert_appointment.sync(client=client, body=change)
    assert isinstance(second, Appointment), second
    print(
        f'changed to "{second.title}", floor {second.attributes["floor"]},'
        f" version {second.version}, revision {second.revision}"
    )

    late = upsert_appointment.sync(client=client, body=change)
    assert isinstance(late, Problem), late
    print(f"refused, {late.status} {late.code}")

    past = get_appointment.sync(
        "a", client=client, organization_id=organization, as_of_revision=read.revision
    )
    assert isinstance(past, Appointment), past
    print(f'read "{past.title}" as of revision {read.revision}')

    last = cancel_appointment.sync("a", client=client, organization_id=organization)
    assert isinstance(last, Appointment), last
    print(f"cancelled {last.id}, version {last.version}, {last.state}")

    history = list_appointment_history.sync("a", client=client, organization_id=organization)
    assert isinstance(history, ListAppointmentHistoryResponse), history
    changes = (f"{entry.appointment.version} {entry.change}" for entry in history.entries)
    print(f"history {', '.join(changes)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
