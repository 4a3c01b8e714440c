"""The calendar as it was, what has changed since then, and the history of one appointment."""

import asyncio
import re
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from playwright.async_api import Locator, expect

from tests.page.conftest import SATURDAY
from tests.page.screen import Screen
from tests.page.test_booking import ELEVEN, HALF_PAST, NOON, ONE, TEN, TWO
from tests.rest_client import Client

ROOM = "room 1"
PAST = 6
"""The revision after which each kind of difference to now was made."""


def write_a_past(client: Client) -> None:
    for id, start, end in (
        ("moved", TEN, HALF_PAST),
        ("renamed", HALF_PAST, ELEVEN),
        ("cancelled", NOON, ONE),
        ("gone", ONE, TWO),
        ("same", "2030-01-07T15:00:00Z", "2030-01-07T16:00:00Z"),
        ("came", "2030-01-09T15:00:00Z", "2030-01-09T16:00:00Z"),
    ):
        client.upsert(id, resourceId=ROOM, start=start, end=end, title=id, X_Actor="anna")
    client.patch("moved", {"resourceId": "room 2"}, X_Actor="bob")
    client.patch("renamed", {"title": "other"}, X_Actor="bob")
    client.call("DELETE", "/appointments/cancelled", X_Actor="bob")
    client.patch("gone", {"start": "2030-01-08T10:00:00Z", "end": "2030-01-08T11:00:00Z"})
    client.patch("came", {"start": TEN, "end": HALF_PAST})
    client.upsert("new", resourceId="room 2", start=NOON, end=ONE, title="new")


async def travel(screen: Screen, revision: int) -> Locator:
    """Show the calendar after a revision, and return the panel."""
    button = screen.button("Time travel")
    if await button.get_attribute("aria-pressed") == "false":
        await button.click()
    panel = screen.page.locator("#panel")
    field = panel.get_by_role("spinbutton", name="Revision")
    await field.fill(str(revision))
    await field.press("Enter")
    await expect(panel.get_by_role("heading", name="to now")).to_be_visible()
    return panel


def then(screen: Screen, id: str) -> Locator:
    """Return what is drawn for an appointment as it was."""
    return screen.page.locator(f'.apt_event[data-id="{id}"]:not(.ghost)')


def now(screen: Screen, id: str) -> Locator:
    """Return what is drawn beside it for the appointment as it is now."""
    return screen.page.locator(f'.apt_event.ghost[data-id="{id}"]')


async def test_the_calendar_is_shown_as_it_was_with_all_differences_to_now(
    screen: Screen, client: Client
) -> None:
    write_a_past(client)
    await screen.open()
    panel = await travel(screen, PAST)
    banner = screen.page.locator("#banner")
    await expect(banner).to_contain_text("as it was after revision 6")
    for id, kind, note, count in (
        ("moved", "moved", "moved since then", 3),
        ("renamed", "changed", "changed since then", 1),
        ("cancelled", "cancelled", "cancelled since then", 1),
        ("gone", "moved", "moved since then", 3),
    ):
        drawn = then(screen, id)
        await expect(drawn).to_contain_class(f"since-{kind}")
        # Neither a colour alone nor a picture: screen readers say it, and a symbol shows it.
        assert (await drawn.get_attribute("aria-label") or "").endswith(f", {note}")
        symbol = "getComputedStyle(element.firstElementChild, '::before').content"
        assert len(await drawn.evaluate(f"element => {symbol}")) == len('"x"')
        await expect(panel.locator(f'[data-kind="{kind}"] .count')).to_have_text(str(count))
    await expect(then(screen, "renamed")).to_have_text("renamed")
    assert "since" not in (await then(screen, "same").get_attribute("class") or "")
    # What is elsewhere or new now is drawn beside it.
    await expect(then(screen, "new")).to_have_count(0)
    await expect(now(screen, "new")).to_contain_class("since-new")
    await expect(now(screen, "moved")).to_have_count(1)
    await expect(now(screen, "came")).to_contain_class("since-moved")
    await expect(screen.page.locator(".apt_event.ghost")).to_have_count(3)
    # Those that left the day, or came from another one, were moved too.
    await panel.locator('[data-kind="moved"] summary').click()
    await expect(panel.locator('[data-kind="moved"] li')).to_have_text(
        [
            "movedMon 7 Jan, 10:00–10:30, room 1 → Mon 7 Jan, 10:00–10:30, room 2",
            "goneMon 7 Jan, 13:00–14:00, room 1 → Tue 8 Jan, 10:00–11:00, room 1",
            "cameWed 9 Jan, 15:00–16:00, room 1 → Mon 7 Jan, 10:00–10:30, room 1",
        ]
    )
    await expect(panel.locator('[data-kind="new"] .count')).to_have_text("1")
    await expect(panel.locator('[data-kind="gone"]')).to_have_count(0)
    await expect(panel.get_by_role("status")).to_contain_text("by anna")
    # Nothing can be changed there.
    await then(screen, "same").click()
    card = screen.card("details")
    await expect(card.get_by_role("button", name="History")).to_be_visible()
    await expect(card.get_by_role("button", name="Change")).to_have_count(0)
    await screen.page.keyboard.press("Escape")
    await screen.button("Back to now").click()
    await expect(banner).to_be_hidden()
    await expect(screen.appointment("renamed")).to_have_text("other")
    await expect(screen.appointment("cancelled")).to_have_count(0)
    await expect(screen.appointment("new")).to_have_count(1)


async def test_the_slider_and_the_buttons_lead_through_all_revisions(
    screen: Screen, client: Client
) -> None:
    write_a_past(client)
    await screen.open()
    await screen.button("Time travel").click()
    slider = screen.page.get_by_role("slider", name="Revision")
    await expect(slider).to_have_value("12")
    await expect(slider).to_have_attribute("aria-valuetext", "Now")
    await slider.press("Home")
    await expect(screen.page.locator("#panel")).to_contain_text("Before the first change")
    await expect(screen.page.locator(".apt_event:not(.ghost)")).to_have_count(0)
    for revision, shown in ((1, 1), (2, 2), (3, 3)):
        await screen.button("One change later").click()
        await expect(slider).to_have_attribute(
            "aria-valuetext", re.compile(rf"^Revision {revision}, ")
        )
        await expect(screen.page.locator(".apt_event:not(.ghost)")).to_have_count(shown)
    await slider.press("ArrowLeft")
    await expect(screen.page.locator("#panel").get_by_role("status")).to_contain_text(
        "Created “renamed”"
    )
    # A change of others is another difference; the past stays.
    client.patch("same", {"title": "not the same"})
    await expect(slider).to_have_attribute("max", "13")
    await expect(slider).to_have_value("2")
    await slider.press("End")
    await expect(slider).to_have_attribute("aria-valuetext", "Now")
    await expect(screen.appointment("same")).to_have_text("not the same")
    # Now is live again.
    client.patch("same", {"title": "same again"})
    await expect(screen.appointment("same")).to_have_text("same again")
    await expect(slider).to_have_value("14")


async def test_a_time_leads_to_what_was_stored_then(
    screen: Screen, client: Client, saturday: list[dict[str, Any]]
) -> None:
    zone = ZoneInfo("Europe/Brussels")
    # The field has seconds.
    await asyncio.sleep(1.1)
    before = datetime.now(UTC).replace(microsecond=0)
    await asyncio.sleep(1.1)
    client.call("DELETE", "/appointments/15059")
    await screen.open(date=SATURDAY, zone=zone.key)
    await expect(screen.appointment("15059")).to_have_count(0)
    await screen.button("Time travel").click()
    panel = screen.page.locator("#panel")
    local = before.astimezone(zone).strftime("%Y-%m-%dT%H:%M:%S")
    await panel.get_by_label("At a time").fill(local)
    await panel.get_by_label("At a time").press("Tab")
    await expect(then(screen, "15059")).to_contain_class("since-cancelled")
    slider = screen.page.get_by_role("slider", name="Revision")
    await expect(slider).to_have_value(str(len(saturday)))
    await panel.get_by_label("At a time").fill("2020-01-01T00:00:00")
    await expect(panel).to_contain_text("Before the first change")


async def test_another_day_is_shown_as_it_was_too(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId=ROOM, start=TEN, end=ELEVEN, title="Monday")
    tuesday = {"start": "2030-01-08T10:00:00Z", "end": "2030-01-08T11:00:00Z"}
    client.upsert("b", resourceId=ROOM, **tuesday, title="Tuesday")
    client.call("DELETE", "/appointments/b")
    await screen.open()
    await travel(screen, 2)
    await screen.button("Later").click()
    await expect(then(screen, "b")).to_contain_class("since-cancelled")
    await expect(then(screen, "a")).to_have_count(0)
    await screen.button("Close the panel").click()
    await expect(screen.appointment("b")).to_have_count(0)
    await expect(screen.page.locator("#banner")).to_be_hidden()
    await expect(screen.button("Time travel")).to_be_focused()


async def test_the_history_shows_who_changed_what_side_by_side(
    screen: Screen, client: Client
) -> None:
    client.upsert("a", resourceId=ROOM, start=TEN, end=ELEVEN, title="First", X_Actor="anna")
    client.patch("a", {"title": "Second", "end": NOON, "attributes": {"paid": True}}, X_Actor="bob")
    client.call("DELETE", "/appointments/a", X_Actor="carla")
    client.upsert("a", resourceId=ROOM, start=TEN, end=ELEVEN, title="Third")
    await screen.open()
    await screen.appointment("a").click()
    await screen.card("details").get_by_role("button", name="History").click()
    versions = screen.page.locator("#panel .version")
    await expect(versions.locator("h4")).to_have_text(
        [
            "4. Changedby an unnamed caller",
            "3. Cancelledby carla",
            "2. Changedby bob",
            "1. Createdby anna",
        ]
    )
    rows = versions.nth(2).locator("tbody tr")
    assert [(await row.locator("th, td").all_inner_texts()) for row in await rows.all()] == [
        ["Title", "First", "Second"],
        ["Time", "Mon 7 Jan, 10:00–11:00", "Mon 7 Jan, 10:00–12:00"],
        ["Attributes", "{}", '{"paid":true}'],
    ]
    await expect(versions.nth(1).locator("tbody tr")).to_have_text("StateACTIVECANCELLED")
    # It follows the changes, and leads to the calendar of each version.
    client.patch("a", {"title": "Fourth"}, X_Actor="dora")
    await expect(versions.locator("h4").first).to_have_text("5. Changedby dora")
    await screen.button("Show the calendar after revision 1").click()
    await expect(screen.page.locator("#banner")).to_contain_text("after revision 1,")
    await expect(then(screen, "a")).to_have_text("First")
