"""The URL of a webhook: requested as it was registered, byte for byte.

Signed URLs break if only the spelling of a `%` changes. The path and the query are never
decoded, quoted anew or resolved; the host alone is written as it is looked up.
"""

import re

from yarl import URL

_PARTS = re.compile(r"https?://(?P<authority>[^/?#]+)(?P<target>[^#]*)", re.IGNORECASE)
_SPACE_OR_BACKSLASH = re.compile(r"[\s\\]")
_VISIBLE = re.compile(r"[!-~]*")
_HOST = re.compile(r"[0-9a-z._-]+|[0-9a-f:.]+(%.+)?")


class InvalidURL(ValueError):
    """Nothing can be sent to this URL; the message says what to mend."""


def read_url(text: str) -> URL:
    """Return what a request to a registered URL goes to. Raises InvalidURL.

    Path and query are those of the text. The host is in lower case and by IDNA, so that
    what is judged and looked up is one name, however it was written.
    """
    if "#" in text:
        raise InvalidURL("must not hold a fragment")
    if _SPACE_OR_BACKSLASH.search(text):
        raise InvalidURL("must not hold spaces or backslashes; percent-encode them")
    parts = _PARTS.fullmatch(text)
    if parts is None:
        raise InvalidURL("must be a URL that begins with https:// and a host")
    if "@" in parts["authority"]:
        raise InvalidURL("must not hold a user or a password")
    target = parts["target"]
    if not _VISIBLE.fullmatch(target):
        raise InvalidURL(
            "must have a path and a query of visible ASCII characters; percent-encode others"
        )
    if target.partition("?")[1:] == ("?", ""):
        raise InvalidURL("must not end with a ? that nothing follows; leave it out")
    try:
        origin = URL(text).origin()
    except ValueError as error:
        raise InvalidURL("must have a host and a port as URLs have them") from error
    if not _HOST.fullmatch(origin.raw_host or ""):
        raise InvalidURL("must have a host of letters, digits, dots and hyphens, or an address")
    if origin.port == 0:
        raise InvalidURL("must have a port from 1 to 65535")
    return URL(f"{origin}{target}", encoded=True)
