"""An organization with webhooks and a receiver, for tests."""

import json
from dataclasses import dataclass
from typing import Any

from tests.api import Organization
from tests.receiver import LOOPBACK, Receiver
from tests.rest_client import Client

# The settings of workers in these tests.
QUICK = {
    "WEBHOOK_ALLOWED_NETWORKS": LOOPBACK,
    "WEBHOOK_TIMEOUT": "1",
    "WEBHOOK_LEASE": "2.5",
    "WEBHOOK_POLL_INTERVAL": "0.02",
    "WEBHOOK_FIRST_RETRY": "0.01",
    "WEBHOOK_LONGEST_RETRY": "0.05",
}


@dataclass(slots=True)
class Hooked:
    """An organization whose changes are sent to a receiver, with a path per webhook."""

    rest: Client
    org: Organization
    receiver: Receiver

    def hook(self, path: str, **fields: Any) -> dict[str, Any]:
        body = {"organizationId": self.org.id, "url": self.receiver.url(path), **fields}
        answer = self.rest.send(
            "POST", "/api/webhooks", json.dumps(body).encode(), Content_Type="application/json"
        )
        assert answer.status == 201, answer.json
        created: dict[str, Any] = answer.json
        return created

    def write(self, count: int, *, first: int = 0) -> None:
        """Create a number of appointments, each with a revision."""
        for number in range(first, first + count):
            self.org.upsert(f"{number}", number, number + 1)

    def read(self, hook: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.rest.call("GET", f"/webhooks/{hook['id']}").json
        return found

    def reached(self, hook: dict[str, Any]) -> int:
        return int(self.read(hook)["deliveredRevision"])

    def deliveries(self, hook: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the log of deliveries, oldest first."""
        path = f"/webhooks/{hook['id']}/deliveries"
        found: list[dict[str, Any]] = self.rest.call("GET", path, pageSize=1000).json["deliveries"]
        return found[::-1]

    def replace(self, hook: dict[str, Any], **fields: Any) -> None:
        self.put(hook, {**self.read(hook), **fields})

    def put(self, hook: dict[str, Any], body: dict[str, Any]) -> None:
        answer = self.rest.send(
            "PUT",
            f"/api/webhooks/{hook['id']}",
            json.dumps(body).encode(),
            Content_Type="application/json",
        )
        assert answer.status == 200, answer.json

    def replay(self, hook: dict[str, Any], after: int) -> None:
        body = {"organizationId": self.org.id, "afterRevision": after}
        answer = self.rest.send(
            "POST",
            f"/api/webhooks/{hook['id']}:replay",
            json.dumps(body).encode(),
            Content_Type="application/json",
        )
        assert answer.status == 200, answer.json
