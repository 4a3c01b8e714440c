"""What a request brings for the service beside its fields: headers that travel as metadata.

Everything that calls the service sends this, on the shared streams and on a stream of its
own. A further header is added here, and in `service/rpc/context.py`.
"""

import re

from gateway.http.context import RequestContext
from gateway.http.problems import FieldError, invalid_fields

ACTOR = "X-Actor"
MAX_ACTOR_LENGTH = 256

# As gRPC takes it. The values of keys that end in `-bin` are bytes, of others printable ASCII.
Metadata = tuple[tuple[str, str | bytes], ...]

# Control characters, and the bytes of a header that are not UTF-8, as aiohttp shows them.
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def metadata_of(context: RequestContext) -> Metadata:
    """Return the metadata of every call for a request. Raises `ProblemError`: 400."""
    request_id = ("x-request-id", context.request_id)
    actor = _actor_of(context)
    return (request_id, ("x-actor-bin", actor.encode())) if actor else (request_id,)


def _actor_of(context: RequestContext) -> str:
    """Return who makes the request, as the caller names it.

    The service has the same rules. They are checked here too, since the answer to a faulty
    header must not depend on how much metadata gRPC takes for a stream.
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
