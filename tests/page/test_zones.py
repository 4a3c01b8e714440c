"""Times in the zone of the browser or a chosen one, also when clocks are changed."""

from typing import Any

import pytest
from playwright.async_api import expect

from tests.page.screen import Screen
from tests.page.test_booking import ELEVEN, TEN
from tests.rest_client import Client

# Days on which the clocks of Europe/Brussels are set forward and back, and a zone of half an hour.
SPRING, AUTUMN = "2030-03-31", "2030-10-27"


async def test_the_zone_is_the_browsers_until_another_is_chosen(
    screen: Screen, client: Client
) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="Here")
    await screen.page.goto(
        f"{screen.gateway.url}/#organization={screen.organization}&date=2030-01-07"
    )
    await expect(screen.appointment("a")).to_have_accessible_name(
        "Here, Mon 7 Jan, 11:00–12:00, room 1"
    )
    await screen.page.get_by_label("Time zone").select_option("Asia/Tokyo")
    await expect(screen.appointment("a")).to_have_accessible_name(
        "Here, Mon 7 Jan, 19:00–20:00, room 1"
    )
    assert "zone=Asia%2FTokyo" in screen.page.url
    await screen.page.reload()
    await expect(screen.page.get_by_label("Time zone")).to_have_value("Asia/Tokyo")


@pytest.mark.parametrize(
    ("day", "start", "end", "shown"),
    [
        (SPRING, "00:30:00", "01:30:00", "Sun 31 Mar, 01:30–03:30"),
        (AUTUMN, "00:00:00", "01:30:00", "Sun 27 Oct, 02:00–02:30"),
    ],
)
async def test_days_of_23_and_25_hours(
    screen: Screen, client: Client, day: str, start: str, end: str, shown: str
) -> None:
    client.upsert("a", resourceId="r", start=f"{day}T{start}Z", end=f"{day}T{end}Z", title="Night")
    await screen.open(date=day, zone="Europe/Brussels")
    await expect(screen.appointment("a")).to_have_accessible_name(f"Night, {shown}, r")


async def test_wall_times_and_instants(screen: Screen) -> None:
    """What the clock shows, and which instant it means, around changes of the clock."""
    await screen.open()
    answers: list[Any] = await screen.evaluate(
        """async () => {
            const {Zone, wallText, wallOf} = await import("./page/zones.js");
            const wall = (zone, time) => wallText(new Zone(zone).wall(Date.parse(time)));
            const instant = (zone, text) =>
                new Date(new Zone(zone).instant(wallOf(text))).toISOString();
            return [
                wall("Europe/Brussels", "2030-01-07T10:00:00Z"),
                wall("Europe/Brussels", "2030-03-31T01:00:00Z"),
                wall("America/St_Johns", "2030-01-07T10:00:00Z"),
                wall("Asia/Tokyo", "0044-03-15T12:00:00Z").slice(0, 10),
                instant("Europe/Brussels", "2030-07-07T10:00"),
                instant("Europe/Brussels", "2030-10-27T02:30"),
                instant("Europe/Brussels", "2030-03-31T02:30"),
                instant("Pacific/Apia", "2011-12-29T12:00"),
            ];
        }"""
    )
    assert answers == [
        "2030-01-07T11:00:00",
        "2030-03-31T03:00:00",
        "2030-01-07T06:30:00",
        "0044-03-15",
        "2030-07-07T08:00:00.000Z",
        "2030-10-27T00:30:00.000Z",
        "2030-03-31T01:30:00.000Z",
        "2011-12-29T22:00:00.000Z",
    ]
