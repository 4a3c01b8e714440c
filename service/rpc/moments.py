"""Which state a request asks for."""

from datetime import datetime

from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.availability_pb2 import QueryAvailabilityRequest

from service.errors import InvalidFields
from service.reads.store import ReadStore


def min_revision(
    request: rpc.GetAppointmentRequest
    | rpc.ListAppointmentsRequest
    | rpc.ListAppointmentHistoryRequest
    | rpc.ListChangesRequest
    | QueryAvailabilityRequest,
) -> int | None:
    return request.min_revision if request.HasField("min_revision") else None


async def as_of_revision(
    reads: ReadStore,
    organization_id: str,
    request: rpc.GetAppointmentRequest | rpc.ListAppointmentsRequest,
    time: datetime | None,
) -> int | None:
    """Return the revision to read at, None for the latest. Raises InvalidFields."""
    if request.HasField("as_of_revision"):
        if time is not None:
            raise InvalidFields([("as_of_time", "must not be given together with a revision")])
        return request.as_of_revision
    if time is not None:
        return await reads.revision_at(organization_id, time)
    return None
