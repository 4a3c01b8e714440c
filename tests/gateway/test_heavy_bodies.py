"""Bodies that are within the limit of bytes, and would be expensive to read."""

import asyncio
import json
import threading
from typing import Any

import pytest

from gateway.transcoding.inputs import InputReader
from tests.gateway.conftest import WRITE, Gateway
from tests.gateway.raw_http import connection, request

MAX_BYTES = 1024 * 1024
MAX_SINGLE_BYTES = 256 * 1024
JSON = {"Content-Type": "application/json"}


def array(element: str, *, before: str, after: str, most: int) -> bytes:
    """Return a body with an array of as many elements as fit."""
    count = (most - len(before) - len(after)) // (len(element) + 1)
    return f"{before}{','.join([element] * count)}{after}".encode()


@pytest.mark.parametrize("path", ["/api/appointments", "/api/webhooks"])
async def test_a_body_without_a_list_is_refused_when_it_is_longer(rest: Gateway, path: str) -> None:
    body = json.dumps({"title": "x" * MAX_SINGLE_BYTES}).encode()
    answer = await rest.send("POST", path, data=body, headers=JSON)
    assert (answer.status, answer.json["code"]) == (413, "REQUEST_TOO_LARGE")
    assert answer.json["detail"] == "The body must be at most 262144 bytes."
    body = json.dumps(WRITE).encode().ljust(MAX_SINGLE_BYTES)
    answer = await rest.send("POST", "/api/appointments", data=body, headers=JSON)
    assert answer.status == 201


@pytest.mark.parametrize("element", ["null", "0", "{}", '""'])
@pytest.mark.parametrize(
    ("path", "before", "after", "most"),
    [
        ("/api/appointments:batchUpsert", '{"requests":[', "]}", 1000),
        ("/api/appointments", '{"additionalResourceIds":[', "]}", 15),
        ("/api/webhooks", '{"url":"https://a.example","changes":[', "]}", 6),
    ],
)
async def test_an_array_with_too_many_elements_is_one_error(
    rest: Gateway, path: str, before: str, after: str, most: int, element: str
) -> None:
    body = array(element, before=before, after=after, most=MAX_SINGLE_BYTES)
    answer = await rest.send("POST", path, data=body, headers=JSON)
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert [error["detail"] for error in answer.json["errors"]] == [
        f"must have at most {most:,} elements"
    ]


@pytest.mark.parametrize("element", ["null", "0", "[]", "{}", '{"a":{}}', "[[]]"])
async def test_attributes_end_where_their_text_would_be_too_long(
    rest: Gateway, element: str
) -> None:
    body = array(element, before='{"attributes":{"a":[', after="]}}", most=MAX_SINGLE_BYTES)
    answer = await rest.send("POST", "/api/appointments", data=body, headers=JSON)
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert answer.json["errors"] == [
        {"field": "attributes", "detail": "must be at most 16,384 bytes as JSON text"}
    ]


async def test_attributes_have_as_many_values_as_fit_into_their_text(rest: Gateway) -> None:
    fitting = {"a": [1] * ((16 * 1024 - len('{"a":[]}') + 1) // 2)}
    answer = await rest.send("POST", "/api/appointments", json={**WRITE, "attributes": fitting})
    assert answer.status == 201


async def test_other_requests_continue_while_large_bodies_are_read(rest: Gateway) -> None:
    """Each body takes a tenth of a second of processor time."""
    body = array("{}", before='{"requests":[', after="]}", most=MAX_BYTES)
    url = "/api/appointments:batchUpsert"
    heavy = [
        asyncio.create_task(rest.send("POST", url, data=body, headers=JSON)) for _ in range(10)
    ]
    meanwhile = 0
    while not all(task.done() for task in heavy):
        assert (await rest.send("GET", "/healthz")).status == 200
        meanwhile += 1
    assert {(await task).status for task in heavy} == {400}
    assert meanwhile > 2 * len(heavy), "one for each, if reading stopped the others"


async def test_callers_who_leave_do_not_let_two_bodies_be_read_at_a_time(
    rest: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = InputReader.read
    began, may_end = threading.Semaphore(0), threading.Event()
    reading: set[int] = set()
    most = 0

    def read_slowly(self: InputReader, *arguments: Any) -> Any:
        nonlocal most
        reading.add(threading.get_ident())
        most = max(most, len(reading))
        began.release()
        assert may_end.wait(10)
        reading.remove(threading.get_ident())
        return read(self, *arguments)

    monkeypatch.setattr(InputReader, "read", read_slowly)
    body = json.dumps(WRITE).encode().ljust(MAX_SINGLE_BYTES)
    head = request(
        "POST /api/appointments",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    async with connection(rest) as gone:
        gone.writer.write(head + body)
        assert await asyncio.to_thread(began.acquire, timeout=10)
    async with connection(rest) as staying:
        staying.writer.write(head + body)
        await staying.writer.drain()
        # That the first caller has gone is noticed by now, and the second body received.
        for _ in range(20):
            assert (await rest.send("GET", "/healthz")).status == 200
        may_end.set()
        assert (await staying.answer()).status == 201
    assert most == 1
