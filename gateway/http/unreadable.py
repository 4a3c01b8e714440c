"""Requests that aiohttp cannot parse: converts its errors to problems."""

import re
from collections.abc import Mapping

from aiohttp.http_exceptions import BadStatusLine, HttpProcessingError

from gateway.http.problems import ProblemError, malformed, refusal
from public_json.reasons import Reason

# The limits differ, because only the number in the error shows which one was exceeded.
MAX_URL_BYTES = 8192
MAX_HEADER_BYTES = 8190
"""The limit for one header, including its name."""
MAX_HEADERS = 128

# aiohttp has few classes for many errors. They are distinguished by the start of the message.
_PROBLEMS: Mapping[str, tuple[Reason, str]] = {
    f"Got more than {MAX_URL_BYTES} bytes": (
        Reason.URI_TOO_LONG,
        f"The URL, without scheme and host, must be at most {MAX_URL_BYTES} bytes.",
    ),
    f"Got more than {MAX_HEADER_BYTES} bytes": (
        Reason.HEADERS_TOO_LARGE,
        f"A header must be at most {MAX_HEADER_BYTES} bytes, including its name.",
    ),
    "Too many headers": (
        Reason.HEADERS_TOO_LARGE,
        f"A request must have at most {MAX_HEADERS} headers.",
    ),
    "Missing 'Host' header": (
        Reason.MALFORMED_REQUEST,
        "The header Host is missing; HTTP/1.1 requires it.",
    ),
    "Received HTTPS traffic": (
        Reason.MALFORMED_REQUEST,
        "This is TLS; only plain HTTP is supported.",
    ),
    "Pause on PRI/Upgrade": (
        Reason.MALFORMED_REQUEST,
        "This is HTTP/2; only HTTP/1.1 is supported.",
    ),
    "Bad status line:\n  Invalid HTTP version": (
        Reason.MALFORMED_REQUEST,
        "This version of HTTP is not supported; use HTTP/1.1.",
    ),
}
_DUPLICATE = re.compile("Duplicate '([^']+)' header")
# aiohttp shows the invalid line as the repr of bytes.
_REQUEST_LINE = re.compile(r"""\bb["']([!#$%&'*+.^_`|~0-9A-Za-z-]+) \S+ HTTP/[0-9.]+["']\s""")


def unreadable_error(error: BaseException | None) -> ProblemError:
    """Return the problem for an error of aiohttp's parser."""
    message = error.message if isinstance(error, HttpProcessingError) else ""
    for prefix, (reason, detail) in _PROBLEMS.items():
        if message.startswith(prefix):
            return refusal(reason, detail)
    if duplicate := _DUPLICATE.match(message):
        return malformed(f"The header {duplicate[1]} must not be repeated.")
    if not isinstance(error, BadStatusLine):
        # The first line is text such as "Invalid header token:"; the request follows.
        return malformed(f"This is not HTTP: {message.partition(':')[0] or 'it cannot be parsed'}.")
    if line := _REQUEST_LINE.search(message):
        return refusal(Reason.METHOD_NOT_IMPLEMENTED, f"The method {line[1]} is not known.")
    return malformed("This is not HTTP: it does not begin with a line such as GET / HTTP/1.1.")
