"""HTTP requests as the service receives them, and requests that the gateway refuses."""

from urllib.parse import quote
from uuid import UUID

import pytest

from gateway.http.problems import Errors
from gateway.transcoding.query import read_query
from tests.gateway.conftest import END, START, WRITE, Gateway
from tests.gateway.raw_http import connection, request


@pytest.mark.parametrize(
    "identifier",
    [
        "a/b",
        "a%b",
        "%2F",
        "..",
        ".",
        "é😀",
        "a:b",
        "a b",
        "a+b",
        "x:batchUpsert",
        "?#&=",
        "history",
        "'",
    ],
)
async def test_every_id_survives_the_path(rest: Gateway, identifier: str) -> None:
    encoded = quote(identifier, safe="").replace(".", "%2E")
    answer = await rest.send("GET", f"/api/appointments/{encoded}")
    assert answer.status == 200
    assert rest.service.request.id == answer.json["id"] == identifier


async def test_sub_delimiters_need_no_encoding(rest: Gateway) -> None:
    await rest.send("GET", "/api/appointments/a:b+c@d,e;f=g")
    assert rest.service.request.id == "a:b+c@d,e;f=g"


@pytest.mark.parametrize("raw", ["%FF", "%ED%A0%80", "%C3", "%", "%4", "%zz", "a%00b"])
async def test_an_id_that_is_no_text_is_refused(rest: Gateway, raw: str) -> None:
    answer = await rest.send("GET", f"/api/appointments/{raw}")
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert [error["field"] for error in answer.json["errors"]] == ["id"]
    assert rest.service.calls == 0


async def test_query_parameters_become_fields(rest: Gateway) -> None:
    answer = await rest.send(
        "GET",
        "/api/appointments?organizationId=%C3%B6+x&resourceId=&from=2026-01-01%2010:00"
        "&to=2026-01-02T00:00:00%2B01:00&includeCancelled=true&pageSize=5&minRevision=0"
        "&asOfRevision=9007199254740993",
    )
    assert answer.status == 200
    request = rest.service.request
    assert request.organization_id == "ö x"
    assert request.HasField("resource_id")
    assert getattr(request, "from").ToJsonString() == "2026-01-01T10:00:00Z"
    assert request.to.ToJsonString() == "2026-01-01T23:00:00Z"
    assert request.include_cancelled is True
    assert request.page_size == 5
    assert request.HasField("min_revision")
    assert request.as_of_revision == 2**53 + 1


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("nope=1", "nope"),
        ("page_size=1", "page_size"),
        ("pageSize=1&pageSize=1", "pageSize"),
        ("pageSize=1.0", "pageSize"),
        ("pageSize=", "pageSize"),
        ("pageSize=2147483648", "pageSize"),
        ("minRevision=9223372036854775808", "minRevision"),
        ("includeCancelled=1", "includeCancelled"),
        ("includeCancelled=TRUE", "includeCancelled"),
        ("includeCancelled", "includeCancelled"),
        ("from=now", "from"),
        ("resourceId=%FF", "resourceId"),
        ("resourceId=a%00", "resourceId"),
        ("%FF=1", "query"),
        ("etag=x", "etag"),
    ],
)
async def test_a_wrong_query_parameter_is_refused(rest: Gateway, query: str, field: str) -> None:
    answer = await rest.send("GET", f"/api/appointments?{query}")
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert [error["field"] for error in answer.json["errors"]] == [field]


@pytest.mark.parametrize(
    ("query", "field", "expected"),
    [
        ("=", "query", "without a name: ="),
        ("=x", "query", "without a name: =x"),
        ("pageSize=1&=%20&", "query", "without a name: =%20"),
        ("%FF=1", "query", "UTF-8, percent-encoded: %FF"),
        ("a%62+c=1", "a%62+c", "is not a query parameter"),
        ("x" * 200, "x" * 100 + "...", "is not a query parameter"),
        (
            "from=2031-01-01T00:00:00+01:00",
            "from",
            "%2B, a space as %20: 2031-01-01T00:00:00+01:00",
        ),
        ("from=2031-01-01T00%3A00%3A00+01%3A00", "from", "%2B"),
        ("from=2031-01-01+05:00", "from", "written as %2B, a space as %20: 2031-01-01+05:00"),
        ("to=2031-01-01+05:00:00", "to", "%2B"),
        ("asOfTime=2031-01-01+05:00", "asOfTime", "%2B"),
    ],
)
async def test_a_fault_of_the_query_is_told_as_it_was_sent(
    rest: Gateway, query: str, field: str, expected: str
) -> None:
    answer = await rest.send("GET", f"/api/appointments?{query}")
    assert answer.status == 400
    [error] = answer.json["errors"]
    assert error["field"] == field
    assert expected in error["detail"]


def test_bytes_that_are_no_text_are_told_as_such() -> None:
    errors: Errors = []
    read_query("\udcff=1&=\udcff", {}, {}, errors)
    assert [error.detail[-3:] for error in errors] == [": \ufffd", " =\ufffd"]


async def test_no_parameters_are_none(rest: Gateway) -> None:
    for query in ("", "&", "&&"):
        assert (await rest.send("GET", f"/api/appointments?{query}")).status == 200


@pytest.mark.parametrize(
    "time",
    [
        "2031-01-01%2005:00",
        "2031-01-01%2005%3A00",
        "2031-01-01+05%3A00",  # as everything that encodes forms writes a space and a colon
        "2031-01-01T05:00:00Z",
        "2031-01-01T06:00:00%2B01:00",
    ],
)
async def test_times_in_a_query(rest: Gateway, time: str) -> None:
    assert (await rest.send("GET", f"/api/appointments?from={time}")).status == 200
    assert getattr(rest.service.request, "from").ToJsonString() == "2031-01-01T05:00:00Z"


@pytest.mark.parametrize(
    ("target", "body", "field", "place"),
    [
        ("/api/appointments?organizationId=o", WRITE, "organizationId", "in the body"),
        ("/api/appointments?createOnly=true", WRITE, "createOnly", "in the header If-None-Match"),
        ("/api/appointments", {**WRITE, "validateOnly": True}, "validateOnly", "in the query"),
        (
            "/api/appointments",
            {**WRITE, "idempotencyKey": "k"},
            "idempotencyKey",
            "in the header Idempotency-Key",
        ),
        (
            "/api/appointments",
            {"requests": [{"appointment": WRITE}]},
            "requests",
            "in the body of POST /api/appointments:batchUpsert",
        ),
        (
            "/api/appointments:batchUpsert",
            {"organizationId": "o", "requests": [{"appointment": WRITE}]},
            "organizationId",
            "in requests[].appointment.organizationId",
        ),
        (
            "/api/appointments:batchUpsert?organizationId=o",
            {"requests": [{"appointment": WRITE}]},
            "organizationId",
            "in requests[].appointment.organizationId",
        ),
        ("/api/webhooks?organizationId=o", {"url": "https://a/"}, "organizationId", "in the body"),
        (
            "/api/webhooks",
            {"url": "https://a/", "afterRevision": 1},
            "afterRevision",
            "in the query",
        ),
        (
            "/api/webhooks/w:replay?organizationId=o",
            {"afterRevision": 1},
            "organizationId",
            "in the body",
        ),
    ],
)
async def test_what_stands_in_the_wrong_place_is_told_the_right_one(
    rest: Gateway, target: str, body: object, field: str, place: str
) -> None:
    answer = await rest.send("POST", target, json=body)
    assert answer.status == 400
    [error] = answer.json["errors"]
    assert error["field"] == field
    assert error["detail"].endswith(f"it belongs {place}")


async def test_an_array_is_told_where_batches_go(rest: Gateway) -> None:
    for target in ("/api/appointments", "/api/appointments:batchUpsert"):
        answer = await rest.send("POST", target, json=[WRITE])
        assert answer.status == 400
        assert '{"requests": [{...}, ...]}' in answer.json["detail"]
    answer = await rest.send("POST", "/api/appointments", json=[])
    assert "POST /api/appointments:batchUpsert" in answer.json["detail"]
    answer = await rest.send("POST", "/api/webhooks", json=[])
    assert answer.json["errors"] == [{"field": "", "detail": "must be an object"}]


@pytest.mark.parametrize("name", ["etag", "createOnly", "idempotencyKey", "appointment", "id"])
async def test_what_comes_by_header_or_body_is_no_query_parameter(rest: Gateway, name: str) -> None:
    answer = await rest.send("POST", f"/api/appointments?{name}=x", json=WRITE)
    assert [error["field"] for error in answer.json["errors"]] == [name]


async def test_headers_become_fields(rest: Gateway) -> None:
    await rest.send(
        "POST",
        "/api/appointments?validateOnly=true",
        json=WRITE,
        headers={
            "If-Match": '"e1"',
            "If-None-Match": "*",
            "Idempotency-Key": '"k 1"',
            "X-Actor": "Ada L.",
            "X-Request-Id": "r-1",
        },
    )
    request = rest.service.request
    assert (request.etag, request.create_only, request.idempotency_key) == ("e1", True, "k 1")
    assert request.validate_only
    assert rest.service.call.context.actor == "Ada L."
    assert rest.service.call.context.request_id == "r-1"


async def test_a_cancel_takes_the_headers_that_its_fields_have(rest: Gateway) -> None:
    answer = await rest.send(
        "DELETE", "/api/appointments/a?organizationId=o", headers={"If-Match": "*"}
    )
    assert (answer.status, answer.json["state"]) == (200, "CANCELLED")
    assert answer.headers["Appointment-Outcome"] == "CANCELLED"
    assert answer.headers["ETag"] == '"e8"'
    assert rest.service.request.etag == "*"
    refused = await rest.send("DELETE", "/api/appointments/a", headers={"If-None-Match": "*"})
    assert [error["field"] for error in refused.json["errors"]] == ["If-None-Match"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("If-Match", "e1"),
        ("If-Match", '"e1'),
        ("If-Match", '*, "e1"'),
        ("If-None-Match", '"e1"'),
        ("If-None-Match", ""),
        ("Idempotency-Key", '""'),
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "é"),
        ("X-Actor", "x" * 257),
    ],
)
async def test_a_wrong_header_is_refused(rest: Gateway, header: str, value: str) -> None:
    answer = await rest.upsert(headers={header: value})
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert [error["field"] for error in answer.json["errors"]] == [header]
    assert rest.service.calls == 0


@pytest.mark.parametrize("target", ["", f"/{UUID(int=1)}", f"/{UUID(int=1)}?wait=1"])
async def test_requests_for_operations_have_the_rules_of_others(rest: Gateway, target: str) -> None:
    answer = await rest.send("GET", f"/api/operations{target}", headers={"X-Actor": "x" * 257})
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert [error["field"] for error in answer.json["errors"]] == ["X-Actor"]


async def test_an_actor_is_utf_8(rest: Gateway) -> None:
    assert (await rest.upsert(headers={"X-Actor": "Zoë 😀"})).status == 201
    assert rest.service.call.context.actor == "Zoë 😀"
    calls = rest.service.calls
    for other in ("Zoë".encode("latin-1"), "a\x80".encode()):
        sent = request("GET /api/appointments").replace(b"Host: x", b"Host: x\r\nX-Actor: " + other)
        async with connection(rest) as caller:
            problem = (await caller.send(sent)).problem
        assert [error["field"] for error in problem["errors"]] == ["X-Actor"]
    assert rest.service.calls == calls


async def test_a_request_id_that_is_there_twice_is_none(rest: Gateway) -> None:
    answer = await rest.upsert(headers=[("X-Request-Id", "r1"), ("X-Request-Id", "r2")])
    [given] = answer.headers.getall("X-Request-Id")
    assert given not in {"r1", "r2"}


async def test_a_repeated_header_is_refused(rest: Gateway) -> None:
    for header, value in (("If-None-Match", "*"), ("Idempotency-Key", "k"), ("X-Actor", "a")):
        answer = await rest.upsert(headers=[(header, value), (header, value)])
        assert answer.json["errors"] == [{"field": header, "detail": "must not be repeated"}]


async def test_a_batch_takes_conditions_in_its_items_only(rest: Gateway) -> None:
    body = {"requests": [{"appointment": WRITE, "etag": "e", "idempotencyKey": "k"}]}
    target = "/api/appointments:batchUpsert"
    assert (await rest.send("POST", target, json=body)).status == 200
    assert rest.service.request.requests[0].idempotency_key == "k"
    refused = await rest.send("POST", target, json=body, headers={"Idempotency-Key": "k"})
    assert [error["field"] for error in refused.json["errors"]] == ["Idempotency-Key"]
    refused = await rest.send("POST", f"{target}?validateOnly=true", json=body)
    assert [error["field"] for error in refused.json["errors"]] == ["validateOnly"]


async def test_faults_of_all_places_are_told_at_once(rest: Gateway) -> None:
    answer = await rest.send(
        "POST", "/api/appointments?x=1", json={"start": 5, "end": END}, headers={"If-Match": "e"}
    )
    fields = {error["field"] for error in answer.json["errors"]}
    assert fields == {"x", "start", "If-Match"}


async def test_a_body_must_be_json_by_its_media_type(rest: Gateway) -> None:
    for kind in ("text/plain", "application/json; charset=latin-1", "application/merge-patch+json"):
        answer = await rest.send(
            "POST", "/api/appointments", data=b"{}", headers={"Content-Type": kind}
        )
        assert (answer.status, answer.json["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    empty = await rest.send("POST", "/api/webhooks/w:replay")
    assert (empty.status, empty.json["detail"]) == (
        415,
        "The body is empty; it must be application/json, in UTF-8.",
    )
    for kind in ("application/json", "Application/JSON; charset=UTF-8"):
        answer = await rest.send(
            "POST",
            "/api/appointments",
            data=f'{{"start": "{START}", "end": "{END}"}}'.encode(),
            headers={"Content-Type": kind},
        )
        assert answer.status == 201


async def test_a_compressed_body_is_refused(rest: Gateway) -> None:
    answer = await rest.upsert(headers={"Content-Encoding": "gzip"})
    assert (answer.status, answer.headers["Accept-Encoding"]) == (415, "identity")


async def test_a_body_without_meaning_is_refused(rest: Gateway) -> None:
    answer = await rest.send("DELETE", "/api/appointments/a", json={"organizationId": "o"})
    assert (answer.status, answer.json["code"]) == (400, "MALFORMED_REQUEST")
    assert rest.service.calls == 0


@pytest.mark.parametrize(("method", "path"), [("PUT", "%00"), ("PATCH", "%00"), ("PUT", "%ff")])
async def test_an_invalid_id_in_the_path_of_a_write_is_named(
    rest: Gateway, method: str, path: str
) -> None:
    answer = await rest.send(method, f"/api/appointments/{path}", json=WRITE)
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert answer.json["errors"][0]["field"] == "id"
