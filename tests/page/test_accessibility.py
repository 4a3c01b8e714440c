"""Screen readers, the keyboard, a phone's width, dark mode."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from playwright.async_api import expect

from tests.page.conftest import SATURDAY, Axe
from tests.page.screen import DAY, Screen
from tests.page.test_booking import ELEVEN, NOON, ONE, TEN, stored
from tests.rest_client import Client

PHONE: Any = {"width": 390, "height": 780}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious(
    screen: Screen,
    client: Client,
    saturday: list[dict[str, Any]],
    axe: Axe,
    scheme: Literal["light", "dark"],
) -> None:
    await screen.page.emulate_media(color_scheme=scheme)
    start, end = f"{SATURDAY}T18:00:00Z", f"{SATURDAY}T18:30:00Z"
    held = datetime.now(UTC) + timedelta(hours=1)
    hold = {"start": start, "end": end, "holdUntil": held.isoformat()}
    assert client.upsert("h", resourceId="Janson", **hold).status == 201
    await screen.open(date=SATURDAY, zone="Europe/Brussels")
    await expect(screen.appointment("15059")).to_be_attached()
    assert await axe() == []
    await screen.appointment("h").click()
    await expect(screen.card("details")).to_be_visible()
    assert await axe() == []
    await screen.card("details").get_by_role("button", name="Change").click()
    assert await axe() == []
    await screen.page.keyboard.press("Escape")
    await screen.move("h", "Janson", f"{SATURDAY}T14:00:00Z", f"{SATURDAY}T15:00:00Z")
    await expect(screen.card("conflict")).to_be_visible()
    assert await axe() == []
    await screen.page.keyboard.press("Escape")
    await screen.button("Credential").click()
    assert await axe() == []


async def test_everything_is_done_with_the_keyboard(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="First")
    client.upsert("b", resourceId="room 1", start=NOON, end=ONE, title="Second")
    client.upsert("c", resourceId="room 2", start=NOON, end=ONE, title="Below")
    await screen.open()
    page, press = screen.page, screen.page.keyboard.press
    await expect(screen.appointment("c")).to_be_attached()
    # One of the appointments is reached by Tab, the others by arrows.
    await expect(page.locator('.apt_event[tabindex="0"]')).to_have_count(1)
    await screen.button("New appointment").focus()
    await press("Tab")
    focused = page.locator(":focus")
    await expect(focused).to_have_attribute("data-id", "a")
    for key, id in (
        ("ArrowRight", "b"),
        ("ArrowRight", "b"),
        ("ArrowDown", "c"),
        ("ArrowUp", "b"),
        ("Home", "a"),
        ("End", "b"),
    ):
        await press(key)
        await expect(focused).to_have_attribute("data-id", id)
    await expect(focused).to_have_accessible_name("Second, Mon 7 Jan, 12:00–13:00, room 1")
    # The focus survives a change of others.
    client.patch("b", {"title": "Renamed"})
    await expect(focused).to_have_accessible_name("Renamed, Mon 7 Jan, 12:00–13:00, room 1")
    await press("Enter")
    card = screen.card("details")
    await expect(card).to_be_visible()
    await card.get_by_role("button", name="Change").press("Enter")
    await expect(card.get_by_label("Title")).to_be_focused()
    await card.get_by_label("Title").fill("Third")
    await press("Enter")
    await expect(screen.message).to_contain_text("Changed “Third”")
    assert stored(client, "b")["title"] == "Third"
    await screen.appointment("a").focus()
    await press("Enter")
    await press("Escape")
    await expect(screen.card("details")).to_have_count(0)
    await expect(focused).to_have_attribute("data-id", "a")


async def test_it_fits_a_phone(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="Small")
    evening, night = "2030-01-06T20:00:00Z", "2030-01-07T02:00:00Z"
    client.upsert("b", resourceId="room 2", start=evening, end=night, title="Before")
    await screen.page.set_viewport_size(PHONE)
    await screen.open(date=DAY)
    # It opens where the first one of the day begins.
    await expect(screen.appointment("a")).to_be_in_viewport()
    await expect(screen.page.locator("#state")).to_be_in_viewport()
    wide = await screen.evaluate("document.documentElement.scrollWidth")
    assert wide <= PHONE["width"]
    timeline = await screen.page.locator("#timeline").bounding_box()
    assert timeline is not None
    assert timeline["height"] > PHONE["height"] * 0.8, "most of it is the calendar"
    for hidden in ("Week", "Zoom in", "Credential"):
        await expect(screen.button(hidden)).to_be_hidden()
    await screen.button("More settings").click()
    await screen.button("Week").click()
    await expect(screen.page.locator(".apt_timeheadergroup_inner")).to_have_count(7)
    await screen.button("Day").click()
    await screen.button("More settings").click()
    await expect(screen.button("Week")).to_be_hidden()
    await expect(screen.appointment("a")).to_be_in_viewport()
    wide = await screen.evaluate("document.documentElement.scrollWidth")
    assert wide <= PHONE["width"]
    await screen.appointment("a").click()
    card = await screen.card("details").bounding_box()
    assert card is not None
    assert (card["x"], card["width"]) == (0, PHONE["width"])
    await screen.card("details").get_by_role("button", name="Cancel appointment").click()
    await expect(screen.message).to_contain_text("Cancelled “Small”")


async def test_the_theme_is_the_systems_or_the_chosen_one(screen: Screen) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    await screen.open()
    light = await screen.evaluate(background)
    await screen.page.emulate_media(color_scheme="dark")
    dark = await screen.evaluate(background)
    assert light != dark
    await screen.button("Light or dark").click()
    assert await screen.evaluate(background) == light
    await screen.page.reload()
    await screen.live()
    assert await screen.evaluate(background) == light
