"""Compresses responses with gzip for callers that accept it (RFC 9110, section 12.5.3).

Event streams are not compressed: events are small, and each would need a flush of its own.
Calendars are, piece by piece (`gateway.http.body_stream`).

The ETag of a compressed appointment is `"2a-gzip"` instead of `"2a"`: a strong tag names one
sequence of bytes, so RFC 9110 (section 8.8.3.3) requires another one for each content coding. A
weak tag would be correct too, but `If-Match` could not use it. When tags are read the suffix is
ignored, so both tags are the same version of the appointment. Weak tags, such as those of lists,
and the `etag` within the body need no suffix.
"""

import zlib
from http import HTTPStatus

from aiohttp import hdrs
from aiohttp.web import BaseRequest, Response, StreamResponse

from gateway.http.conditions import GZIP_SUFFIX
from gateway.http.negotiation import add_vary, qualities
from gateway.http.shared_results import SharedResults

MIN_BYTES = 1024
"""Bodies up to this size are never compressed: they fit into one packet."""
MAX_INLINE_BYTES = 64 * 1024
"""Larger bodies are compressed in another thread; zlib releases the GIL. Up to this size it takes
less than half a millisecond, and a thread would cost more than it saves."""
MAX_KEPT_BYTES = 32 * 1024 * 1024
"""Of large bodies, which are mostly kept elsewhere too, with what they are compressed to."""
# On JSON, the higher levels take twice the time and more, and save a tenth of the size at most.
_LEVEL = 3
_GZIP_FORMAT = 16 + zlib.MAX_WBITS
GZIP = "gzip"


class Compression:
    """Compresses bodies. Equal large bodies are compressed once, and the last ones kept."""

    def __init__(self) -> None:
        self._large = SharedResults(_gzip, growth=0.2, max_bytes=MAX_KEPT_BYTES)

    async def compress(self, response: StreamResponse, request: BaseRequest) -> None:
        """Compress the body of a response if it is large and the caller accepts gzip."""
        if response.status == HTTPStatus.NOT_MODIFIED:
            add_vary(response, hdrs.ACCEPT_ENCODING)  # as the 200 would, RFC 9110 15.4.5
            return
        body = response.body if isinstance(response, Response) else None
        if (
            not isinstance(response, Response)
            or not isinstance(body, bytes)
            or len(body) <= MIN_BYTES
        ):
            return
        add_vary(response, hdrs.ACCEPT_ENCODING)
        if not accepts_gzip(request):
            return
        if len(body) > MAX_INLINE_BYTES:
            response.body = await self._large.of(body)
        else:
            response.body = _gzip(body)
        response.headers[hdrs.CONTENT_ENCODING] = GZIP
        # In the response to a failed condition, the tag is not that of the body.
        if response.status < HTTPStatus.BAD_REQUEST and hdrs.ETAG in response.headers:
            response.headers[hdrs.ETAG] = _with_suffix(response.headers[hdrs.ETAG])


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, _LEVEL, _GZIP_FORMAT)


def etag_as_sent(etag: str, body: bytes, request: BaseRequest) -> str:
    """Return the ETag that a response with this body would have after `compress`."""
    if len(body) > MIN_BYTES and accepts_gzip(request):
        return _with_suffix(etag)
    return etag


def gzip_compressor() -> "zlib._Compress":
    """Return an object that compresses a body in pieces."""
    return zlib.compressobj(_LEVEL, wbits=_GZIP_FORMAT)


def _with_suffix(etag: str) -> str:
    return etag if etag.startswith("W/") else f'{etag[:-1]}{GZIP_SUFFIX}"'


def accepts_gzip(request: BaseRequest) -> bool:
    """Return whether the caller accepts gzip and does not prefer an uncompressed body."""
    accepted = qualities(request, hdrs.ACCEPT_ENCODING)
    gzip = accepted.get(GZIP, accepted.get("x-gzip", accepted.get("*", 0)))
    return gzip > 0 and gzip >= accepted.get("identity", 0)
