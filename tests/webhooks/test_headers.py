"""Custom headers of webhooks: sent with every change, and their values never returned."""

import json
from typing import Any

import grpc
import pytest
from appointments.v1 import webhook_service_pb2 as rpc
from appointments.v1.webhook_service_pb2_grpc import WebhookServiceStub

from local.programs import Program
from tests.conftest import StartProgram
from tests.observing import until
from tests.rest_client import Answer, Client
from tests.webhooks.hooked import Hooked

URL = "https://hooks.example.com/"
SECRET = "Bearer s3cr3t-s3cr3t"


@pytest.fixture
def rest(programs: tuple[Program, Program], organization: str) -> Client:
    return Client(programs[1], organization)


def send(rest: Client, method: str, path: str, **body: Any) -> Answer:
    raw = json.dumps({"organizationId": rest.organization, "url": URL, **body}).encode()
    return rest.send(method, f"/api/webhooks{path}", raw, Content_Type="application/json")


def header(name: str, value: str | None = None) -> dict[str, str]:
    return {"name": name} | ({} if value is None else {"value": value})


def sent(hooked: Hooked, path: str, count: int) -> dict[str, str]:
    """Wait for a number of requests; return the headers of the last, in lower case."""
    until(lambda: len(hooked.receiver.at(path)) == count)
    received = hooked.receiver.at(path)[-1].headers
    return {name.lower(): value for name, value in received.items()}


def test_they_are_sent_as_they_are_and_as_they_are_changed(
    hooked: Hooked, start: StartProgram
) -> None:
    start()
    hook = hooked.hook("/a", headers=[header("Authorization", SECRET), header("X-TENANT", "a  b~")])
    hooked.write(1)
    first = sent(hooked, "/a", 1)
    assert (first["authorization"], first["x-tenant"]) == (SECRET, "a  b~")
    assert first["webhook-id"] == f"{hook['id']}.1"
    assert first["content-type"] == "application/json"
    assert first["user-agent"].startswith("appointments-webhooks/")

    # The webhook is updated with another description, one header added and one removed.
    hooked.replace(hook, description="x", headers=[header("authorization"), header("x-new", "1")])
    hooked.write(1, first=1)
    second = sent(hooked, "/a", 2)
    assert (second["authorization"], second["x-new"]) == (SECRET, "1")
    assert "x-tenant" not in second

    hooked.replace(hook, headers=[header("x-new", "2"), header("Authorization")])
    hooked.write(1, first=2)
    third = sent(hooked, "/a", 3)
    assert (third["authorization"], third["x-new"]) == (SECRET, "2")

    hooked.replace(hook, headers=[])
    hooked.write(1, first=3)
    assert {"authorization", "x-new"}.isdisjoint(sent(hooked, "/a", 4))


def test_no_answer_has_a_value(rest: Client) -> None:
    created = send(rest, "POST", "", headers=[header("Authorization", SECRET), header("b", "c")])
    assert created.status == 201
    names = [header("Authorization"), header("b")]
    id = created.json["id"]
    answers = [
        created,
        rest.call("GET", f"/webhooks/{id}"),
        send(rest, "PUT", f"/{id}", headers=names),
        rest.call("POST", f"/webhooks/{id}:rotateSecret"),
        send(rest, "PUT", f"/{id}", headers=[header("Authorization", SECRET), header("b")]),
    ]
    assert [answer.json["headers"] for answer in answers] == [names] * len(answers)
    listed = rest.call("GET", "/webhooks")
    assert [each["headers"] for each in listed.json["webhooks"]] == [names]
    refused = send(rest, "PUT", f"/{id}", headers=[header("x y", SECRET)])
    assert refused.status == 400
    for answer in (*answers, listed, refused):
        assert "s3cr3t" not in json.dumps(answer.json)
    assert send(rest, "PUT", f"/{id}").json["headers"] == []


def test_a_value_that_is_not_stored_cannot_be_kept(rest: Client) -> None:
    missing = send(rest, "POST", "", headers=[header("a", "b"), header("c")])
    assert (missing.status, missing.fields) == (400, {"headers[1].value"})
    id = send(rest, "POST", "", headers=[header("a", "b")]).json["id"]
    refused = send(rest, "PUT", f"/{id}", description="x", headers=[header("A"), header("c")])
    assert (refused.status, refused.fields) == (400, {"headers[1].value"})
    assert "no header of this name" in refused.json["detail"]
    found = rest.call("GET", f"/webhooks/{id}").json
    assert (found["description"], found["headers"]) == ("", [header("a")])
    gone = send(rest, "PUT", "/unknown", headers=[header("c")])
    assert (gone.status, gone.json["code"]) == (404, "WEBHOOK_NOT_FOUND")


@pytest.mark.parametrize(
    "name",
    [
        "", "x y", "x:", "x\r\ny", "\u00e9", "x\t", "(x)", "x" * 129,
        "Host", "host", "User-Agent", "Content-Type", "content-length", "CONTENT-ENCODING",
        "Content-Anything", "Webhook-Id", "webhook-signature", "webhook-other", "Connection",
        "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Expect",
        "Proxy-Authorization", "Proxy-Connection", "HTTP2-Settings", "Accept-Encoding", "Date",
    ],
)  # fmt: skip
def test_names_that_would_change_the_request_are_refused(rest: Client, name: str) -> None:
    refused = send(rest, "POST", "", headers=[header("ok", "1"), header(name, "1")])
    assert (refused.status, refused.json["code"]) == (400, "INVALID_FIELD")
    assert refused.fields == {"headers[1].name"}


@pytest.mark.parametrize(
    "value",
    ["", " ", " x", "x ", "x\r\nX: y", "x\ny", "x\0", "x\ty", "\u00e9", "\x7f", "x" * 4097],
)
def test_values_that_would_not_arrive_as_they_are_are_refused(rest: Client, value: str) -> None:
    refused = send(rest, "POST", "", headers=[header("ok", "1"), header("x", value)])
    assert refused.status == 400
    assert {where.removesuffix(".value") for where in refused.fields} == {"headers[1]"}


def test_their_number_is_bounded_and_none_is_there_twice(rest: Client) -> None:
    most = [header(f"x-{number}", "x" * 4096) for number in range(16)]
    assert send(rest, "POST", "", headers=most).status == 201
    refused = send(rest, "POST", "", headers=[*most, header("y", "z")])
    assert (refused.status, refused.fields) == (400, {"headers"})
    twice = send(rest, "POST", "", headers=[header("Token", "1"), header("TOKEN", "2")])
    assert (twice.status, twice.fields) == (400, {"headers[1].name"})


def test_grpc_says_the_same(programs: tuple[Program, Program], organization: str) -> None:
    with grpc.insecure_channel(programs[0].address) as channel:
        hooks = WebhookServiceStub(channel)
        wanted = rpc.Webhook(
            organization_id=organization,
            url=URL,
            headers=[rpc.WebhookHeader(name="Authorization", value=SECRET)],
        )
        created = hooks.CreateWebhook(rpc.CreateWebhookRequest(webhook=wanted)).webhook
        assert list(created.headers) == [rpc.WebhookHeader(name="Authorization")]
        request = rpc.UpdateWebhookRequest(id=created.id, webhook=created)
        assert list(hooks.UpdateWebhook(request).webhook.headers) == list(created.headers)


def test_the_document_tells_values_in_requests_alone(rest: Client) -> None:
    schemas = rest.send("GET", "/api/openapi.json").json["components"]["schemas"]
    assert schemas["WebhookHeader"]["properties"].keys() == {"name"}
    taken = schemas["WebhookHeaderInput"]
    assert (taken["required"], taken["properties"]["value"]["writeOnly"]) == (["name"], True)
    assert schemas["Webhook"]["properties"]["headers"]["maxItems"] == 16
