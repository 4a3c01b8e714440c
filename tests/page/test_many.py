"""200 resources and 5,000 appointments in view: drawn quickly, and scrolled without stutter."""

import json
import re
import sys
from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import expect

from tests.page.screen import DAY, Screen
from tests.rest_client import Client

RESOURCES, EACH = 200, 25
START = datetime(2030, 1, 7, 6, tzinfo=UTC)
# A browser on a loaded machine draws a tenth of what it draws alone. `pytest -s` shows the figures.
MOST_SECONDS = 20.0

SCROLL = """async () => {
    const {scroller} = appointments.calendar;
    scroller.scrollTop = 0;
    const times = [];
    for (let last = performance.now();;) {
        await new Promise(requestAnimationFrame);
        const now = performance.now();
        times.push(now - last);
        last = now;
        const before = scroller.scrollTop;
        scroller.scrollTop += 40;
        if (scroller.scrollTop === before) break;
    }
    times.sort((one, other) => one - other);
    return {
        frames: times.length,
        mean: times.reduce((sum, time) => sum + time) / times.length,
        worst: times[Math.floor(times.length * 0.95)],
    };
}"""


def fill(client: Client) -> None:
    """Book 25 appointments of three hours for each of 200 rooms in a week."""
    requests = [
        {
            "appointment": {
                "organizationId": client.organization,
                "id": f"{room}-{number}",
                "resourceId": f"room {room}",
                "title": f"Appointment {number}",
                "start": (START + timedelta(hours=6.5 * number)).isoformat(),
                "end": (START + timedelta(hours=6.5 * number + 3)).isoformat(),
            }
        }
        for room in range(RESOURCES)
        for number in range(EACH)
    ]
    for first in range(0, len(requests), 1000):
        body = json.dumps({"requests": requests[first : first + 1000]}).encode()
        path = "/api/appointments:batchUpsert"
        answer = client.send("POST", path, body, Content_Type="application/json")
        assert {result["outcome"] for result in answer.json["results"]} == {"CREATED"}


@pytest.mark.timeout(600)
async def test_five_thousand_appointments_are_drawn_and_scrolled(
    screen: Screen, client: Client
) -> None:
    fill(client)
    await screen.open(view="week", date=DAY)
    first = await screen.evaluate("performance.getEntriesByName('first appointments')[0].startTime")
    await screen.until(f"appointments.store.appointments.size === {RESOURCES * EACH}")
    scrolled = await screen.evaluate(SCROLL)
    sys.stdout.write(
        f"\nfirst appointments after {first / 1000:.2f} s; {1000 / scrolled['mean']:.0f} frames a"
        f" second, 19 of 20 within {scrolled['worst']:.0f} ms\n"
    )
    # Only what is on the screen is drawn, so the costs do not grow with what is stored.
    assert await screen.page.locator(".apt_event").count() < 1500
    assert first / 1000 < MOST_SECONDS
    last = screen.page.locator(".apt_rowheader_inner_text", has_text="room 199")
    await expect(last).to_be_in_viewport()
    await expect(screen.appointment("199-3")).to_be_in_viewport()
    client.patch("199-3", {"title": "Renamed"})
    await expect(screen.appointment("199-3")).to_have_accessible_name(re.compile("^Renamed,"))
