"""Availability by REST: query parameters, and the JSON of the response."""

import gzip
from urllib.parse import urlencode

import pytest

from tests.rest_client import Answer, Client

DAY = {"from": "2030-01-07T00:00:00Z", "to": "2030-01-08T00:00:00Z"}


def query(client: Client, **parameters: str | list[str]) -> Answer:
    headers = {name: str(parameters.pop(name)) for name in list(parameters) if name[0].isupper()}
    every = {"organizationId": client.organization, **parameters}
    return client.send("GET", f"/api/availability?{urlencode(every, doseq=True)}", None, **headers)


def test_all_parameters(client: Client) -> None:
    client.upsert("a", resourceId="r")
    client.upsert("b", resourceId="s", start="2030-01-07T09:00:00Z", end="2030-01-07T09:30:00Z")

    answer = query(
        client,
        **DAY,
        resourceId=["r", "s"],
        openingHours=["Mo 09:00-11:00", "Mo 14:00-15:00"],
        timeZone="Europe/Berlin",
        match="EACH",
        duration="1800s",
        granularity="900.0s",
        bufferBefore="600s",
        bufferAfter="0s",
        minRevision="2",
    )

    assert answer.status == 200
    assert answer.headers["Organization-Revision"] == "2"
    assert answer.json == {
        "resources": [
            {
                "resourceId": "r",
                "busy": [{"start": "2030-01-07T08:00:00Z", "end": "2030-01-07T08:30:00Z"}],
                "free": [
                    {"start": "2030-01-07T08:40:00Z", "end": "2030-01-07T10:00:00Z"},
                    {"start": "2030-01-07T13:00:00Z", "end": "2030-01-07T14:00:00Z"},
                ],
                "starts": [
                    "2030-01-07T08:45:00Z",
                    "2030-01-07T09:00:00Z",
                    "2030-01-07T09:15:00Z",
                    "2030-01-07T09:30:00Z",
                    "2030-01-07T13:00:00Z",
                    "2030-01-07T13:15:00Z",
                    "2030-01-07T13:30:00Z",
                ],
            },
            {
                "resourceId": "s",
                "busy": [{"start": "2030-01-07T09:00:00Z", "end": "2030-01-07T09:30:00Z"}],
                "free": [
                    {"start": "2030-01-07T08:00:00Z", "end": "2030-01-07T09:00:00Z"},
                    {"start": "2030-01-07T13:00:00Z", "end": "2030-01-07T14:00:00Z"},
                ],
                "starts": [
                    "2030-01-07T08:00:00Z",
                    "2030-01-07T08:15:00Z",
                    "2030-01-07T08:30:00Z",
                    "2030-01-07T13:00:00Z",
                    "2030-01-07T13:15:00Z",
                    "2030-01-07T13:30:00Z",
                ],
            },
        ],
        "moreStarts": False,
        "revision": "2",
    }


def test_all_resources_together_have_no_id(client: Client) -> None:
    client.upsert("a", resourceId="r")
    answer = query(client, **DAY, resourceId=["r", ""], match="ALL")
    assert answer.json["resources"] == [
        {
            "busy": [{"start": "2030-01-07T08:00:00Z", "end": "2030-01-07T08:30:00Z"}],
            "free": [
                {"start": "2030-01-07T00:00:00Z", "end": "2030-01-07T08:00:00Z"},
                {"start": "2030-01-07T08:30:00Z", "end": "2030-01-08T00:00:00Z"},
            ],
            "starts": [],
        }
    ]


def test_a_large_response_is_complete_however_it_is_sent(client: Client) -> None:
    """It is rendered and compressed in other threads, and kept."""
    parameters: dict[str, str | list[str]] = {
        "from": DAY["from"],
        "to": "2031-01-07T00:00:00Z",
        "resourceId": [f"r{number}" for number in range(20)],
        "openingHours": "Mo-Fr 09:00-17:00",
        "timeZone": "UTC",
    }
    client.upsert("a", resourceId="r3", start="2030-01-08T10:00:00Z", end="2030-01-08T10:30:00Z")
    plain = query(client, **parameters)
    for _ in range(2):
        packed = query(client, **parameters, Accept_Encoding="gzip")
        assert packed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed.content) == plain.content
    assert len(plain.content) > 300_000
    free = [each["free"] for each in plain.json["resources"]]
    assert [len(each) for each in free] == [261] * 3 + [262] + [261] * 16
    assert free[3][1:3] == [
        {"start": "2030-01-08T09:00:00Z", "end": "2030-01-08T10:00:00Z"},
        {"start": "2030-01-08T10:30:00Z", "end": "2030-01-08T17:00:00Z"},
    ]


@pytest.mark.parametrize(
    ("parameter", "value", "detail"),
    [
        ("duration", "1800", "must be a duration in seconds, such as 1800s or 0.5s"),
        ("duration", "PT30M", "must be a duration in seconds, such as 1800s or 0.5s"),
        ("duration", "0s", "must be positive"),
        ("duration", "99999999999999s", "must be a duration of at most 315,576,000,000 s"),
        ("bufferBefore", "-0.5s", "must not be negative"),
        ("match", "each", "must be one of EACH, ALL"),
        ("timeZone", "Berlin", "must be the name of an IANA time zone, such as Europe/Berlin"),
        ("openingHours", "", "must not be empty"),
        ("openingHours", "Mo-Fri 09:00-17:00", "Fri is not a day: Mo, Tu, We, Th, Fr, Sa or Su"),
    ],
)
def test_an_invalid_parameter_is_named(
    client: Client, parameter: str, value: str, detail: str
) -> None:
    answer = query(client, **{"resourceId": "r", "timeZone": "UTC", **DAY, parameter: value})
    assert answer.status == 400
    [error] = answer.json["errors"]
    assert (error["field"].removesuffix("[0]"), error["detail"]) == (parameter, detail)


def test_opening_hours_that_name_no_days_are_told_how_to_be_always_open(client: Client) -> None:
    wanted = {"resourceId": "r", "timeZone": "UTC", **DAY}
    [error] = query(client, **wanted, openingHours="24/7").json["errors"]
    assert error["detail"].endswith("; Mo-Su is always open")
    assert query(client, **wanted, openingHours="Mo-Su").status == 200


def test_what_is_required_is_named(client: Client) -> None:
    answer = query(client)
    assert answer.status == 400
    assert answer.fields == {"from", "to", "resourceId"}
