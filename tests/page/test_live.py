"""Changes of others appear without a reload; a lost connection is shown, and mended by itself."""

import time

from playwright.async_api import expect

from local.programs import Program
from tests.conftest import StartProgram
from tests.page.screen import Screen
from tests.page.test_booking import ELEVEN, HALF_PAST, NOON, ONE, TEN
from tests.rest_client import Client


async def test_changes_of_others_appear_within_a_second(screen: Screen, client: Client) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="First")
    await screen.open()
    untouched = await screen.appointment("a").element_handle()
    started = time.monotonic()
    client.upsert("b", resourceId="room 1", start=NOON, end=ONE, title="Second")
    await screen.appointment("b").wait_for()
    took = time.monotonic() - started
    assert took < 5, "a loaded machine is slow; nobody polls anyway"
    client.patch("b", {"title": "Renamed"})
    await expect(screen.appointment("b")).to_have_text("Renamed")
    client.upsert("c", resourceId="room 2", start=TEN, end=ELEVEN, title="Another row")
    await expect(screen.page.locator(".apt_rowheader_inner_text")).to_have_text(
        ["room 1", "room 2"]
    )
    client.call("DELETE", "/appointments/b")
    await expect(screen.appointment("b")).to_have_count(0)
    client.patch("c", {"start": "2031-01-07T10:00:00Z", "end": "2031-01-07T11:00:00Z"})
    await expect(screen.appointment("c")).to_have_count(0)
    assert untouched is not None
    await expect(screen.appointment("a")).to_have_text("First")


async def test_a_hold_that_expires_disappears(
    screen: Screen, client: Client, worker: Program
) -> None:
    await screen.open()
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, holdUntil=soon)
    await expect(screen.appointment("a")).to_be_visible()
    await expect(screen.appointment("a")).to_have_count(0)


async def test_a_lost_connection_is_shown_and_mended_without_missing_anything(
    screen: Screen,
    organization: str,
    start_gateway: StartProgram,
    client: Client,
    faults: list[str],
) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="Before")
    front = start_gateway()
    lost = Screen(screen.page, front, organization)
    await lost.open()
    await expect(lost.appointment("a")).to_be_visible()
    front.stop()
    state = lost.page.locator("#state")
    await expect(state).to_have_text("Connection lost, trying again")
    client.patch("a", {"title": "Meanwhile"})
    client.upsert("b", resourceId="room 1", start=NOON, end=ONE)
    start_gateway(GATEWAY_PORT=str(front.port))
    await lost.live()
    await expect(lost.appointment("a")).to_have_text("Meanwhile")
    await expect(lost.appointment("b")).to_be_visible()
    # What the browser says of the connection itself.
    faults[:] = [fault for fault in faults if "Failed to load resource" not in fault]


async def test_the_page_begins_again_where_the_database_was_restored(
    screen: Screen, client: Client
) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=HALF_PAST, title="Here")
    await screen.open()
    # A stream that has seen later revisions than there are is told to begin again.
    await screen.evaluate("appointments.store.appointments.get('a').title = 'Stale'")
    await screen.evaluate("appointments.calendar.draw()")
    await expect(screen.appointment("a")).to_have_text("Stale")
    await screen.evaluate("appointments.stream.start('99')")
    await expect(screen.appointment("a")).to_have_text("Here")
    client.upsert("b", resourceId="room 1", start=NOON, end=ONE)
    await expect(screen.appointment("b")).to_be_visible()
