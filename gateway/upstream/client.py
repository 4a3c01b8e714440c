"""Calls the service, and raises its errors as problems."""

from google.protobuf.message import Message

from gateway.http.context import RequestContext
from gateway.http.problems import ProblemError, StatusConverter, refusal
from gateway.upstream.metadata import metadata_of
from gateway.upstream.relay import CallError, MessageTooLargeError, Relay, Reply
from gateway.upstream.traced import traced
from public_json.reasons import Reason

REVISION = "Organization-Revision"


class ServiceClient:
    """Calls methods of the service by path: `/package.Service/Method`."""

    def __init__(self, relay: Relay, statuses: StatusConverter) -> None:
        self._relay = relay
        self._statuses = statuses

    @traced
    async def call(
        self, method: str, message: Message, context: RequestContext, *, wait: float = 0
    ) -> Reply:
        """Call a method. `wait` (seconds) is added to the usual timeout.

        Raises `ProblemError` for an error of the service, for a message that is too large, and
        for a header that cannot be sent as metadata. If the client disconnects, the call is
        cancelled.
        """
        try:
            reply = await self._relay.call(
                method,
                message.SerializeToString(),
                metadata_of(context),
                organization=context.organization or "",
                wait=wait,
            )
        except MessageTooLargeError as error:
            raise refusal(
                Reason.REQUEST_TOO_LARGE,
                f"Encoded as a gRPC message, the request is larger than {error.max_bytes} bytes.",
            ) from error
        except CallError as error:
            context.rate_limits = error.rate_limits
            raise ProblemError(
                self._statuses.of_status(error.status),
                revision_header(error.organization_revision),
            ) from error
        context.rate_limits = reply.rate_limits
        return reply


def revision_header(revision: int | None) -> dict[str, str]:
    return {REVISION: str(revision)} if revision is not None else {}
