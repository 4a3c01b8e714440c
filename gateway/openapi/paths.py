"""The paths of the OpenAPI document that have no annotation in the protos."""

from http import HTTPStatus

from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2 import OperationMetadata

from gateway.endpoints.operations import MAX_WAIT, OPERATION_PATH, OPERATIONS_PATH
from gateway.endpoints.organizations import MAX_ORGANIZATION
from gateway.http.responses import REQUEST_ID
from gateway.openapi.components import (
    CALL_HEADERS,
    TEXT,
    header_references,
    reference,
    response_name,
    statuses,
)
from gateway.openapi.examples import EXAMPLES, examples_member
from gateway.openapi.schemas import Schema, Schemas
from gateway.openapi.security import guarded
from gateway.upstream.client import REVISION
from public_json.reasons import Requests

OPERATIONS_SCOPE = "appointments.write"
"""The service of operations is not ours, so its RPCs have no option that names it."""

PAGE_TAGS = [
    {"name": "Operations", "description": "Asynchronous writes: accepted, then applied."},
    {"name": "Health", "description": "Whether the gateway is alive, and whether it is ready."},
]


def _content(answer: str, name: str) -> Schema:
    examples = examples_member(EXAMPLES[name].responses[HTTPStatus.OK])
    return {"application/json": {"schema": reference(answer), **examples}}


def operation_paths() -> dict[str, Schema]:
    """Return the paths of operations."""
    organization: Schema = {
        "name": "organizationId",
        "in": "query",
        "description": "Absent: `default`.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ORGANIZATION},
    }

    def operation(
        name: str,
        summary: str,
        description: str,
        parameters: list[Schema],
        answer: str,
        *kinds: Requests,
    ) -> Schema:
        success: Schema = {
            "description": "Done.",
            "headers": header_references([*CALL_HEADERS, REVISION]),
            "content": _content(answer, name),
        }
        responses = {"200": success} | {
            str(status.value): {"$ref": f"#/components/responses/{response_name(status)}"}
            for status in statuses({Requests.ANY, *kinds})
        }
        return {
            "get": {
                "operationId": name,
                "tags": ["Operations"],
                "summary": summary,
                **guarded(description, OPERATIONS_SCOPE),
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

    identifier: Schema = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "The last part of the operation's name.",
        "schema": TEXT,
    }
    wait = query(
        "wait",
        {"type": "string", "pattern": "^([0-9]|1[0-9]|20)s?$"},
        f"Seconds to wait for the result, at most {MAX_WAIT:g}, such as `10s`.",
    )
    page = [
        query(
            "filter",
            {"type": "string", "enum": ["", "done=true", "done=false", "error:*"]},
            "Only these operations; absent: all.",
        ),
        query(
            "pageSize",
            {"type": "integer", "minimum": 0, "maximum": 1000},
            "Maximum number of operations in the response; 0 or absent: 100.",
        ),
        query("pageToken", TEXT, "`nextPageToken` of the previous page, with the same filter."),
    ]
    return {
        OPERATION_PATH: operation(
            "GetOperation",
            "Returns the state of an operation.",
            "With `wait`, the response is sent as soon as the operation is done, or after that"
            " time. Finished operations are kept for a week unless configured otherwise.",
            [identifier, wait],
            "Operation",
            Requests.BY_ID,
        ),
        OPERATIONS_PATH: operation(
            "ListOperations",
            "Lists the operations of one organization, the latest first.",
            "Finished operations are listed for as long as they are kept.",
            page,
            "ListOperationsResponse",
        ),
    }


def operation_schemas(schemas: Schemas) -> dict[str, Schema]:
    """Return the schemas of an operation and a page of operations."""

    kind: Schema = {"type": "string", "description": "The type of this message, a URL."}
    metadata = schemas.output(OperationMetadata.DESCRIPTOR)
    described = schemas.components.pop(OperationMetadata.DESCRIPTOR.name)
    return {
        # Its `@type` is a property of this schema, since it is used only in operations. With
        # `allOf` and an unnamed schema, client generators would make up a name that clashes.
        "OperationMetadata": {
            **described,
            "properties": {"@type": kind, **described["properties"]},
            "required": ["@type", *described["required"]],
        },
        "OperationResponse": {
            "description": "The appointment as it was stored.",
            "allOf": [
                schemas.output(Appointment.DESCRIPTOR),
                {"type": "object", "properties": {"@type": kind}, "required": ["@type"]},
            ],
        },
        "Operation": {
            "type": "object",
            "description": "An asynchronous write. Once it is `done`, it has either a `response`,"
            " or the `error` that a synchronous write would have returned.",
            "properties": {
                "name": {
                    "type": "string",
                    "description": "`organizations/{organization}/operations/{id}`.",
                },
                "metadata": {
                    **metadata,
                    "description": "What it writes, and when it was accepted.",
                },
                "done": {"type": "boolean", "description": "Whether it is finished."},
                "response": {
                    **reference("OperationResponse"),
                    "description": "The stored appointment, once the write has succeeded.",
                },
                "error": {
                    **reference("Problem"),
                    "description": "Why nothing was written; only if it failed.",
                },
            },
            "required": ["name", "metadata", "done"],
        },
        "ListOperationsResponse": {
            "type": "object",
            "description": "A page of operations.",
            "properties": {
                "operations": {
                    "type": "array",
                    "items": reference("Operation"),
                    "description": "The latest first.",
                },
                "nextPageToken": {"type": "string", "description": "Empty on the last page."},
            },
            "required": ["operations", "nextPageToken"],
        },
    }


def health_schemas() -> dict[str, Schema]:
    """Return the schema of the response to a health check."""
    return {
        "Health": {
            "type": "object",
            "description": "A positive health check.",
            "properties": {"status": {"type": "string", "description": "`ok` or `ready`."}},
            "required": ["status"],
        }
    }


def health_paths() -> dict[str, Schema]:
    """Return the paths of the health checks."""

    def operation(name: str, summary: str, description: str, *refusals: HTTPStatus) -> Schema:
        responses: Schema = {
            "200": {
                "description": "Healthy.",
                "headers": header_references([REQUEST_ID]),
                "content": _content("Health", name),
            }
        }
        for refusal in (HTTPStatus.METHOD_NOT_ALLOWED, *refusals):
            responses[str(refusal.value)] = {
                "$ref": f"#/components/responses/{response_name(refusal)}"
            }
        responses["default"] = {"$ref": "#/components/responses/Problem"}
        return {
            "get": {
                "operationId": name,
                "tags": ["Health"],
                "summary": summary,
                "description": description,
                "parameters": [{"$ref": "#/components/parameters/RequestId"}],
                "responses": responses,
            }
        }

    return {
        "/healthz": operation(
            "IsAlive",
            "Checks that the gateway is alive.",
            "Does not check the service or the database.",
        ),
        "/readyz": operation(
            "IsReady",
            "Checks that the gateway, the service and the database can answer requests.",
            "Use it to decide whether to route requests to this gateway.",
            HTTPStatus.SERVICE_UNAVAILABLE,
        ),
    }
