"""The headers of a request that are forwarded to the service as gRPC metadata.

All calls to the service send this metadata, over shared streams and streams of their own. To
forward another header, add it here and in `service/rpc/context.py`.
"""

import re

from gateway.http.context import RequestContext
from gateway.http.credentials import authorization_of
from gateway.http.problems import FieldError, invalid_fields
from runtime.tracing import current_span

ACTOR = "X-Actor"
MAX_ACTOR_LENGTH = 256

# As grpcio accepts it: values of keys that end in `-bin` are bytes, others printable ASCII.
Metadata = tuple[tuple[str, str | bytes], ...]

# Control characters, and the surrogates by which aiohttp represents bytes that are not UTF-8.
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def metadata_of(context: RequestContext) -> Metadata:
    """Return the metadata of every call for a request. Raises `ProblemError`: 400."""
    metadata: list[tuple[str, str | bytes]] = [("x-request-id", context.request_id)]
    if authorization := authorization_of(context):
        metadata.append(("authorization", authorization))
    if actor := _actor_of(context):
        metadata.append(("x-actor-bin", actor.encode()))
    span = current_span.get() or context.span
    if span is not None:
        metadata += span.headers
    return tuple(metadata)


def _actor_of(context: RequestContext) -> str:
    """Return the actor that the caller named, or an empty string.

    The service has the same rules. They are also checked here, because grpcio limits the size
    of a stream's metadata: without the check, the error would depend on that limit.
    """
    given = context.request.headers.getall(ACTOR, ())
    if not given:
        return ""
    if len(given) > 1:
        raise invalid_fields([FieldError(ACTOR, "must not be repeated")])
    [actor] = given
    if _NO_TEXT.search(actor):
        raise invalid_fields([FieldError(ACTOR, "must be UTF-8 without control characters")])
    if len(actor) > MAX_ACTOR_LENGTH:
        raise invalid_fields([FieldError(ACTOR, f"must be at most {MAX_ACTOR_LENGTH} characters")])
    return actor
