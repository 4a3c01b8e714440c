"""Webhooks, and their receiver, which records what is sent to it and often fails."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook as Signer
from standardwebhooks import WebhookVerificationError

from tests.torture.clients import Ledger
from tests.torture.record import FAILURE, Json, Request

NAME = "receiver"


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook of an organization, with its filters as they are recorded."""

    organization: str
    asks: Json
    secret: str


class Receiver:
    """Answers 200 and records that it has accepted a change; or 500, or nothing at all."""

    def __init__(self, ledger: Ledger, dice: random.Random) -> None:
        self._ledger = ledger
        self._dice = dice
        self._hooks: dict[str, Hook] = {}
        application = web.Application()
        application.router.add_post("/{organization}", self._receive)
        self._runner = web.AppRunner(application)
        self._site: web.TCPSite | None = None

    async def start(self) -> None:
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await self._site.start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    def url(self, organization: str) -> str:
        """Return where changes of an organization are sent."""
        port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{port}/{organization.replace(' ', '-')}"

    def expect(self, hook: Hook) -> None:
        """Take the changes that a webhook sends."""
        self._hooks[hook.organization.replace(" ", "-")] = hook

    async def _receive(self, request: web.Request) -> web.Response:
        hook = self._hooks[request.match_info["organization"]]
        number, begin = self._ledger.number(), self._ledger.now()
        body = await request.text()
        (fate,) = self._dice.choices((200, 500, 0), (90, 5, 5))
        answer = _answer(hook, body, request.headers, accepted=fate == 200)
        asked = Request(kind="delivery", asks=hook.asks)
        self._ledger.record(number, hook.organization, NAME, asked, begin, answer)
        if not fate and request.transport is not None:
            request.transport.abort()
        return web.Response(status=fate or 500)


def _answer(hook: Hook, body: str, headers: Mapping[str, str], *, accepted: bool) -> Json:
    try:
        event: dict[str, Any] = Signer(hook.secret).verify(body, dict(headers))
    except WebhookVerificationError as error:
        return {FAILURE: f"a delivery is not signed: {error}"}
    entry = event["data"]
    id = f"{hook.asks['webhook']}.{entry['revision']}"
    if headers["webhook-id"] != id or event["type"] != f"appointment.{entry['change'].lower()}":
        return {FAILURE: f"it is {headers['webhook-id']} ({event['type']}), not {id}"}
    return {"entries": [entry], "accepted": accepted}
