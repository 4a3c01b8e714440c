"""Cross-origin requests: what browsers ask, and the headers without which they show nothing."""

from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from gateway.http.cors import REQUEST_HEADERS, RESPONSE_HEADERS
from tests.gateway.conftest import Gateway, running_gateway
from tests.gateway.fake_service import FakeService
from tests.gateway.raw_http import connection, request

BOOKING, LOCAL, OTHER = "https://booking.example", "http://localhost:8080", "https://other.example"
NOT_LISTED = [
    OTHER,
    "http://booking.example",
    "https://booking.example:8443",
    "https://sub.booking.example",
    "https://booking.example.other.example",
    "https://BOOKING.example",
    "null",
    "*",
]


@pytest.fixture
async def listed(fake: FakeService) -> AsyncIterator[Gateway]:
    async with running_gateway(fake, gateway_cors_origins=f"{BOOKING}, {LOCAL}") as gateway:
        yield gateway


@pytest.fixture
async def open_to_all(fake: FakeService) -> AsyncIterator[Gateway]:
    async with running_gateway(fake, gateway_cors_origins="*") as gateway:
        yield gateway


def preflight(origin: str, method: str = "POST") -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "content-type,idempotency-key",
    }


def cors_headers(headers: Iterable[str]) -> set[str]:
    return {name for name in headers if name.lower().startswith("access-control-")}


def names(value: str) -> set[str]:
    return set(value.split(", "))


@pytest.mark.parametrize("origin", [BOOKING, LOCAL])
@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/api/appointments", {"GET", "HEAD", "POST"}),
        ("/api/appointments:batchUpsert", {"POST"}),
        ("/api/webhooks/w", {"GET", "HEAD", "PUT", "DELETE"}),
        ("/healthz", {"GET", "HEAD"}),
    ],
)
async def test_a_preflight_names_the_methods_of_its_path(
    listed: Gateway, origin: str, path: str, methods: set[str]
) -> None:
    answer = await listed.send("OPTIONS", path, headers=preflight(origin))
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert names(answer.headers["Access-Control-Allow-Methods"]) >= methods
    assert names(answer.headers["Access-Control-Allow-Headers"]) == set(REQUEST_HEADERS)
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert answer.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert listed.service.calls == 0


async def test_the_lists_contain_every_header_of_the_document(rest: Gateway) -> None:
    document = (await rest.send("GET", "/api/openapi.json")).json
    sent = {each["name"] for each in _objects(document) if each.get("in") == "header"}
    assert sent
    assert sent <= set(REQUEST_HEADERS)
    assert document["components"]["headers"].keys() <= set(RESPONSE_HEADERS)


def _objects(value: Any) -> Iterable[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from _objects(part)


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("GET", "/api/appointments/a", {}, 200),
        ("HEAD", "/api/appointments/a", {}, 200),
        ("GET", "/api/appointments/a", {"If-None-Match": '"e7"'}, 304),
        ("GET", "/api/appointments/a", {"If-Match": '"other"'}, 412),
        ("GET", "/api/appointments?wrong=1", {}, 400),
        ("PUT", "/api/appointments", {}, 405),
        ("POST", "/api/appointments", {"Content-Type": "text/plain"}, 415),
        ("GET", "/nowhere", {}, 404),
        ("GET", "/api/openapi.json", {}, 200),
    ],
)
async def test_every_response_can_be_read_by_listed_origins(
    listed: Gateway, method: str, target: str, headers: dict[str, str], status: int
) -> None:
    answer = await listed.send(method, target, headers={**headers, "Origin": BOOKING})
    assert answer.status == status
    assert answer.headers["Access-Control-Allow-Origin"] == BOOKING
    assert names(answer.headers["Access-Control-Expose-Headers"]) == set(RESPONSE_HEADERS)
    assert "Origin" in names(answer.headers["Vary"])
    for without in ({}, {"Origin": OTHER}):
        answer = await listed.send(method, target, headers={**headers, **without})
        assert answer.status == status
        assert not cors_headers(answer.headers)
        # Caches must not give this response to a listed origin.
        assert "Origin" in names(answer.headers["Vary"])


async def test_what_a_response_depends_on_is_one_list(listed: Gateway) -> None:
    answer = await listed.send("GET", "/api/openapi.json", headers={"Origin": BOOKING})
    assert answer.headers.getall("Vary") == ["Origin, Accept-Encoding"]


async def test_a_write_of_a_listed_origin_is_made(listed: Gateway) -> None:
    answer = await listed.upsert(headers={"Origin": LOCAL})
    assert answer.status == 201
    assert answer.headers["Access-Control-Allow-Origin"] == LOCAL


@pytest.mark.parametrize("origin", NOT_LISTED)
async def test_other_origins_are_refused(listed: Gateway, origin: str) -> None:
    asked = await listed.send("OPTIONS", "/api/appointments", headers=preflight(origin))
    assert (asked.status, asked.json["detail"]) == (
        405,
        "Pages of this origin may not call: GATEWAY_CORS_ORIGINS does not list it.",
    )
    read = await listed.send("GET", "/api/appointments/a", headers={"Origin": origin})
    for answer in (asked, read):
        assert not cors_headers(answer.headers)
        assert answer.headers["Vary"] == "Origin"


async def test_a_star_allows_every_origin(open_to_all: Gateway) -> None:
    for origin in (*NOT_LISTED, BOOKING):
        asked = await open_to_all.send("OPTIONS", "/api/appointments", headers=preflight(origin))
        assert asked.status == 204
        read = await open_to_all.send("GET", "/api/appointments/a", headers={"Origin": origin})
        for answer in (asked, read):
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Vary" not in answer.headers, "the response is the same for all"


async def test_an_unreadable_request_has_the_headers_too(open_to_all: Gateway) -> None:
    async with connection(open_to_all) as sent:
        answer = await sent.send(request(f"GET /{'a' * 10_000}"))
    assert answer.status == 414
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


async def test_options_that_is_no_preflight_is_no_method(listed: Gateway) -> None:
    answer = await listed.send("OPTIONS", "/api/appointments", headers={"Origin": BOOKING})
    assert (answer.status, answer.json["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert answer.json["detail"].startswith("This path supports GET, ")


async def test_a_preflight_of_an_unknown_path_is_a_404(listed: Gateway) -> None:
    answer = await listed.send("OPTIONS", "/nowhere", headers=preflight(BOOKING))
    assert (answer.status, answer.json["code"]) == (404, "ROUTE_NOT_FOUND")


async def test_without_the_setting_nothing_is_allowed(rest: Gateway) -> None:
    asked = await rest.send("OPTIONS", "/api/appointments", headers=preflight(BOOKING))
    assert (asked.status, asked.json["code"]) == (405, "METHOD_NOT_ALLOWED")
    read = await rest.send("GET", "/api/appointments/a", headers={"Origin": BOOKING})
    for answer in (asked, read):
        assert not cors_headers(answer.headers)
        assert "Vary" not in answer.headers


async def test_a_preflight_is_counted_by_its_own_name(listed: Gateway) -> None:
    await listed.send("OPTIONS", "/api/appointments", headers=preflight(BOOKING))
    metrics = f"http://127.0.0.1:{listed.listening.metrics_port}/metrics"
    async with listed.client.get(metrics) as response:
        text = await response.text()
    assert 'gateway_request_seconds_count{method="preflight",status="204"} 1.0' in text
