"""A request that is being handled, and what is known about it so far."""

from dataclasses import dataclass, field

from aiohttp.web import BaseRequest

from gateway.http.conditions import EntityTags


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """A request that is being handled.

    Whoever handles it fills in the fields; the log line of the request has most of them.
    """

    request: BaseRequest
    request_id: str
    query: str = ""
    """As it was sent, percent-encoded."""
    variables: dict[str, str] = field(default_factory=dict)
    """Of the path, percent-encoded."""
    if_match: EntityTags | None = None
    """Of reads, and of writes that accept the header."""
    if_none_match: EntityTags | None = None
    """Of reads."""
    method: str = "unknown"
    """The name of the RPC or the path of a page, for logs and metrics; never what was sent."""
    organization: str | None = None
    code: str | None = None
    outcome: str | None = None
    stream_status: int | None = None
    """The status of a response that is being streamed, once its headers are sent."""
    events: int | None = None
    """How many events such a response has had so far."""
