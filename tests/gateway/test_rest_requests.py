"""What HTTP requests become for the service, and which of them never reach it."""

from urllib.parse import quote

import pytest

from tests.gateway.conftest import END, START, WRITE, Gateway


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
        "/api/appointments?organizationId=%C3%B6+x&resourceId=&from=2026-01-01+10:00"
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
    assert rest.service.call.actor == "Ada L."
    assert rest.service.call.request_id == "r-1"


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
        ("X-Actor", "é"),
        ("X-Actor", "x" * 257),
    ],
)
async def test_a_wrong_header_is_refused(rest: Gateway, header: str, value: str) -> None:
    answer = await rest.upsert(headers={header: value})
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert [error["field"] for error in answer.json["errors"]] == [header]
    assert rest.service.calls == 0


async def test_a_repeated_header_is_refused(rest: Gateway) -> None:
    for header, value in (("If-None-Match", "*"), ("Idempotency-Key", "k")):
        answer = await rest.upsert(headers=[(header, value), (header, value)])
        assert answer.json["errors"] == [{"field": header, "detail": "must be there only once"}]


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
