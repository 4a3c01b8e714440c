"""What aiohttp could not read as HTTP, told apart by what its sender has to mend."""

import re
from collections.abc import Mapping

from aiohttp.http_exceptions import BadStatusLine, HttpProcessingError

from gateway.http.problems import ProblemError, malformed, refusal
from public_json.reasons import Reason

# They differ, so that an error tells by the limit that it names which was exceeded.
MAX_URL_BYTES = 8192
MAX_HEADER_BYTES = 8190
"""Of one header, its name included."""
MAX_HEADERS = 128

# aiohttp has few classes for many faults: what tells them apart is how its words begin.
_FAULTS: Mapping[str, tuple[Reason, str]] = {
    f"Got more than {MAX_URL_BYTES} bytes": (
        Reason.URI_TOO_LONG,
        f"The URL, without scheme and host, must be at most {MAX_URL_BYTES} bytes.",
    ),
    f"Got more than {MAX_HEADER_BYTES} bytes": (
        Reason.HEADERS_TOO_LARGE,
        f"A header must be at most {MAX_HEADER_BYTES} bytes, its name included.",
    ),
    "Too many headers": (
        Reason.HEADERS_TOO_LARGE,
        f"A request must have at most {MAX_HEADERS} headers.",
    ),
    "Missing 'Host' header": (
        Reason.MALFORMED_REQUEST,
        "The header Host is missing; HTTP/1.1 needs it.",
    ),
    "Received HTTPS traffic": (
        Reason.MALFORMED_REQUEST,
        "This is TLS; here plain HTTP is spoken.",
    ),
    "Pause on PRI/Upgrade": (
        Reason.MALFORMED_REQUEST,
        "This is HTTP/2; here HTTP/1.1 is spoken.",
    ),
    "Bad status line:\n  Invalid HTTP version": (
        Reason.MALFORMED_REQUEST,
        "This version of HTTP is not known here; HTTP/1.1 is.",
    ),
}
_DUPLICATE = re.compile("Duplicate '([^']+)' header")
# As they show the line at fault: as Python writes bytes.
_REQUEST_LINE = re.compile(r"""\bb["']([!#$%&'*+.^_`|~0-9A-Za-z-]+) \S+ HTTP/[0-9.]+["']\s""")


def unreadable_error(error: BaseException | None) -> ProblemError:
    """Give the refusal of a request that ended in this error of aiohttp's parser."""
    said = error.message if isinstance(error, HttpProcessingError) else ""
    for beginning, (reason, detail) in _FAULTS.items():
        if said.startswith(beginning):
            return refusal(reason, detail)
    if duplicate := _DUPLICATE.match(said):
        return malformed(f"The header {duplicate[1]} must not be repeated.")
    if not isinstance(error, BadStatusLine):
        # In the URL or a header, in words such as "Invalid header token", the line below.
        return malformed(f"This is not HTTP: {said.partition(':')[0] or 'it cannot be read'}.")
    if line := _REQUEST_LINE.search(said):
        return refusal(Reason.METHOD_NOT_IMPLEMENTED, f"The method {line[1]} is not known.")
    return malformed("This is not HTTP: it does not begin with a line such as GET / HTTP/1.1.")
