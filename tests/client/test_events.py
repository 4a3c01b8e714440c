"""Events of calendars: time zones, whole days, recurrence, and what a newer file changes."""

from dataclasses import replace

import pytest

from client.calendar_export import uid_of
from gateway.endpoints.calendar_text import uid_of as served
from tests.api import Organization
from tests.client.command import PROGRAMME, Client, Done

RANGE = ("--from", "2030-01-01", "--to", "2030-12-31")


def calendar(*events: str, properties: str = "") -> str:
    """Return a calendar with events, each given by its properties."""
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:test", *properties.split()]
    for event in events:
        lines += ["BEGIN:VEVENT", *event.split(), "END:VEVENT"]
    return "\r\n".join([*lines, "END:VCALENDAR", ""])


def load(client: Client, content: str, *options: str) -> Done:
    """Import a calendar within the year 2030."""
    client.write("some.ics", content)
    return client.run("import", "some.ics", *RANGE, *options)


def spans(org: Organization) -> dict[str, str]:
    """Return the appointments that occupy something, in UTC without seconds."""
    return {
        id: f"{item.start.ToDatetime():%m-%d %H:%M} {item.end.ToDatetime():%m-%d %H:%M}"
        for id, item in org.listed(include_cancelled=False).items()
    }


EVENT = "UID:a DTSTART;TZID=Europe/Berlin:20300107T100000 DTEND;TZID=Europe/Berlin:20300107T103000"


def test_an_event_is_an_appointment(client: Client, org: Organization) -> None:
    event = (
        f"{EVENT} SUMMARY:Hair\\ncut LOCATION:chair\\,1 DESCRIPTION:first\\nsecond"
        " CATEGORIES:x,y URL:https://example.org CREATED:20290101T000000Z"
        " LAST-MODIFIED:20290102T000000Z"
    )
    assert load(client, calendar(event)).counts == {"CREATED": 1}
    stored = org.get("a")
    assert spans(org) == {"a": "01-07 09:00 01-07 09:30"}
    assert (stored.title, stored.resource_id) == ("Hair cut", "")
    assert {name: stored.attributes[name] for name in ("description", "location", "url")} == {
        "description": "first\nsecond",
        "location": "chair,1",
        "url": "https://example.org",
    }
    categories = stored.attributes.fields["categories"].list_value.values
    assert [category.string_value for category in categories] == ["x", "y"]
    assert stored.created_at.ToJsonString() == "2029-01-01T00:00:00Z"
    assert stored.updated_at.ToJsonString() == "2029-01-02T00:00:00Z"
    assert load(client, calendar(event)).counts == {"UNCHANGED": 1}
    older = event.replace("20290102T", "20290101T").replace("T1030", "T1100")
    assert load(client, calendar(older)).counts == {"STALE": 1}
    newer = event.replace("20290102T", "20290103T").replace("20300107", "20300108")
    assert load(client, calendar(newer)).counts == {"UPDATED": 1}
    assert spans(org) == {"a": "01-08 09:00 01-08 09:30"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--resource", "anna"], {"anna"}),
        (["--resource-from", "location"], {"room 1"}),
        (["--resource-from", "calendar"], {"Team,A"}),
        ([], {""}),
    ],
)
def test_what_an_event_occupies(
    client: Client, org: Organization, options: list[str], expected: set[str]
) -> None:
    content = calendar(f"{EVENT} LOCATION:room_1", properties="X-WR-CALNAME:Team\\,A")
    load(client, content.replace("room_1", "room 1"), *options)
    assert {item.resource_id for item in org.listed().values()} == expected


def test_whole_days_and_floating_times_need_a_zone(client: Client, org: Organization) -> None:
    content = calendar(
        "UID:day DTSTART;VALUE=DATE:20300331",
        "UID:days DTSTART;VALUE=DATE:20300701 DTEND;VALUE=DATE:20300703",
        "UID:floating DTSTART:20300107T100000 DURATION:PT30M",
        "UID:hours DTSTART;TZID=Europe/Berlin:20301026T230000 DURATION:PT6H",
        "UID:nominal DTSTART;TZID=America/New_York:20301102T120000 DURATION:P1D",
    )
    refused = load(client, content)
    assert (refused.code, refused.counts) == (1, {"CREATED": 2, "UNREADABLE": 3})
    assert "a whole day: name the zone by --time-zone" in refused.errors
    assert "a time without a zone: name the zone by --time-zone" in refused.errors
    given = load(client, content, "--time-zone", "Europe/Berlin")
    assert given.counts == {"CREATED": 3, "UNCHANGED": 2}
    # The last Sunday of March has 23 hours, that of October 25.
    assert spans(org) == {
        "day": "03-30 23:00 03-31 22:00",
        "days": "06-30 22:00 07-02 22:00",
        "floating": "01-07 09:00 01-07 09:30",
        "hours": "10-26 21:00 10-27 03:00",
        "nominal": "11-02 16:00 11-03 17:00",
    }
    client.write("google.ics", content.replace("PRODID", "X-WR-TIMEZONE:Europe/Berlin\r\nPRODID"))
    assert client.run("import", "google.ics").counts == {"UNCHANGED": 5}


def test_zones_of_the_file_of_windows_and_unknown_ones(client: Client, org: Organization) -> None:
    zone = (
        "BEGIN:VTIMEZONE\r\nTZID:Own\r\nBEGIN:STANDARD\r\nDTSTART:19700101T000000\r\n"
        "TZOFFSETFROM:+0300\r\nTZOFFSETTO:+0300\r\nEND:STANDARD\r\nEND:VTIMEZONE\r\n"
    )
    content = calendar(
        "UID:own DTSTART;TZID=Own:20300107T100000 DTEND;TZID=Own:20300107T110000",
        "UID:windows DTSTART;TZID=Windows:20300107T120000 DURATION:PT1H",
        "UID:unknown DTSTART;TZID=Nowhere:20300107T140000 DURATION:PT1H",
    ).replace("TZID=Windows", "TZID=W. Europe Standard Time")
    done = load(client, content.replace("END:VCALENDAR", f"{zone}END:VCALENDAR"))
    assert (done.counts, "Nowhere is not known" in done.errors) == (
        {"CREATED": 2, "UNREADABLE": 1},
        True,
    )
    assert spans(org) == {"own": "01-07 07:00 01-07 08:00", "windows": "01-07 11:00 01-07 12:00"}


WEEKLY = f"{EVENT} RRULE:FREQ=WEEKLY;COUNT=4 EXDATE;TZID=Europe/Berlin:20300121T100000"
MOVED = (
    "UID:a RECURRENCE-ID;TZID=Europe/Berlin:20300114T100000"
    " DTSTART;TZID=Europe/Berlin:20300115T150000 DTEND;TZID=Europe/Berlin:20300115T160000"
)


def test_a_series_is_expanded(client: Client, org: Organization) -> None:
    assert load(client, calendar(MOVED, WEEKLY)).counts == {"CREATED": 3, "NOT_STORED": 1}
    assert spans(org) == {
        "a_20300107": "01-07 09:00 01-07 09:30",
        "a_20300114": "01-15 14:00 01-15 15:00",
        "a_20300128": "01-28 09:00 01-28 09:30",
    }
    assert load(client, calendar(WEEKLY, MOVED)).counts == {"UNCHANGED": 3, "NOT_STORED": 1}


def test_a_newer_series_moves_and_cancels_what_it_has_changed(
    client: Client, org: Organization
) -> None:
    plain = f"{EVENT} RRULE:FREQ=WEEKLY;COUNT=4"
    assert load(client, calendar(plain)).counts == {"CREATED": 4}
    done = load(client, calendar(WEEKLY, MOVED))
    assert done.counts == {"UNCHANGED": 2, "UPDATED": 1, "CANCELLED": 1}
    later = WEEKLY.replace("T10", "T12")
    assert load(client, calendar(later)).counts == {"UPDATED": 3, "UNCHANGED": 1}
    assert spans(org)["a_20300128"] == "01-28 11:00 01-28 11:30"
    assert load(client, calendar(f"{later} STATUS:CANCELLED")).counts["CANCELLED"] == 3
    assert spans(org) == {}


def test_occurrences_of_one_day_and_further_dates(client: Client, org: Organization) -> None:
    event = (
        f"{EVENT} RRULE:FREQ=DAILY;COUNT=2;BYHOUR=10,14 RDATE;TZID=Europe/Berlin:20300201T100000"
    )
    assert load(client, calendar(event)).counts == {"CREATED": 3}
    assert sorted(spans(org)) == ["a_20300107", "a_20300107_2", "a_20300201"]


def test_the_hour_of_a_series_is_that_of_its_zone(client: Client, org: Organization) -> None:
    event = f"{EVENT} RRULE:FREQ=MONTHLY".replace("20300107", "20300315")
    load(client, calendar(event), "--to", "2030-05-01")
    assert spans(org) == {
        "a_20300315": "03-15 09:00 03-15 09:30",
        "a_20300415": "04-15 08:00 04-15 08:30",
    }


def test_what_occupies_nothing_frees_what_an_earlier_file_booked(
    client: Client, org: Organization
) -> None:
    for gone in ("TRANSP:TRANSPARENT", "STATUS:CANCELLED"):
        load(client, calendar(EVENT))
        assert "a" in spans(org)
        assert load(client, calendar(f"{EVENT} {gone}")).counts == {"CANCELLED": 1}
        assert spans(org) == {}


def test_what_cannot_be_read_is_reported_with_its_line(client: Client, org: Organization) -> None:
    content = calendar(
        "UID:start",
        "UID:end DTSTART:20300107T100000Z DTEND:20300107T090000Z",
        "UID:often DTSTART:20300107T100000Z DURATION:PT1S RRULE:FREQ=SECONDLY",
        "UID:rule DTSTART:20300107T100000Z DURATION:PT1S RRULE:FREQ=SOMETIMES",
        "UID:date DTSTART:20301307T100000Z DURATION:PT1S",
        "UID:late DTSTART:20310107T100000Z DURATION:PT1H",
        EVENT,
        EVENT.replace("T1030", "T1045") + " SEQUENCE:1",
    )
    todo = "BEGIN:VTODO\r\nUID:todo\r\nEND:VTODO\r\n"
    truncated = "BEGIN:VEVENT\r\nUID:cut\r\nDTSTART:2030"
    done = load(client, content.replace("END:VCALENDAR\r\n", todo + truncated))
    assert done.counts == {
        "CREATED": 1, "UNREADABLE": 6, "OUTSIDE": 1, "SUPERSEDED": 1, "NOT_AN_EVENT": 1
    }  # fmt: skip
    assert spans(org) == {"a": "01-07 09:00 01-07 09:45"}
    reported = {(item["line"], item["id"]): item for item in client.report("some.ics")}
    says = {
        (4, "start"): "DTSTART is missing",
        (7, "end"): "it starts at",
        (12, "often"): "FREQ=SECONDLY is too often for appointments",
        (18, "rule"): "RRULE cannot be read",
        (24, "date"): "DTSTART cannot be read",
        (29, "late"): "it is not between --from and --to",
        (34, "a"): "the entry of line 39 has the same UID",
        (45, ""): "VTODO is no appointment",
        (48, ""): "the file ends before it does",
    }
    assert reported.keys() == says.keys()
    for key, text in says.items():
        assert reported[key]["detail"].startswith(text), reported[key]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not iCalendar: it has no BEGIN:VCALENDAR"),
        (b"id,start,end\n1,2,3\n", "not iCalendar: it has no BEGIN:VCALENDAR"),
        (calendar(EVENT).encode().replace(b"UID:a", b"UID:\xff"), "it is not UTF-8"),
        (calendar("X:" + 1024 * 1024 * "x").encode(), "the line is longer than 1024 KiB"),
        (calendar(EVENT, properties="CALSCALE:JULIAN").encode(), "the calendar scale JULIAN"),
    ],
)
def test_a_file_that_is_no_calendar(client: Client, content: bytes, says: str) -> None:
    client.write("odd.ics", content)
    done = client.run("import", "odd.ics")
    assert (done.code, done.counts) == (1, {"UNREADABLE": 1})
    assert says in done.errors


def test_an_event_without_a_uid_or_with_one_that_is_too_long(client: Client) -> None:
    content = calendar(EVENT.replace("UID:a ", ""), EVENT.replace("UID:a", "UID:" + 300 * "x"))
    content = content.replace("20300107T1", "20300108T1", 2)
    assert load(client, content).counts == {"CREATED": 2}
    assert load(client, content).counts == {"UNCHANGED": 2}


def test_a_calendar_of_an_export_is_imported_as_it_was(client: Client, org: Organization) -> None:
    client.run("import", str(PROGRAMME), "--report", "report")
    org.upsert("team, 1", 0, 30, resource_id="a; b", additional_resource_ids=["c,d"])
    assert client.run("export", "all.ics").output == "780 exported\n"
    text = (client.directory / "all.ics").read_bytes()
    assert max(map(len, text.split(b"\r\n"))) <= 75
    other = replace(client, organization=f"{client.organization} copy")
    assert other.run("import", "all.ics").counts == {"CREATED": 780}
    assert other.run("export", "again.ics").output == "780 exported\n"
    stored = Organization(org.stub, other.organization).listed(page_size=1000)
    for id, item in org.listed(page_size=1000).items():
        copy = stored[id]
        assert (copy.start, copy.end, copy.title) == (item.start, item.end, item.title)
        assert copy.resource_id == item.resource_id
        assert copy.additional_resource_ids == item.additional_resource_ids


def test_a_meeting_is_an_appointment_of_each_who_attends(client: Client, org: Organization) -> None:
    assert load(client, calendar(EVENT), "--resource", "anna").counts == {"CREATED": 1}
    assert load(client, calendar(EVENT), "--resource", "bob").counts == {"CREATED": 1}
    assert load(client, calendar(EVENT), "--resource", "anna").counts == {"UNCHANGED": 1}
    assert sorted(spans(org)) == ["anna/a", "bob/a"]


def test_copies_and_series_that_a_program_made_of_an_export(
    client: Client, org: Organization
) -> None:
    exported = f"{EVENT} X-APPOINTMENTS-ID:mine".replace("UID:a", "UID:b")
    copy = exported.replace("UID:b", "UID:c").replace("20300107", "20300109")
    assert load(client, calendar(exported, copy)).counts == {"CREATED": 2}
    assert sorted(spans(org)) == ["c", "mine"]
    series = copy.replace("20300109", "20300209") + " RRULE:FREQ=DAILY;COUNT=2"
    assert load(client, calendar(series)).counts == {"CREATED": 2}
    assert sorted(spans(org)) == ["c", "mine", "mine_20300209", "mine_20300210"]


def test_dates_that_a_series_without_a_uid_excludes(client: Client, org: Organization) -> None:
    content = calendar(WEEKLY.replace("UID:a ", ""))
    assert load(client, content).counts == {"CREATED": 3}
    assert load(client, content).counts == {"UNCHANGED": 3}
    assert len(spans(org)) == 3


def test_the_uid_is_that_of_the_calendar_of_the_gateway(client: Client, org: Organization) -> None:
    item = org.upsert("a", 0, 30).appointment
    assert uid_of(item) == served(item.organization_id, item.id)
    client.run("export", "all.ics")
    assert f"UID:{uid_of(item)}".encode() in (client.directory / "all.ics").read_bytes()
