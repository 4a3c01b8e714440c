"""Book, hold, confirm, move, change and cancel; each against the real service."""

from datetime import UTC, datetime
from typing import Any

from playwright.async_api import expect

from tests.page.conftest import SATURDAY
from tests.page.screen import Screen
from tests.rest_client import Client

TEN, HALF_PAST, ELEVEN = (f"2030-01-07T{time}:00Z" for time in ("10:00", "10:30", "11:00"))
NOON, ONE, TWO = (f"2030-01-07T{hour}:00:00Z" for hour in (12, 13, 14))


def stored(client: Client, id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.call("GET", f"/appointments/{id}").json
    return found


async def test_a_range_is_selected_and_booked(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN)
    await screen.open()
    await screen.select("room 1", NOON, ONE)
    card = screen.card("new")
    await card.get_by_label("Title").fill("Interview")
    await card.get_by_role("button", name="Book").click()
    await expect(screen.message).to_have_text("Booked “Interview”, Mon 7 Jan, 12:00–13:00")
    await expect(card).to_have_count(0)
    [made] = [each for each in client.stored() if each["id"] != "a"]
    assert (made["title"], made["resourceId"], made["start"], made["end"]) == (
        "Interview",
        "room 1",
        NOON,
        ONE,
    )
    await expect(screen.appointment(made["id"])).to_be_visible()


async def test_a_range_is_held_and_confirmed(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN)
    await screen.open()
    await screen.select("room 1", NOON, ONE)
    card = screen.card("new")
    await card.get_by_label("Title").fill("Maybe")
    await card.get_by_label("Minutes").fill("30")
    await card.get_by_role("button", name="Hold for").click()
    await expect(screen.message).to_contain_text("Held “Maybe”")
    [made] = [each for each in client.stored() if each["id"] != "a"]
    assert made["state"] == "HELD"
    ahead = datetime.fromisoformat(made["holdUntil"]) - datetime.now(UTC)
    assert 20 * 60 < ahead.total_seconds() <= 30 * 60
    await screen.appointment(made["id"]).click()
    await screen.card("details").get_by_role("button", name="Confirm").click()
    await expect(screen.message).to_contain_text("Confirmed “Maybe”")
    assert stored(client, made["id"])["state"] == "ACTIVE"


async def test_a_talk_is_dragged_to_another_room_and_time(
    screen: Screen, client: Client, saturday: list[dict[str, Any]]
) -> None:
    before = stored(client, "15059")
    await screen.open(date=SATURDAY, zone="Europe/Brussels")
    start, end = "2023-02-04T18:00:00Z", "2023-02-04T18:25:00Z"
    await screen.move("15059", "H.1301 (Cornil)", start, end)
    await expect(screen.message).to_contain_text("Moved “Welcome to FOSDEM 2023”")
    after = stored(client, "15059")
    assert (after["resourceId"], after["start"], after["end"]) == ("H.1301 (Cornil)", start, end)
    assert after["version"] == before["version"] + 1
    assert after["attributes"] == before["attributes"], "only what was moved is written"
    await expect(screen.appointment("15059", "H.1301 (Cornil)")).to_be_visible()
    await expect(screen.appointment("15059", "Janson")).to_have_count(0)


async def test_an_appointment_is_made_longer_with_the_mouse(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="Long")
    await screen.open()
    at = await screen.place("room 1", TEN, ELEVEN)
    to = await screen.place("room 1", TEN, NOON)
    middle = at["top"] + at["height"] / 2
    await screen.drag((at["right"] - 3, middle), (to["right"] - 3, middle))
    await expect(screen.message).to_have_text("Changed “Long”, Mon 7 Jan, 10:00–12:00")
    assert stored(client, "a")["end"] == NOON


async def test_one_of_several_rooms_is_exchanged(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="anna", additionalResourceIds=["room 1"], start=TEN, end=ELEVEN)
    client.upsert("b", resourceId="room 2", start=NOON, end=ONE)
    await screen.open()
    await expect(screen.appointment("a")).to_have_count(2)
    grip = await screen.place("room 1", TEN, ELEVEN)
    to = await screen.place("room 2", TEN, ELEVEN)
    x, height = grip["left"] + 20, grip["height"] / 2
    await screen.drag((x, grip["top"] + height), (x, to["top"] + height))
    await expect(screen.message).to_contain_text("Moved")
    after = stored(client, "a")
    assert (after["resourceId"], after["additionalResourceIds"]) == ("anna", ["room 2"])
    assert (after["start"], after["end"]) == (TEN, ELEVEN)


async def test_details_are_changed_in_the_form_and_only_they_are_written(
    screen: Screen, client: Client
) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="Before")
    await screen.open()
    await screen.appointment("a").click()
    card = screen.card("details")
    await card.get_by_role("button", name="Change").click()
    await card.get_by_label("Title").fill("After")
    await card.get_by_label("To").fill("2030-01-07T11:30")
    await card.get_by_role("button", name="Save").click()
    await expect(screen.message).to_have_text("Changed “After”, Mon 7 Jan, 10:00–11:30")
    after = stored(client, "a")
    assert (after["title"], after["end"], after["version"]) == ("After", "2030-01-07T11:30:00Z", 2)


async def test_an_appointment_is_cancelled(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="Off")
    await screen.open()
    await screen.appointment("a").click()
    await screen.card("details").get_by_role("button", name="Cancel appointment").click()
    await expect(screen.message).to_contain_text("Cancelled “Off”")
    await expect(screen.appointment("a")).to_have_count(0)
    assert stored(client, "a")["state"] == "CANCELLED"


async def test_the_name_is_in_the_history(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN)
    await screen.open()
    await screen.button("Credential").click()
    await screen.page.get_by_label("Your name").fill("Zoë Ångström")
    await screen.button("Use").click()
    await screen.live()
    await screen.appointment("a").click()
    await screen.card("details").get_by_role("button", name="Cancel appointment").click()
    await expect(screen.message).to_contain_text("Cancelled")
    entries = client.call("GET", "/appointments/a/history").json["entries"]
    assert [entry["actor"] for entry in entries] == ["", "Zoë Ångström"]
