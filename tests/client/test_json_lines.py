"""Import and export of JSON Lines: a round trip, and files that are broken in every way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from appointments.v1 import appointment_pb2 as pb

from tests.api import Organization, soon
from tests.client.command import PROGRAMME, Client

GOOD = '{"id":"a","start":"2030-01-07T10:00:00Z","end":"2030-01-07T10:30:00Z"}'


def test_a_round_trip_of_fosdem_changes_nothing(client: Client, org: Organization) -> None:
    first = client.run("import", str(PROGRAMME), "--report", "report", "--in-flight", "1")
    assert (first.code, first.counts) == (1, {"CREATED": 779, "TIME_RANGE_CONFLICT": 1})
    [refused] = map(json.loads, (client.directory / "report").read_text().splitlines())
    assert (refused["line"], refused["id"]) == (128, "15105")
    assert [conflict["id"] for conflict in refused["conflicts"]] == ["13725"]
    assert "line 128, id 15105" in first.errors

    assert client.run("export", "first.jsonl").code == 0
    other = replace(client, organization=f"{client.organization} copy")
    assert other.run("import", "first.jsonl").counts == {"CREATED": 779}
    assert other.run("export", "second.jsonl").code == 0
    exported = (client.directory / "first.jsonl").read_bytes()
    assert exported == (client.directory / "second.jsonl").read_bytes()
    assert exported.count(b"\n") == 779

    again = client.run("import", "first.jsonl")
    assert (again.code, again.counts) == (0, {"UNCHANGED": 779})
    stored = org.listed()
    assert len(stored) == 779
    assert stored["15059"].attributes["track"] == "Keynotes"


def test_every_field_makes_the_round_trip(client: Client, org: Organization) -> None:
    org.upsert(
        "full", 0, 1.5, resource_id="r", additional_resource_ids=["b", "a"], title="Größe \u2028 1",
        attributes={"z": {"b": [1, 2.5, None, True], "a": ""}, "a": 1e300},
        created_at=soon(-100), updated_at=soon(-10),
    )  # fmt: skip
    org.upsert("held", 10, 11, hold_until=soon(3600))
    org.upsert("gone", 20, 21)
    org.cancel("gone")
    assert client.run("export", "all.jsonl", "--include-cancelled").code == 0
    other = replace(client, organization=f"{client.organization} copy")
    assert other.run("import", "all.jsonl").counts == {"CREATED": 2, "NOT_STORED": 1}
    assert other.run("export", "copy.jsonl").code == 0
    lines = (client.directory / "all.jsonl").read_text().split("\n")
    assert [json.loads(line)["id"] for line in lines[:-1]] == ["full", "held", "gone"]
    assert (client.directory / "copy.jsonl").read_text().split("\n")[:2] == lines[:2]


def test_a_cancelled_entry_cancels_what_is_stored(client: Client, org: Organization) -> None:
    client.write("one.jsonl", GOOD)
    assert client.run("import", "one.jsonl").counts == {"CREATED": 1}
    client.write("one.jsonl", GOOD.replace('"id"', '"state":"CANCELLED","id"'))
    assert client.run("import", "one.jsonl").counts == {"CANCELLED": 1}
    assert org.get("a").state == pb.Appointment.CANCELLED


def test_an_export_shows_a_past_revision(client: Client, org: Organization) -> None:
    org.upsert("a", 0, 10, title="before")
    org.upsert("a", 0, 10, title="after")
    org.upsert("b", 20, 30)
    client.run("export", "past.jsonl", "--as-of-revision", "1")
    [line] = (client.directory / "past.jsonl").read_text().splitlines()
    assert json.loads(line)["title"] == "before"
    beyond = client.run("export", "beyond.jsonl", "--as-of-revision", "4")
    assert beyond.code == 3
    assert "as_of_revision" in beyond.errors
    assert not (client.directory / "beyond.jsonl").exists()


def test_standard_input_and_output(client: Client) -> None:
    done = client.run("import", "-", stdin=GOOD.encode())
    assert (done.code, done.output) == (0, "1 CREATED\n")
    exported = client.run("export", "-")
    assert json.loads(exported.output)["id"] == "a"


def test_a_dry_run_says_what_would_happen(client: Client, org: Organization) -> None:
    org.upsert("taken", 115, 125)
    client.write("one.jsonl", GOOD + "\n" + GOOD.replace("T10", "T12").replace('"a"', '"b"'))
    done = client.run("import", "one.jsonl", "--dry-run")
    assert (done.code, done.counts) == (1, {"CREATED": 1, "TIME_RANGE_CONFLICT": 1})
    assert done.output.startswith("would be ")
    assert list(org.listed()) == ["taken"]
    assert client.report("one.jsonl")[0]["conflicts"][0]["id"] == "taken"


BROKEN: dict[str, str | bytes] = {
    "not JSON": "{",
    "not a JSON object": "[1]",
    "byte 8 is not UTF-8": b'{"id":"\xff"}',
    "Infinity is no number": '{"attributes":{"a":Infinity}}',
    "start is missing": '{"id":"b"}',
    "end is missing": '{"id":"b","start":"2030-01-01T00:00:00Z","end":null}',
    "start: 'soon' is not a time": '{"start":"soon"}',
    "start: 5 is not a time": '{"start":5}',
    "has no offset from UTC: name its zone by --time-zone": '{"start":"2030-01-01 10:00"}',
    "end: 2030-01-01T10:00 has no offset": '{"end":"2030-01-01T10:00"}',
    "field 'begin' is unknown": '{"begin":"2030-01-01T00:00:00Z"}',
    "title is not a string": '{"title":5}',
    "id is not a string": '{"id":true}',
    "attributes is not an object": '{"attributes":[]}',
    "additionalResourceIds is not a list": '{"additionalResourceIds":"b"}',
    "state 'GONE' is unknown": '{"state":"GONE"}',
    "surrogates not allowed": '{"title":"\\ud800"}',
    "too large": '{"attributes":{"a":1' + 400 * "0" + "}}",
    "while decoding a JSON array": '{"attributes":' + 400_000 * "[" + 400_000 * "]" + "}",
    "not in the years 1 to 9999": '{"start":"0001-01-01T00:00:00+10:00"}',
    "the line is longer than 1024 KiB": '{"title":"' + 1024 * 1024 * "x" + '"}',
}


def test_every_broken_line_is_reported_and_the_others_are_imported(client: Client) -> None:
    lines = [line.encode() if isinstance(line, str) else line for line in BROKEN.values()]
    client.write("broken.jsonl", b"\xef\xbb\xbf" + b"\n".join([*lines, b"", GOOD.encode()]))
    done = client.run("import", "broken.jsonl")
    assert (done.code, done.counts) == (1, {"UNREADABLE": len(BROKEN), "CREATED": 1})
    reported = client.report("broken.jsonl")
    assert [item["line"] for item in reported] == list(range(1, len(BROKEN) + 1))
    for item, expected in zip(reported, BROKEN, strict=True):
        assert (item["code"], expected in item["detail"]) == ("UNREADABLE", True), item
    assert "line 20: " in done.errors
    assert f"... the others are in {client.directory}" not in done.errors
    assert "... the others are in broken.jsonl.report.jsonl" in done.errors


def test_the_service_refuses_what_breaks_its_rules(client: Client) -> None:
    entry = json.loads(GOOD)
    client.write(
        "rules.jsonl",
        "\n".join(
            json.dumps(entry | change)
            for change in (
                {"end": entry["start"]},
                {"id": "x" * 257},
                {"title": "two\nlines"},
                {"holdUntil": "2020-01-01T00:00:00Z"},
                {"attributes": {"a": "x" * 20_000}},
            )
        ),
    )
    done = client.run("import", "rules.jsonl")
    assert (done.code, done.counts) == (1, {"INVALID_FIELD": 5})
    assert [item["line"] for item in client.report("rules.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("content", "output"),
    [("", "no entries\n"), (GOOD[:-1], "1 UNREADABLE\n"), ("\n\n", "no entries\n")],
)
def test_an_empty_and_a_truncated_file(client: Client, content: str, output: str) -> None:
    client.write("odd.jsonl", content)
    assert client.run("import", "odd.jsonl").output.startswith(output)


def test_a_line_of_100_mb_takes_no_memory(client: Client) -> None:
    path = client.directory / "long.jsonl"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(1024 * 1024 * b"x")
        file.write(b"\n" + GOOD.encode())
    process = client.start("import", "long.jsonl")
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_mib(process.pid))
    assert process.communicate()[0].startswith(b"1 CREATED, 1 UNREADABLE")
    assert 10 < peak < 120


def resident_mib(pid: int) -> int:
    """Return the memory of a process, 0 after its end."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 // 1024
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def test_times_without_an_offset_are_of_the_zone(client: Client, org: Organization) -> None:
    client.write("local.jsonl", GOOD.replace("Z", "").replace("2030-01-07", "2030-07-07"))
    assert client.run("import", "local.jsonl", "--time-zone", "Europe/Brussels").code == 0
    assert org.get("a").start.ToDatetime().hour == 8
    wrong = client.run("import", "local.jsonl", "--time-zone", "Europe")
    assert (wrong.code, "Europe is not a time zone" in wrong.errors) == (2, True)


def test_an_entry_without_an_id_gets_the_same_one_each_time(client: Client) -> None:
    client.write("no-id.jsonl", GOOD.replace('"id":"a",', ""))
    assert client.run("import", "no-id.jsonl").counts == {"CREATED": 1}
    assert client.run("import", "no-id.jsonl").counts == {"UNCHANGED": 1}


def test_the_last_entry_of_an_id_stays(client: Client, org: Organization) -> None:
    lines = [
        json.dumps({**json.loads(GOOD), "title": str(number), "id": str(number % 3)})
        for number in range(200)
    ]
    for number, line in enumerate(lines):
        entry = json.loads(line)
        day = 1 + number % 3
        entry["start"], entry["end"] = f"2030-01-0{day}T10:00:00Z", f"2030-01-0{day}T11:00:00Z"
        lines[number] = json.dumps(entry)
    client.write("same.jsonl", "\n".join(lines))
    assert client.run("import", "same.jsonl", "--batch-size", "2").code == 0
    assert [org.get(id).title for id in ("0", "1", "2")] == ["198", "199", "197"]
