"""Content negotiation (RFC 9110, section 12): what a caller accepts, and what a response depends
on."""

from aiohttp import hdrs
from aiohttp.web import BaseRequest, StreamResponse


def qualities(request: BaseRequest, header: str) -> dict[str, float]:
    """Return what a header such as `Accept` lists, in lower case, with its quality.

    An invalid quality counts as 0.
    """
    accepted: dict[str, float] = {}
    for part in ",".join(request.headers.getall(header, ())).lower().split(","):
        value, *parameters = (piece.strip() for piece in part.split(";"))
        if value:
            accepted[value] = min((_quality(parameter) for parameter in parameters), default=1)
    return accepted


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name != "q":
        return 1
    try:
        return float(value)
    except ValueError:
        return 0


def add_vary(response: StreamResponse, header: str) -> None:
    """Tell caches that the response depends on a header of the request."""
    others = response.headers.get(hdrs.VARY)
    response.headers[hdrs.VARY] = f"{others}, {header}" if others else header
