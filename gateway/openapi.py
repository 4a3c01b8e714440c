"""The OpenAPI 3.1 document, from the descriptors, annotations and comments of the protos."""

from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from importlib import metadata
from typing import Any

from appointments.v1.appointment_pb2 import Appointment, Outcome, TimeRangeConflict
from appointments.v1.appointment_service_pb2 import OperationMetadata
from google.protobuf.descriptor import ServiceDescriptor

from gateway.answers import REQUEST_ID
from gateway.caller import REVISION
from gateway.calls import ACTOR, MAX_ACTOR_LENGTH, OUTCOME
from gateway.comments import read_comments
from gateway.event_stream import EVENT_ID, LAST_EVENT_ID
from gateway.event_stream import MEDIA_TYPE as EVENT_STREAM
from gateway.inputs import header_fields, query_fields
from gateway.operations import (
    MAX_WAIT,
    OPERATION_PATH,
    OPERATIONS_PATH,
    PREFER,
    PREFERENCE_APPLIED,
    submission_kind,
)
from gateway.problems import MEDIA_TYPE
from gateway.routes import Route, location_template
from gateway.schemas import Schema, Schemas

_TEXT: Schema = {"type": "string"}
_INPUT_HEADER_SCHEMAS: dict[str, Schema] = {
    "If-Match": {"type": "string", "pattern": '^([*]|"[!#-)+-~][!#-~]{0,63}")$'},
    "If-None-Match": {"type": "string", "enum": ["*"]},
    "Idempotency-Key": {
        "anyOf": [
            {"type": "string", "pattern": "^[!#-~]([ -~]{0,254}[!-~])?$"},
            {"type": "string", "pattern": '^"[ -~]{1,256}"$'},
        ]
    },
}
_PARAMETERS: dict[str, Schema] = {
    "RequestId": {
        "name": REQUEST_ID,
        "in": "header",
        "description": "Given back in the answer and in the logs, if it is 1 to 128 printable "
        "ASCII characters without spaces; else, or without it, a new one is made.",
        "schema": _TEXT,
    },
    "Actor": {
        "name": ACTOR,
        "in": "header",
        "description": "Who makes the change, recorded in the history; not verified.",
        "schema": {"type": "string", "pattern": "^[ -~]*$", "maxLength": MAX_ACTOR_LENGTH},
    },
    "Prefer": {
        "name": PREFER,
        "in": "header",
        "description": "`respond-async`: accept the write and answer 202 with an operation that"
        " ends as the write does. `respond-async, wait=5`: only if it does not end within so"
        f" many seconds, at most {MAX_WAIT:g}. Anything else is ignored (RFC 7240).",
        "schema": _TEXT,
    },
}
_LAST_EVENT_ID: Schema = {
    "name": LAST_EVENT_ID,
    "in": "header",
    "description": "Of a stream: the `id` of the last event seen, to go on after it, whatever "
    "`afterRevision` says. An `EventSource` sends it by itself.",
    "schema": {"type": "string", "pattern": f"^{EVENT_ID}$"},
}
_EVENTS: Schema = {
    "schema": {
        "type": "string",
        "description": "Server-sent events without end: first every change after "
        "`afterRevision`, then each further one, less than a second after it was written. "
        "The event is `created`, `updated` or `cancelled`, its `id` the revision, its `data` "
        "the entry as JSON. There is a comment at the beginning if there are no changes yet, "
        "and whenever nothing has changed for some time. Takes `organizationId` and "
        "`afterRevision` only.",
    }
}
_HEADERS: dict[str, Schema] = {
    REQUEST_ID: {"description": "Names this request in the logs.", "schema": _TEXT},
    REVISION: {
        "description": "The organization's revision, if the database decided this answer.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "ETag": {
        "description": "The appointment's `etag`, in double quotes, for `If-Match`.",
        "schema": _TEXT,
    },
    "Location": {
        "description": "Where what was stored, or the operation, is read; not with `validateOnly`.",
        "schema": {"type": "string", "format": "uri-reference"},
    },
    OUTCOME: {
        "description": "What the write did.",
        "schema": {"$ref": "#/components/schemas/Outcome"},
    },
    PREFERENCE_APPLIED: {
        "description": "`respond-async`, or `wait=5` if the end came within the time to wait.",
        "schema": _TEXT,
    },
    "Retry-After": {
        "description": "Whole seconds after which trying again may help.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "Allow": {"description": "The methods that this path takes.", "schema": _TEXT},
}
_PROBLEM_HEADERS: dict[HTTPStatus, tuple[str, ...]] = {
    HTTPStatus.METHOD_NOT_ALLOWED: ("Allow",),
    HTTPStatus.TOO_MANY_REQUESTS: ("Retry-After",),
    HTTPStatus.SERVICE_UNAVAILABLE: ("Retry-After",),
}
_PROBLEM_MEANINGS: dict[HTTPStatus, str] = {
    HTTPStatus.BAD_REQUEST: "`INVALID_FIELD` names every fault; `MALFORMED_REQUEST` is not JSON.",
    HTTPStatus.NOT_FOUND: (
        "`APPOINTMENT_NOT_FOUND`, `OPERATION_NOT_FOUND`, `WEBHOOK_NOT_FOUND` or `ROUTE_NOT_FOUND`."
    ),
    HTTPStatus.METHOD_NOT_ALLOWED: "`METHOD_NOT_ALLOWED`.",
    HTTPStatus.REQUEST_TIMEOUT: "`REQUEST_TIMEOUT`: the body took too long.",
    HTTPStatus.CONFLICT: (
        "`TIME_RANGE_CONFLICT`: the range is taken; `conflicts` lists by what. Or"
        " `WEBHOOK_LIMIT_REACHED`: the organization has as many as it may have."
    ),
    HTTPStatus.PRECONDITION_FAILED: "`ETAG_MISMATCH` or `APPOINTMENT_EXISTS`.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "`REQUEST_TOO_LARGE`.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "`UNSUPPORTED_MEDIA_TYPE`: not JSON, or compressed.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "`IDEMPOTENCY_KEY_REUSED`: the key is another write's.",
    HTTPStatus.TOO_MANY_REQUESTS: "`OVERLOADED`: too much is waiting already.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "`INTERNAL`: our fault.",
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "`SERVICE_UNAVAILABLE`, `DATABASE_UNAVAILABLE` or `LOCK_TIMEOUT`: it did not answer."
    ),
    HTTPStatus.GATEWAY_TIMEOUT: "`DEADLINE_EXCEEDED`: a write may or may not have happened.",
}
_ALWAYS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_WITH_BODY = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
)

_CONVENTIONS = (
    "Unknown fields and query parameters are refused, never passed over. A 64-bit integer "
    "is a string in JSON. A time is RFC 3339 with an offset, or `YYYY-MM-DD HH:MM[:SS]` in "
    "UTC; it comes back in UTC. Every error is a problem of RFC 9457, for programs to go "
    "by its `code`."
)
_STORED_EXAMPLE = {
    "organizationId": "default",
    "resourceId": "room-1",
    "id": "standup",
    "start": "2026-03-02T09:00:00Z",
    "end": "2026-03-02T09:15:00Z",
    "title": "Stand-up",
    "attributes": {"floor": 3},
    "createdAt": "2026-02-27T14:05:11.250417Z",
    "updatedAt": "2026-02-27T14:05:11.250417Z",
    "state": "ACTIVE",
    "version": 1,
    "revision": "42",
    "etag": "2a",
}
_WRITE_EXAMPLE = {
    name: _STORED_EXAMPLE[name]
    for name in ("resourceId", "id", "start", "end", "title", "attributes")
}
_CONFLICT_EXAMPLE = {
    "type": "about:blank",
    "title": "Conflict",
    "status": 409,
    "detail": "The range is taken.",
    "code": "TIME_RANGE_CONFLICT",
    "conflicts": [
        {
            "id": "retro",
            "start": "2026-03-02T09:10:00Z",
            "end": "2026-03-02T10:00:00Z",
            "version": 1,
        }
    ],
    "moreConflicts": False,
    "requestId": "0b8e7d5c4f5d4a5e9f0f6a4c7b1d2e3f",
}


def openapi_document(
    services: Sequence[ServiceDescriptor], routes: Sequence[Route]
) -> dict[str, Any]:
    """Describe the routes of the services, every status that they can answer included."""
    comments = read_comments()
    schemas = Schemas(comments)
    paths: dict[str, Schema] = {}
    for route in routes:
        comment = comments.get(route.rpc.full_name, "")
        creates = location_template(route, routes) is not None
        operation = _operation(route, schemas, comment, creates=creates)
        paths.setdefault(route.template, {})[route.http_method.lower()] = operation
    paths.update(_operation_paths())
    paths.update(_health_paths())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Appointments",
            "version": metadata.version("appointments"),
            "description": _description(comments.get(services[0].full_name, "")),
        },
        "tags": [_tag(service, comments) for service in services],
        "paths": paths,
        "components": {
            "schemas": {
                **_problem_schemas(schemas),
                **_operation_schemas(schemas),
                **schemas.components,
            },
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "responses": {
                _response_name(status): _problem_response(status) for status in _PROBLEM_MEANINGS
            }
            | {"Problem": _problem_response(None)},
        },
    }


def _description(comment: str) -> str:
    # What follows the first two paragraphs is about gRPC; here it is the headers and
    # the schema of a problem.
    return "\n\n".join([*comment.split("\n\n")[:2], _CONVENTIONS])


def _tag(service: ServiceDescriptor, comments: Mapping[str, str]) -> Schema:
    summary, _, description = comments.get(service.full_name, "").partition("\n\n")
    # What the first says beyond that is in the description of the whole.
    text = summary if service.name == "AppointmentService" else f"{summary}\n\n{description}"
    return {"name": _tag_name(service), "description": text}


def _tag_name(service: ServiceDescriptor) -> str:
    return service.name.removesuffix("Service") + "s"


def _operation(route: Route, schemas: Schemas, comment: str, *, creates: bool) -> Schema:
    summary, _, description = comment.partition("\n\n")
    operation: Schema = {
        "operationId": route.rpc.name,
        "tags": [_tag_name(route.rpc.containing_service)],
        "summary": " ".join(summary.split()).replace("`", ""),  # plain text, says OpenAPI
    }
    if description:
        operation["description"] = description
    operation["parameters"] = list(_parameters(route, schemas))
    message = route.body_message
    if message is not None:
        in_path = route.variables if route.body == "*" else ()
        content: Schema = {"schema": schemas.taken(message, without=in_path)}
        if message.name == "Appointment":
            content["examples"] = {"write": {"value": _WRITE_EXAMPLE}}
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    operation["responses"] = _responses(route, schemas, creates=creates)
    return operation


def _parameters(route: Route, schemas: Schemas) -> Iterator[Schema]:
    fields = route.rpc.input_type.fields_by_name
    for name in route.variables:
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "schema": schemas.parameter(fields[name]),
        }
    for field in query_fields(route):
        parameter = {"name": field.json_name, "in": "query", "schema": schemas.parameter(field)}
        yield schemas.described(field, parameter)
    for name, header in header_fields(route).items():
        parameter = {
            "name": header.name,
            "in": "header",
            "schema": _INPUT_HEADER_SCHEMAS[header.name],
        }
        yield schemas.described(fields[name], parameter)
    if route.stream is not None:
        yield _LAST_EVENT_ID
    yield {"$ref": "#/components/parameters/RequestId"}
    if route.writes:
        yield {"$ref": "#/components/parameters/Actor"}
    if submission_kind(route.rpc.input_type):
        yield {"$ref": "#/components/parameters/Prefer"}


def _responses(route: Route, schemas: Schemas, *, creates: bool) -> Schema:
    output = route.rpc.output_type
    message = route.answer_message
    has_outcome = "outcome" in output.fields_by_name
    headers = [REQUEST_ID, REVISION]
    if "etag" in message.fields_by_name:
        headers.append("ETag")
    if has_outcome:
        headers.append(OUTCOME)
        schemas.enumeration(Outcome.DESCRIPTOR)
    if creates:
        headers.append("Location")
    content: Schema = {"schema": schemas.given(message)}
    if message.name == "Appointment":
        content["examples"] = {"stored": {"value": _STORED_EXAMPLE}}
    contents: Schema = {"application/json": content}
    if route.stream is not None:
        contents[EVENT_STREAM] = _EVENTS
    success = {"headers": _header_references(headers), "content": contents}
    responses: Schema = {}
    if has_outcome or not creates:
        responses["200"] = {"description": "Done.", **success}
    if creates:
        responses["201"] = {"description": "Created.", **success}
    if submission_kind(route.rpc.input_type):
        responses["202"] = {
            "description": "Accepted: it ends soon, once.",
            "headers": _header_references([REQUEST_ID, "Location", PREFERENCE_APPLIED]),
            "content": {"application/json": {"schema": _reference("Operation")}},
        }
    for status in sorted(_refusals(route)):
        responses[str(status.value)] = {"$ref": f"#/components/responses/{_response_name(status)}"}
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    return responses


def _refusals(route: Route) -> set[HTTPStatus]:
    refusals = set(_ALWAYS)
    if route.body:
        refusals.update(_WITH_BODY)
    if route.variables:
        refusals.add(HTTPStatus.NOT_FOUND)
    fields = header_fields(route)
    if "etag" in fields:
        refusals.add(HTTPStatus.PRECONDITION_FAILED)
    if "idempotency_key" in fields:
        refusals.add(HTTPStatus.UNPROCESSABLE_ENTITY)
    if route.writes:
        refusals.add(HTTPStatus.CONFLICT)
    return refusals


def _operation_paths() -> dict[str, Schema]:
    organization: Schema = {
        "name": "organizationId",
        "in": "query",
        "description": "Absent: `default`.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    }

    def operation(
        name: str, summary: str, parameters: list[Schema], answer: str, *refusals: HTTPStatus
    ) -> Schema:
        success: Schema = {
            "description": "Done.",
            "headers": _header_references([REQUEST_ID, REVISION]),
            "content": {"application/json": {"schema": _reference(answer)}},
        }
        responses = {"200": success} | {
            str(status.value): {"$ref": f"#/components/responses/{_response_name(status)}"}
            for status in sorted({*_ALWAYS, *refusals})
        }
        return {
            "get": {
                "operationId": name,
                "tags": ["Operations"],
                "summary": summary,
                "parameters": [
                    *parameters,
                    organization,
                    {"$ref": "#/components/parameters/RequestId"},
                ],
                "responses": {**responses, "default": {"$ref": "#/components/responses/Problem"}},
            }
        }

    def query(name: str, schema: Schema, description: str) -> Schema:
        return {"name": name, "in": "query", "schema": schema, "description": description}

    identifier: Schema = {"name": "id", "in": "path", "required": True, "schema": _TEXT}
    wait = query(
        "wait",
        {"type": "string", "pattern": "^([0-9]|1[0-9]|20)s?$"},
        f"Seconds to wait for its end, at most {MAX_WAIT:g}, such as `10s`.",
    )
    page = [
        query(
            "filter",
            {"type": "string", "enum": ["", "done=true", "done=false", "error:*"]},
            "Which operations; absent: all.",
        ),
        query(
            "pageSize",
            {"type": "integer", "minimum": 0, "maximum": 1000},
            "Most operations in the answer; 0 or absent: 100.",
        ),
        query("pageToken", _TEXT, "`nextPageToken` of the page before, with the same filter."),
    ]
    return {
        OPERATION_PATH: operation(
            "GetOperation",
            "Tells where an operation stands.",
            [identifier, wait],
            "Operation",
            HTTPStatus.NOT_FOUND,
        ),
        OPERATIONS_PATH: operation(
            "ListOperations",
            "Lists the operations of one organization, the latest first.",
            page,
            "ListOperationsResponse",
        ),
    }


def _operation_schemas(schemas: Schemas) -> dict[str, Schema]:
    def packed(message: Schema) -> Schema:
        kind = {"type": "object", "properties": {"@type": _TEXT}, "required": ["@type"]}
        return {"allOf": [kind, message]}

    return {
        "Operation": {
            "type": "object",
            "description": "A write that was accepted. Once it is `done` it has either a"
            " `response` or an `error`, the one that the write at once would have had.",
            "properties": {
                "name": {
                    "type": "string",
                    "description": "`organizations/{organization}/operations/{id}`.",
                },
                "metadata": packed(schemas.given(OperationMetadata.DESCRIPTOR)),
                "done": {"type": "boolean"},
                "response": packed(schemas.given(Appointment.DESCRIPTOR)),
                "error": _reference("Problem"),
            },
            "required": ["name", "metadata", "done"],
        },
        "ListOperationsResponse": {
            "type": "object",
            "properties": {
                "operations": {"type": "array", "items": _reference("Operation")},
                "nextPageToken": {"type": "string", "description": "Empty on the last page."},
            },
            "required": ["operations", "nextPageToken"],
        },
    }


def _reference(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _health_paths() -> dict[str, Schema]:
    status: Schema = {
        "type": "object",
        "properties": {"status": {"type": "string"}},
        "required": ["status"],
    }

    def operation(name: str, summary: str, refusals: tuple[HTTPStatus, ...]) -> Schema:
        responses: Schema = {
            "200": {
                "description": "Yes.",
                "headers": _header_references([REQUEST_ID]),
                "content": {"application/json": {"schema": status}},
            }
        }
        for refusal in refusals:
            responses[str(refusal.value)] = {
                "$ref": f"#/components/responses/{_response_name(refusal)}"
            }
        responses["default"] = {"$ref": "#/components/responses/Problem"}
        return {
            "get": {
                "operationId": name,
                "tags": ["Health"],
                "summary": summary,
                "parameters": [{"$ref": "#/components/parameters/RequestId"}],
                "responses": responses,
            }
        }

    return {
        "/healthz": operation("IsAlive", "Tells that the gateway runs.", ()),
        "/readyz": operation(
            "IsReady",
            "Tells whether the gateway and what it depends on can answer.",
            (HTTPStatus.SERVICE_UNAVAILABLE,),
        ),
    }


def _response_name(status: HTTPStatus) -> str:
    return status.phrase.title().replace(" ", "")


def _problem_response(status: HTTPStatus | None) -> Schema:
    content: Schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    if status is HTTPStatus.CONFLICT:
        content["examples"] = {"conflict": {"value": _CONFLICT_EXAMPLE}}
    headers = [REQUEST_ID, REVISION]
    if status is not None:
        headers.extend(_PROBLEM_HEADERS.get(status, ()))
    return {
        "description": _PROBLEM_MEANINGS[status] if status else "Every other error.",
        "headers": _header_references(headers),
        "content": {MEDIA_TYPE: content},
    }


def _header_references(names: Sequence[str]) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _problem_schemas(schemas: Schemas) -> dict[str, Schema]:
    conflict = TimeRangeConflict.DESCRIPTOR.nested_types_by_name["Conflict"]
    reference = schemas.given(conflict)
    return {
        "FieldError": {
            "type": "object",
            "description": "One fault of a request.",
            "properties": {
                "field": {
                    "type": "string",
                    "description": "Where, such as `start` or `requests[3].appointment.title`.",
                },
                "detail": _TEXT,
            },
            "required": ["field", "detail"],
        },
        "Problem": {
            "type": "object",
            "description": "Every error, as RFC 9457 has it.",
            "properties": {
                "type": {"type": "string", "format": "uri-reference"},
                "title": _TEXT,
                "status": {"type": "integer"},
                "detail": _TEXT,
                "code": {"type": "string", "description": "Stable; for programs to go by."},
                "errors": {"type": "array", "items": {"$ref": "#/components/schemas/FieldError"}},
                "conflicts": {"type": "array", "items": reference},
                "moreConflicts": {
                    "type": "boolean",
                    "description": "There are more than are listed.",
                },
                "requestId": {
                    "type": "string",
                    "description": f"As in the header `{REQUEST_ID}`; absent inside an answer.",
                },
            },
            "required": ["type", "title", "status", "detail", "code"],
        },
    }
