"""`Prefer: respond-async` and the operations that it makes, by REST."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from local.programs import Program
from tests.conftest import StartProgram
from tests.observing import held_lock, until
from tests.rest_client import Answer, Client

ASYNC = "respond-async"
OTHER = {"start": "2030-01-07T08:15:00Z", "end": "2030-01-07T08:45:00Z"}


@pytest.fixture
def client(gateway: Program, worker: Program, organization: str) -> Iterator[Client]:
    """A client of a gateway whose operations are applied."""
    client = Client(gateway, organization)
    yield client
    client.close()


def path_of(accepted: Answer) -> str:
    assert accepted.status == 202
    assert accepted.headers["Preference-Applied"] == ASYNC
    assert accepted.json["done"] is False
    location = accepted.headers["Location"]
    path, _, query = location.partition("?")
    assert path.startswith("/api/operations/")
    assert query.startswith("organizationId=")
    return location


def ended(client: Client, accepted: Answer) -> Answer:
    answer = client.send("GET", path_of(accepted) + "&wait=10s")
    assert answer.status == 200
    assert answer.json["done"] is True
    return answer


def test_an_accepted_write_ends_with_the_appointment_as_stored(client: Client) -> None:
    accepted = client.upsert("a", Prefer=ASYNC, title="Cut", attributes={"n": 1})
    end = ended(client, accepted)
    stored = client.call("GET", "/appointments/a")
    response = end.json["response"]
    assert response.pop("@type") == "type.googleapis.com/appointments.v1.Appointment"
    assert response == stored.json
    assert end.json["name"] == accepted.json["name"]
    assert end.json["metadata"]["outcome"] == "CREATED"
    assert end.json["metadata"]["appointmentId"] == "a"
    assert end.headers["Organization-Revision"] == "1"
    assert "error" not in end.json


def test_an_accepted_cancel_ends_with_the_cancelled_appointment(client: Client) -> None:
    client.upsert("a")
    accepted = client.call("DELETE", "/appointments/a", Prefer=ASYNC)
    end = ended(client, accepted)
    assert end.json["response"]["state"] == "CANCELLED"
    assert end.json["metadata"]["outcome"] == "CANCELLED"


def test_a_refused_write_ends_with_the_problem_of_the_synchronous_call(client: Client) -> None:
    client.upsert("a")
    refused = client.upsert("b", **OTHER)
    end = ended(client, client.upsert("b", Prefer=ASYNC, **OTHER))
    problem = refused.json
    del problem["requestId"]
    assert end.json["error"] == problem
    assert "response" not in end.json
    assert [item["id"] for item in client.stored()] == ["a"]


NEW = {"start": "2030-01-08T08:00:00Z", "end": "2030-01-08T09:00:00Z"}


@pytest.mark.parametrize(
    ("outcome", "method", "path", "body", "headers"),
    [
        ("CREATED", "PUT", "b", {**NEW, "title": "x"}, {}),
        ("UPDATED", "PUT", "a", {**NEW, "title": "x"}, {"If-Match": '"1"'}),
        ("UNCHANGED", "PUT", "a", {**OTHER, "title": "a", "attributes": {"n": 1, "m": 2}}, {}),
        ("STALE", "PUT", "timed", {**NEW, "updatedAt": "2020-01-01 00:00"}, {}),
        ("TIME_RANGE_CONFLICT", "PUT", "b", OTHER, {}),
        ("ETAG_MISMATCH", "PUT", "a", NEW, {"If-Match": '"9"'}),
        ("APPOINTMENT_EXISTS", "PUT", "a", NEW, {"If-None-Match": "*"}),
        ("IDEMPOTENCY_KEY_REUSED", "PUT", "b", NEW, {"Idempotency-Key": "a"}),
        ("UPDATED", "PATCH", "a", {"title": "x", "attributes": {"n": None}}, {}),
        ("UPDATED", "PATCH", "a", {"title": None}, {"If-Match": '"1"'}),
        ("UNCHANGED", "PATCH", "a", {}, {}),
        ("CREATED", "PATCH", "b?allowMissing=true", {**NEW, "attributes": {"n": 1}}, {}),
        ("STALE", "PATCH", "timed", {"title": "x", "updatedAt": "2020-01-01 00:00"}, {}),
        ("APPOINTMENT_NOT_FOUND", "PATCH", "b", {"title": "x"}, {}),
        ("APPOINTMENT_CANCELLED", "PATCH", "cancelled", {"title": "x"}, {}),
        ("APPOINTMENT_FIRM", "PATCH", "a", {"holdUntil": "soon"}, {}),
        ("TIME_RANGE_CONFLICT", "PATCH", "timed", OTHER, {}),
        ("ETAG_MISMATCH", "PATCH", "a", {"etag": "9"}, {}),
        ("INVALID_FIELD", "PATCH", "a", {"start": "2030-01-08 08:00"}, {}),
        ("INVALID_FIELD", "PATCH", "a", {"attributes": {"x": "y" * 16_370}}, {}),
        ("IDEMPOTENCY_KEY_REUSED", "PATCH", "a", {}, {"Idempotency-Key": "a"}),
        ("CONFIRMED", "POST", "held:confirm", None, {"If-Match": '"2"'}),
        ("UNCHANGED", "POST", "a:confirm", None, {}),
        ("APPOINTMENT_NOT_FOUND", "POST", "b:confirm", None, {}),
        ("APPOINTMENT_CANCELLED", "POST", "cancelled:confirm", None, {}),
        ("HOLD_EXPIRED", "POST", "expired:confirm", None, {}),
        ("ETAG_MISMATCH", "POST", "held:confirm", None, {"If-Match": '"9"'}),
        ("IDEMPOTENCY_KEY_REUSED", "POST", "held:confirm", None, {"Idempotency-Key": "a"}),
    ],
)
def test_an_accepted_write_ends_as_the_synchronous_one(
    gateway: Program,
    worker: Program,
    organization: str,
    outcome: str,
    method: str,
    path: str,
    body: dict[str, object] | None,
    headers: dict[str, str],
) -> None:
    """Organizations with the same appointments get the same write in different ways."""
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    if body is not None and body.get("holdUntil"):
        body = {"holdUntil": later}
    answers = []
    for prefer in ("", ASYNC, f"{ASYNC}, wait=10"):
        one = Client(gateway, f"{organization[-36:]} {prefer}")
        one.upsert("a", **OTHER, title="a", attributes={"n": 1, "m": 2}, Idempotency_Key="a")
        one.upsert("held", resourceId="h", holdUntil=later)
        one.upsert("timed", resourceId="", updatedAt="2030-01-01 00:00", end=OTHER["start"])
        one.upsert("cancelled", resourceId="c")
        one.call("DELETE", "/appointments/cancelled")
        if "expired" in path:
            shortly = datetime.now(UTC) + timedelta(seconds=1.5)
            one.upsert("expired", resourceId="e", holdUntil=shortly.isoformat())
            until(lambda: one.call("GET", "/appointments/expired").json["state"] == "EXPIRED")  # noqa: B023
        target = f"/api/appointments/{path}{'&' if '?' in path else '?'}organizationId="
        given = {**headers, **({"Prefer": prefer} if prefer else {})}
        sent = None if body is None else json.dumps(body).encode()
        if sent:
            given["Content-Type"] = "application/json"
        answers.append(one.send(method, target + quote(one.organization), sent, **given))
        if prefer == ASYNC:
            end = ended(one, answers.pop())
        one.close()
    at_once, waited = answers
    result = at_once.json
    assert at_once.status == waited.status
    if at_once.status < 400:
        assert at_once.headers["Appointment-Outcome"] == outcome
        assert waited.headers["Appointment-Outcome"] == outcome
        assert at_once.headers["ETag"] == waited.headers["ETag"] == f'"{result["etag"]}"'
        assert ("Location" in at_once.headers) is ("Location" in waited.headers)
        assert end.json["metadata"]["outcome"] == outcome
        assert "@type" in end.json["response"]
        results = (result, end.json["response"], waited.json)
        for stored in results:
            for name in ("@type", "organizationId", "createdAt", "updatedAt"):
                stored.pop(name, None)
    else:
        assert result["code"] == outcome
        results = (result, end.json["error"], waited.json)
        for problem in results:
            problem.pop("requestId", None)
    assert results[0] == results[1] == results[2]


def test_fields_are_checked_before_acceptance_and_named_as_ever(client: Client) -> None:
    body = {"start": "2030-01-07T09:00:00Z", "end": "2030-01-07T08:00:00Z", "title": "x" * 1025}
    answer = client.upsert("a", Prefer=ASYNC, **body)
    assert answer.status == 400
    assert answer.fields == {"end", "title"}
    answer = client.call("DELETE", "/appointments/" + "x" * 257, Prefer=ASYNC)
    assert (answer.status, answer.fields) == (400, {"id"})
    answer = client.post(
        {"organizationId": client.organization, "id": "a", **OTHER},
        "?validateOnly=true",
        Prefer=ASYNC,
    )
    assert (answer.status, answer.fields) == (400, {"validateOnly"})
    assert client.call("GET", "/operations").json == {"operations": [], "nextPageToken": ""}


@pytest.mark.parametrize(
    "prefer", ["respond-async, wait=5", "wait=5; x=y, Respond-Async", 'wait="5",respond-async=""']
)
def test_an_end_within_the_time_to_wait_is_answered_as_if_made_at_once(
    client: Client, prefer: str
) -> None:
    created = client.upsert("a", Prefer=prefer)
    assert created.status == 201
    assert created.headers["Preference-Applied"] == "wait=5"
    assert created.headers["Appointment-Outcome"] == "CREATED"
    assert created.headers["ETag"] == '"1"'
    assert created.headers["Location"].startswith("/api/appointments/a?")
    assert created.json == client.call("GET", "/appointments/a").json
    refused = client.upsert("b", Prefer=prefer, **OTHER)
    assert refused.status == 409
    assert [conflict["id"] for conflict in refused.json["conflicts"]] == ["a"]
    cancelled = client.call("DELETE", "/appointments/a", Prefer=prefer)
    assert (cancelled.status, cancelled.json["state"]) == (200, "CANCELLED")


def test_no_end_within_the_time_to_wait_is_202(
    client: Client, database_url: str, organization: str
) -> None:
    with held_lock(database_url, organization):
        accepted = client.upsert("a", Prefer="respond-async, wait=1")
        path_of(accepted)
        assert client.send("GET", path_of(accepted) + "&wait=1").json["done"] is False
    assert ended(client, accepted).json["response"]["id"] == "a"


@pytest.mark.parametrize("prefer", ["wait=5", "respond-asynchronously", "return=minimal", ";;,="])
def test_other_preferences_change_nothing(client: Client, prefer: str) -> None:
    answer = client.upsert("a", Prefer=prefer)
    assert answer.status == 201
    assert "Preference-Applied" not in answer.headers


def test_conditions_and_keys_hold_for_accepted_writes(client: Client) -> None:
    etag = client.upsert("a").headers["ETag"]
    client.upsert("a", title="changed")
    end = ended(client, client.upsert("a", Prefer=ASYNC, If_Match=etag, title="late"))
    assert end.json["error"]["status"] == 412
    end = ended(client, client.upsert("a", Prefer=ASYNC, If_None_Match="*"))
    assert end.json["error"]["code"] == "APPOINTMENT_EXISTS"
    first = client.upsert("k", Idempotency_Key="key", **{**OTHER, "resourceId": "r"})
    again = client.upsert("k", Prefer=ASYNC, Idempotency_Key="key", **{**OTHER, "resourceId": "r"})
    response = ended(client, again).json["response"]
    del response["@type"]
    assert response == first.json
    other = client.upsert("k", Prefer=ASYNC, Idempotency_Key="key", resourceId="other")
    assert ended(client, other).json["error"]["status"] == 422


def test_an_organization_of_any_letters_finds_its_operations(
    gateway: Program, worker: Program, organization: str
) -> None:
    client = Client(gateway, f"a/b %25 ä {organization}")
    accepted = client.upsert("a", Prefer=ASYNC)
    assert quote(client.organization, safe="") in path_of(accepted)
    assert ended(client, accepted).json["metadata"]["organizationId"] == client.organization
    client.close()


def test_operations_are_listed_the_latest_first(client: Client) -> None:
    names: list[str] = []
    for number in range(5):
        accepted = client.upsert(str(number), Prefer=ASYNC)
        ended(client, accepted)
        names.insert(0, accepted.json["name"])
    listed: list[str] = []
    token = ""
    while True:
        page = client.call("GET", "/operations", pageSize=2, pageToken=token).json
        listed += [operation["name"] for operation in page["operations"]]
        token = page["nextPageToken"]
        if not token:
            break
    assert listed == names
    refused = client.call("GET", "/operations", filter="error:*").json["operations"]
    assert [operation["name"] for operation in refused] == names[:4]


def test_what_is_asked_of_operations_is_checked(client: Client) -> None:
    unknown = "/operations/0192f0c8-0000-7000-8000-000000000000"
    assert client.call("GET", unknown).json["code"] == "OPERATION_NOT_FOUND"
    assert client.call("GET", unknown, wait="1s").status == 404
    assert client.call("GET", "/operations/1").json["code"] == "OPERATION_NOT_FOUND"
    assert client.call("GET", unknown, wait="21").fields == {"wait"}
    assert client.call("GET", unknown, wait="-1").fields == {"wait"}
    assert client.call("GET", unknown, organizationId="").fields == {"organizationId"}
    assert client.call("GET", unknown, organizationId="\0").fields == {"organizationId"}
    assert client.call("GET", unknown, other=1).fields == {"other"}
    assert client.call("GET", "/operations", filter="done").fields == {"filter"}
    assert client.call("GET", "/operations", pageSize="1001").fields == {"pageSize"}
    assert client.call("GET", "/operations", pageToken="x").fields == {"pageToken"}
    assert client.call("DELETE", unknown).status == 405
    assert client.send("GET", "/api/operations/%zz").status == 400


def test_an_accepted_write_outlives_gateway_and_service(
    start_service: StartProgram,
    start_gateway: StartProgram,
    start_worker: StartProgram,
    gateway: Program,
    organization: str,
) -> None:
    service = start_service()
    short_lived = start_gateway(SERVICE_ADDRESS=service.address)
    accepted = Client(short_lived, organization).upsert("a", Prefer=ASYNC)
    service.kill()
    short_lived.kill()
    client = Client(gateway, organization)
    start_worker()
    until(lambda: client.send("GET", path_of(accepted)).json["done"])
    assert [item["id"] for item in client.stored()] == ["a"]
