"""Watching through the service, and going on where it was when the service comes back."""

import asyncio
import itertools
import math
import random
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

from gateway.upstream.metadata import Metadata
from gateway.upstream.relay import CallError

# Seconds between attempts to go on with a service that refuses to: they double from the one
# to the other, and vary by half.
RESUME_DELAY = 0.5
LONGEST_RESUME_DELAY = 5.0

# What passes by itself.
_WAITED_FOR = frozenset(
    {
        StatusCode.UNAVAILABLE,
        StatusCode.CANCELLED,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.RESOURCE_EXHAUSTED,
    }
)


class Watch:
    """Calls WatchAppointments, each time on the next of the connections.

    `timeout` is how long the first message is waited for, and `heartbeat` a further one,
    until None is given in its place; `patience` how long a service that is away, or has no
    room, is waited for. All are in seconds.
    """

    def __init__(
        self,
        channels: Sequence[aio.Channel],
        *,
        timeout: float,
        heartbeat: float,
        patience: float,
    ) -> None:
        # Of several connections each may reach another process of the service.
        self._stubs = itertools.cycle([AppointmentServiceStub(channel) for channel in channels])
        self._timeout = timeout
        self._heartbeat = heartbeat
        self._patience = patience
        self._log = structlog.get_logger()

    async def follow(
        self, request: WatchAppointmentsRequest, metadata: Metadata, *, request_id: str
    ) -> AsyncGenerator[WatchAppointmentsResponse | None, None]:
        """Give the service's messages, and None from time to time while there are none.

        The service is called again when it goes away, after the last message's revision,
        which is put into the request. The messages end when it has not answered for the
        patience. Raises `CallError` if it refuses for a reason that waiting does not mend.
        """
        begun = False
        away_since: float | None = monotonic()
        delay = RESUME_DELAY
        while True:
            call: Any = next(self._stubs).WatchAppointments(
                request, metadata=metadata, wait_for_ready=begun
            )
            try:
                reading = _reading(call)
                while True:
                    wait = self._heartbeat if begun else self._timeout
                    await asyncio.wait({reading}, timeout=min(wait, self._left(away_since)))
                    if reading.done():
                        response = reading.result()
                        if response is aio.EOF:
                            return
                        begun, away_since, delay = True, None, RESUME_DELAY
                        request.after_revision = response.revision
                        yield response
                        reading = _reading(call)
                    elif not self._left(away_since):
                        return
                    else:
                        begun = True
                        yield None
            except aio.AioRpcError as error:
                if error.code() not in _WAITED_FOR:
                    raise _call_error(error) from error
                away_since = away_since or monotonic()
                if not self._left(away_since):
                    self._log.warning(
                        "watch ended",
                        request_id=request_id,
                        code=error.code().name,
                        error=error.details(),
                    )
                    return
            finally:
                call.cancel()
            if not begun:
                begun = True
                yield None
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
            delay = min(2 * delay, LONGEST_RESUME_DELAY)

    def _left(self, away_since: float | None) -> float:
        """Tell how many seconds are left for a service that is away to come back."""
        if away_since is None:
            return math.inf
        return max(0.0, away_since + self._patience - monotonic())


def _reading(
    call: aio.UnaryStreamCall[WatchAppointmentsRequest, WatchAppointmentsResponse],
) -> asyncio.Future[Any]:
    """Begin to read the next message; how that fails when nobody waits any more is no news."""
    reading: asyncio.Future[Any] = asyncio.ensure_future(call.read())
    reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
    return reading


def _call_error(error: aio.AioRpcError) -> CallError:
    metadata: dict[str, Any] = dict(error.trailing_metadata() or ())
    details = metadata.get("grpc-status-details-bin")
    status = Status.FromString(details) if details else Status(code=error.code().value[0])
    revision = metadata.get("organization-revision")
    return CallError(status, int(revision) if revision else None)
