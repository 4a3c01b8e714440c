"""Free times, webhooks and operations, and what a credential does not allow."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest
from playwright.async_api import Locator, Page, expect

from local.programs import Program
from tests.access.credentials import Keys
from tests.conftest import CreateDatabase, StartProgram
from tests.operations.place import Place
from tests.page.conftest import SATURDAY, Axe
from tests.page.screen import Screen
from tests.page.test_accessibility import PHONE
from tests.page.test_booking import ELEVEN, HALF_PAST, NOON, ONE, TEN
from tests.page.test_time_travel import travel, write_a_past
from tests.receiver import LOOPBACK, Receiver, status
from tests.rest_client import Client
from tests.webhooks.hooked import QUICK

INJECTION = "<img src=x onerror=\"document.title='owned'\">"


async def open_panel(screen: Screen, name: str) -> Locator:
    await screen.button(name).click()
    await expect(screen.page.locator("#side-title")).to_have_text(name)
    return screen.page.locator("#panel")


# Free times


async def test_a_free_time_of_a_room_is_found_and_booked(
    screen: Screen, client: Client, saturday: list[dict[str, Any]]
) -> None:
    await screen.open(date=SATURDAY, zone="Europe/Brussels")
    panel = await open_panel(screen, "Free times")
    for room in await panel.get_by_role("checkbox", checked=True).all():
        await room.uncheck()
    await panel.get_by_label("Janson").check()
    await panel.get_by_label("Minutes").fill("60")
    await panel.get_by_label("Only in opening hours").fill("Mo-Su 08:00-20:00")
    await panel.get_by_role("button", name="Find free times").click()
    slots = panel.locator(".slot")
    await expect(slots.first).to_have_text("08:00")
    found = await slots.all_inner_texts()
    zone = ZoneInfo("Europe/Brussels")
    busy = [
        (datetime.fromisoformat(talk["start"]), datetime.fromisoformat(talk["end"]))
        for talk in saturday
        if talk["resourceId"] == "Janson"
    ]
    for slot in found:
        start = datetime.fromisoformat(f"{SATURDAY}T{slot}").replace(tzinfo=zone)
        end = start + timedelta(minutes=60)
        assert not [talk for talk in busy if talk[0] < end and talk[1] > start], slot
    await slots.last.click()
    card = screen.card("new")
    await card.get_by_label("Title").fill("Cleaning")
    await card.get_by_role("button", name="Book").click()
    await expect(screen.message).to_contain_text(f"Booked “Cleaning”, Sat 4 Feb, {found[-1]}–")
    [made] = [each for each in client.stored() if each["title"] == "Cleaning"]
    assert made["resourceId"] == "Janson"
    # It is not offered any more, to anybody.
    await expect(slots.last).not_to_have_text(found[-1])


async def test_a_time_at_which_all_are_free_books_all_of_them(
    screen: Screen, client: Client
) -> None:
    client.upsert("a", resourceId="anna", start=TEN, end=ELEVEN)
    client.upsert("b", resourceId="room 1", start=ELEVEN, end=NOON)
    await screen.open()
    panel = await open_panel(screen, "Free times")
    await panel.get_by_label("anna").check()
    await panel.get_by_label("room 1").check()
    await panel.get_by_label("All of them at once").check()
    await panel.get_by_label("Minutes").fill("60")
    await panel.get_by_label("Every").select_option("60")
    await panel.get_by_label("Only in opening hours").fill("Mo 10:00-14:00")
    await panel.get_by_role("button", name="Find free times").click()
    await expect(panel.locator(".slot")).to_have_text(["12:00", "13:00"])
    # The same places are in the timeline.
    offers = screen.page.locator(".apt_event.offer")
    await expect(offers).to_have_count(2)
    await offers.first.click()
    card = screen.card("new")
    await expect(card.get_by_label("Resources")).to_have_value("anna\nroom 1")
    await card.get_by_role("button", name="Book").click()
    await expect(screen.message).to_contain_text("Booked")
    [made] = [each for each in client.stored() if each["id"] not in {"a", "b"}]
    assert (made["resourceId"], made["additionalResourceIds"]) == ("anna", ["room 1"])
    assert (made["start"], made["end"]) == (NOON, ONE)


async def test_a_free_time_of_another_day_leads_there(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN)
    await screen.open()
    panel = await open_panel(screen, "Free times")
    await panel.get_by_label("From").fill("2030-01-09")
    await panel.get_by_role("button", name="Find free times").click()
    await panel.get_by_role("button", name="Book Wed 9 Jan, 10:00–10:30, room 1").click()
    await expect(screen.page.locator("#title")).to_contain_text("9 January 2030")
    await screen.card("new").get_by_role("button", name="Book").click()
    await expect(screen.message).to_contain_text("Wed 9 Jan, 10:00–10:30")


async def test_opening_hours_that_cannot_be_read_are_named(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN)
    await screen.open()
    panel = await open_panel(screen, "Free times")
    await panel.get_by_label("Only in opening hours").fill("whenever")
    await panel.get_by_role("button", name="Find free times").click()
    await expect(panel.get_by_role("alert")).to_contain_text("openingHours")


# Webhooks


@pytest.fixture
def hooks_url(create_database: CreateDatabase) -> str:
    """A database that no other worker uses."""
    return create_database()


@pytest.fixture
def hooks_gateway(
    hooks_url: str, start_service: StartProgram, start_gateway: StartProgram
) -> Program:
    """A gateway of a service that allows webhooks on loopback."""
    service = start_service(DATABASE_URL=hooks_url, WEBHOOK_ALLOWED_NETWORKS=LOOPBACK)
    return start_gateway(SERVICE_ADDRESS=service.address)


def hook(client: Client, url: str, description: str) -> dict[str, Any]:
    body = {"organizationId": client.organization, "url": url, "description": description}
    answer = client.send(
        "POST", "/api/webhooks", json.dumps(body).encode(), Content_Type="application/json"
    )
    assert answer.status == 201, answer.json
    made: dict[str, Any] = answer.json
    return made


async def test_webhooks_show_their_state_and_are_replayed(
    page: Page,
    hooks_url: str,
    hooks_gateway: Program,
    organization: str,
    start_worker: StartProgram,
) -> None:
    client = Client(hooks_gateway, organization)
    answers = {"/broken": status(500), "/gone": status(410)}
    with Receiver(answers) as receiver:
        hooks = {
            name: hook(client, receiver.url(f"/{name}"), description)
            for name, description in (("good", "Billing"), ("broken", INJECTION), ("gone", ""))
        }
        for number in range(3):
            client.upsert(number, resourceId=f"room {number}")
        # An attempt that took too long on a loaded machine would be another one in the list.
        patient = QUICK | {"WEBHOOK_TIMEOUT": "20", "WEBHOOK_LEASE": "50"}
        start_worker(DATABASE_URL=hooks_url, **patient)
        screen = Screen(page, hooks_gateway, organization)
        await screen.open()
        panel = await open_panel(screen, "Webhooks")
        good, broken, gone = (
            panel.locator(f'[data-webhook="{each["id"]}"]') for each in hooks.values()
        )
        await expect(good.locator(".badge")).to_have_text("up to date")
        await expect(good).to_contain_text("through revision 3")
        await expect(broken.locator(".badge")).to_have_text("failing")
        await expect(broken.get_by_role("heading")).to_have_text(INJECTION)
        await expect(broken).to_contain_text("3 behind")
        await expect(broken.locator("dl")).to_contain_text("Last failure")
        await expect(broken.locator("dl")).to_contain_text("500")
        await expect(gone.locator(".badge")).to_have_text("disabled")
        await expect(gone.locator("dl")).to_contain_text("410")
        # Every attempt is in the list of deliveries.
        await good.get_by_text("Deliveries").click()
        await expect(good.locator("tbody tr td:first-child")).to_have_text(["3", "2", "1"])
        # A disabled webhook that was mended continues, with the change that is wanted.
        receiver.answers["/gone"] = status(204)
        await gone.get_by_role("button", name="Replay…").click()
        revision = gone.get_by_label("Send all changes after revision")
        await expect(revision).to_be_focused()
        await expect(revision).to_have_value("0")
        await revision.fill("1")
        await revision.press("Enter")
        await expect(screen.message).to_contain_text("The changes after revision 1 are sent")
        await expect(gone.get_by_role("button", name="Replay…")).to_be_focused()
        await expect(gone.locator(".badge")).to_have_text("up to date")
        assert receiver.revisions("/gone") == [1, 2, 3]
        # One that there is not yet is refused, with a reason.
        await gone.get_by_role("button", name="Replay…").click()
        await revision.fill("99")
        await revision.press("Enter")
        await expect(gone.get_by_role("alert")).to_contain_text("afterRevision")


# Operations


async def test_operations_that_wait_or_failed_are_shown(
    page: Page,
    place: Place,
    organization: str,
    start_gateway: StartProgram,
    start_place_worker: Callable[..., Program],
) -> None:
    gateway = start_gateway(SERVICE_ADDRESS=place.service.address)
    client = Client(gateway, organization)
    client.upsert("there", resourceId="room 1", start=TEN, end=ELEVEN)
    for id, start, end in (("taken", TEN, HALF_PAST), (INJECTION, NOON, ONE)):
        answer = client.upsert(
            id, resourceId="room 1", start=start, end=end, Prefer="respond-async"
        )
        assert answer.status == 202
    screen = Screen(page, gateway, organization)
    await screen.open()
    panel = await open_panel(screen, "Operations")
    waiting = panel.get_by_role("region", name="Waiting").locator(".operation")
    failed = panel.get_by_role("region", name="Failed").locator(".operation")
    await expect(waiting.locator("button")).to_have_text([INJECTION, "taken"])
    await expect(failed).to_have_count(0)
    start_place_worker()
    await expect(failed.locator("button")).to_have_text(["taken"])
    await expect(failed).to_contain_text("TIME_RANGE_CONFLICT")
    await expect(waiting).to_have_count(0)
    await expect(panel).to_contain_text("Nothing waits.")
    # It leads to the appointment, which there is not in this case.
    await failed.get_by_role("button").click()
    await expect(page.locator("#side-title")).to_have_text("History")
    await expect(panel.get_by_role("alert")).to_be_visible()


# Credentials, screens and their readers


async def test_a_missing_scope_is_named(
    page: Page, guarded: tuple[Keys, Program], organization: str
) -> None:
    keys, gateway = guarded
    everything = {"Authorization": f"Bearer {keys.key(organizations=[organization])}"}
    client = Client(gateway, organization)
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, **everything)
    client.upsert("a", resourceId="room 2", start=TEN, end=ELEVEN, **everything)
    screen = Screen(page, gateway, organization)
    await screen.open(live=False)
    dialog = page.get_by_role("dialog", name="Credential")
    use = dialog.get_by_role("button", name="Use")
    await dialog.get_by_label("API key or token").fill(keys.key(organizations=["another"]))
    await use.click()
    await expect(screen.message).to_contain_text("The credential is not for the organization")
    await screen.button("Credential ✓").click()
    key = keys.key(organizations=[organization], scopes=["appointments.read"])
    await dialog.get_by_label("API key or token").fill(key)
    await use.click()
    await screen.live()
    await expect(screen.message).to_have_count(0)
    for name, scope in (("Webhooks", "webhooks"), ("Operations", "appointments.write")):
        panel = await open_panel(screen, name)
        refusal = panel.get_by_role("alert").first
        await expect(refusal).to_contain_text("Your credential does not allow this.")
        await expect(refusal).to_contain_text(f"lacks the scope {scope}")
    # What it allows is shown.
    panel = await travel(screen, 1)
    await expect(panel.get_by_role("status")).to_contain_text("by grace")
    await expect(panel.get_by_role("alert")).to_have_count(0)


async def test_a_panel_is_a_sheet_below_the_timeline_on_a_phone(
    screen: Screen, client: Client
) -> None:
    write_a_past(client)
    await screen.page.set_viewport_size(PHONE)
    await screen.open()
    await travel(screen, 5)
    sheet = await screen.page.locator("#side").bounding_box()
    timeline = await screen.page.locator("#timeline").bounding_box()
    assert sheet is not None
    assert timeline is not None
    assert (sheet["x"], sheet["width"]) == (0, PHONE["width"])
    assert timeline["y"] + 60 < sheet["y"], "the past stays in sight"
    field = await screen.page.locator("#organization").bounding_box()
    assert field is not None
    assert field["width"] > PHONE["width"] / 2
    assert await screen.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert await screen.evaluate("document.querySelector('#side').scrollWidth") <= PHONE["width"]
    await screen.page.keyboard.press("Escape")
    await expect(screen.page.locator("#side")).to_be_hidden()
    await expect(screen.button("Time travel")).to_be_focused()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious_in_a_panel(
    screen: Screen, client: Client, axe: Axe, scheme: Literal["light", "dark"]
) -> None:
    await screen.page.emulate_media(color_scheme=scheme)
    write_a_past(client)
    await screen.open()
    panel = await travel(screen, 5)
    await panel.locator('[data-kind="moved"] summary').click()
    assert await axe() == []
    await panel.locator('[data-kind="moved"] li button').first.click()
    await expect(panel.locator(".version")).to_have_count(2)
    assert await axe() == []
    await open_panel(screen, "Free times")
    await panel.get_by_role("button", name="Find free times").click()
    await expect(panel.locator(".slot").first).to_be_visible()
    assert await axe() == []
    for name in ("Webhooks", "Operations"):
        await open_panel(screen, name)
        await expect(panel.locator("[aria-busy]")).to_have_count(0)
        assert await axe() == []
