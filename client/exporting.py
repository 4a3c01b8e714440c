"""Reads all appointments of an organization as they were at one revision, page by page."""

from collections.abc import Iterator

from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2 import ListAppointmentsRequest
from google.protobuf.timestamp_pb2 import Timestamp

from client.service import Service

PAGE_SIZE = 1_000
_LAST_TIME = Timestamp(seconds=253_402_300_799)  # 9999-12-31T23:59:59Z


def appointments_of(
    service: Service, *, as_of_revision: int | None, include_cancelled: bool
) -> Iterator[Appointment]:
    """Yield all appointments by start, then id, with one page of them in memory.

    All pages show one revision, the latest one unless another is given: otherwise what is moved
    meanwhile could be missing or be there twice.
    """
    request = ListAppointmentsRequest(
        organization_id=service.organization,
        page_size=PAGE_SIZE,
        include_cancelled=include_cancelled,
    )
    if as_of_revision is None:
        # The page tokens keep the revision of the first page.
        request.as_of_time.CopyFrom(_LAST_TIME)
    else:
        request.as_of_revision = as_of_revision
    while True:
        page = service.call("ListAppointments", request)
        yield from page.appointments
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
