"""The page in a browser, as a person uses it."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from playwright.async_api import Locator, Page, expect

from local.programs import Program

PATIENCE = 30_000
"""Milliseconds. A loaded machine is slow."""
DAY = "2030-01-07"

expect.set_options(timeout=PATIENCE)


@dataclass(frozen=True, slots=True)
class Screen:
    """A page that shows one organization."""

    page: Page
    gateway: Program
    organization: str

    async def open(
        self, *, date: str = DAY, view: str = "day", zone: str = "UTC", live: bool = True
    ) -> None:
        """Open the calendar, and wait until it is drawn and follows the changes."""
        shown = {"organization": self.organization, "view": view, "date": date, "zone": zone}
        await self.page.goto(f"{self.gateway.url}/#{urlencode(shown)}")
        if live:
            await self.live()

    async def live(self) -> None:
        await expect(self.page.locator("#state")).to_have_attribute("data-state", "live")

    def appointment(self, id: str, resource: str | None = None) -> Locator:
        """Return what is drawn for an appointment, in all of its rows or in one."""
        if resource is None:
            return self.page.locator(f'.apt_event[data-id="{id}"]')
        event = json.dumps([id, resource], separators=(",", ":"), ensure_ascii=False)
        return self.page.locator(f".apt_event[data-event={json.dumps(event)}]")

    def card(self, name: str) -> Locator:
        return self.page.locator(f'[data-card="{name}"]')

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def message(self) -> Locator:
        """The latest message."""
        return self.page.locator("#messages .message").last

    async def place(self, resource: str, start: str, end: str) -> dict[str, float]:
        """Return where a range of a row is on the screen. Times are RFC 3339."""
        found: dict[str, float] = await self.page.evaluate(
            """([resource, start, end]) => {
                const place = {resource, start: Date.parse(start), end: Date.parse(end)};
                return appointments.calendar.rectangle(place).toJSON();
            }""",
            [resource, start, end],
        )
        return found

    async def drag(self, *points: tuple[float, float]) -> None:
        """Press at the first point, move to all others and release at the last."""
        await self.press(*points)
        await self.page.mouse.up()

    async def press(self, *points: tuple[float, float]) -> None:
        """Press at the first point and move to all others."""
        mouse = self.page.mouse
        await mouse.move(*points[0])
        await mouse.down()
        for point in points[1:]:
            await mouse.move(*point, steps=6)

    async def select(self, resource: str, start: str, end: str) -> None:
        """Select a free range with the mouse."""
        at = await self.place(resource, start, end)
        middle = at["top"] + at["height"] / 2
        await self.drag((at["left"] + 1, middle), (at["right"], middle))

    async def move(self, id: str, resource: str, start: str, end: str) -> None:
        """Drag an appointment to a row and a time."""
        await self.drag(*await self.way(id, resource, start, end))

    async def way(
        self, id: str, resource: str, start: str, end: str
    ) -> Sequence[tuple[float, float]]:
        """Return the points of a drag that moves an appointment."""
        box = await self.appointment(id).first.bounding_box()
        assert box is not None
        at = await self.place(resource, start, end)
        grip = min(12, box["width"] / 2)
        from_ = (box["x"] + grip, box["y"] + box["height"] / 2)
        return [from_, (at["left"] + grip, at["top"] + at["height"] / 2)]

    async def until(self, condition: str) -> None:
        """Wait for a condition. The page's policy forbids Playwright's `wait_for_function`."""
        while not await self.page.evaluate(condition):  # noqa: ASYNC110  it is in another process
            await asyncio.sleep(0.02)

    async def evaluate(self, script: str, *arguments: Any) -> Any:
        return await self.page.evaluate(script, *arguments)
