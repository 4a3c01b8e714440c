"""Import and export of CSV: columns, dialects, encodings, and files that are broken."""

from dataclasses import replace

import pytest

from tests.api import Organization
from tests.client.command import PROGRAMME, Client

HEADER = "id,start,end,title\n"
ROW = "a,2030-01-07T10:00:00Z,2030-01-07T10:30:00Z,Haircut\n"


def test_a_round_trip_of_fosdem_changes_nothing(client: Client) -> None:
    client.run("import", str(PROGRAMME), "--report", "report")
    assert client.run("export", "first.csv").output == "779 exported\n"
    assert client.run("import", "first.csv").counts == {"UNCHANGED": 779}
    other = replace(client, organization=f"{client.organization} copy")
    assert other.run("import", "first.csv").counts == {"CREATED": 779}
    other.run("export", "second.csv")
    exported = (client.directory / "first.csv").read_bytes()
    assert exported == (client.directory / "second.csv").read_bytes()
    assert exported.startswith(b"id,resourceId,title,additionalResourceIds,attributes,start,end,")


def test_every_field_makes_the_round_trip(client: Client, org: Organization) -> None:
    org.upsert(
        "full", 0, 1.5, resource_id="r", additional_resource_ids=['b"', "a,"], title='=1;"x"',
        attributes={"a": [1, None], "b": "two\nlines"},
    )  # fmt: skip
    client.run("export", "all.csv")
    assert client.run("import", "all.csv").counts == {"UNCHANGED": 1}


def test_columns_of_another_program(client: Client, org: Organization) -> None:
    client.write(
        "outlook.csv",
        '\ufeff"Subject";"Start Date";"Start Time";"End Date";"End Time";"Telephone";"Room"\r\n'
        '"Größe; ""42""";"07.01.2030";"10:00";"07.01.2030";"10:30";"0123";"r1"\r\n'
        '"Two\r\nlines";"07.01.2030";"11:00";"07.01.2030";"11:30";"";""\r\n'.encode(),
    )
    columns = (
        *("--column", "title=Subject", "--column", "start=Start Date"),
        *("--column", "start=Start Time", "--column", "end=End Date", "--column", "end=End Time"),
        *("--column", "attributes.phone=Telephone", "--column", "resourceId=Room"),
        *("--time-format", "%d.%m.%Y %H:%M"),
    )
    nowhere = client.run("import", "outlook.csv", *columns)
    assert nowhere.counts == {"UNREADABLE": 2}
    assert "name its zone by --time-zone" in nowhere.errors
    done = client.run("import", "outlook.csv", *columns, "--time-zone", "Europe/Berlin")
    assert (done.code, done.counts) == (1, {"CREATED": 1, "INVALID_FIELD": 1})
    assert client.report("outlook.csv")[0]["line"] == 3
    [stored] = org.listed().values()
    assert stored.title == 'Größe; "42"'
    assert (stored.resource_id, dict(stored.attributes)) == ("r1", {"phone": "0123"})
    assert stored.start.ToJsonString() == "2030-01-07T09:00:00Z"
    again = client.run("import", "outlook.csv", *columns, "--time-zone", "Europe/Berlin")
    assert again.counts == {"UNCHANGED": 1, "INVALID_FIELD": 1}


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_delimiter_is_found(client: Client, org: Organization, delimiter: str) -> None:
    client.write("one.csv", (HEADER + ROW).replace(",", delimiter))
    assert client.run("import", "one.csv").counts == {"CREATED": 1}
    assert org.get("a").title == "Haircut"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_an_encoding_is_named(client: Client, org: Organization, encoding: str) -> None:
    client.write("one.csv", (HEADER + ROW.replace("Haircut", "Größe")).encode(encoding))
    without = client.run("import", "one.csv")
    assert without.code in (1, 2)
    assert "add --encoding" in without.errors
    assert client.run("import", "one.csv", "--encoding", encoding).code == 0
    assert org.get("a").title == "Größe"
    assert client.run("import", "one.csv", "--encoding", "none").code == 2


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        ("", [], "no column is the start: add --column start=HEADER; the file has nothing"),
        (
            "id,begin,end\n",
            [],
            "no column is the start: add --column start=HEADER; the file has id, begin",
        ),
        ("id,start,end,end\n", [], "column end is twice in the file"),
        (HEADER, ["--column", "start=Begin"], "column Begin is not in the file, which has id, "),
        (HEADER, ["--column", "begin=start"], "write FIELD=HEADER, with one of the fields id, "),
        (HEADER, ["--column", "start"], "write FIELD=HEADER"),
        (HEADER, ["--delimiter", "long"], "--delimiter"),
    ],
)
def test_a_header_that_does_not_fit(
    client: Client, content: str, arguments: list[str], says: str
) -> None:
    client.write("odd.csv", content)
    done = client.run("import", "odd.csv", *arguments)
    assert (done.code, says in done.errors) == (2, True), done.errors


def test_every_broken_row_is_reported_and_the_others_are_imported(client: Client) -> None:
    client.write(
        "broken.csv",
        (HEADER.strip() + ",attributes\n").encode()
        + b"b,2030-01-07T10:00:00Z\n"
        + b'c,"2030"x,,,\n'
        + b"d,2030-01-08T10:00:00Z,2030-01-08T11:00:00Z,\xff,\n"
        + b"e,2030-01-08T10:00:00Z,2030-01-08T11:00:00Z,,{\n"
        + b'f,2030-01-08T10:00:00Z,2030-01-08T11:00:00Z,"two\nlines",[]\n'
        + b"g,tomorrow,2030-01-08T11:00:00Z,,\n"
        + b"h," + 1024 * 1024 * b"x" + b"\n"
        + b"\n"
        + b"a,2030-01-07T10:00:00Z,2030-01-07T10:30:00Z,Haircut,\n"
        + b'i,2030-01-07T10:00:00Z,2030-01-07T10:30:00Z,"never closed,\n',
    )  # fmt: skip
    done = client.run("import", "broken.csv")
    assert (done.code, done.counts) == (1, {"CREATED": 1, "UNREADABLE": 8})
    expected = [
        (2, "it has 2 cells, and the header has 5"),
        (3, "not CSV: "),
        (4, "title is in another encoding: add --encoding"),
        (5, 'attributes is not JSON such as {"note":"text"}'),
        (6, "attributes is not an object"),
        (8, "start: 'tomorrow' is not a time"),
        (9, "the line is longer than 1024 KiB"),
        (12, "not CSV: unexpected end of data"),
    ]
    reported = client.report("broken.csv")
    assert [item["line"] for item in reported] == [line for line, _ in expected]
    for item, (_, says) in zip(reported, expected, strict=True):
        assert item["detail"].startswith(says), item
