"""The OpenAPI document and its viewer."""

import re
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from gateway.app import SERVICES
from gateway.openapi import openapi_document
from gateway.routes import routes_of
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


def test_no_proto_names_are_shown(document: dict[str, Any]) -> None:
    assert not re.findall(r"`[a-z]+_[a-z_]+`", str(document))
    assert "google.protobuf" not in str(document)


def test_nothing_is_kept_that_nothing_refers_to(document: dict[str, Any]) -> None:
    text = str(document)
    for kind, components in document["components"].items():
        for name in components:
            assert f"#/components/{kind}/{name}'" in text, name


def test_limits_come_from_the_rules(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["AppointmentInput"]["properties"]
    assert fields["title"]["maxLength"] == 1024
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
        ({"attributes": {"a": "\0"}}, False),
        ({"revision": "5", "version": 1, "state": "ACTIVE"}, True),
        ({"unknown": 1}, False),
    ],
)
def test_what_is_taken(document: dict[str, Any], change: dict[str, Any], accepted: bool) -> None:
    assert _accepts(document, "AppointmentInput", {**WRITE, **change}) is accepted


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
