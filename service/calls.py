"""The call being handled: what is known of it, for the log, the metrics and the answer."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Call:
    """Filled by the servicer while it handles a request, read by the interceptor after."""

    request_id: str
    actor: str
    organization_id: str | None = None
    organization_revision: int | None = None
    outcome: str | None = None


current_call: ContextVar[Call] = ContextVar("current_call")
