"""The calendar feed through the gateway, read back by another library than the one that writes."""

import asyncio
import gzip
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from typing import Any, NamedTuple
from urllib.parse import urlencode

import psutil
import pytest
import vobject
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from gateway import app
from gateway.settings import Settings
from local.programs import Program
from tests.api import MORNING, Organization, appointment, batch_request
from tests.conftest import StartProgram
from tests.observing import metric, until
from tests.operations.place import Place
from tests.rest_client import Client

PATH = "/appointments.ics"
EVENTS = 10_000
PAGES_CALLED = 'appointments_request_seconds_count{code="OK",method="ListAppointments"}'


class Feed(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def calendar(self) -> Any:
        found = vobject.readOne(self.body.decode())
        found.behavior.validate(found, raiseException=True)
        return found

    @property
    def events(self) -> list[Any]:
        found: list[Any] = self.calendar.contents.get("vevent", [])
        for event in found:
            event.behavior.validate(event, raiseException=True)
        return found


class Subscriber:
    """Reads the feed of an organization, on a connection of its own."""

    def __init__(self, port: int, organization: str) -> None:
        self._organization = organization
        self.connection = HTTPConnection("127.0.0.1", port, timeout=30)

    def open(self, method: str = "GET", /, **query: object) -> HTTPResponse:
        """Return the response, whose body is not read yet."""
        headers = {
            name.replace("_", "-"): str(query.pop(name))
            for name in list(query)
            if name[0].isupper()
        }
        query.setdefault("organizationId", self._organization)
        self.connection.request(method, f"/api{PATH}?{urlencode(query)}", headers=headers)
        return self.connection.getresponse()

    def read(self, method: str = "GET", /, **query: object) -> Feed:
        response = self.open(method, **query)
        feed = Feed(response.status, response.headers, response.read())
        assert feed.headers["X-Request-Id"]
        if feed.status == 200:
            assert feed.headers["Content-Type"] == "text/calendar; charset=utf-8"
        return feed

    def summaries(self, **query: object) -> list[str]:
        return [event.summary.value for event in self.read(**query).events]


@pytest.fixture
def subscriber(gateway: Program, organization: str) -> Iterator[Subscriber]:
    subscriber = Subscriber(gateway.port, organization)
    yield subscriber
    subscriber.connection.close()


def write_many(org: Organization, count: int) -> None:
    """Write appointments of one minute each, in order, whose feed is larger than all buffers."""
    for first in range(0, count, 1000):
        minutes = range(first, min(first + 1000, count))
        org.stub.BatchUpsertAppointments(
            batch_request(
                appointment(org.id, f"{minute}", minute, minute + 1, title=f"{minute} {'é' * 500}")
                for minute in minutes
            ),
            timeout=60,
        )


def test_an_appointment_is_an_event(subscriber: Subscriber, client: Client) -> None:
    title = (
        "Commas, semicolons; back\\slash: \N{PARTY POPPER} and \N{LATIN SMALL LETTER E WITH ACUTE}"
    )
    client.upsert(
        title=title,
        resourceId="room; 1, left",
        createdAt="2029-12-01T10:00:00.9Z",
        updatedAt="2029-12-02T11:00:00+01:00",
    )
    feed = subscriber.read()
    assert feed.headers["Content-Disposition"] == 'inline; filename="appointments.ics"'
    assert feed.headers["Cache-Control"] == "private, no-cache"
    assert feed.headers["Organization-Revision"] == "1"
    [event] = feed.events
    assert {name: line.value for name, [line] in event.contents.items()} == {
        "uid": event.uid.value,
        "sequence": "0",
        "dtstart": datetime(2030, 1, 7, 8, tzinfo=UTC),
        "dtend": datetime(2030, 1, 7, 8, 30, tzinfo=UTC),
        "summary": title,
        "location": "room; 1, left",
        "status": "CONFIRMED",
        "created": datetime(2029, 12, 1, 10, tzinfo=UTC),
        "last-modified": datetime(2029, 12, 2, 10, tzinfo=UTC),
        "dtstamp": datetime(2029, 12, 2, 10, tzinfo=UTC),
    }


def test_the_calendar_says_what_it_is(subscriber: Subscriber, organization: str) -> None:
    calendar = subscriber.read().calendar
    assert "vevent" not in calendar.contents
    assert calendar.version.value == "2.0"
    assert calendar.prodid.value == "-//Appointments//Appointments//EN"
    name = f"Appointments ({organization})"
    assert calendar.contents["name"][0].value == name
    assert calendar.contents["x-wr-calname"][0].value == name
    [refresh] = calendar.contents["refresh-interval"]
    assert (refresh.params, refresh.value) == ({"VALUE": ["DURATION"]}, "PT15M")
    assert calendar.contents["x-published-ttl"][0].value == "PT15M"
    of_room = subscriber.read(resourceId="room 1").calendar
    assert of_room.contents["name"][0].value == f"Appointments ({organization}, room 1)"


def test_a_change_keeps_the_uid_and_increases_the_sequence(
    subscriber: Subscriber, client: Client
) -> None:
    client.upsert(title="first")
    [before] = subscriber.read().events
    client.upsert(title="second")
    [after] = subscriber.read().events
    client.call("DELETE", "/appointments/a")
    assert subscriber.read().events == []
    [cancelled] = subscriber.read(includeCancelled="true").events
    assert before.uid.value == after.uid.value == cancelled.uid.value
    assert [each.sequence.value for each in (before, after, cancelled)] == ["0", "1", "2"]
    assert [each.status.value for each in (before, after, cancelled)] == [
        "CONFIRMED",
        "CONFIRMED",
        "CANCELLED",
    ]
    assert "transp" not in after.contents
    assert cancelled.transp.value == "TRANSPARENT"


def test_a_held_appointment_is_tentative_until_it_expires(
    subscriber: Subscriber, client: Client
) -> None:
    until_later = datetime.now(UTC) + timedelta(hours=1)
    client.upsert("a", resourceId="1", holdUntil=until_later.isoformat())
    soon = datetime.now(UTC) + timedelta(seconds=4)
    client.upsert("b", resourceId="2", holdUntil=soon.isoformat())

    def found(**query: object) -> dict[str, tuple[str, bool]]:
        return {
            event.location.value: (event.status.value, "transp" in event.contents)
            for event in subscriber.read(**query).events
        }

    etag = subscriber.read().headers["ETag"]
    assert found() == {"1": ("TENTATIVE", False), "2": ("TENTATIVE", False)}
    until(lambda: found() == {"1": ("TENTATIVE", False)})
    assert datetime.now(UTC) > soon
    assert found(includeCancelled="true") == {
        "1": ("TENTATIVE", False),
        "2": ("CANCELLED", True),
    }
    assert subscriber.read(If_None_Match=etag).status == 200


def test_the_location_is_all_resources(subscriber: Subscriber, client: Client) -> None:
    client.upsert("a", resourceId="doctor", additionalResourceIds=["room 1", "room 2"])
    client.upsert("b", additionalResourceIds=["room 3"])
    client.upsert("c", start="2031-01-01 10:00", end="2031-01-01 11:00")
    locations = [
        event.location.value if "location" in event.contents else None
        for event in subscriber.read().events
    ]
    assert locations == ["doctor, room 1, room 2", "room 3", None]
    assert len(subscriber.read(resourceId="room 2").events) == 1


def test_the_uid_tells_organizations_apart(gateway: Program, organization: str) -> None:
    uids = set()
    for each in (organization, f"{organization}-2"):
        Client(gateway, each).upsert()
        [event] = Subscriber(gateway.port, each).read().events
        uids.add(event.uid.value)
    assert len(uids) == 2


def test_an_appointment_below_a_second_has_no_end(subscriber: Subscriber, client: Client) -> None:
    client.upsert(start="2030-01-07T08:00:00.25Z", end="2030-01-07T08:00:00.75Z")
    [event] = subscriber.read().events
    assert event.dtstart.value == MORNING
    assert "dtend" not in event.contents


def test_the_first_and_the_last_years(subscriber: Subscriber, client: Client) -> None:
    client.upsert("a", start="0001-01-01T00:00:00Z", end="0001-01-01T00:00:01Z")
    client.upsert("b", start="9999-12-31T23:00:00Z", end="9999-12-31T23:59:59.9Z")
    first, last = subscriber.read().events
    assert first.dtstart.value == datetime(1, 1, 1, tzinfo=UTC)
    assert last.dtend.value == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_lines_are_folded_between_characters(subscriber: Subscriber, client: Client) -> None:
    titles = [("x" * shift + "\N{PARTY POPPER}" * 300) for shift in range(4)]
    for number, title in enumerate(titles):
        client.upsert(f"{number}", resourceId=f"{number}", title=title)
    feed = subscriber.read()
    assert feed.body.endswith(b"END:VCALENDAR\r\n")
    lines = feed.body.removesuffix(b"\r\n").split(b"\r\n")
    assert len(lines) > 4 * 300 * 4 / 75
    for line in lines:
        assert len(line) <= 75
        assert b"\n" not in line
        line.decode()
    assert [event.summary.value for event in feed.events] == titles


def test_it_has_the_filters_of_the_list(subscriber: Subscriber, client: Client) -> None:
    client.upsert("a", title="a", resourceId="1")
    client.upsert("b", title="b", resourceId="2", start="2030-01-07 09:00", end="2030-01-07 10:00")
    client.upsert("b", title="c", resourceId="2", start="2030-01-07 09:00", end="2030-01-07 10:00")
    assert subscriber.summaries() == ["a", "c"]
    assert subscriber.summaries(resourceId="2") == ["c"]
    assert subscriber.summaries(to="2030-01-07T09:00:00Z") == ["a"]
    assert subscriber.summaries(**{"from": "2030-01-07T09:00:00Z"}) == ["c"]
    assert subscriber.summaries(asOfRevision=2) == ["a", "b"]
    assert subscriber.summaries(minRevision=3) == ["a", "c"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"pageSize": 1}, "pageSize"),
        ({"pageToken": "x"}, "pageToken"),
        ({"orderBy": "start"}, "orderBy"),
        ({"page_size": 1}, "page_size"),
        ({"x": 1}, "x"),
        ({"from": "yesterday"}, "from"),
        ({"organizationId": ""}, "organizationId"),
        ({"asOfRevision": 1}, "asOfRevision"),
        ({"If_None_Match": "1"}, "If-None-Match"),
        ({"X_Actor": "x" * 257}, "X-Actor"),
    ],
)
def test_what_cannot_be_begun_is_a_problem(
    client: Client, query: dict[str, object], field: str
) -> None:
    answer = client.call("GET", PATH, **query)
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert answer.fields == {field}


def test_other_methods_are_refused(client: Client) -> None:
    answer = client.call("POST", PATH)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_an_unchanged_calendar_is_a_304(subscriber: Subscriber, client: Client) -> None:
    client.upsert()
    etag = subscriber.read().headers["ETag"]
    assert etag.startswith('W/"')
    for known in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
        for method in ("GET", "HEAD"):
            same = subscriber.read(method, If_None_Match=known)
            assert (same.status, same.body, same.headers["ETag"]) == (304, b"", etag)
    client.upsert(title="new")
    changed = subscriber.read(If_None_Match=etag)
    assert changed.status == 200
    assert changed.headers["ETag"] != etag
    assert len(changed.events) == 1


def test_another_query_has_another_etag(subscriber: Subscriber, client: Client) -> None:
    client.upsert()
    queries: list[dict[str, object]] = [{}, {"resourceId": "a"}, {"includeCancelled": "true"}]
    assert len({subscriber.read(**query).headers["ETag"] for query in queries}) == 3


def test_a_weak_etag_never_matches_strongly(subscriber: Subscriber) -> None:
    etag = subscriber.read().headers["ETag"]
    refused = subscriber.read(If_Match=etag)
    assert (refused.status, refused.headers["ETag"]) == (412, etag)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert subscriber.read(If_Match="*").status == 200


def test_head_has_the_headers_only(subscriber: Subscriber, client: Client) -> None:
    client.upsert()
    get, head = subscriber.read(), subscriber.read("HEAD")
    assert (head.status, head.body) == (200, b"")
    own = {"X-Request-Id", "Date", "Transfer-Encoding"}
    assert {**head.headers, **dict.fromkeys(own)} == {**get.headers, **dict.fromkeys(own)}


def test_gzip_is_used_if_it_is_accepted(subscriber: Subscriber, org: Organization) -> None:
    write_many(org, 600)
    plain = subscriber.read()
    compressed = subscriber.read(Accept_Encoding="gzip")
    assert "Content-Encoding" not in plain.headers
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert plain.headers["Vary"] == compressed.headers["Vary"] == "Accept-Encoding"
    assert plain.headers["ETag"] == compressed.headers["ETag"]
    assert gzip.decompress(compressed.body) == plain.body
    assert len(compressed.body) < len(plain.body) / 5
    head = subscriber.read("HEAD", Accept_Encoding="gzip")
    assert (head.headers["Content-Encoding"], head.body) == ("gzip", b"")


def waits_for_its_reader(service: Program) -> bool:
    """Return whether pages were read, and then no further ones for a while."""
    called = metric(service, PAGES_CALLED)
    time.sleep(0.3)
    return called > 0 and called == metric(service, PAGES_CALLED)


def is_of(organization: str) -> Any:
    return lambda event: (
        event.get("organization") == organization and event.get("method") == "GetCalendar"
    )


def test_ten_thousand_events_of_one_moment_with_few_in_memory(
    own_service: Program, own_gateway: Program, org: Organization
) -> None:
    """The client reads slowly, so that it can change what it has not read yet."""
    write_many(org, EVENTS)
    process = psutil.Process(own_gateway.process.pid)
    called = metric(own_service, PAGES_CALLED)
    with Subscriber(own_gateway.port, org.id).open() as response:
        until(lambda: waits_for_its_reader(own_service))
        # The first page of the present, and the first few of the past.
        assert metric(own_service, PAGES_CALLED) - called <= 4
        org.upsert("0", EVENTS, EVENTS + 1, title="moved to the end")
        org.upsert(f"{EVENTS - 1}", -1, 0, title="moved to the beginning")
        org.cancel(f"{EVENTS - 2}")
        body = response.read(3_000_000)  # loads what is loaded once
        memory = process.memory_info().rss
        body += response.read()
        grown = process.memory_info().rss - memory
    assert metric(own_service, PAGES_CALLED) - called == 1 + EVENTS / 500
    events = Feed(200, response.headers, body).events
    assert [event.summary.value.split()[0] for event in events] == [
        f"{minute}" for minute in range(EVENTS)
    ]
    assert [event.dtstart.value for event in events[::999]] == [
        MORNING + timedelta(minutes=minute) for minute in range(0, EVENTS, 999)
    ]
    assert len({event.uid.value for event in events}) == EVENTS
    assert len(body) > 12_000_000
    assert grown < 4_000_000
    after = Subscriber(own_gateway.port, org.id).read(If_None_Match=response.headers["ETag"])
    assert after.status == 200
    assert len(after.events) == EVENTS - 1


def test_a_short_calendar_is_one_call(
    own_service: Program, own_gateway: Program, org: Organization
) -> None:
    write_many(org, 500)
    subscriber = Subscriber(own_gateway.port, org.id)
    feed = subscriber.read()
    assert len(feed.events) == 500
    assert metric(own_service, PAGES_CALLED) == 1
    subscriber.read(If_None_Match=feed.headers["ETag"])
    assert metric(own_service, PAGES_CALLED) == 2


def test_the_client_notices_that_the_rest_is_missing(
    own_service: Program, own_gateway: Program, org: Organization
) -> None:
    write_many(org, 3000)
    with Subscriber(own_gateway.port, org.id).open() as response:
        assert response.status == 200
        until(lambda: waits_for_its_reader(own_service))
        own_service.kill()
        with pytest.raises((IncompleteRead, ConnectionResetError)):
            response.read()
    line = own_gateway.wait_for_event(is_of(org.id))
    assert (line["status"], line["code"]) == (200, "SERVICE_UNAVAILABLE")
    assert not [line for line in own_gateway.log_lines() if "unexpected" in line]


def test_a_calendar_as_of_a_time_is_one_of_that_moment(
    own_service: Program, own_gateway: Program, org: Organization
) -> None:
    write_many(org, 3000)
    later = datetime.now(UTC) + timedelta(minutes=5)
    with Subscriber(own_gateway.port, org.id).open(asOfTime=later.isoformat()) as response:
        until(lambda: waits_for_its_reader(own_service))
        org.cancel("2999")
        body = response.read()
    assert len(Feed(200, response.headers, body).events) == 3000


def test_an_expired_hold_is_on_no_page_before_that_is_recorded(
    place: Place, start_gateway: StartProgram, organization: str
) -> None:
    org = Organization(AppointmentServiceStub(place.channel), organization)
    gateway = start_gateway(SERVICE_ADDRESS=place.service.address)
    write_many(org, 501)
    soon = datetime.now(UTC) + timedelta(seconds=2.5)
    org.upsert("held", -2, -1, title="held", hold_until=soon)
    until(lambda: "held" not in org.listed(include_cancelled=False))
    found = Subscriber(gateway.port, org.id).read().events
    assert org.get("held").version == 1
    assert [event.status.value for event in found] == ["CONFIRMED"] * 501


def test_a_client_that_reads_nothing_is_disconnected(
    start_gateway: StartProgram, org: Organization
) -> None:
    gateway = start_gateway(WATCH_PATIENCE="0.2")
    write_many(org, 1000)
    with Subscriber(gateway.port, org.id).open() as response:
        line = gateway.wait_for_event(is_of(org.id))
        assert (line["status"], line["code"]) == (200, "SLOW_READER")
        with pytest.raises((IncompleteRead, ConnectionResetError)):
            response.read()


def test_a_client_may_leave(own_service: Program, own_gateway: Program, org: Organization) -> None:
    write_many(org, 3000)
    subscriber = Subscriber(own_gateway.port, org.id)
    with subscriber.open():
        until(lambda: waits_for_its_reader(own_service))
        subscriber.connection.close()
    own_gateway.wait_for_event(is_of(org.id))
    assert not [line for line in own_gateway.log_lines() if "unexpected" in line]
    assert metric(own_service, PAGES_CALLED) < 6
    assert len(Subscriber(own_gateway.port, org.id).read().events) == 3000


async def test_calendars_have_a_limit_of_their_own(
    service: Program, org: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_MAX_CALENDARS", 1)
    write_many(org, 1000)
    settings = Settings(
        gateway_host="127.0.0.1",
        gateway_port=0,
        gateway_metrics_port=0,
        service_address=service.address,
    )
    async with app.serving(settings) as listening:
        first, second = (Subscriber(listening.port, org.id) for _ in range(2))
        unread = await asyncio.to_thread(first.open)
        assert unread.status == 200
        refused = await asyncio.to_thread(second.read)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        known = unread.headers["ETag"]
        assert (await asyncio.to_thread(second.read, If_None_Match=known)).status == 304
        await asyncio.to_thread(unread.read)
        assert (await asyncio.to_thread(second.read)).status == 200
