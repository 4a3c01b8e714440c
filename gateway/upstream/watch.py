"""Calls WatchAppointments, and resumes after the last revision when the service was away."""

import asyncio
import math
import random
from collections.abc import AsyncGenerator
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

from gateway.upstream.channels import Connection
from gateway.upstream.metadata import Metadata
from gateway.upstream.relay import CallError

# Seconds between attempts to resume: doubled up to the longest, with 50 % jitter.
RESUME_DELAY = 0.5
LONGEST_RESUME_DELAY = 5.0

# The certificate of the connection is the gateway's. `service/rpc/context.py` reads this.
RELAYED = ("x-relayed", "1")

# Temporary errors.
_TEMPORARY = frozenset(
    {
        StatusCode.UNAVAILABLE,
        StatusCode.CANCELLED,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.RESOURCE_EXHAUSTED,
    }
)


class Watch:
    """Calls WatchAppointments, each time at any address of the service.

    `timeout` limits the wait for the first message, `heartbeat` the wait for later ones;
    when it expires, None is yielded. `outage_timeout` is how long a service that is
    unavailable or overloaded is retried. All are in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        timeout: float,
        heartbeat: float,
        outage_timeout: float,
    ) -> None:
        self._connection = connection
        self._timeout = timeout
        self._heartbeat = heartbeat
        self._outage_timeout = outage_timeout
        self._log = structlog.get_logger()

    async def follow(
        self, request: WatchAppointmentsRequest, metadata: Metadata, *, request_id: str
    ) -> AsyncGenerator[WatchAppointmentsResponse | None, None]:
        """Yield the service's messages, and None regularly while there are none.

        After a temporary error the call is repeated after the last message's revision, which
        is stored in the request with its epoch. Ends when the outage timeout expires. Raises
        `CallError` for errors that are not temporary.
        """
        begun = False
        down_since: float | None = monotonic()
        delay = RESUME_DELAY
        while True:
            call: Any = AppointmentServiceStub(self._connection.channel).WatchAppointments(
                request, metadata=(*metadata, RELAYED), wait_for_ready=begun
            )
            self._connection.when_replaced.add(call.cancel)
            try:
                reading = _reading(call)
                while True:
                    wait = self._heartbeat if begun else self._timeout
                    await asyncio.wait({reading}, timeout=min(wait, self._left(down_since)))
                    if reading.cancelled():
                        break  # the connection was replaced
                    if reading.done():
                        response = reading.result()
                        if response is aio.EOF:
                            return
                        begun, down_since, delay = True, None, RESUME_DELAY
                        request.after_revision = response.revision
                        request.epoch = response.epoch
                        yield response
                        reading = _reading(call)
                    elif not self._left(down_since):
                        return
                    else:
                        begun = True
                        yield None
            except aio.AioRpcError as error:
                if error.code() not in _TEMPORARY:
                    raise _call_error(error) from error
                down_since = down_since or monotonic()
                if not self._left(down_since):
                    self._log.warning(
                        "watch ended",
                        request_id=request_id,
                        code=error.code().name,
                        error=error.details(),
                    )
                    return
            finally:
                self._connection.when_replaced.discard(call.cancel)
                call.cancel()
            if not begun:
                begun = True
                yield None
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
            delay = min(2 * delay, LONGEST_RESUME_DELAY)

    def _left(self, down_since: float | None) -> float:
        """Return the seconds left until the outage timeout; infinite without an outage."""
        if down_since is None:
            return math.inf
        return max(0.0, down_since + self._outage_timeout - monotonic())


def _reading(
    call: aio.UnaryStreamCall[WatchAppointmentsRequest, WatchAppointmentsResponse],
) -> asyncio.Future[Any]:
    """Start to read the next message. Its exception is ignored if nothing awaits it."""
    reading: asyncio.Future[Any] = asyncio.ensure_future(call.read())
    reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
    return reading


def _call_error(error: aio.AioRpcError) -> CallError:
    metadata: dict[str, Any] = dict(error.trailing_metadata() or ())
    details = metadata.get("grpc-status-details-bin")
    status = Status.FromString(details) if details else Status(code=error.code().value[0])
    revision = metadata.get("organization-revision")
    limit = metadata.get("ratelimit")
    return CallError(
        status,
        int(revision) if revision else None,
        (metadata["ratelimit-policy"], limit) if limit else None,
    )
