"""The OpenAPI document and its viewer."""

import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import appointments
import jsonschema
import pytest
from openapi_spec_validator import validate

from gateway.openapi.document import openapi_document
from gateway.transcoding.routes import SERVICES, routes_of
from local.programs import ROOT
from public_json.reasons import Reason
from tests.gateway.conftest import WRITE, Gateway

ROUTES = routes_of(*SERVICES)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document(SERVICES, ROUTES)


def _schema(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "$ref": f"#/components/schemas/{name}",
        "components": {"schemas": document["components"]["schemas"]},
    }


def _accepts(document: dict[str, Any], name: str, value: object) -> bool:
    schema = _schema(document, name)
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_every_method_is_described(document: dict[str, Any]) -> None:
    described = {
        operation["operationId"]
        for path in document["paths"].values()
        for operation in path.values()
    }
    # A stream is another form of the answer of its page; what is submitted is described as a
    # preference of the writes.
    elsewhere = {"WatchAppointments", "SubmitAppointment"}
    methods = {method.name for service in SERVICES for method in service.methods}
    assert described >= methods - elsewhere
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["summary"]


def test_everything_is_described(document: dict[str, Any]) -> None:
    assert document["servers"]
    assert document["security"] == []
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    tags = {tag["name"] for tag in document["tags"]}
    assert {tag for operation in operations for tag in operation["tags"]} == tags
    components = document["components"]
    parameters = [one for operation in operations for one in operation["parameters"]]
    described = {
        "tag": document["tags"],
        "operation": operations,
        "parameter": [*components["parameters"].values(), *parameters],
        "answer": [
            *components["responses"].values(),
            *(answer for operation in operations for answer in operation["responses"].values()),
        ],
        "header": components["headers"].values(),
        "schema": components["schemas"].values(),
        "property": [
            one
            for schema in components["schemas"].values()
            for part in (schema, *schema.get("allOf", ()))
            for one in part.get("properties", {}).values()
        ],
    }
    for kind, ones in described.items():
        for one in ones:
            assert one.get("description") or "$ref" in one, (kind, one)


def test_objects_and_enums_have_names(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        for one in _inner_schemas(schema):
            unnamed = one.get("type") == "object" or "enum" in one or "allOf" in one
            assert not unnamed or one in schema.get("allOf", ()), (name, one)
    for path in document["paths"].values():
        for operation in path.values():
            bodies = [*operation["responses"].values(), operation.get("requestBody", {})]
            for content in (one for body in bodies for one in body.get("content", {}).values()):
                assert "$ref" in content["schema"] or content["schema"]["type"] == "string"


def _inner_schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = [*schema.get("properties", {}).values(), schema.get("items")]
    inner += [one for kind in ("anyOf", "allOf") for one in schema.get(kind, ())]
    for one in inner:
        if one is not None:
            yield one
            yield from _inner_schemas(one)


def test_no_schema_holds_itself(document: dict[str, Any]) -> None:
    held = {
        name: set(re.findall(r"'#/components/schemas/(\w+)'", str(schema)))
        for name, schema in document["components"]["schemas"].items()
    }
    for name, direct in held.items():
        seen: set[str] = set()
        left = {*direct}
        while left:
            one = left.pop()
            seen.add(one)
            left |= held[one] - seen
        assert name not in seen


def test_an_answer_requires_what_it_always_has(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def optional(name: str) -> set[str]:
        return set(schemas[name]["properties"]) - set(schemas[name]["required"])

    # Only a hold has an end.
    assert optional("Appointment") == {"holdUntil"}
    assert optional("HistoryEntry") == set()
    # Only with a conflict with another item of an atomic batch.
    assert optional("TimeRangeConflict") == {"index"}
    assert optional("Webhook") == {"secret", "failingSince", "nextAttemptAt", "resourceId"}
    assert optional("WebhookDelivery") == {"httpStatus"}
    assert optional("OperationMetadata") == {"finishedAt", "outcome"}
    assert optional("Operation") == {"response", "error"}
    assert optional("Problem") == {
        "errors",
        "conflicts",
        "moreConflicts",
        "alternatives",
        "items",
        "moreItems",
        "requestId",
    }
    for page in ("ListAppointmentsResponse", "ListWebhooksResponse"):
        assert optional(page) == set()
    # Only after a restore.
    assert optional("ListChangesResponse") == {"epoch"}


def test_a_revision_has_one_type(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    found = [
        # In a body it may be a number as well.
        (name, one["anyOf"][0] if kind.endswith(("Input", "Patch", "Request")) else one)
        for kind, schema in schemas.items()
        for name, one in schema.get("properties", {}).items()
        if name.lower().endswith("revision")
    ]
    found += [
        (one["name"], one["schema"])
        for operation in operations
        for one in operation["parameters"]
        if one.get("name", "").lower().endswith("revision")
    ]
    assert len(found) >= 15
    types = {(one.get("type"), one.get("format"), one.get("pattern")) for _, one in found}
    assert types == {("string", "int64", "^[0-9]{1,19}$")}


def test_codes_are_all_reasons(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["Problem"]["properties"]["code"] == {"$ref": "#/components/schemas/ErrorCode"}
    assert schemas["ErrorCode"]["enum"] == [reason.value for reason in Reason]


def test_there_is_one_version(document: dict[str, Any]) -> None:
    [latest, *_] = re.findall(r"^## ([^,\n]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = {
        "stubs": metadata.version("appointments-v1"),
        "service and gateway": metadata.version("appointments"),
        "document": document["info"]["version"],
        "changelog": latest,
    }
    assert versions == dict.fromkeys(versions, appointments.__version__)


def test_no_proto_names_are_shown(document: dict[str, Any]) -> None:
    assert not re.findall(r"`[a-z]+_[a-z_]+`", str(document))
    assert "google.protobuf" not in str(document)


def test_nothing_is_kept_that_nothing_refers_to(document: dict[str, Any]) -> None:
    text = str(document)
    for kind, components in document["components"].items():
        for name in components:
            # Operations name their schemes.
            use = f"{{'{name}': []" if kind == "securitySchemes" else f"#/components/{kind}/{name}'"
            assert use in text, name


def test_limits_come_from_the_rules(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["AppointmentInput"]["properties"]
    assert fields["title"]["maxLength"] == 1024
    [order] = [
        parameter
        for parameter in document["paths"]["/api/appointments"]["get"]["parameters"]
        if parameter.get("name") == "orderBy"
    ]
    assert order["schema"]["enum"] == ["start", "revision"]
    assert fields["organizationId"]["minLength"] == 1
    parameters = document["paths"]["/api/appointments"]["get"]["parameters"]
    [page_size] = [one for one in parameters if one.get("name") == "pageSize"]
    assert page_size["schema"] == {
        "type": "integer",
        "format": "int32",
        "minimum": 0,
        "maximum": 1000,
    }


def test_a_stream_is_a_form_of_its_page(document: dict[str, Any]) -> None:
    changes = document["paths"]["/api/changes"]["get"]
    assert set(changes["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    [resumes] = [one for one in changes["parameters"] if one.get("name") == "Last-Event-ID"]
    assert resumes["in"] == "header"


def test_headers_are_parameters_where_they_have_a_field(document: dict[str, Any]) -> None:
    def names(path: str, method: str) -> set[str]:
        return {
            one["name"]
            for one in document["paths"][path][method]["parameters"]
            if one.get("in") == "header"
        }

    conditions = {"If-Match", "Idempotency-Key"}
    assert names("/api/appointments", "post") == {*conditions, "If-None-Match"}
    assert names("/api/appointments/{id}", "delete") == conditions
    assert names("/api/appointments/{id}", "patch") == conditions
    assert names("/api/appointments/{id}", "put") == {*conditions, "If-None-Match"}
    assert names("/api/appointments/{id}:confirm", "post") == conditions
    assert names("/api/appointments:batchUpsert", "post") == set()


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({}, True),
        ({"id": 7}, True),
        ({"id": 7.5}, False),
        ({"id": True}, False),
        ({"start": "2026-01-01 10:00"}, True),
        ({"start": 5}, False),
        ({"title": None}, False),
        ({"title": "a\nb"}, False),
        ({"title": "é" * 1024}, True),
        ({"title": "é" * 1025}, False),
        ({"attributes": {"a": [{"b": None}, 1.5]}}, True),
        ({"attributes": [1]}, False),
        ({"revision": "5", "version": 1, "state": "ACTIVE"}, True),
        ({"revision": 5}, True),
        ({"unknown": 1}, False),
    ],
)
def test_what_is_taken(document: dict[str, Any], change: dict[str, Any], accepted: bool) -> None:
    assert _accepts(document, "AppointmentInput", {**WRITE, **change}) is accepted


@pytest.mark.parametrize(
    ("patch", "accepted"),
    [
        ({}, True),
        ({"title": None, "resourceId": None, "additionalResourceIds": None}, True),
        ({"attributes": None, "holdUntil": None, "createdAt": None}, True),
        ({"attributes": {"a": None, "b": {"c": None}}}, True),
        ({"start": None}, False),
        ({"id": "a", "organizationId": "o", "etag": "5", "version": 3}, True),
        ({"id": None}, False),
        ({"etag": None}, False),
        ({"version": None}, False),
        ({"title": 5}, False),
        ({"updateMask": "title"}, False),
    ],
)
def test_what_a_patch_takes(
    document: dict[str, Any], patch: dict[str, Any], accepted: bool
) -> None:
    assert _accepts(document, "AppointmentPatch", patch) is accepted


def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    found = 0
    components = document["components"]
    bodies = [
        operation["requestBody"]
        for path in document["paths"].values()
        for operation in path.values()
        if "requestBody" in operation
    ]
    answers = [
        answer
        for path in document["paths"].values()
        for operation in path.values()
        for answer in operation["responses"].values()
        if "content" in answer
    ]
    for holder in (*bodies, *answers, *components["responses"].values()):
        for content in holder["content"].values():
            for example in content.get("examples", {}).values():
                schema = {**content["schema"], "components": components}
                jsonschema.Draft202012Validator(schema).validate(example["value"])
                found += 1
    assert found >= 3


async def test_answers_fit_their_schemas(rest: Gateway, document: dict[str, Any]) -> None:
    written = await rest.upsert()
    assert _accepts(document, "Appointment", written.json)
    refused = await rest.send("POST", "/api/appointments", json={"x": 1})
    assert _accepts(document, "Problem", refused.json)
    served = await rest.send("GET", "/api/openapi.json")
    assert served.json == document


async def test_the_viewer_needs_nothing_from_elsewhere(rest: Gateway) -> None:
    page = await rest.send("GET", "/api/docs")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    links = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert len(links) >= 4
    for link in links:
        assert (await rest.send("GET", f"/api/{link}")).status == 200


async def test_every_operation_but_health_names_its_scope(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert {name: scheme["scheme"] for name, scheme in schemes.items()} == {
        "Bearer": "bearer",
        "Password": "basic",
    }
    scopes: dict[str, set[str]] = {}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if not path.startswith("/api/"):
                assert "security" not in operation
                assert not operation["responses"].keys() & {"401", "403"}
                continue
            *alternatives, without = operation["security"]
            assert without == {}, "access control may be off"
            ways = {"Bearer", "Password"} if path.endswith(".ics") else {"Bearer"}
            assert {way for each in alternatives for way in each} == ways
            [scope] = re.findall("needs the scope `(.*)`", operation["description"])
            scopes.setdefault(scope, set()).add(operation["operationId"])
            assert operation["responses"].keys() >= {"401", "403"}
    assert scopes.keys() == {"appointments.read", "appointments.write", "webhooks", "admin"}
    assert scopes["appointments.write"] >= {"UpsertAppointment", "PutAppointment", "ListOperations"}
    assert scopes["appointments.read"] >= {"GetCalendar", "ListChanges", "QueryAvailability"}
    for status in ("Unauthorized", "Forbidden"):
        assert "WWW-Authenticate" in document["components"]["responses"][status]["headers"]
