"""`make pictures`: the pictures of the page in the README, with the programme of FOSDEM.

A picture is a function that brings the page to what is to be seen.
"""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.async_api import Browser, ViewportSize, async_playwright, expect
from rich.console import Console

from demo import fosdem
from local.postgres import EmbeddedPostgres
from local.programs import ROOT, Program
from local.stack import ANY_PORT, running
from tests.page.screen import Screen
from tests.page.test_time_travel import travel
from tests.rest_client import Client

SIZE: ViewportSize = {"width": 1200, "height": 640}
COLOURS = 224
"""In a picture. They make it small, and nobody sees the difference."""


async def light(screen: Screen) -> None:
    """A conflict, with what is in the way and free times."""
    await screen.open(date="2023-02-04", zone="Europe/Brussels")
    # The programme's own double booking: a cancelled talk that was left in its place.
    await screen.button("New appointment").click()
    card = screen.card("new")
    await card.get_by_label("Title").fill("LLVM round table")
    await card.get_by_label("Resources").fill("AW1.120")
    await card.get_by_label("From").fill("2023-02-04T15:50")
    await card.get_by_label("To").fill("2023-02-04T16:20")
    await card.get_by_role("button", name="Book").click()
    await expect(screen.card("conflict")).to_be_visible()
    await expect(screen.page.locator(".apt_event.offer").first).to_be_visible()


async def time_travel(screen: Screen) -> None:
    """A morning before the programme was changed, with what is different now."""
    client = Client(screen.gateway, screen.organization)
    revision = int(client.call("GET", "/appointments", pageSize=1).json["revision"])
    moved = {"resourceId": "AW1.120", "start": "2023-02-04 13:20", "end": "2023-02-04 13:50"}
    changes = (
        client.patch("14567", moved, X_Actor="anna"),
        client.patch("14486", {"title": "Verified root file systems"}, X_Actor="bob"),
        client.call("DELETE", "/appointments/13944", X_Actor="carla"),
        client.patch("14183", {"start": "2023-02-05 16:00", "end": "2023-02-05 16:30"}),
        client.upsert(
            "lunch",
            resourceId="D.research",
            start="2023-02-04 11:00",
            end="2023-02-04 12:00",
            title="Speakers’ lunch",
            X_Actor="anna",
        ),
    )
    assert {change.status for change in changes} <= {200, 201}
    await screen.open(date="2023-02-04", zone="Europe/Brussels")
    await travel(screen, revision)
    await screen.page.locator('[data-kind="moved"] summary').click()


PICTURES: dict[str, Callable[[Screen], Awaitable[None]]] = {
    "page-light": light,
    "page-time-travel": time_travel,
}


async def take(gateway: Program) -> None:
    """Take all pictures."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        for name, arrange in PICTURES.items():
            path = ROOT / "docs" / f"{name}.png"
            path.write_bytes(await picture(browser, gateway, arrange))
        await browser.close()


async def picture(
    browser: Browser, gateway: Program, arrange: Callable[[Screen], Awaitable[None]]
) -> bytes:
    """Return a picture as PNG."""
    page = await browser.new_page(viewport=SIZE, locale="en-GB", reduced_motion="reduce")
    await arrange(Screen(page, gateway, fosdem.ORGANIZATION))
    taken = Image.open(BytesIO(await page.screenshot(animations="disabled")))
    await page.close()
    small = BytesIO()
    taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True
    )
    return small.getvalue()


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="appointments-") as directory,
        running(
            postgres=EmbeddedPostgres(Path(directory) / "postgres"), settings=ANY_PORT
        ) as stack,
    ):
        fosdem.load(stack.service.address, fosdem.ORGANIZATION, Console(quiet=True))
        asyncio.run(take(stack.gateway))


if __name__ == "__main__":
    main()
