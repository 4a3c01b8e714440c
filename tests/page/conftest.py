"""A real Chromium, the real service, and the programme of FOSDEM."""

import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import (
    Browser,
    BrowserContext,
    Page,
    ViewportSize,
    async_playwright,
)

from demo.fosdem import PROGRAMME
from local.programs import Program
from tests.access.credentials import Keys
from tests.clients import conftest as clients
from tests.conftest import CreateDatabase, StartProgram
from tests.page.screen import PATIENCE, Screen
from tests.rest_client import Client

SATURDAY = "2023-02-04"
ROOMS = ("Janson", "K.1.105 (La Fontaine)", "H.1301 (Cornil)")
Axe = Callable[[], Awaitable[list[str]]]

# Node.js, the compiler that checks types, and axe-core.
tools = clients.tools

# A loaded machine may look at a message when its six seconds are over.
LASTING_MESSAGES = """{
    const later = setTimeout;
    globalThis.setTimeout = (work, pause, ...rest) =>
        later(work, pause === 6000 ? 3_600_000 : pause, ...rest);
}"""

VIEWPORT: ViewportSize = {"width": 1280, "height": 800}


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, which all tests share; each has a context of its own."""
    chromium = shutil.which("chromium")
    if chromium is None and not os.environ.get("CI"):
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox"],  # root has none
        )
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    context = await browser.new_context(
        viewport=VIEWPORT, locale="en-GB", timezone_id="Europe/Brussels", reduced_motion="reduce"
    )
    context.set_default_timeout(PATIENCE)
    await context.add_init_script(LASTING_MESSAGES)
    yield context
    await context.close()


@pytest.fixture
def faults() -> list[str]:
    """What the page reports of itself: errors, and what its policy blocks. A test may clear it."""
    return []


@pytest.fixture
async def page(context: BrowserContext, faults: list[str]) -> AsyncIterator[Page]:
    """A page. The test fails if it reports an error, or asks another host for anything."""
    page = await context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: (
            faults.append(message.text)
            if message.type == "error" and "status of 4" not in message.text
            else None
        ),
    )
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.partition("/#")[0].split("/")[2]))
    yield page
    assert not faults
    assert len(hosts) <= 1, hosts


@pytest.fixture
def client(gateway: Program, organization: str) -> Client:
    """The API, for what others do meanwhile."""
    return Client(gateway, organization)


@pytest.fixture
def screen(page: Page, gateway: Program, organization: str) -> Screen:
    return Screen(page, gateway, organization)


@pytest.fixture
def saturday(client: Client) -> list[dict[str, Any]]:
    """The talks of three rooms on the Saturday of FOSDEM, stored in a new organization."""
    talks = [
        talk
        for talk in map(json.loads, Path(PROGRAMME).read_text().splitlines())
        if talk["resourceId"] in ROOMS and talk["start"].startswith(SATURDAY)
    ]
    for talk in talks:
        talk["organizationId"] = client.organization
    answer = client.send(
        "POST",
        "/api/appointments:batchUpsert",
        json.dumps({"requests": [{"appointment": talk} for talk in talks]}).encode(),
        Content_Type="application/json",
    )
    assert all(result["outcome"] == "CREATED" for result in answer.json["results"])
    return talks


@pytest.fixture
def axe(page: Page, tools: clients.Run) -> Axe:
    """Return what axe-core finds in the page, except what is not serious."""
    script = (clients.ENVIRONMENT / "node_modules/axe-core/axe.min.js").read_text()

    async def check() -> list[str]:
        # Apart from the page, whose policy would not let it run there.
        session = await page.context.new_cdp_session(page)
        await session.send("Page.setBypassCSP", {"enabled": True})
        await page.evaluate(script)
        found: list[str] = await page.evaluate(
            """async () => {
                const {violations} = await axe.run({resultTypes: ["violations"]});
                return violations
                    .filter(({impact}) => impact === "serious" || impact === "critical")
                    .flatMap(({id, nodes}) => nodes.slice(0, 3).map(
                        ({html, failureSummary}) => `${id}: ${html} ${failureSummary}`));
            }"""
        )
        return found

    return check


@pytest.fixture
def guarded(
    create_database: CreateDatabase, start_service: StartProgram, start_gateway: StartProgram
) -> tuple[Keys, Program]:
    """A gateway with access control, and its keys."""
    url = create_database()
    service = start_service(DATABASE_URL=url, ACCESS_CONTROL="on")
    return Keys(url), start_gateway(SERVICE_ADDRESS=service.address)
