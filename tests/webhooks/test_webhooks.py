"""The API of webhooks: create, read, update, delete, and errors."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1 import webhook_service_pb2 as rpc
from appointments.v1.appointment_pb2 import HistoryEntry
from appointments.v1.webhook_service_pb2_grpc import WebhookServiceStub

from local.programs import Program
from tests.api import Organization, refusal
from tests.rest_client import Answer, Client

URL = "https://hooks.example.com/appointments"


@pytest.fixture
def rest(gateway: Program, organization: str) -> Client:
    return Client(gateway, organization)


@pytest.fixture
def hooks(channel: grpc.Channel) -> WebhookServiceStub:
    return WebhookServiceStub(channel)


def post(rest: Client, path: str = "/webhooks", /, query: str = "", **body: Any) -> Answer:
    raw = json.dumps({"organizationId": rest.organization, **body}).encode()
    return rest.send("POST", f"/api{path}{query}", raw, Content_Type="application/json")


def put(rest: Client, id: str, /, **body: object) -> Answer:
    raw = json.dumps({"organizationId": rest.organization, **body}).encode()
    return rest.send("PUT", f"/api/webhooks/{id}", raw, Content_Type="application/json")


def read(rest: Client, id: str) -> dict[str, Any]:
    found: dict[str, Any] = rest.call("GET", f"/webhooks/{id}").json
    return found


def test_a_webhook_is_created_read_listed_replaced_and_deleted(
    rest: Client, org: Organization
) -> None:
    org.upsert("a", 0, 1)
    created = post(rest, url=URL, description="ours", changes=["CANCELLED", "CREATED"])
    assert created.status == 201
    webhook = created.json
    assert webhook.pop("secret").startswith("whsec_")
    assert webhook["deliveredRevision"] == "1"
    assert created.headers["Organization-Revision"] == "1"
    location = created.headers["Location"]
    assert location.startswith(f"/api/webhooks/{webhook['id']}?organizationId=")
    assert rest.send("GET", location).json == webhook
    assert webhook["changes"] == ["CREATED", "CANCELLED"]
    assert (webhook["disabled"], webhook["disabledReason"]) == (False, "")
    assert (webhook["failedAttempts"], "failingSince" in webhook) == (0, False)
    other = post(rest, url=URL).json
    listed = rest.call("GET", "/webhooks").json["webhooks"]
    assert [each["id"] for each in listed] == [webhook["id"], other["id"]]
    assert not any("secret" in each for each in listed)

    # A webhook that was read can be sent back with changes; omitted fields are emptied.
    del webhook["description"], webhook["changes"]
    replaced = put(rest, webhook["id"], **{**webhook, "disabled": True, "url": URL + "/2"})
    assert replaced.status == 200
    assert (replaced.json["url"], replaced.json["disabled"]) == (URL + "/2", True)
    assert (replaced.json["description"], replaced.json["changes"]) == ("", [])
    assert "secret" not in replaced.json
    assert read(rest, webhook["id"]) == replaced.json

    gone = rest.call("DELETE", f"/webhooks/{webhook['id']}")
    assert (gone.status, gone.json) == (200, {})
    for answer in (
        rest.call("GET", f"/webhooks/{webhook['id']}"),
        rest.call("DELETE", f"/webhooks/{webhook['id']}"),
        rest.call("GET", f"/webhooks/{webhook['id']}/deliveries"),
        rest.call("POST", f"/webhooks/{webhook['id']}:rotateSecret"),
        put(rest, webhook["id"], url=URL),
        post(rest, f"/webhooks/{webhook['id']}:replay", afterRevision=0),
    ):
        assert (answer.status, answer.json["code"]) == (404, "WEBHOOK_NOT_FOUND")
        assert answer.headers["Organization-Revision"] == "1"
    assert len(rest.call("GET", "/webhooks").json["webhooks"]) == 1


def test_organizations_do_not_see_each_others_webhooks(rest: Client) -> None:
    id = post(rest, url=URL).json["id"]
    rest.organization += "-other"
    assert rest.call("GET", "/webhooks").json == {"webhooks": []}
    for method in ("GET", "DELETE"):
        answer = rest.call(method, f"/webhooks/{id}")
        assert answer.json["code"] == "WEBHOOK_NOT_FOUND"
    assert put(rest, id, url=URL).status == 404


def test_it_begins_where_it_is_told_to(rest: Client, org: Organization) -> None:
    for minute in range(3):
        org.upsert(f"{minute}", minute, minute + 1)
    assert post(rest, url=URL).json["deliveredRevision"] == "3"
    assert post(rest, query="?afterRevision=0", url=URL).json["deliveredRevision"] == "0"
    assert post(rest, query="?afterRevision=2", url=URL).json["deliveredRevision"] == "2"
    refused = post(rest, query="?afterRevision=4", url=URL)
    assert (refused.status, refused.fields) == (400, {"afterRevision"})
    assert len(rest.call("GET", "/webhooks").json["webhooks"]) == 3


def test_a_replay_sets_it_back_and_enables_it(rest: Client, org: Organization) -> None:
    org.upsert("a", 0, 1)
    id = post(rest, url=URL, disabled=True).json["id"]
    replayed = post(rest, f"/webhooks/{id}:replay", afterRevision=0)
    assert replayed.status == 200
    assert (replayed.json["deliveredRevision"], replayed.json["disabled"]) == ("0", False)
    for body, fields in (
        ({"afterRevision": 2}, {"afterRevision"}),
        ({"afterRevision": -1}, {"afterRevision"}),
        ({}, {"afterRevision"}),
        ({"afterRevision": 0, "id": id}, {"id"}),
    ):
        refused = post(rest, f"/webhooks/{id}:replay", **body)
        assert (refused.status, refused.fields) == (400, fields)
    assert read(rest, id)["deliveredRevision"] == "0"


def test_rotating_gives_a_new_secret_once(rest: Client) -> None:
    created = post(rest, url=URL).json
    rotated = rest.call("POST", f"/webhooks/{created['id']}:rotateSecret")
    assert rotated.status == 200
    assert rotated.json["secret"].startswith("whsec_")
    assert rotated.json["secret"] != created["secret"]
    assert "secret" not in read(rest, created["id"])


def test_four_old_secrets_at_most_sign_on(rest: Client, database_url: str) -> None:
    created = post(rest, url=URL).json
    secrets = [created["secret"]]
    for _ in range(6):
        rotated = rest.call("POST", f"/webhooks/{created['id']}:rotateSecret")
        secrets.append(rotated.json["secret"])
    with psycopg.connect(database_url) as connection:
        stored = connection.execute(
            "SELECT secret, old_secrets, cardinality(old_secrets_until)"
            " FROM webhooks WHERE webhook_id = %s",
            (created["id"],),
        ).fetchone()
    assert stored == (secrets[-1], secrets[-2:-6:-1], 4)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "//hooks.example.com/",
        "https://",
        "https:///path",
        "ftp://hooks.example.com/",
        "http://hooks.example.com/",
        "https://user@hooks.example.com/",
        "https://user:password@hooks.example.com/",
        "https://hooks.example.com/#part",
        "https://hooks.example.com/a b",
        "https://hooks.example.com\\@127.0.0.1/",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:99999/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://0/",
        "https://10.0.0.1/",
        "https://100.64.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://224.0.1.1/",
        "https://255.255.255.255/",
        "https://[::1]/",
        "https://[::]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://[64:ff9b::10.0.0.1]/",
        "https://[64:ff9b:1::1]/",
        "https://[2002:7f00:1::]/",
        "https://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
        "https://[fe80::1]/",
        "https://[fc00::1]/",
        "https://[fec0::1]/",
        "https://[ff02::1]/",
        "https://[2001:db8::1]/",
        "http://93.184.215.14/",
        "https://hooks.example.com/" + "x" * 2048,
    ],
)
def test_a_url_that_is_evidently_wrong_is_refused(rest: Client, url: str) -> None:
    id = post(rest, url=URL).json["id"]
    for refused in (post(rest, url=url), put(rest, id, url=url)):
        assert (refused.status, refused.json["code"]) == (400, "INVALID_FIELD")
        assert refused.fields == {"url"}
    assert read(rest, id)["url"] == URL
    assert len(rest.call("GET", "/webhooks").json["webhooks"]) == 1


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com:8443/a/b?c=d%20e",
        "https://93.184.215.14/",
        "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/",
        "https://[64:ff9b::93.184.215.14]/",
        "https://h\u00f6\u00f6ks.example.com/",
    ],
)
def test_a_url_is_kept_as_it_is(rest: Client, url: str) -> None:
    assert post(rest, url=url).json["url"] == url


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["url"]),
        ({"url": URL, "description": "x" * 1025}, ["description"]),
        ({"url": URL, "changes": ["CHANGE_UNSPECIFIED"]}, ["changes[0]"]),
        ({"url": URL, "changes": ["MOVED"]}, ["changes[0]"]),
        ({"url": URL, "changes": ["CREATED"] * 7}, ["changes"]),
        ({"url": URL, "organizationId": ""}, ["organizationId"]),
        ({"url": URL, "unknown": 1}, ["unknown"]),
        ({"url": "ftp://x", "description": "a\nb"}, ["url", "description"]),
    ],
    ids=str,
)
def test_fields_that_break_rules_are_named(
    rest: Client, body: dict[str, Any], fields: list[str]
) -> None:
    refused = post(rest, **body)
    assert (refused.status, refused.json["code"]) == (400, "INVALID_FIELD")
    assert refused.fields == set(fields)


def test_an_organization_has_twenty_at_most(rest: Client) -> None:
    created = [post(rest, url=URL) for _ in range(20)]
    assert {answer.status for answer in created} == {201}
    refused = post(rest, url=URL)
    assert (refused.status, refused.json["code"]) == (409, "WEBHOOK_LIMIT_REACHED")
    assert "20" in refused.json["detail"]
    rest.call("DELETE", f"/webhooks/{created[0].json['id']}")
    assert post(rest, url=URL).status == 201


def test_grpc_says_the_same(hooks: WebhookServiceStub, organization: str) -> None:
    wanted = rpc.Webhook(organization_id=organization, url=URL, changes=[HistoryEntry.UPDATED])
    created = hooks.CreateWebhook(rpc.CreateWebhookRequest(webhook=wanted)).webhook
    assert created.secret
    created.description = "what was read may be sent back"
    request = rpc.UpdateWebhookRequest(id=created.id, webhook=created)
    updated = hooks.UpdateWebhook(request).webhook
    assert updated.description == created.description
    assert not updated.HasField("secret")
    listed = hooks.ListWebhooks(rpc.ListWebhooksRequest(organization_id=organization)).webhooks
    assert list(listed) == [updated]

    def refused(call: Any, request: Any) -> tuple[grpc.StatusCode, str, set[str]]:
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        found = refusal(caught.value)
        return found.code, found.reason, set(found.fields)

    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    wanted.url = "http://10.0.0.1/"
    wanted.changes.append(7)  # type: ignore[arg-type]
    assert refused(hooks.CreateWebhook, rpc.CreateWebhookRequest(webhook=wanted)) == (
        invalid,
        "INVALID_FIELD",
        {"webhook.url", "webhook.changes[1]"},
    )
    assert refused(hooks.CreateWebhook, rpc.CreateWebhookRequest())[2] == {"webhook"}
    assert refused(hooks.GetWebhook, rpc.GetWebhookRequest(organization_id=organization)) == (
        invalid,
        "INVALID_FIELD",
        {"id"},
    )
    assert refused(hooks.GetWebhook, rpc.GetWebhookRequest(id=created.id)) == (
        missing,
        "WEBHOOK_NOT_FOUND",
        set(),
    )


@pytest.fixture
def logged(rest: Client, database_url: str) -> Iterator[str]:
    """A webhook with five deliveries in its log."""
    id = post(rest, url=URL).json["id"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO webhook_deliveries (organization_id, webhook_id, revision, attempt,"
            " attempted_at, duration_ms, http_status, error)"
            " SELECT %s, %s, number, 1, now(), 7, NULL, 'no answer'"
            " FROM generate_series(1, 5) AS number",
            (rest.organization, id),
        )
        yield id


def test_deliveries_are_paged_newest_first(rest: Client, logged: str) -> None:
    path = f"/webhooks/{logged}/deliveries"
    first = rest.call("GET", path, pageSize=2).json
    assert [each["revision"] for each in first["deliveries"]] == ["5", "4"]
    assert first["deliveries"][0].keys() == {
        "revision", "attempt", "attemptedAt", "durationMs", "error",
    }  # fmt: skip
    second = rest.call("GET", path, pageSize=2, pageToken=first["nextPageToken"]).json
    last = rest.call("GET", path, pageSize=2, pageToken=second["nextPageToken"]).json
    assert [each["revision"] for each in last["deliveries"]] == ["1"]
    assert last["nextPageToken"] == ""
    assert rest.call("GET", path, pageToken="x").fields == {"pageToken"}
