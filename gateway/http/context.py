"""The context of a request."""

from dataclasses import dataclass, field

from aiohttp.web import BaseRequest

from gateway.http.conditions import EntityTags


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """A request that is being handled.

    The code that handles it fills in the fields. Most of them are logged with the request.
    """

    request: BaseRequest
    request_id: str
    query: str = ""
    """The query string as received, percent-encoded."""
    variables: dict[str, str] = field(default_factory=dict)
    """The variables of the path, percent-encoded."""
    if_match: EntityTags | None = None
    """Set for reads, and for writes that accept the header."""
    if_none_match: EntityTags | None = None
    """Set for reads."""
    method: str = "unknown"
    """The name of the RPC or the path of a page, for logs and metrics. Never taken from input."""
    organization: str | None = None
    code: str | None = None
    outcome: str | None = None
    stream_status: int | None = None
    """The status of a streamed response, once its headers are sent."""
    events: int | None = None
    """Number of events sent in a streamed response."""
