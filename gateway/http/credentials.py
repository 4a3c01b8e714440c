"""The credentials of a request, which only the service checks, and the challenges of refusals.

The gateway forwards credentials. It keeps none, and no log line and no response contains them.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from http import HTTPStatus

from aiohttp import hdrs
from aiohttp.web import Response

from gateway.http.context import RequestContext
from gateway.http.problems import FieldError, Problem, ProblemError, invalid_fields

CHALLENGE = "WWW-Authenticate"

MAX_LENGTH = 6000
"""Of the header. With everything else it fits into the 8 KiB of metadata that gRPC accepts."""

_REALM = 'realm="appointments"'
_PRINTABLE = re.compile("[ -~]+")


def authorization_of(context: RequestContext) -> str:
    """Return the header `Authorization` for the service, or an empty string.

    Where `context.takes_password`, the password of Basic credentials (RFC 7617) is forwarded as
    a bearer token, whatever the name of the user is. Raises `ProblemError`: 400 for a header
    that cannot be forwarded.
    """
    given: Sequence[str] = context.request.headers.getall(hdrs.AUTHORIZATION, ())
    if not given:
        return ""
    if len(given) > 1:
        raise _malformed("must not be repeated")
    authorization = given[0]
    if len(authorization) > MAX_LENGTH:
        raise _malformed(f"must be at most {MAX_LENGTH} characters")
    if not _PRINTABLE.fullmatch(authorization):
        raise _malformed("must be printable ASCII")
    scheme, _, value = authorization.partition(" ")
    if context.takes_password and scheme.lower() == "basic":
        password = _password(value)
        return f"Bearer {password}" if password else authorization
    return authorization


def _password(encoded: str) -> str:
    """Return the password of Basic credentials; empty if it cannot be a bearer token."""
    try:
        decoded = base64.b64decode(encoded.strip(" "), validate=True)
        password = decoded.partition(b":")[2].decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return password if _PRINTABLE.fullmatch(password) else ""


def _malformed(detail: str) -> ProblemError:
    problem = invalid_fields([FieldError(hdrs.AUTHORIZATION, detail)]).problem
    return ProblemError(problem, {CHALLENGE: f'Bearer {_REALM}, error="invalid_request"'})


def add_challenge(response: Response, context: RequestContext, problem: Problem) -> None:
    """Say how to authenticate, in a refusal for want of credentials or of a scope (RFC 6750).

    Credentials of a kind that is not accepted count as none.
    """
    if problem.status is HTTPStatus.UNAUTHORIZED:
        scheme = context.request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")[0].lower()
        accepted = {"bearer", "basic"} if context.takes_password else {"bearer"}
        error = ', error="invalid_token"' if scheme in accepted else ""
        response.headers.add(CHALLENGE, f"Bearer {_REALM}{error}")
        if context.takes_password:
            # Calendar programs ask for a password only then.
            response.headers.add(CHALLENGE, f'Basic {_REALM}, charset="UTF-8"')
    elif problem.status is HTTPStatus.FORBIDDEN:
        scope = f', scope="{problem.scope}"' if problem.scope else ""
        response.headers.add(CHALLENGE, f'Bearer {_REALM}, error="insufficient_scope"{scope}')
