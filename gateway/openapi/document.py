"""Builds the OpenAPI 3.1 document from the descriptors, annotations and comments of protos."""

import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import appointments
from appointments.v1.appointment_pb2 import Outcome
from google.protobuf.descriptor import ServiceDescriptor

from gateway.endpoints.calendar import calendar_route
from gateway.endpoints.changes import EVENT_ID, LAST_EVENT_ID
from gateway.endpoints.route_responses import OUTCOME
from gateway.endpoints.submission import PREFERENCE_APPLIED, submission_kind
from gateway.http.bodies import JSON_TYPES, PATCH_TYPES
from gateway.http.conditions import IF_MATCH, IF_NONE_MATCH, MAX_TAGS
from gateway.http.streams import MEDIA_TYPE as EVENT_STREAM
from gateway.openapi.calendar import calendar_paths
from gateway.openapi.comments import read_comments
from gateway.openapi.components import (
    CALL_HEADERS,
    HEADERS,
    PARAMETERS,
    TEXT,
    header_references,
    problem_schemas,
    reference,
    response_name,
    response_object,
    statuses,
)
from gateway.openapi.examples import EXAMPLES, Examples, examples_member
from gateway.openapi.paths import (
    PAGE_TAGS,
    health_paths,
    health_schemas,
    operation_paths,
    operation_schemas,
)
from gateway.openapi.schemas import Schema, Schemas, is_required
from gateway.openapi.security import SECURITY_SCHEMES, guarded, scope_of
from gateway.transcoding.bindings import (
    address_fields,
    conditions_of,
    header_fields,
    header_results,
    query_fields,
)
from gateway.transcoding.merge_patch import changeable_fields
from gateway.transcoding.routes import Route, location_template
from gateway.upstream.client import REVISION
from public_json.reasons import Requests

_SENTENCE_END = re.compile(r"(?<=\.)\s+")
_TAG = '(W/)?"[!#-~]{0,64}"'
_ENTITY_TAGS: Schema = {
    "type": "string",
    "pattern": f"^([*]|{_TAG}(, *{_TAG}){{0,{MAX_TAGS - 1}}})$",
}
_READ_CONDITIONS: dict[str, str] = {
    IF_MATCH: "Return the appointment only if it has one of these etags, 412 otherwise.",
    IF_NONE_MATCH: "Return 304 without a body if the appointment has one of these etags,"
    " including weak ones (`W/`).",
}
_LIST_CONDITIONS: dict[str, str] = {
    IF_MATCH: "Return the list only for `*`, and 412 otherwise: its etag is weak.",
    IF_NONE_MATCH: "Return 304 without a body if the list still has one of these etags. This costs"
    " little, so that a list can be polled.",
}
_LIST_ETAG: Schema = {
    "description": "Weak; another one after every change of the organization, and when a hold on"
    " the page expires. Absent with `asOfTime`.",
    "schema": TEXT,
}
_INPUT_HEADER_SCHEMAS: dict[str, Schema] = {
    IF_MATCH: _ENTITY_TAGS,
    IF_NONE_MATCH: {"type": "string", "enum": ["*"]},
    "Idempotency-Key": {
        "anyOf": [
            {"type": "string", "pattern": "^[!#-~]([ -~]{0,254}[!-~])?$"},
            {"type": "string", "pattern": '^"[ -~]{1,256}"$'},
        ]
    },
}
_LAST_EVENT_ID: Schema = {
    "name": LAST_EVENT_ID,
    "in": "header",
    "description": "For a stream: the `id` of the last event received, to continue after it. "
    "Takes precedence over `afterRevision`. An `EventSource` sends it automatically, but cannot "
    "send credentials.",
    "schema": {"type": "string", "pattern": f"^{EVENT_ID}$"},
}
_EVENTS: Schema = {
    "schema": {
        "type": "string",
        "description": "An unlimited stream of server-sent events: first every change after "
        "`afterRevision`, then each new one, less than a second after it was written. The event "
        "is `created`, `updated`, `confirmed`, `expired`, `cancelled` or `redacted` (add listeners "
        "for these, since `onmessage` receives none), its `id` the revision, its `data` the entry "
        "as JSON. The event `reset`, with the latest `revision` as `data`, means that "
        "`Last-Event-ID` is beyond it because the database was restored; everything that is stored "
        "follows. `retry` is the delay before reconnecting after the end of the stream. Comments "
        "are sent while nothing changes or the service is unavailable, and one at the end gives "
        "the reason. While a filter leaves changes out, an `id` without `data` is sent from time "
        "to time, after which a client that reconnects continues. Only `organizationId`, "
        "`afterRevision`, `resourceId` and `changes` are accepted.",
    }
}
# The document is served by the gateway that it describes.
_SERVERS = [{"url": "/", "description": "The server of this document."}]
_CONTACT = {"name": "The operator of this gateway"}
_LICENSE = {"name": "All rights reserved", "identifier": "LicenseRef-All-rights-reserved"}
_CONVENTIONS = (
    "Unknown fields and query parameters are errors. A 64-bit integer is a string in JSON. A "
    "time is RFC 3339 with an offset, or `YYYY-MM-DD HH:MM[:SS]` in UTC; responses use UTC. "
    "Conditional requests apply where a response has an `ETag`; elsewhere reads ignore the "
    "conditions and writes refuse them. Every error is a problem (RFC 9457) with a stable "
    "`code` for programs."
)


def openapi_document(
    services: Sequence[ServiceDescriptor], routes: Sequence[Route]
) -> dict[str, Any]:
    """Return the document, with all routes of the services and all their statuses."""
    comments = read_comments()
    schemas = Schemas(comments)
    paths: dict[str, Schema] = {}
    for route in routes:
        comment = comments.get(route.rpc.full_name, "")
        creates = location_template(route, routes) is not None
        operation = _operation(route, schemas, comment, creates=creates)
        paths.setdefault(route.template, {})[route.http_method.lower()] = operation
    calendar = calendar_route(routes)
    paths.update(
        calendar_paths(
            list(_parameters(calendar, schemas)),
            _tag_name(calendar.rpc.containing_service),
            scope_of(calendar.rpc),
        )
    )
    paths.update(operation_paths())
    paths.update(health_paths())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Appointments",
            "version": appointments.__version__,
            "description": _description(comments.get(services[0].full_name, "")),
            "contact": _CONTACT,
            "license": _LICENSE,
        },
        "servers": _SERVERS,
        "security": [],  # health is open; every other operation has its own
        "tags": [*(_tag(service, comments) for service in services), *PAGE_TAGS],
        "paths": paths,
        "components": {
            "schemas": {
                **problem_schemas(schemas),
                **operation_schemas(schemas),
                **health_schemas(),
                **schemas.components,
            },
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "responses": _problem_responses(paths),
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


def _problem_responses(paths: Mapping[str, Schema]) -> dict[str, Schema]:
    statuses = {
        HTTPStatus(int(status))
        for path in paths.values()
        for operation in path.values()
        for status in operation["responses"]
        if status != "default" and int(status) >= HTTPStatus.BAD_REQUEST
    }
    named = {response_name(status): response_object(status) for status in sorted(statuses)}
    return {**named, "Problem": response_object(None)}


def _description(comment: str) -> str:
    # The paragraphs after the first two are about gRPC.
    return "\n\n".join([*comment.split("\n\n")[:2], _CONVENTIONS])


def _tag(service: ServiceDescriptor, comments: Mapping[str, str]) -> Schema:
    summary, _, description = comments.get(service.full_name, "").partition("\n\n")
    # The rest of AppointmentService's comment is in the description of the document.
    text = summary if service.name == "AppointmentService" else f"{summary}\n\n{description}"
    return {"name": _tag_name(service), "description": text}


def _tag_name(service: ServiceDescriptor) -> str:
    return service.name.removesuffix("Service") + "s"


def _operation(route: Route, schemas: Schemas, comment: str, *, creates: bool) -> Schema:
    # The summary is the first sentence as plain text, the description is the rest.
    summary, *rest = _SENTENCE_END.split(comment, maxsplit=1)
    operation: Schema = {
        "operationId": route.name,
        "tags": [_tag_name(route.rpc.containing_service)],
        "summary": " ".join(summary.split()).replace("`", ""),
        **guarded("".join(rest), scope_of(route.rpc)),
        "parameters": list(_parameters(route, schemas)),
    }
    message = route.body_message
    if message is not None:
        in_path = route.variables if route.body == "*" else ()
        schema = (
            schemas.patch(message, changeable_fields(route))
            if route.patches
            else schemas.input(message, without=in_path)
        )
        content: Schema = {"schema": schema, **examples_member(_examples(route).requests)}
        types = PATCH_TYPES if route.patches else JSON_TYPES
        operation["requestBody"] = {"required": True, "content": dict.fromkeys(types, content)}
    operation["responses"] = _responses(route, schemas, creates=creates)
    return operation


def _parameters(route: Route, schemas: Schemas) -> Iterator[Schema]:
    fields = dict(route.rpc.input_type.fields_by_name)
    fields |= {field.name: field for field in address_fields(route)}
    for name in route.variables:
        parameter = {
            "name": name,
            "in": "path",
            "required": True,
            "schema": schemas.parameter(fields[name]),
        }
        yield schemas.described(fields[name], parameter)
    for field in query_fields(route):
        parameter = {"name": field.json_name, "in": "query", "schema": schemas.parameter(field)}
        if is_required(field):
            parameter["required"] = True
        yield schemas.described(field, parameter)
    for name, header in header_fields(route).items():
        parameter = {
            "name": header.name,
            "in": "header",
            "schema": _INPUT_HEADER_SCHEMAS[header.name],
        }
        yield schemas.described(fields[name], parameter)
    conditions = _LIST_CONDITIONS if header_results(route) else _READ_CONDITIONS
    for name in () if route.writes else conditions_of(route):
        yield {
            "name": name,
            "in": "header",
            "description": conditions[name],
            "schema": _ENTITY_TAGS,
        }
    if route.stream is not None:
        yield _LAST_EVENT_ID
    yield {"$ref": "#/components/parameters/RequestId"}
    if route.writes:
        yield {"$ref": "#/components/parameters/Actor"}
    if submission_kind(route.rpc.input_type):
        yield {"$ref": "#/components/parameters/Prefer"}


def _responses(route: Route, schemas: Schemas, *, creates: bool) -> Schema:
    output = route.rpc.output_type
    message = route.response_message
    has_outcome = "outcome" in output.fields_by_name
    headers = [*CALL_HEADERS, REVISION]
    if "etag" in message.fields_by_name:
        headers.append("ETag")
    if has_outcome:
        headers.append(OUTCOME)
        schemas.enumeration(Outcome.DESCRIPTOR)
    if creates:
        headers.append("Location")
    schema = schemas.output(message, without=header_results(route))
    header_objects = header_references(headers)
    if header_results(route):
        header_objects["ETag"] = _LIST_ETAG
    examples = _examples(route).responses

    def success(status: HTTPStatus, description: str) -> Schema:
        content: Schema = {"schema": schema, **examples_member(examples.get(status, {}))}
        contents: Schema = {"application/json": content}
        if route.stream is not None:
            contents[EVENT_STREAM] = _EVENTS
        return {
            "description": description,
            "headers": header_objects,
            "content": contents,
        }

    responses: Schema = {}
    if has_outcome or not creates:
        responses["200"] = success(HTTPStatus.OK, "Done.")
    if creates:
        responses["201"] = success(HTTPStatus.CREATED, "Created.")
    if submission_kind(route.rpc.input_type):
        responses["202"] = {
            "description": "Accepted; it will be applied once.",
            "headers": header_references([*CALL_HEADERS, "Location", PREFERENCE_APPLIED]),
            "content": {
                "application/json": {
                    "schema": reference("Operation"),
                    **examples_member(examples.get(HTTPStatus.ACCEPTED, {})),
                }
            },
        }
    if IF_NONE_MATCH in conditions_of(route):
        responses["304"] = {
            "description": "What is read has one of the etags in `If-None-Match`.",
            "headers": header_objects,
        }
    for status in statuses(set(_kinds(route))):
        responses[str(status.value)] = {"$ref": f"#/components/responses/{response_name(status)}"}
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    return responses


def _examples(route: Route) -> Examples:
    return EXAMPLES.get(route.name, Examples())


def _kinds(route: Route) -> Iterator[Requests]:
    yield Requests.ANY
    if route.body:
        yield Requests.WITH_BODY
    if route.variables:
        yield Requests.BY_ID
    if conditions_of(route):
        yield Requests.CONDITIONAL
    if "idempotency_key" in header_fields(route):
        yield Requests.WITH_KEY
    if route.writes:
        yield Requests.WRITE
