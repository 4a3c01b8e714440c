"""The custom headers that a webhook may have: none that change how a request is sent."""

import re
from collections.abc import Sequence

from service import rules
from service.webhooks.webhook import Header

# RFC 9110, section 5.6.2: a token.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 9110, section 5.5, without the characters that older recipients interpret differently.
_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
# Headers that describe, route or frame the request, and those that the service sets.
_RESERVED = re.compile(
    r"content-.*|webhook-.*|proxy-.*|host|user-agent|expect|connection|keep-alive|te|trailer"
    r"|transfer-encoding|upgrade|http2-settings|date|accept-encoding",
    re.IGNORECASE,
)


def check_headers(headers: Sequence[Header], field: str, violations: rules.Violations) -> None:
    """Append a violation for every invalid header. Missing values are not checked here."""
    seen: set[str] = set()
    for index, (name, value) in enumerate(headers):
        where = f"{field}[{index}]"
        if name and not _NAME.fullmatch(name):
            violations.append(
                (f"{where}.name", "must be a token: letters, digits and !#$%&'*+-.^_`|~")
            )
        elif _RESERVED.fullmatch(name):
            violations.append((f"{where}.name", "is a header that only the service sets"))
        elif name.lower() in seen:
            violations.append((f"{where}.name", "must not be repeated"))
        seen.add(name.lower())
        if value and not _VALUE.fullmatch(value):
            violations.append(
                (f"{where}.value", "must be visible ASCII characters, and spaces inside only")
            )
