"""The context of a request."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp.web import BaseRequest

from gateway.http.conditions import EntityTags
from gateway.http.cors import CrossOrigin

if TYPE_CHECKING:
    from runtime.spans import Span

RateLimits = tuple[str, str]
"""The values of the headers RateLimit-Policy and RateLimit."""


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """A request that is being handled.

    The code that handles it fills in the fields. Most of them are logged with the request.
    """

    request: BaseRequest
    request_id: str
    cross_origin: CrossOrigin | None = None
    """Set if pages of other origins may call."""
    span: "Span | None" = None
    """Set if the request is sampled."""
    query: str = ""
    """The query string as received, percent-encoded."""
    variables: dict[str, str] = field(default_factory=dict)
    """The variables of the path, percent-encoded."""
    if_match: EntityTags | None = None
    """Set for reads, and for writes that accept the header."""
    if_none_match: EntityTags | None = None
    """Set for reads."""
    takes_password: bool = False
    """Whether an API key is also accepted as the password of Basic credentials."""
    method: str = "unknown"
    """The name of the RPC, the path of a page or `preflight`, for logs and metrics. Never taken
    from input."""
    organization: str | None = None
    rate_limits: RateLimits | None = None
    """Set by the first call of the service, if it has limits."""
    code: str | None = None
    outcome: str | None = None
    stream_status: int | None = None
    """The status of a streamed response, once its headers are sent."""
    events: int | None = None
    """Number of events sent in a streamed response."""
