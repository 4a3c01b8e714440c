"""Components of the OpenAPI document: headers, parameters and problems."""

from collections.abc import Collection, Sequence
from http import HTTPStatus

from appointments.v1.appointment_pb2 import BatchRefusal, TimeRange, TimeRangeConflict

from gateway.endpoints.operations import MAX_WAIT
from gateway.endpoints.route_responses import OUTCOME
from gateway.endpoints.submission import PREFER, PREFERENCE_APPLIED
from gateway.http.credentials import CHALLENGE
from gateway.http.problems import MEDIA_TYPE
from gateway.http.responses import RATE_LIMIT, RATE_LIMIT_POLICY, REQUEST_ID
from gateway.openapi.examples import PROBLEM_EXAMPLES, examples_member
from gateway.openapi.schemas import Schema, Schemas
from gateway.upstream.client import REVISION
from gateway.upstream.metadata import ACTOR, MAX_ACTOR_LENGTH
from public_json.reasons import TEMPORARY, Reason, Requests

TEXT: Schema = {"type": "string"}
CALL_HEADERS = (REQUEST_ID, RATE_LIMIT_POLICY, RATE_LIMIT)
"""The headers of every response that comes from the service."""
PARAMETERS: dict[str, Schema] = {
    "RequestId": {
        "name": REQUEST_ID,
        "in": "header",
        "description": "Returned in the response and written to the logs, if it is 1 to 128 "
        "printable ASCII characters without spaces. Otherwise a new one is generated.",
        "schema": TEXT,
    },
    "Actor": {
        "name": ACTOR,
        "in": "header",
        "description": "Who makes the change, in UTF-8. Recorded in the history, not verified.",
        "schema": {
            "type": "string",
            "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]*$",
            "maxLength": MAX_ACTOR_LENGTH,
        },
    },
    "Prefer": {
        "name": PREFER,
        "in": "header",
        "description": "`respond-async`: accept the write and return 202 with an operation, which"
        " ends with the result of the write. `respond-async, wait=5`: return 202 only if the"
        f" result is not available within five seconds; at most {MAX_WAIT:g}. Any other value is"
        " ignored (RFC 7240).",
        "schema": TEXT,
    },
}
HEADERS: dict[str, Schema] = {
    REQUEST_ID: {"description": "Identifies this request in the logs.", "schema": TEXT},
    REVISION: {
        "description": "The organization's revision, if the database decided this response.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "ETag": {
        "description": "The appointment's `etag`, in double quotes, for `If-Match`. If the body is"
        " compressed, it ends in `-gzip`, which `If-Match` and `If-None-Match` ignore.",
        "schema": TEXT,
    },
    "Location": {
        "description": "The URL of the stored object or the operation; not with `validateOnly`.",
        "schema": {"type": "string", "format": "uri-reference"},
    },
    OUTCOME: {
        "description": "The result of the write.",
        "schema": {"$ref": "#/components/schemas/Outcome"},
    },
    PREFERENCE_APPLIED: {
        "description": "`respond-async`, or `wait=5` if the result was available in that time.",
        "schema": TEXT,
    },
    RATE_LIMIT_POLICY: {
        "description": "The limits of this caller, if the service has any: `q` requests in `w`"
        ' seconds, such as `"credential";q=1000;w=10, "organization";q=5000;w=10`. A tenth of'
        " them, or ten, may come at once.",
        "schema": TEXT,
    },
    RATE_LIMIT: {
        "description": "What is left of each limit: `r` requests now, all of them in `t` seconds,"
        ' such as `"credential";r=99;t=1, "organization";r=420;t=2`.',
        "schema": TEXT,
    },
    "Retry-After": {
        "description": "Whole seconds after which a retry may succeed.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    CHALLENGE: {
        "description": "How to authenticate (RFC 6750). With credentials, `error` says what is"
        " wrong with them, and `scope` which scope they lack.",
        "schema": TEXT,
    },
    "Allow": {"description": "The methods that this path supports.", "schema": TEXT},
}


def reference(schema: str) -> Schema:
    """Return a reference to a schema."""
    return {"$ref": f"#/components/schemas/{schema}"}


def statuses(requests: Collection[Requests]) -> list[HTTPStatus]:
    """Return the statuses of all errors that these kinds of requests can have, in order."""
    return sorted({reason.http for reason in Reason if reason.requests in requests})


def response_name(status: HTTPStatus) -> str:
    """Return the name of the response component of an error status."""
    return "".join(filter(str.isalnum, status.phrase.title()))


def response_object(status: HTTPStatus | None) -> Schema:
    """Return the response of an error status; None: of all other errors."""
    examples = PROBLEM_EXAMPLES.get(status, {}) if status else {}
    content: Schema = {"schema": reference("Problem"), **examples_member(examples)}
    headers = [*CALL_HEADERS, REVISION]
    if status in TEMPORARY:
        headers.append("Retry-After")
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        headers.append(CHALLENGE)
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append("Allow")
    return {
        "description": _meanings(status) if status else "Every other error.",
        "headers": header_references(headers),
        "content": {MEDIA_TYPE: content},
    }


def _meanings(status: HTTPStatus | None = None) -> str:
    """Return a list of all reasons with their meanings, or of those with a status."""
    reasons = [reason for reason in Reason if status in {None, reason.http}]
    return "\n".join(f"- `{reason}`: {reason.meaning}" for reason in reasons)


def header_references(names: Sequence[str]) -> Schema:
    """Return references to response headers."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def problem_schemas(schemas: Schemas) -> dict[str, Schema]:
    """Return the schemas of the body of errors."""
    conflict = TimeRangeConflict.DESCRIPTOR.nested_types_by_name["Conflict"]
    return {
        "ErrorCode": {
            "type": "string",
            "enum": [reason.value for reason in Reason],
            "description": f"Why the request is refused; a stable value for programs.\n"
            f"{_meanings()}",
        },
        "FieldError": {
            "type": "object",
            "description": "One invalid part of a request.",
            "properties": {
                "field": {
                    "type": "string",
                    "description": "The field, such as `start` or `requests[3].appointment.title`.",
                },
                "detail": {"type": "string", "description": "What is wrong with it."},
            },
            "required": ["field", "detail"],
        },
        "Problem": {
            "type": "object",
            "description": "An error (RFC 9457).",
            "properties": {
                "type": {
                    "type": "string",
                    "format": "uri-reference",
                    "description": "Always `about:blank`; use `code` instead.",
                },
                "title": {"type": "string", "description": "The status in words."},
                "status": {
                    "type": "integer",
                    "format": "int32",
                    "description": "The HTTP status. Inside a response: the status that the write"
                    " would have had alone.",
                },
                "detail": {"type": "string", "description": "What to change, for people."},
                "code": reference("ErrorCode"),
                "errors": {
                    "type": "array",
                    "items": reference("FieldError"),
                    "description": "With `INVALID_FIELD`: every invalid part of the request.",
                },
                "conflicts": {
                    "type": "array",
                    "items": schemas.output(conflict),
                    "description": "With `TIME_RANGE_CONFLICT`: the appointments that occupy the"
                    " range, the first 20 by start.",
                },
                "moreConflicts": {
                    "type": "boolean",
                    "description": "There are more conflicts than listed.",
                },
                "alternatives": {
                    "type": "array",
                    "items": schemas.output(TimeRange.DESCRIPTOR),
                    "description": "With `TIME_RANGE_CONFLICT`: free ranges of the same length for"
                    " the same resources, if `suggest` asked for them: the next ones from the"
                    " wanted start on, within 31 days. They do not overlap each other. Opening"
                    " hours are not known.",
                },
                "items": {
                    "type": "array",
                    "items": schemas.output(BatchRefusal.DESCRIPTOR.nested_types_by_name["Item"]),
                    "description": "With `BATCH_REFUSED`: the items that were refused.",
                },
                "moreItems": {
                    "type": "boolean",
                    "description": "More items were refused than listed.",
                },
                "requestId": {
                    "type": "string",
                    "description": f"As in the header `{REQUEST_ID}`; absent inside a response.",
                },
            },
            "required": ["type", "title", "status", "detail", "code"],
        },
    }
