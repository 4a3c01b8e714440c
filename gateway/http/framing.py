"""Refuses requests that a proxy may read in another way than this server.

aiohttp's parser refuses most of them (RFC 9112, section 11.2). Here is what it accepts.
"""

import re

from aiohttp import hdrs
from aiohttp.web import BaseRequest

from gateway.http.problems import ProblemError, refusal
from public_json.reasons import Reason

# RFC 9110, section 7.2. An empty one stands for a target without a host.
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])?(?::[0-9]*)?")
_ABSOLUTE = re.compile("[Hh][Tt][Tt][Pp][Ss]?://([^/?#]*)")


def check_framing(request: BaseRequest) -> None:
    """Raise `ProblemError` (400), which closes the connection, for an ambiguous request."""
    headers = request.headers
    coding = headers.get(hdrs.TRANSFER_ENCODING, "chunked")
    if coding.lower() != "chunked":
        raise _ambiguous(f"The header {hdrs.TRANSFER_ENCODING} must be chunked, or be left out.")
    host = headers.get(hdrs.HOST, "")
    if not _HOST.fullmatch(host):
        raise _ambiguous("The header Host must be one host, with a port if it is not the usual.")
    absolute = _ABSOLUTE.match(request.raw_path)
    if absolute is not None and absolute[1].lower() != host.lower():
        raise _ambiguous("The host of the URL must be that of the header Host.")


def asks_for_upgrade(request: BaseRequest) -> bool:
    """Return whether aiohttp takes what follows for another protocol, which it is not."""
    headers = request.headers
    return hdrs.UPGRADE in headers and "upgrade" in headers.get(hdrs.CONNECTION, "").lower()


def _ambiguous(detail: str) -> ProblemError:
    return refusal(Reason.MALFORMED_REQUEST, detail, {hdrs.CONNECTION: "close"})
