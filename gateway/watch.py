"""Watching through the service, and going on where it was when the service comes back."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from time import monotonic
from typing import Any

import structlog
from appointments.v1.appointment_service_pb2 import (
    WatchAppointmentsRequest,
    WatchAppointmentsResponse,
)
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.rpc.status_pb2 import Status
from grpc import StatusCode, aio

from gateway.relay import CallError

RESUME_DELAY = 0.5
"""Seconds between attempts to go on with a service that refuses to."""
RESUME_WITHIN = 30.0
"""Seconds that a watch outlives the service. They are many because an EventSource whose
stream ends comes back, but gives up for good if it is refused then."""

_RESUMED = frozenset({StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.RESOURCE_EXHAUSTED})


class Watch:
    """Calls WatchAppointments, each time on the next of the connections.

    `timeout` is how long the first message is waited for; `heartbeat` how long a further
    one, until None is given in its place. Both are in seconds.
    """

    def __init__(
        self, channels: Sequence[aio.Channel], *, timeout: float, heartbeat: float
    ) -> None:
        # Of several connections each may reach another process of the service.
        self._stubs = itertools.cycle([AppointmentServiceStub(channel) for channel in channels])
        self._timeout = timeout
        self._heartbeat = heartbeat
        self._log = structlog.get_logger()

    async def follow(
        self, request: WatchAppointmentsRequest, *, request_id: str, actor: str
    ) -> AsyncGenerator[WatchAppointmentsResponse | None, None]:
        """Give the service's messages, the first of which is never None.

        Raises `CallError` if the service refuses to begin. Once begun it is called again
        when it goes away; if it stays away, or refuses to go on, the messages end.
        """
        metadata = (("x-request-id", request_id), ("x-actor", actor))
        begun = False
        away_since: float | None = None
        while True:
            call: Any = next(self._stubs).WatchAppointments(
                request, metadata=metadata, wait_for_ready=begun
            )
            try:
                reading = asyncio.ensure_future(call.read())
                while True:
                    wait = self._heartbeat if begun else self._timeout
                    await asyncio.wait({reading}, timeout=wait)
                    if reading.done():
                        response = reading.result()
                        if response is aio.EOF:
                            return
                        begun, away_since = True, None
                        request.after_revision = response.revision
                        yield response
                        reading = asyncio.ensure_future(call.read())
                    elif not begun:
                        raise CallError(Status(code=StatusCode.DEADLINE_EXCEEDED.value[0]))
                    elif _too_long(away_since):
                        return
                    else:
                        yield None
            except aio.AioRpcError as error:
                if not begun:
                    raise _call_error(error) from error
                away_since = away_since or monotonic()
                if error.code() not in _RESUMED or _too_long(away_since):
                    self._log.warning(
                        "watch ended",
                        request_id=request_id,
                        code=error.code().name,
                        error=error.details(),
                    )
                    return
            finally:
                call.cancel()
            await asyncio.sleep(RESUME_DELAY)


def _too_long(away_since: float | None) -> bool:
    return away_since is not None and monotonic() - away_since > RESUME_WITHIN


def _call_error(error: aio.AioRpcError) -> CallError:
    metadata: dict[str, Any] = dict(error.trailing_metadata() or ())
    details = metadata.get("grpc-status-details-bin")
    status = Status.FromString(details) if details else Status(code=error.code().value[0])
    revision = metadata.get("organization-revision")
    return CallError(status, int(revision) if revision else None)
