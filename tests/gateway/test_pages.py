"""The pages of the gateway: the calendar, and the viewer of the document."""

import pytest

from gateway.endpoints.pages import calendar_pages, viewer_pages
from tests.gateway.conftest import Gateway, running_gateway
from tests.gateway.fake_service import FakeService

PAGES = sorted({*calendar_pages(), *viewer_pages()})


@pytest.mark.parametrize("setting", ["on", "off"])
async def test_the_calendar_is_served_as_configured(fake: FakeService, setting: str) -> None:
    async with running_gateway(fake, gateway_page=setting) as gateway:
        for path in calendar_pages():
            answer = await gateway.send("GET", path)
            assert answer.status == (200 if setting == "on" else 404), path
        assert (await gateway.send("GET", "/api/docs")).status == 200


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_sent_again_only_if_it_has_changed(rest: Gateway, path: str) -> None:
    first = await rest.send("GET", path)
    assert (first.status, first.headers["Cache-Control"]) == (200, "no-cache")
    again = await rest.send("GET", path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    for other in ('"other"', "not a tag"):
        answer = await rest.send("GET", path, headers={"If-None-Match": other})
        assert (answer.status, answer.body) == (200, first.body)


@pytest.mark.parametrize("path", sorted(calendar_pages()))
async def test_the_calendar_allows_nothing_inline(rest: Gateway, path: str) -> None:
    headers = (await rest.send("GET", path)).headers
    parts = headers["Content-Security-Policy"].split("; ")
    policy = dict(part.split(" ", 1) for part in parts)
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["X-Content-Type-Options"] == "nosniff"
