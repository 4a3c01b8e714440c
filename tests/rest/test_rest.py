"""End-to-end tests of the REST API: gateway, service and database."""

import json
import uuid
from typing import Any
from urllib.parse import quote

import pytest

from local.programs import Program
from tests.rest_client import END, START, Answer, Client


@pytest.fixture
def rest(gateway: Program, organization: str) -> Client:
    return Client(gateway, organization)


def test_a_created_appointment_is_answered_flat_with_its_headers(rest: Client) -> None:
    answer = rest.upsert("a", title="Haircut", attributes={"n": 1})
    stored = answer.json
    assert answer.status == 201
    assert stored == {
        "organizationId": rest.organization,
        "resourceId": "",
        "additionalResourceIds": [],
        "id": "a",
        "start": START,
        "end": END,
        "title": "Haircut",
        "attributes": {"n": 1},
        "createdAt": stored["createdAt"],
        "updatedAt": stored["createdAt"],
        "state": "ACTIVE",
        "version": 1,
        "revision": "1",
        "etag": stored["etag"],
    }
    assert answer.headers["ETag"] == f'"{stored["etag"]}"'
    assert answer.headers["Appointment-Outcome"] == "CREATED"
    assert answer.headers["Organization-Revision"] == "1"
    location = answer.headers["Location"]
    assert rest.send("GET", location).json == stored


def test_outcomes_and_their_statuses(rest: Client) -> None:
    def outcome(answer: Answer) -> tuple[int, str]:
        return answer.status, answer.headers["Appointment-Outcome"]

    updated_at = "2030-01-01T00:00:00Z"
    assert outcome(rest.upsert(updatedAt=updated_at)) == (201, "CREATED")
    assert outcome(rest.upsert(updatedAt=updated_at)) == (200, "UNCHANGED")
    assert outcome(rest.upsert(title="x", updatedAt=updated_at)) == (200, "UPDATED")
    assert outcome(rest.upsert(updatedAt="2029-12-31T00:00:00Z")) == (200, "STALE")
    late = rest.call("DELETE", "/appointments/a", updatedAt="2029-12-31T00:00:00Z")
    assert outcome(late) == (200, "STALE")
    cancel = rest.call("DELETE", "/appointments/a", updatedAt="2030-01-02 00:00")
    assert outcome(cancel) == (200, "CANCELLED")
    assert outcome(rest.upsert(updatedAt="2030-01-01T12:00:00Z")) == (200, "STALE")
    assert outcome(rest.call("DELETE", "/appointments/a")) == (200, "UNCHANGED")


def test_a_conflict_is_a_409_that_lists_what_is_in_the_way(rest: Client) -> None:
    rest.upsert("a")
    answer = rest.upsert("b", start="2030-01-07T08:29:00Z", end="2030-01-07T09:00:00Z")
    assert answer.status == 409
    assert answer.headers["Organization-Revision"] == "1"
    problem = answer.json
    assert problem["code"] == "TIME_RANGE_CONFLICT"
    assert problem["conflicts"] == [
        {"id": "a", "start": START, "end": END, "version": 1, "resourceIds": [""]}
    ]
    assert problem["moreConflicts"] is False


def test_naive_times_and_integer_ids(rest: Client) -> None:
    answer = rest.upsert(7, start="2030-01-07 08:00", end="2030-01-07 08:30:15")
    assert answer.json["id"] == "7"
    assert (answer.json["start"], answer.json["end"]) == (START, "2030-01-07T08:30:15Z")
    other_offset = rest.upsert("7", start="2030-01-07T09:00:00+01:00", end="2030-01-07 08:30:15")
    assert other_offset.headers["Appointment-Outcome"] == "UNCHANGED"


def test_if_match_and_if_none_match(rest: Client) -> None:
    created = rest.upsert(If_None_Match="*")
    assert created.status == 201
    exists = rest.upsert(title="x", If_None_Match="*")
    assert (exists.status, exists.json["code"]) == (412, "APPOINTMENT_EXISTS")
    updated = rest.upsert(title="x", If_Match=created.headers["ETag"])
    assert updated.status == 200
    mismatch = rest.upsert(title="y", If_Match=created.headers["ETag"])
    assert (mismatch.status, mismatch.json["code"]) == (412, "ETAG_MISMATCH")
    mismatch = rest.call("DELETE", "/appointments/a", If_Match=created.headers["ETag"])
    assert mismatch.status == 412
    assert rest.call("DELETE", "/appointments/a", If_Match=updated.headers["ETag"]).status == 200


def test_what_was_read_can_be_changed_and_sent_back(rest: Client) -> None:
    rest.upsert()
    read = rest.call("GET", "/appointments/a").json
    answer = rest.post({**read, "title": "changed"})
    assert (answer.status, answer.json["version"]) == (200, 2)
    assert rest.post({**read, "title": "again"}).status == 412


def test_an_idempotency_key_gives_the_first_answer_again(rest: Client) -> None:
    first = rest.upsert(Idempotency_Key="k")
    again = rest.upsert(Idempotency_Key='"k"')
    assert (again.status, again.json) == (201, first.json)
    other = rest.upsert(title="x", Idempotency_Key="k")
    assert (other.status, other.json["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


def test_validate_only_writes_nothing(rest: Client) -> None:
    body = {"organizationId": rest.organization, "start": START, "end": END}
    answer = rest.post(body, "?validateOnly=true")
    assert (answer.status, answer.headers["Appointment-Outcome"]) == (200, "CREATED")
    assert rest.stored() == []


@pytest.mark.parametrize(
    "id", ["a/b", "a%2Fb", "..", ".", "ä ö", "a?b#c", "a:b", "a+b&c=d", "%", "\\", "history", "'\""]
)
def test_any_id_works_in_a_path(rest: Client, id: str) -> None:
    created = rest.upsert(id)
    assert created.status == 201
    path = f"/appointments/{quote(id, safe='')}"
    assert rest.call("GET", path).json == created.json
    assert rest.send("GET", created.headers["Location"]).json == created.json
    assert len(rest.call("GET", f"{path}/history").json["entries"]) == 1
    assert rest.call("DELETE", path).status == 200


def test_history_changes_and_the_past(rest: Client) -> None:
    first = rest.upsert(X_Actor="dr-who").json
    rest.upsert(title="x")
    rest.call("DELETE", "/appointments/a")
    history = rest.call("GET", "/appointments/a/history").json
    assert [entry["change"] for entry in history["entries"]] == ["CREATED", "UPDATED", "CANCELLED"]
    assert history["entries"][0]["actor"] == "dr-who"
    assert history["entries"][0]["appointment"] == first
    changes = rest.call("GET", "/changes", afterRevision=1, pageSize=1).json
    assert [entry["revision"] for entry in changes["entries"]] == ["2"]
    assert (changes["revision"], bool(changes["nextPageToken"])) == ("3", True)
    assert rest.call("GET", "/appointments/a", asOfRevision=1).json == first
    past = rest.call("GET", "/appointments", asOfRevision=1).json
    assert (past["appointments"], past["revision"]) == ([first], "1")
    time = history["entries"][0]["recordedAt"]
    assert rest.call("GET", "/appointments/a", asOfTime=time).json == first


def test_a_list_with_filters_and_pages(rest: Client) -> None:
    for hour in range(8, 13):
        times = {"start": f"2030-01-07 {hour:02}:00", "end": f"2030-01-07 {hour:02}:30"}
        rest.upsert(f"{hour}", resourceId="r" if hour % 2 else "s", **times)
    window = {"from": "2030-01-07 08:15", "to": "2030-01-07T12:00:00Z"}
    found = rest.call("GET", "/appointments", **window).json
    assert [item["id"] for item in found["appointments"]] == ["8", "9", "10", "11"]
    assert found["revision"] == "5"
    odd = rest.call("GET", "/appointments", resourceId="r").json["appointments"]
    assert [item["id"] for item in odd] == ["9", "11"]
    page = rest.call("GET", "/appointments", pageSize=3).json
    rest_of_it = rest.call("GET", "/appointments", pageToken=page["nextPageToken"]).json
    ids = [item["id"] for item in page["appointments"] + rest_of_it["appointments"]]
    assert ids == ["8", "9", "10", "11", "12"]
    refused = rest.call("GET", "/appointments", resourceId="r", pageToken=page["nextPageToken"])
    assert (refused.status, refused.fields) == (400, {"pageToken"})
    assert rest.call("GET", "/appointments", minRevision=5).status == 200
    assert rest.call("GET", "/appointments", minRevision=6).fields == {"minRevision"}


def test_a_page_goes_on_whichever_way_the_default_organization_is_named(rest: Client) -> None:
    for _ in range(2):
        rest.post({"start": START, "end": END, "resourceId": str(uuid.uuid4())})
    for path in ("appointments", "changes"):
        first = rest.send("GET", f"/api/{path}?pageSize=1").json["nextPageToken"]
        assert first
        target = f"/api/{path}?organizationId=default&pageSize=1&pageToken={first}"
        assert rest.send("GET", target).status == 200


def test_an_actor_in_utf_8_is_in_the_history_and_is_taken_by_reads(rest: Client) -> None:
    named = {"X_Actor": "Zoë".encode().decode("latin-1")}  # as http.client writes bytes
    assert rest.upsert("a", **named).status == 201
    entries = rest.call("GET", "/appointments/a/history", **named).json["entries"]
    assert [entry["actor"] for entry in entries] == ["Zoë"]


def test_what_runs_at_one_time(rest: Client) -> None:
    rest.upsert("a")
    rest.upsert("b", start=END, end="2030-01-07 09:00")

    def running(time: str) -> list[str]:
        found = rest.call("GET", "/appointments", **{"from": time, "to": time})
        return [item["id"] for item in found.json["appointments"]]

    assert [running(time) for time in (START, END)] == [["a"], ["b"]]
    assert running("2030-01-07T07:59:59.999999Z") == running("2030-01-07T09:00:00Z") == []
    refused = rest.call("GET", "/appointments", **{"from": END, "to": START})
    assert (refused.status, refused.fields) == (400, {"to"})


def test_a_write_without_an_id_is_the_same_again_only_with_a_key(rest: Client) -> None:
    body = {"organizationId": rest.organization, "start": START, "end": END}
    first = rest.post(body, Idempotency_Key="k")
    again = rest.post(body, Idempotency_Key="k")
    assert (again.status, again.json) == (201, first.json)
    without = rest.post(body)
    assert (without.status, without.json["code"]) == (409, "TIME_RANGE_CONFLICT")
    assert without.json["conflicts"][0]["id"] == first.json["id"]


def test_a_batch_answers_each_item_with_its_result_or_its_problem(rest: Client) -> None:
    def item(id: str, start: str, end: str) -> dict[str, Any]:
        times = {"start": f"2030-01-07 {start}", "end": f"2030-01-07 {end}"}
        return {"appointment": {"organizationId": rest.organization, "id": id, **times}}

    items = [
        item("a", "08:00", "09:00"),
        item("b", "08:30", "09:30"),
        item("c", "10:00", "10:00"),
        {**item("a", "08:00", "08:30"), "createOnly": True},
    ]
    body = json.dumps({"requests": items}).encode()
    answer = rest.send(
        "POST", "/api/appointments:batchUpsert", body, Content_Type="application/json"
    )
    assert answer.status == 200
    results = answer.json["results"]
    assert (results[0]["outcome"], results[0]["appointment"]["id"]) == ("CREATED", "a")
    assert [result["error"]["status"] for result in results[1:]] == [409, 400, 412]
    assert [conflict["id"] for conflict in results[1]["error"]["conflicts"]] == ["a"]
    assert [error["field"] for error in results[2]["error"]["errors"]] == ["end"]


@pytest.mark.parametrize("unreadable", [{"title": 5}, {"titel": "x"}, {"start": "tomorrow"}])
def test_an_item_that_cannot_be_read_refuses_the_whole_batch(
    rest: Client, unreadable: dict[str, Any]
) -> None:
    times = {"start": "2030-01-07 08:00", "end": "2030-01-07 09:00"}
    appointments = [
        {"organizationId": rest.organization, "id": "a", **times},
        {"organizationId": rest.organization, "id": "b", **times, **unreadable},
    ]
    body = json.dumps({"requests": [{"appointment": each} for each in appointments]}).encode()
    answer = rest.send(
        "POST", "/api/appointments:batchUpsert", body, Content_Type="application/json"
    )
    [field] = unreadable
    assert (answer.status, answer.fields) == (400, {f"requests[1].appointment.{field}"})
    assert rest.stored() == []


def test_an_atomic_batch_is_written_whole_or_names_what_is_in_the_way(rest: Client) -> None:
    def send(*wanted: tuple[str, str, str]) -> Answer:
        items = [
            {
                "appointment": {
                    "organizationId": rest.organization,
                    "id": id,
                    "start": f"2030-01-07 {start}",
                    "end": f"2030-01-07 {end}",
                }
            }
            for id, start, end in wanted
        ]
        body = json.dumps({"requests": items, "atomic": True}).encode()
        return rest.send(
            "POST", "/api/appointments:batchUpsert", body, Content_Type="application/json"
        )

    created = send(("a", "08:00", "09:00"), ("b", "09:00", "10:00"))
    assert [result["outcome"] for result in created.json["results"]] == ["CREATED"] * 2
    swapped = send(("a", "09:00", "10:00"), ("b", "08:00", "09:00"))
    assert (swapped.status, len(swapped.json["results"])) == (200, 2)
    refused = send(("c", "08:30", "08:45"), ("d", "11:00", "12:00"), ("e", "11:30", "12:30"))
    assert (refused.status, refused.json["code"]) == (409, "BATCH_REFUSED")
    assert not refused.json.get("moreItems")
    assert [(item["index"], item["code"]) for item in refused.json["items"]] == [
        (index, "TIME_RANGE_CONFLICT") for index in range(3)
    ]
    named = [[c["id"] for c in item["conflicts"]] for item in refused.json["items"]]
    assert named == [["b"], ["e"], ["d"]]
    assert [item["conflicts"][0].get("index") for item in refused.json["items"]] == [None, 2, 1]
    assert [item["id"] for item in rest.stored()] == ["b", "a"]


def test_an_invalid_hold_of_an_atomic_batch_is_named_as_in_rest(rest: Client) -> None:
    item = {
        "organizationId": rest.organization,
        "start": START,
        "end": END,
        "holdUntil": "2020-01-01T00:00:00Z",
    }
    body = json.dumps({"requests": [{"appointment": item}], "atomic": True}).encode()
    refused = rest.send(
        "POST", "/api/appointments:batchUpsert", body, Content_Type="application/json"
    )
    [named] = refused.json["items"]
    detail = "holdUntil must be later than now, by at most 24 hours"
    assert (named["code"], named["detail"]) == ("INVALID_FIELD", detail)
    assert rest.upsert("a", holdUntil="2020-01-01T00:00:00Z").json["detail"] == detail


def test_all_violations_are_named_at_once_by_their_rest_names(rest: Client) -> None:
    answer = rest.upsert(
        "",
        start=END,
        end=START,
        title="a\nb",
        resourceId="r" * 257,
        createdAt="0001-01-01T00:00:00Z",
    )
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert answer.fields == {"id", "end", "title", "resourceId"}
    unknown = rest.upsert(7.5, start="soon", tite="x", attributes=[], version="one")
    assert unknown.status == 400
    assert unknown.fields >= {"id", "start", "tite", "attributes"}
    assert rest.stored() == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"id": "a"} x',
        b'{"id": "\xff"}',
        b'{"id": "a", "id": "b"}',
        b'{"attributes": {"a": NaN}}',
        b'{"attributes": {"a": 1e999}}',
        b'{"title": "\\ud800"}',
        b"[" * 100_000,
        b'{"attributes": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
        b'\xef\xbb\xbf{"id": "a"}',
        json.dumps({"id": "a"}).encode("utf-16"),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_is_no_json_object_is_a_400(rest: Client, body: bytes) -> None:
    assert rest.post(body).status == 400


@pytest.mark.parametrize(
    "change",
    [
        {"start": None},
        {"start": 1},
        {"start": "2030-01-07T08:00:00"},
        {"start": "2030-02-30T08:00:00Z"},
        {"start": "0000-01-01T00:00:00Z"},
        {"start": "9999-12-31T23:59:59-01:00"},
        {"id": None},
        {"id": True},
        {"id": 1.5},
        {"id": "a\x00"},
        {"title": 5},
        {"title": None},
        {"attributes": None},
        {"attributes": {"a": "\x00"}},
        {"attributes": {"a": "x" * 17_000}},
        {"unknown": 1},
        {"organization_id": "snake case is not JSON's"},
        {"organizationId": ""},
    ],
    ids=str,
)
def test_a_field_of_the_wrong_kind_is_a_400_that_names_it(
    rest: Client, change: dict[str, object]
) -> None:
    body = {"organizationId": rest.organization, "id": "a", "start": START, "end": END}
    answer = rest.post({**body, **change})
    assert answer.status == 400
    assert {field.split(".")[0] for field in answer.fields} == set(change)
    assert rest.stored() == []


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ("/api/appointments?unknown=1", "unknown"),
        ("/api/appointments?pageSize=many", "pageSize"),
        ("/api/appointments?pageSize=1001", "pageSize"),
        ("/api/appointments?pageSize=1&pageSize=2", "pageSize"),
        ("/api/appointments?from=soon", "from"),
        ("/api/appointments?includeCancelled=yes", "includeCancelled"),
        ("/api/appointments?orderBy=title", "orderBy"),
        ("/api/appointments?minRevision=99999999999999999999", "minRevision"),
        ("/api/appointments?resourceId=%00", "resourceId"),
        ("/api/appointments?organizationId=", "organizationId"),
        ("/api/changes?afterRevision=-1", "afterRevision"),
        ("/api/appointments/a?etag=1", "etag"),
    ],
)
def test_a_query_that_breaks_a_rule_is_a_400_that_names_it(
    rest: Client, target: str, field: str
) -> None:
    answer = rest.send("GET", target)
    assert (answer.status, answer.fields) == (400, {field})


def test_bad_utf_8_in_a_path_or_query_is_a_400(rest: Client) -> None:
    assert rest.send("GET", "/api/appointments/%ff").status == 400
    assert rest.send("GET", "/api/appointments?resourceId=%ff").status == 400


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "status", "code"),
    [
        ("GET", "/api/nothing", {}, None, 404, "ROUTE_NOT_FOUND"),
        ("PATCH", "/api/appointments", {}, b"{}", 405, "METHOD_NOT_ALLOWED"),
        (
            "POST",
            "/api/appointments",
            {"Content-Type": "text/xml"},
            b"{}",
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (
            "POST",
            "/api/appointments",
            {"Content-Type": "application/json"},
            b"x" * (1024 * 1024 + 1),
            413,
            "REQUEST_TOO_LARGE",
        ),
        ("GET", "/api/appointments/none", {}, None, 404, "APPOINTMENT_NOT_FOUND"),
        ("DELETE", "/api/appointments/none", {}, None, 404, "APPOINTMENT_NOT_FOUND"),
        ("GET", "/api/appointments/none/history", {}, None, 404, "APPOINTMENT_NOT_FOUND"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_errors_are_problems_too(
    rest: Client,
    method: str,
    target: str,
    headers: dict[str, str],
    body: bytes | None,
    status: int,
    code: str,
) -> None:
    target += "" if body else f"?organizationId={uuid.uuid4()}" if "none" in target else ""
    answer = rest.send(method, target, body, **headers)
    assert (answer.status, answer.json["code"]) == (status, code)


def test_the_request_id_is_the_callers_and_reaches_the_service(
    rest: Client, service: Program
) -> None:
    request_id = uuid.uuid4().hex
    answer = rest.upsert(title="never logged", X_Request_Id=request_id)
    assert answer.headers["X-Request-Id"] == request_id
    line = service.wait_for_event(lambda event: event.get("request_id") == request_id)
    assert (line["method"], line["organization"], line["outcome"], line["code"]) == (
        "UpsertAppointment",
        rest.organization,
        "CREATED",
        "OK",
    )
    assert line["duration_ms"] > 0


def test_the_logs_never_show_title_or_attributes(
    rest: Client, service: Program, gateway: Program
) -> None:
    secret = uuid.uuid4().hex
    request_id = uuid.uuid4().hex
    rest.upsert("a", title=secret, attributes={secret: secret})
    rest.upsert("b", title=secret, attributes={secret: secret})
    rest.upsert("c", title=f"{secret}\n", X_Request_Id=request_id)
    for program in (service, gateway):
        program.wait_for_event(lambda event: event.get("request_id") == request_id)
        assert not any(secret in line for line in program.log_lines())
