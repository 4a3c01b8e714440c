"""What the service refuses is shown where it is; what others did meanwhile is not overwritten."""

from typing import Any

from playwright.async_api import expect

from tests.page.conftest import SATURDAY
from tests.page.screen import Screen
from tests.page.test_booking import ELEVEN, HALF_PAST, NOON, ONE, TEN, stored
from tests.rest_client import Client


async def test_a_conflict_names_what_is_in_the_way_and_offers_free_times(
    screen: Screen, client: Client, saturday: list[dict[str, Any]]
) -> None:
    await screen.open(date=SATURDAY, zone="Europe/Brussels")
    at, other = "2023-02-04T10:00:00Z", "2023-02-04T10:30:00Z"
    client.upsert("mine", resourceId="a room", start=at, end=other, title="Mine")
    await expect(screen.appointment("mine")).to_be_visible()
    await screen.move("mine", "Janson", at, other)
    card = screen.card("conflict")
    await expect(card).to_contain_text("This time is taken")
    there = {"from": at, "to": other, "resourceId": "Janson"}
    in_the_way = client.call("GET", "/appointments", **there)
    assert in_the_way.json["appointments"]
    for talk in in_the_way.json["appointments"]:
        await expect(card).to_contain_text(talk["title"])
        await expect(screen.page.locator(f'.in-the-way[data-id="{talk["id"]}"]')).to_be_visible()
    assert stored(client, "mine")["resourceId"] == "a room", "nothing was written"
    await expect(screen.appointment("mine", "a room")).to_be_visible()
    # The offers are buttons of the card, and places in the timeline.
    offers = card.get_by_role("group").get_by_role("button")
    await expect(offers).to_have_count(3)
    await expect(screen.page.locator(".apt_event.offer").first).to_be_visible()
    await offers.first.click()
    await expect(screen.message).to_contain_text("Moved “Mine”")
    moved = stored(client, "mine")
    assert (moved["resourceId"], moved["version"]) == ("Janson", 2)
    await expect(screen.page.locator(".in-the-way, .offer")).to_have_count(0)


async def test_an_offer_in_the_timeline_books_it(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="There")
    await screen.open()
    await screen.button("New appointment").click()
    card = screen.card("new")
    await card.get_by_label("Title").fill("Late")
    await card.get_by_label("From").fill("2030-01-07T10:30")
    await card.get_by_label("To").fill("2030-01-07T11:30")
    await card.get_by_role("button", name="Book").click()
    await expect(screen.card("conflict")).to_contain_text("“There”, Mon 7 Jan, 10:00–11:00")
    # The first free hour from the wanted start on begins where the other one ends.
    await screen.page.locator(".apt_event.offer").first.click()
    await expect(screen.message).to_have_text("Booked “Late”, Mon 7 Jan, 11:00–12:00")
    assert {(each["start"], each["end"]) for each in client.stored()} == {
        (TEN, ELEVEN),
        (ELEVEN, NOON),
    }


async def test_a_change_under_a_drag_is_shown_and_not_overwritten(
    screen: Screen, client: Client
) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="Ours")
    client.upsert("b", resourceId="room 2", start=NOON, end=ONE)
    await screen.open()
    way = await screen.way("a", "room 2", TEN, ELEVEN)
    await screen.press(*way)
    client.patch("a", {"title": "Theirs", "end": HALF_PAST}, X_Actor="rival")
    await expect(screen.appointment("a")).to_contain_text("Theirs")
    await screen.page.mouse.up()
    card = screen.card("rival")
    await expect(card).to_contain_text("Title: Ours → Theirs")
    await expect(card).to_contain_text("Resources: room 1 → room 2")
    now = stored(client, "a")
    assert (now["version"], now["resourceId"], now["title"]) == (2, "room 1", "Theirs")
    await card.get_by_role("button", name="Apply mine to theirs").click()
    await expect(screen.message).to_contain_text("Moved “Theirs”")
    now = stored(client, "a")
    assert (now["version"], now["resourceId"], now["title"]) == (3, "room 2", "Theirs")


async def test_a_change_under_a_form_is_shown_before_anything_is_saved(
    screen: Screen, client: Client
) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="Ours")
    await screen.open()
    await screen.appointment("a").click()
    card = screen.card("details")
    await card.get_by_role("button", name="Change").click()
    await card.get_by_label("Title").fill("Mine")
    client.patch("a", {"title": "Theirs", "end": HALF_PAST}, X_Actor="rival")
    warning = card.get_by_role("alert").filter(has_text="Somebody else")
    await expect(warning).to_contain_text("Title: Ours → Theirs")
    await expect(card.get_by_role("button", name="Save")).to_be_disabled()
    await expect(card.get_by_label("Title")).to_have_value("Mine")
    await warning.get_by_role("button", name="Go on with mine").click()
    await card.get_by_role("button", name="Save").click()
    await expect(screen.message).to_contain_text("Changed “Mine”")
    now = stored(client, "a")
    assert (now["title"], now["version"]) == ("Mine", 3)


async def test_a_cancel_of_a_changed_appointment_asks_first(
    screen: Screen, client: Client, faults: list[str]
) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="Ours")
    await screen.open()
    # The page is not told of the change.
    await screen.evaluate("appointments.stream.stop()")
    await screen.appointment("a").click()
    client.patch("a", {"title": "Theirs"})
    await screen.card("details").get_by_role("button", name="Cancel appointment").click()
    await expect(screen.card("rival")).to_contain_text("Title: Ours → Theirs")
    assert stored(client, "a")["state"] == "ACTIVE"
    await screen.card("rival").get_by_role("button", name="Keep theirs").click()
    await expect(screen.appointment("a")).to_contain_text("Theirs")
