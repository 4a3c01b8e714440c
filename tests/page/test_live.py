"""Changes of others appear without a reload; a lost connection is shown, and mended by itself."""

import statistics
import sys
import time
from datetime import UTC, datetime, timedelta

from playwright.async_api import expect

from local.programs import Program
from local.rabbitmq import free_ports
from tests.conftest import StartProgram
from tests.observing import until
from tests.page.screen import Screen
from tests.page.test_booking import ELEVEN, HALF_PAST, NOON, ONE, TEN
from tests.rest_client import Client

# Notes when each title is on the screen: with the picture after the one that draws it.
WATCH = """() => {
    globalThis.seen = new Map();
    new MutationObserver(() => {
        const { textContent: title } = document.querySelector('.apt_event[data-id="a"]') ?? {};
        requestAnimationFrame(() => requestAnimationFrame(() => {
            if (title && !seen.has(title)) seen.set(title, Date.now());
        }));
    }).observe(document.querySelector("#timeline"), {childList: true, subtree: true});
}"""
CHANGES = 20


async def test_how_long_a_change_of_others_takes_to_be_seen(screen: Screen, client: Client) -> None:
    """`pytest -s` shows the figures. On a loaded machine they are those of the machine."""
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="First")
    await screen.open()
    await expect(screen.appointment("a")).to_have_text("First")
    await screen.evaluate(WATCH)
    sent = {}
    for number in range(CHANGES):
        title = f"Change {number}"
        sent[title] = time.time()
        client.patch("a", {"title": title})
        await expect(screen.appointment("a")).to_have_text(title)
    await screen.until(f"seen.size === {CHANGES}")
    seen = dict(await screen.evaluate("[...seen]"))
    took = sorted(seen[title] / 1000 - time for title, time in sent.items())
    median, last = statistics.median(took), took[-1]
    sys.stdout.write(
        f"\na change of others is on the screen {1000 * median:.0f} ms after it was sent (median of"
        f" {CHANGES}; {1000 * took[0]:.0f} to {1000 * last:.0f} ms)\n"
    )
    assert 0 < median < 5, "nobody polls"


# Counts the pictures, and those without an appointment. An observer of sizes is called last before
# a picture, so something changes its size in each one.
PICTURES = """() => {
    globalThis.pictures = {all: 0, without: 0};
    const probe = document.body.appendChild(document.createElement("div"));
    probe.style.position = "fixed";
    new ResizeObserver(() => {
        pictures.all += 1;
        if (!document.querySelector('.apt_event[data-id="a"]')) pictures.without += 1;
    }).observe(probe);
    (function grow() {
        probe.style.width = `${pictures.all % 2}px`;
        requestAnimationFrame(grow);
    })();
}"""


async def test_changes_of_others_appear_without_a_reload_and_without_flicker(
    screen: Screen, client: Client
) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="First")
    await screen.open()
    await expect(screen.appointment("a")).to_be_visible()
    await screen.evaluate(PICTURES)
    client.upsert("b", resourceId="room 1", start=NOON, end=ONE, title="Second")
    await screen.appointment("b").wait_for()
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
    client.patch("a", {"title": "Still there"})
    await expect(screen.appointment("a")).to_have_text("Still there")
    pictures = await screen.evaluate("pictures")
    assert pictures["all"] > 0
    assert pictures["without"] == 0


async def test_a_hold_that_expires_disappears(
    screen: Screen, client: Client, worker: Program
) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, holdUntil=later.isoformat())
    await screen.open()
    await expect(screen.appointment("a")).to_be_visible()

    def expires_soon() -> bool:
        """Return whether that is stored. On a loaded machine it may be past by then."""
        soon = datetime.now(UTC) + timedelta(seconds=1)
        return client.patch("a", {"holdUntil": soon.isoformat()}).status == 200

    until(expires_soon)
    await expect(screen.appointment("a")).to_have_count(0)


async def test_a_lost_connection_is_shown_and_mended_without_missing_anything(
    screen: Screen,
    organization: str,
    start_gateway: StartProgram,
    client: Client,
    faults: list[str],
) -> None:
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, title="Before")
    [port] = free_ports(1)
    front = start_gateway(GATEWAY_PORT=str(port))
    lost = Screen(screen.page, front, organization)
    await lost.open()
    await expect(lost.appointment("a")).to_be_visible()
    front.stop()
    state = lost.page.locator("#state")
    await expect(state).to_have_text("Connection lost, trying again")
    client.patch("a", {"title": "Meanwhile"})
    client.upsert("b", resourceId="room 1", start=NOON, end=ONE)
    start_gateway(GATEWAY_PORT=str(port))
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
