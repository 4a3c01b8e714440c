"""Lists with If-None-Match: what changes their etag, and what an unchanged one costs."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from local.programs import Program
from tests.conftest import CreateDatabase, StartProgram
from tests.observing import until
from tests.rest_client import END, Answer, Client

LIST = "/appointments"


@pytest.fixture
def rest(gateway: Program, organization: str) -> Client:
    return Client(gateway, organization)


def etag_of(rest: Client, **query: object) -> str:
    answer = rest.call("GET", LIST, **query)
    assert answer.status == 200
    assert answer.json.keys() == {"appointments", "nextPageToken", "revision"}
    etag: str = answer.headers["ETag"]
    assert etag.startswith('W/"')
    return etag


def is_current(rest: Client, etag: str, **query: object) -> bool:
    answer = rest.call("GET", LIST, If_None_Match=etag, **query)
    if answer.status == 200:
        assert answer.headers["ETag"] != etag
        return False
    assert (answer.status, answer.content) == (304, b"")
    assert answer.headers["ETag"] == etag
    assert answer.headers["Organization-Revision"]
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert answer.headers["Content-Type"] is None
    return True


def test_an_unchanged_list_is_a_304(rest: Client) -> None:
    empty = etag_of(rest)
    assert is_current(rest, empty)
    rest.upsert("a")
    assert not is_current(rest, empty)
    etag = etag_of(rest)
    assert is_current(rest, etag)
    rest.upsert("a")  # changes nothing
    assert is_current(rest, etag)
    strong = etag.removeprefix("W/")
    for known in (strong, f'"2", W/"X.y", {etag}', f'"{"9" * 16}-f", {strong}', "*"):
        answer = rest.call("GET", LIST, If_None_Match=known)
        assert (answer.status, answer.headers["ETag"]) == (304, etag), known
    assert rest.call("HEAD", LIST, If_None_Match=etag).status == 304
    rest.call("DELETE", "/appointments/a")
    assert not is_current(rest, etag)


def test_another_request_has_another_etag(rest: Client) -> None:
    rest.upsert("a")
    rest.upsert("b", start=END, end="2030-01-07T09:00:00Z")
    queries: list[dict[str, object]] = [
        {},
        {"pageSize": 1},
        {"includeCancelled": "true"},
        {"resourceId": ""},
        {"from": END},
        {"to": END},
        {"asOfRevision": 1},
    ]
    etags = [etag_of(rest, **query) for query in queries]
    assert len(set(etags)) == len(queries)
    for query, etag in zip(queries, etags, strict=True):
        assert is_current(rest, etag, **query)
        for other in set(etags) - {etag}:
            assert not is_current(rest, other, **query)
    # The same request in other words.
    assert is_current(rest, etags[4], **{"from": "2030-01-07T10:30:00.0000009+02:00"})
    assert is_current(rest, etags[0], minRevision=1)
    first = rest.call("GET", LIST, pageSize=1, If_None_Match=etags[0])
    page = {"pageSize": 1, "pageToken": first.json["nextPageToken"]}
    second = etag_of(rest, **page)
    assert second != etags[1]
    assert is_current(rest, second, **page)
    rest.upsert("b", start=END, end="2030-01-07T09:00:00Z", title="x")
    assert not is_current(rest, second, **page)


def test_an_organization_has_its_own_etags(rest: Client, gateway: Program) -> None:
    other = Client(gateway, f"{rest.organization}-2")
    assert not is_current(other, etag_of(rest))
    other.close()


def test_a_list_of_the_past_is_current_while_nothing_changes(rest: Client) -> None:
    rest.upsert("a")
    rest.upsert("a", title="x")
    etag = etag_of(rest, asOfRevision=1)
    assert is_current(rest, etag, asOfRevision=1)
    # Changes may still be recorded at or before a time, so there is nothing to compare.
    answer = rest.call("GET", LIST, asOfTime="2030-01-01 00:00", If_None_Match=etag)
    assert (answer.status, answer.headers["ETag"]) == (200, None)


def test_what_cannot_be_compared_is_a_200(rest: Client) -> None:
    rest.upsert("a")
    etag = etag_of(rest)
    digest = etag[3:-1]
    for other in ("", "0", digest[:-1], digest + "0", digest + "-", f"{digest}-0", f"{digest}--1"):
        assert rest.call("GET", LIST, If_None_Match=f'"{other}"').status == 200, other
    assert rest.call("GET", LIST, If_None_Match=f'"{digest}-{"f" * 40}"').status == 200
    many = ", ".join(f'W/"{number:016}"' for number in range(300))
    assert rest.call("GET", LIST, If_None_Match=many).status == 200
    for value in ("2", '"2', ""):
        assert rest.call("GET", LIST, If_None_Match=value).fields == {"If-None-Match"}
    refused = rest.call("GET", LIST, ifNoneMatch=digest)
    assert refused.fields == {"ifNoneMatch"}
    assert "in the header If-None-Match" in refused.json["detail"]
    # The request itself is checked as ever.
    assert rest.call("GET", LIST, If_None_Match=etag, pageSize=-1).status == 400
    assert rest.call("GET", LIST, If_None_Match=etag, pageToken="x").status == 400
    assert rest.call("GET", LIST, If_None_Match=etag, minRevision=9).status == 400


def test_if_match_never_matches_a_weak_etag(rest: Client) -> None:
    etag = etag_of(rest)
    assert rest.call("GET", LIST, If_Match="*").status == 200
    assert rest.call("GET", LIST, If_Match="*", If_None_Match=etag).status == 304
    for tag in (etag, etag.removeprefix("W/")):
        answer = rest.call("GET", LIST, If_Match=tag, If_None_Match=etag)
        assert (answer.status, answer.json["code"]) == (412, "ETAG_MISMATCH")
        assert "weak" in answer.json["detail"]


@dataclass(frozen=True, slots=True)
class Apart:
    """A database of its own without workers, and a client of a gateway and service for it."""

    url: str
    client: Client
    start: StartProgram


@pytest.fixture
def apart(
    create_database: CreateDatabase,
    start_service: StartProgram,
    start_gateway: StartProgram,
    organization: str,
) -> Iterator[Apart]:
    url = create_database()

    def start() -> Program:
        return start_gateway(SERVICE_ADDRESS=start_service(DATABASE_URL=url).address)

    client = Client(start(), organization)
    yield Apart(url, client, start)
    client.close()


def held(client: Client, seconds: float) -> Answer:
    until_time = datetime.now(UTC) + timedelta(seconds=seconds)
    return client.upsert("held", holdUntil=until_time.isoformat(), resourceId="h")


def test_a_hold_that_expires_changes_etags_before_it_is_recorded(apart: Apart) -> None:
    client = apart.client
    client.upsert("firm", start=END, end="2030-01-07T09:00:00Z")
    one = held(client, 1.5).headers["ETag"]
    etags = {name: etag_of(client, includeCancelled=name) for name in ("false", "true")}
    without = etag_of(client, resourceId="")
    past = etag_of(client, asOfRevision=2)
    for name, etag in etags.items():
        assert is_current(client, etag, includeCancelled=name)
    assert client.call("GET", "/appointments/held", If_None_Match=one).status == 304
    until(lambda: client.call("GET", "/appointments/held").json["state"] == "EXPIRED")
    answer = client.call("GET", "/appointments/held", If_None_Match=one)
    assert (answer.status, answer.headers["ETag"]) == (200, '"2x"')
    for name, etag in etags.items():
        assert not is_current(client, etag, includeCancelled=name)
        assert is_current(client, etag_of(client, includeCancelled=name), includeCancelled=name)
    # Nothing has recorded it, and what shows no hold is as it was.
    assert answer.headers["Organization-Revision"] == "2"
    assert is_current(client, without, resourceId="")
    assert is_current(client, past, asOfRevision=2)


def test_every_process_gives_and_accepts_the_same_etag(apart: Apart) -> None:
    held(apart.client, 60)
    etag = etag_of(apart.client)
    other = Client(apart.start(), apart.client.organization)
    assert is_current(other, etag)
    assert etag_of(other) == etag
    other.close()


def test_a_restored_organization_has_other_etags(apart: Apart) -> None:
    """Its revisions are repeated, at other times."""
    apart.client.upsert("a")
    etag = etag_of(apart.client)
    with psycopg.connect(apart.url) as connection:
        connection.execute("UPDATE organizations SET recorded_at = recorded_at + interval '1 us'")
    assert not is_current(apart.client, etag)


def test_an_unchanged_list_costs_one_look_at_the_organization(apart: Apart) -> None:
    apart.client.upsert("a")
    etag = etag_of(apart.client)
    other = Client(apart.start(), apart.client.organization)  # has no page in memory
    with psycopg.connect(apart.url) as connection:
        connection.execute("LOCK TABLE appointments, appointment_history")
        assert is_current(other, etag)
        assert other.call("GET", LIST).status == 503  # it waits too long
    other.close()
