"""The URL of a webhook. Path and query are sent exactly as they were registered.

They are never decoded, requoted or normalized, because a signed URL becomes invalid if the
encoding of a single character changes. Only the host is normalized.
"""

import re

from yarl import URL

_PARTS = re.compile(r"https?://(?P<authority>[^/?#]+)(?P<target>[^#]*)", re.IGNORECASE)
_SPACE_OR_BACKSLASH = re.compile(r"[\s\\]")
_VISIBLE = re.compile(r"[!-~]*")
_HOST = re.compile(r"[0-9a-z._-]+|[0-9a-f:.]+(%.+)?")


class InvalidURL(ValueError):
    """The URL is invalid. The message says what to correct."""


def read_url(text: str) -> URL:
    """Parse the URL of a webhook. Raises InvalidURL.

    Path and query are unchanged. The host is in lower case and IDNA-encoded, so that the
    name that is checked is the name that is resolved.
    """
    if "#" in text:
        raise InvalidURL("must not contain a fragment")
    if _SPACE_OR_BACKSLASH.search(text):
        raise InvalidURL("must not contain spaces or backslashes; percent-encode them")
    parts = _PARTS.fullmatch(text)
    if parts is None:
        raise InvalidURL("must be a URL that begins with https:// and a host")
    if "@" in parts["authority"]:
        raise InvalidURL("must not contain a user or a password")
    target = parts["target"]
    if not _VISIBLE.fullmatch(target):
        raise InvalidURL(
            "must have a path and a query of visible ASCII characters; percent-encode others"
        )
    if target.partition("?")[1:] == ("?", ""):
        raise InvalidURL("must not end with a ? that nothing follows; leave it out")
    try:
        url = URL(f"{URL(text).origin()}{target}", encoded=True)
        # The library parses them only now. It may have written a host that it cannot read.
        host, port = url.raw_host or "", url.port
    except ValueError as error:
        raise InvalidURL("must have a host and a port as URLs have them") from error
    if not _HOST.fullmatch(host):
        raise InvalidURL("must have a host of letters, digits, dots and hyphens, or an address")
    if port == 0:
        raise InvalidURL("must have a port from 1 to 65535")
    return url
