"""The examples of the OpenAPI document are sent; the responses match it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from typing import Any

from tests.conftest import CreateDatabase, StartProgram

# Generated for every response; all else is as in the document.
MADE = {"createdAt", "updatedAt", "recordedAt", "acceptedAt", "finishedAt", "requestId", "secret"}
# Sent with another value than in the document: it has to be soon.
MADE |= {"holdUntil"}
MADE_IN_CALENDAR = re.compile("^(CREATED|LAST-MODIFIED|DTSTAMP):[0-9]{8}T[0-9]{6}Z", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    operation: str
    status: int
    example: str
    """Of the answer, and of the request if it has a body."""
    id: str = "standup"
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


WEBHOOK, OPERATION = "the webhook", "the operation"
STORY = (
    Step(operation="IsAlive", status=200, example="alive"),
    Step(operation="IsReady", status=200, example="ready"),
    Step(operation="UpsertAppointment", status=201, example="book"),
    Step(operation="UpsertAppointment", status=200, example="again"),
    Step(operation="UpsertAppointment", status=409, example="overlapping"),
    Step(operation="UpsertAppointment", status=400, example="backwards"),
    Step(operation="GetAppointment", status=200, example="booked"),
    Step(operation="GetAppointment", status=404, example="unknown", id="nobody"),
    Step(operation="ListAppointments", status=200, example="booked"),
    Step(
        operation="QueryAvailability",
        status=200,
        example="bookable",
        query="?from=2026-03-02T00:00:00Z&to=2026-03-03T00:00:00Z&resourceId=room-1"
        "&openingHours=Mo-Fr%2009:00-12:00&timeZone=UTC&duration=3600s&granularity=1800s",
    ),
    Step(operation="GetCalendar", status=200, example="booked"),
    Step(operation="BatchUpsertAppointments", status=200, example="oneIsRefused"),
    Step(operation="BatchUpsertAppointments", status=409, example="allOrNothing"),
    Step(
        operation="CancelAppointment",
        status=412,
        example="changedMeanwhile",
        headers={"If-Match": '"0"'},
    ),
    Step(operation="CancelAppointment", status=200, example="cancelled"),
    Step(operation="ListAppointmentHistory", status=200, example="both"),
    Step(operation="ListChanges", status=200, example="afterTwo", query="?afterRevision=2"),
    Step(
        operation="UpsertAppointment",
        status=202,
        example="later",
        headers={"Prefer": "respond-async"},
    ),
    Step(operation="GetOperation", status=200, example="done", id=OPERATION, query="?wait=20s"),
    Step(operation="ListOperations", status=200, example="done"),
    Step(operation="CreateWebhook", status=201, example="register"),
    Step(operation="GetWebhook", status=200, example="registered", id=WEBHOOK),
    Step(operation="ListWebhooks", status=200, example="registered"),
    Step(operation="UpdateWebhook", status=200, example="disable", id=WEBHOOK),
    Step(operation="RotateWebhookSecret", status=200, example="rotated", id=WEBHOOK),
    Step(operation="ListWebhookDeliveries", status=200, example="none", id=WEBHOOK),
    Step(operation="ReplayWebhook", status=200, example="all", id=WEBHOOK),
    Step(operation="DeleteWebhook", status=200, example="deleted", id=WEBHOOK),
    Step(operation="PutAppointment", status=200, example="move"),
    Step(operation="UpdateAppointment", status=200, example="rename"),
    Step(operation="UpsertAppointment", status=201, example="hold"),
    Step(operation="ConfirmAppointment", status=200, example="confirm", id="viewing"),
    Step(operation="RedactAppointment", status=200, example="redacted", id="viewing"),
)
# The same request as "book", once more.
SENT_AS = {"again": "book"}


def test_the_examples_are_answered_as_the_document_says(
    create_database: CreateDatabase,
    start_service: StartProgram,
    start_worker: StartProgram,
    start_gateway: StartProgram,
) -> None:
    url = create_database()
    gateway = start_gateway(SERVICE_ADDRESS=start_service(DATABASE_URL=url).address)
    worker = start_worker(DATABASE_URL=url)
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=60)

    def send(
        method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, Any]:
        connection.request(method, target, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        text = answer.read().decode()
        is_json = answer.headers.get_content_subtype().endswith("json")
        return answer.status, json.loads(text) if is_json else text

    _, document = send("GET", "/api/openapi.json", None, {})
    operations = {
        operation["operationId"]: (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    left = set(_examples(document))
    made: dict[str, str] = {}
    for step in STORY:
        if step.operation == "CreateWebhook":
            worker.stop()  # the URL of the example must not be called
        method, path, operation = operations[step.operation]
        path = path.replace("{id}", made.get(step.id, step.id)) + step.query
        body = None
        if "requestBody" in operation:
            contents = operation["requestBody"]["content"]["application/json"]
            name = SENT_AS.get(step.example, step.example)
            value = contents["examples"][name]["value"]
            if "holdUntil" in value:
                value["holdUntil"] = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
            body = json.dumps(value).encode()
            left.discard((step.operation, "request", name))
        status, answer = send(method, path, body, step.headers)
        assert status == step.status, (step, answer)
        response = operation["responses"][str(status)]
        owner = step.operation
        if "$ref" in response:
            owner = response["$ref"].rpartition("/")[2]
            response = document["components"]["responses"][owner]
        [content] = (one for one in response["content"].values() if "examples" in one)
        left.discard((owner, str(status) if owner == step.operation else "", step.example))
        if step.example in {"register", "later"}:
            key = WEBHOOK if step.example == "register" else OPERATION
            made[key] = (answer.get("id") or answer["name"]).rpartition("/")[2]
        said = content["examples"][step.example]["value"]
        assert _comparable(answer, made) == _comparable(said, made), step
    assert not left


def _examples(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Every example: whose it is, its place, and its name."""

    def names(holder: dict[str, Any]) -> list[str]:
        contents = holder.get("content", {}).values()
        return [name for content in contents for name in content.get("examples", {})]

    for methods in document["paths"].values():
        for operation in methods.values():
            owner = operation["operationId"]
            for name in names(operation.get("requestBody", {})):
                yield owner, "request", name
            for status, response in operation["responses"].items():
                for name in names(response):
                    yield owner, status, name
    for owner, response in document["components"]["responses"].items():
        for name in names(response):
            yield owner, "", name


def _comparable(value: Any, made: Mapping[str, str]) -> Any:
    """Replace generated values by their type, and ids by what they identify."""
    if isinstance(value, list):
        return [_comparable(item, made) for item in value]
    if isinstance(value, str):
        return MADE_IN_CALENDAR.sub(r"\1", value)
    if not isinstance(value, dict):
        return value
    fields = {}
    for name, item in value.items():
        if name in MADE or (name == "id" and "deliveredRevision" in value) or name == "name":
            fields[name] = type(item)
        else:
            fields[name] = _comparable(item, made)
    return fields
