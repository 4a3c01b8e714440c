"""One HTTP request and what is learned of it on the way to its answer."""

from dataclasses import dataclass, field

from aiohttp.web import BaseRequest

from gateway.http.conditions import EntityTags


@dataclass(slots=True, kw_only=True)
class Exchange:
    """A request under way. It is filled in as it is handled; the log line is what it holds."""

    request: BaseRequest
    request_id: str
    query: str = ""
    """As it was sent, still encoded."""
    variables: dict[str, str] = field(default_factory=dict)
    """Of the path, still encoded."""
    if_match: EntityTags | None = None
    """Of a read, and of a write that takes it."""
    if_none_match: EntityTags | None = None
    """Of a read."""
    method: str = "unknown"
    """The RPC's name, or the template of a page's path; never a path as it was sent."""
    organization: str | None = None
    code: str | None = None
    outcome: str | None = None
    begun: int | None = None
    """Status of an answer that is being sent piece by piece."""
    events: int | None = None
    """Sent of such an answer so far."""
