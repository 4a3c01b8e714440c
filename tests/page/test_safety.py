"""What callers write is never more than text, and credentials stay where they are typed in."""

import json

from playwright.async_api import expect

from local.programs import Program
from tests.access.credentials import Keys
from tests.page.screen import DAY, Screen
from tests.page.test_booking import ELEVEN, NOON, ONE, TEN
from tests.rest_client import Client

INJECTIONS = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<svg onload=\"document.title='owned'\">",
    "\"><img src=x onerror=document.title='owned'>",
    "' onmouseover='document.title=1' x='",
    "javascript:document.title='owned'",
    "<iframe srcdoc=\"<script>top.document.title='owned'</script>\">",
    "<a href=\"javascript:document.title='owned'\">x</a>",
    "<style>*{display:none}</style>",
    "<base href='https://evil.example/'>",
    "<form action='https://evil.example/'><input name=a></form>",
    "&lt;b&gt;bold&lt;/b&gt;",
    "{{constructor.constructor('document.title=1')()}}",
    "${document.title='owned'}",
    "</textarea></title><script>document.title='owned'</script>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=document.title='owned'>",
    "\u202etxt.exe <b>",
]


async def test_injections_are_shown_as_text(screen: Screen, client: Client) -> None:
    for number, text in enumerate(INJECTIONS):
        answer = client.upsert(
            f"{number} {text}"[:256],
            resourceId=f"{number} {text}"[:256],
            title=text,
            start=TEN,
            end=ELEVEN,
            attributes={text: text},
        )
        assert answer.status in {200, 201}, answer.json
    await screen.open()
    shown = screen.page.locator(".apt_event")
    await expect(shown).to_have_count(len(INJECTIONS))
    assert set(await shown.all_inner_texts()) == set(INJECTIONS)
    names = await screen.page.locator(".apt_rowheader_inner_text").all_inner_texts()
    assert sorted(names) == sorted(f"{number} {text}" for number, text in enumerate(INJECTIONS))
    for index in range(len(INJECTIONS)):
        await shown.nth(index).click()
        card = screen.card("details")
        title = await card.get_by_role("heading").inner_text()
        assert title in INJECTIONS
        attributes = json.dumps({title: title}, indent=1, ensure_ascii=False)
        await expect(card.locator("pre")).to_have_text(attributes)
        await card.get_by_role("button", name="Change").click()
        await expect(card.get_by_label("Title")).to_have_value(title)
        await screen.page.keyboard.press("Escape")
    # In messages and conflicts too.
    for index, text in enumerate(INJECTIONS[:3]):
        await screen.button("New appointment").click()
        card = screen.card("new")
        await card.get_by_label("Title").fill(text)
        await card.get_by_label("Resources").fill(f"{index} {text}")
        await card.get_by_label("From").fill(f"{DAY}T10:00")
        await card.get_by_label("To").fill(f"{DAY}T11:00")
        await card.get_by_role("button", name="Book").click()
        await expect(screen.card("conflict")).to_contain_text(f"“{text}”")
        await screen.page.keyboard.press("Escape")
    assert "owned" not in await screen.page.title()
    made = "script:not([src]), iframe, base, main img, main form, main svg, .card img, .card svg"
    assert await screen.page.locator(made).count() == 0


async def test_the_policy_allows_nothing_inline_and_no_other_host(
    screen: Screen, client: Client, faults: list[str]
) -> None:
    response = await screen.page.goto(f"{screen.gateway.url}/")
    assert response is not None
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "'none'" in policy
    await screen.live()
    # It is obeyed: neither elements from text, nor inline code, nor another host.
    tried = await screen.evaluate(
        """async () => {
            const tried = [];
            const script = document.createElement("script");
            const attempts = [
                () => document.body.innerHTML = "<b>x</b>",
                () => script.text = "document.title = 'owned'",
                () => fetch("https://example.com/"),
            ];
            for (const attempt of attempts) {
                try { await attempt(); } catch (error) { tried.push(error.name); }
            }
            return tried;
        }"""
    )
    assert tried == ["TypeError", "TypeError", "TypeError"]
    faults.clear()


async def test_a_credential_is_asked_for_and_kept_in_the_tab_alone(
    screen: Screen, guarded: tuple[Keys, Program], organization: str
) -> None:
    keys, gateway = guarded
    key = keys.key(organizations=[organization])
    client = Client(gateway, organization)
    client.upsert("a", resourceId="room 1", start=TEN, end=ELEVEN, Authorization=f"Bearer {key}")
    page = screen.page
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    there = Screen(page, gateway, organization)
    await there.open(live=False)
    dialog = page.get_by_role("dialog", name="Credential")
    await expect(dialog).to_contain_text("asks for a credential")
    await dialog.get_by_label("API key or token").fill(key)
    await dialog.get_by_role("button", name="Use").click()
    await there.live()
    await expect(there.appointment("a")).to_be_visible()
    await there.select("room 1", NOON, ONE)
    await there.card("new").get_by_role("button", name="Book").click()
    await expect(there.message).to_contain_text("Booked")
    # The stream has it too: it shows what others do.
    client.upsert("b", resourceId="room 2", start=TEN, end=ELEVEN, Authorization=f"Bearer {key}")
    await expect(there.appointment("b")).to_be_visible()
    secret = key.rpartition("_")[2]
    assert not [address for address in [*addresses, page.url] if secret in address]
    assert secret not in await there.evaluate("JSON.stringify({...localStorage}) + document.cookie")
    await page.reload()
    await there.live()
    # A new tab has none.
    other = await page.context.new_page()
    await other.goto(page.url)
    await expect(other.get_by_role("dialog", name="Credential")).to_be_visible()
    await there.button("Credential ✓").click()
    await there.button("Forget the credential").click()
    await expect(dialog).to_contain_text("asks for a credential")
    assert await there.evaluate("sessionStorage.length") == 0


async def test_a_revoked_credential_is_told_and_replaced_by_another(
    screen: Screen, guarded: tuple[Keys, Program], organization: str
) -> None:
    keys, gateway = guarded
    key = keys.key(organizations=[organization])
    there = Screen(screen.page, gateway, organization)
    await there.open(live=False)
    dialog = screen.page.get_by_role("dialog", name="Credential")
    await dialog.get_by_label("API key or token").fill(key)
    await dialog.get_by_role("button", name="Use").click()
    await there.live()
    keys.revoke(key)
    await expect(dialog).to_contain_text("refuses the credential. The API key was revoked.")
    await expect(there.page.locator("#state")).to_have_text("Not connected")
    other = keys.key(organizations=[organization])
    await dialog.get_by_label("API key or token").fill(other)
    await dialog.get_by_role("button", name="Use").click()
    await there.live()
    written = {"start": TEN, "end": ELEVEN, "Authorization": f"Bearer {other}"}
    Client(gateway, organization).upsert("a", resourceId="room 1", **written)
    await expect(there.appointment("a")).to_be_visible()
