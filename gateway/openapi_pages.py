"""What no annotation describes in the OpenAPI document: operations, and health."""

from http import HTTPStatus

from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2 import OperationMetadata

from gateway.answers import REQUEST_ID
from gateway.caller import REVISION
from gateway.openapi_components import ALWAYS, TEXT, header_references, reference, response_name
from gateway.operations import MAX_WAIT, OPERATION_PATH, OPERATIONS_PATH
from gateway.schemas import Schema, Schemas


def operation_paths() -> dict[str, Schema]:
    """Describe how operations are read."""
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
            "headers": header_references([REQUEST_ID, REVISION]),
            "content": {"application/json": {"schema": reference(answer)}},
        }
        responses = {"200": success} | {
            str(status.value): {"$ref": f"#/components/responses/{response_name(status)}"}
            for status in sorted({*ALWAYS, *refusals})
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

    identifier: Schema = {"name": "id", "in": "path", "required": True, "schema": TEXT}
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
        query("pageToken", TEXT, "`nextPageToken` of the page before, with the same filter."),
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


def operation_schemas(schemas: Schemas) -> dict[str, Schema]:
    """Describe an operation, and a page of them."""

    def packed(message: Schema) -> Schema:
        kind = {"type": "object", "properties": {"@type": TEXT}, "required": ["@type"]}
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
                "error": reference("Problem"),
            },
            "required": ["name", "metadata", "done"],
        },
        "ListOperationsResponse": {
            "type": "object",
            "properties": {
                "operations": {"type": "array", "items": reference("Operation")},
                "nextPageToken": {"type": "string", "description": "Empty on the last page."},
            },
            "required": ["operations", "nextPageToken"],
        },
    }


def health_paths() -> dict[str, Schema]:
    """Describe the questions after the gateway's health."""
    status: Schema = {
        "type": "object",
        "properties": {"status": {"type": "string"}},
        "required": ["status"],
    }

    def operation(name: str, summary: str, refusals: tuple[HTTPStatus, ...]) -> Schema:
        responses: Schema = {
            "200": {
                "description": "Yes.",
                "headers": header_references([REQUEST_ID]),
                "content": {"application/json": {"schema": status}},
            }
        }
        for refusal in refusals:
            responses[str(refusal.value)] = {
                "$ref": f"#/components/responses/{response_name(refusal)}"
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
