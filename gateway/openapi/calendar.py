"""The calendar in the OpenAPI document."""

from collections.abc import Sequence
from http import HTTPStatus

from gateway.endpoints.calendar import CALENDAR_PATH
from gateway.endpoints.calendar_text import MEDIA_TYPE
from gateway.openapi.components import (
    CALL_HEADERS,
    TEXT,
    header_references,
    response_name,
    statuses,
)
from gateway.openapi.examples import EXAMPLES, examples_member
from gateway.openapi.schemas import Schema
from gateway.openapi.security import BEARER, PASSWORD, guarded
from gateway.upstream.client import REVISION
from public_json.reasons import Requests

NAME = "GetCalendar"

_DESCRIPTION = (
    "For calendar programs that subscribe to its URL. It has all appointments that the list with"
    " the same filters has, as of one moment, without pages.\n\n"
    "`UID` identifies the appointment for ever, `SEQUENCE` is its version minus one. `STATUS` is"
    " `CONFIRMED`, `TENTATIVE` for those that are held, or `CANCELLED` for those that occupy"
    " nothing, which are included only with `includeCancelled`. `SUMMARY` is the title and"
    " `LOCATION` the resources. Times are in UTC, without fractions of a second.\n\n"
    "If an error occurs while the calendar is sent, the connection is closed before the last"
    " chunk, so that the client does not take a part for the whole."
)


def calendar_paths(parameters: Sequence[Schema], tag: str, scope: str) -> dict[str, Schema]:
    """Return the path, which has these parameters and needs this scope."""
    headers = {
        **header_references([*CALL_HEADERS, REVISION]),
        "ETag": {
            "description": "Weak; another one after every change of the organization, and when a"
            " hold expires.",
            "schema": TEXT,
        },
    }
    examples = examples_member(EXAMPLES[NAME].responses[HTTPStatus.OK])
    responses: Schema = {
        "200": {
            "description": "iCalendar (RFC 5545) in UTF-8.",
            "headers": headers,
            "content": {MEDIA_TYPE: {"schema": TEXT, **examples}},
        },
        "304": {
            "description": "The calendar has one of the etags in `If-None-Match`.",
            "headers": headers,
        },
    }
    for status in statuses({Requests.ANY, Requests.CONDITIONAL}):
        responses[str(status.value)] = {"$ref": f"#/components/responses/{response_name(status)}"}
    operation = {
        "operationId": NAME,
        "tags": [tag],
        "summary": "Returns appointments as a calendar.",
        **guarded(_DESCRIPTION, scope, BEARER, PASSWORD),
        "parameters": parameters,
        "responses": {**responses, "default": {"$ref": "#/components/responses/Problem"}},
    }
    return {CALENDAR_PATH: {"get": operation}}
