"""Creates, reads, updates and deletes webhooks for their organizations."""

import base64
import secrets
from collections.abc import Callable, Sequence
from typing import Any, LiteralString

from service.domain import Change, ChangeFilter, new_id
from service.errors import InvalidFields, WebhookLimitReached, WebhookNotFound
from service.postgres.database import Database
from service.postgres.rows import Row
from service.webhooks.encryption import SecretKeys
from service.webhooks.webhook import Delivery, Header, Webhook, WebhookContent

SECRET_BYTES = 32

_COLUMNS: LiteralString = """
    webhook_id, url, description, changes, disabled, header_names, disabled_reason,
    cursor_revision, attempts, failing_since, next_attempt_at, created_at, updated_at,
    resource_id
"""

# Returns the organization's revision with each row, and one row if nothing was found.
_WITH_REVISION: LiteralString = """
    WITH found AS ({query})
    SELECT organization.revision, found.*
    FROM (
        SELECT coalesce(max(o.revision), 0) AS revision
        FROM organizations o
        WHERE o.organization_id = %(organization_id)s
    ) AS organization
    LEFT JOIN found ON true
"""

_THIS: LiteralString = "organization_id = %(organization_id)s AND webhook_id = %(id)s"

_GET: LiteralString = f"SELECT {_COLUMNS} FROM webhooks WHERE {_THIS}"

_LIST: LiteralString = f"""
    SELECT {_COLUMNS}
    FROM webhooks
    WHERE organization_id = %(organization_id)s
    ORDER BY webhook_id
"""

_DELIVERIES: LiteralString = f"""
    SELECT delivery_id, revision, attempt, attempted_at, duration_ms, http_status, error
    FROM webhook_deliveries
    WHERE {_THIS} AND delivery_id < %(before)s
    ORDER BY delivery_id DESC
    LIMIT %(limit)s
"""

NOT_FOUND = "the organization has no webhook with this id"


class WebhookStore:
    """The webhooks of organizations. `secret_overlap` (seconds): see `rotate`.

    Secrets and header values are encrypted by `keys`. `changed` is called when a webhook may have
    something to be sent.

    Every method also returns the organization's revision, and raises WebhookNotFound for an
    id that the organization does not have.
    """

    def __init__(
        self,
        database: Database,
        keys: SecretKeys,
        *,
        changed: Callable[[], None],
        most: int,
        secret_overlap: float,
    ) -> None:
        self._database = database
        self._keys = keys
        self._changed = changed
        self._most = most
        self._secret_overlap = secret_overlap

    async def create(
        self, organization_id: str, content: WebhookContent, *, after: int | None
    ) -> tuple[Webhook, str, int]:
        """Register a webhook and return it with its secret.

        Raises InvalidFields if `after` is beyond the organization's revision, and
        WebhookLimitReached.
        """
        webhook_id, secret = new_id(), new_secret()
        [(outcome, revision)] = await self._database.fetch(
            organization_id,
            "SELECT outcome, organization_revision FROM create_webhook("
            " %(organization_id)s, %(id)s, %(url)s, %(description)s, %(changes)s, %(disabled)s,"
            " %(header_names)s, %(header_values)s, %(secret)s, %(after)s, %(most)s,"
            " %(resource_id)s)",
            {
                "organization_id": organization_id,
                "id": webhook_id,
                "secret": self._keys.encrypt(secret),
                "after": after,
                "most": self._most,
                **self._parameters(content),
            },
        )
        if outcome == "BEYOND":
            raise InvalidFields.beyond_latest("after_revision", revision)
        if outcome == "LIMIT_REACHED":
            raise WebhookLimitReached(
                f"the organization has {self._most} webhooks already; delete one first",
                organization_revision=revision,
            )
        self._changed()
        webhook, revision = await self.get(organization_id, webhook_id)
        return webhook, secret, revision

    async def get(self, organization_id: str, id: str) -> tuple[Webhook, int]:
        [(revision, *row)] = await self._database.fetch(
            organization_id,
            _WITH_REVISION.format(query=_GET),
            {"organization_id": organization_id, "id": id},
        )
        if row[0] is None:
            raise WebhookNotFound(NOT_FOUND, organization_revision=revision)
        return _webhook(organization_id, tuple(row)), revision

    async def list(self, organization_id: str) -> tuple[Sequence[Webhook], int]:
        """Return all webhooks of an organization, oldest first."""
        found = await self._database.fetch(
            organization_id,
            _WITH_REVISION.format(query=_LIST),
            {"organization_id": organization_id},
        )
        webhooks = [_webhook(organization_id, row[1:]) for row in found if row[1] is not None]
        return webhooks, found[0][0]

    async def update(
        self, organization_id: str, id: str, content: WebhookContent
    ) -> tuple[Webhook, int]:
        """Replace the content. A header without a value keeps its stored value.

        Raises InvalidFields if there is no stored value.
        """
        found = await self._database.fetch(
            organization_id,
            "SELECT replace_webhook("
            " %(organization_id)s, %(id)s, %(url)s, %(description)s, %(changes)s, %(disabled)s,"
            " %(header_names)s, %(header_values)s, %(resource_id)s)",
            {"organization_id": organization_id, "id": id, **self._parameters(content)},
        )
        self._changed()
        webhook, revision = await self.get(organization_id, id)
        for (missing,) in found:
            if missing is not None:
                field = f"webhook.headers[{missing - 1}].value"
                raise InvalidFields(
                    [(field, "is required: the webhook has no header of this name yet")],
                    organization_revision=revision,
                )
        return webhook, revision

    async def delete(self, organization_id: str, id: str) -> int:
        _, revision = await self.get(organization_id, id)
        [(existed,)] = await self._database.fetch(
            organization_id,
            "SELECT delete_webhook(%(organization_id)s, %(id)s)",
            {"organization_id": organization_id, "id": id},
        )
        if not existed:
            raise WebhookNotFound(NOT_FOUND, organization_revision=revision)
        return revision

    async def rotate(self, organization_id: str, id: str) -> tuple[Webhook, str, int]:
        """Return a new secret. The old one also signs for `secret_overlap` seconds."""
        secret = new_secret()
        await self._database.fetch(
            organization_id,
            "SELECT rotate_webhook_secret(%(organization_id)s, %(id)s, %(secret)s, %(overlap)s)",
            {
                "organization_id": organization_id,
                "id": id,
                "secret": self._keys.encrypt(secret),
                "overlap": self._secret_overlap,
            },
        )
        webhook, revision = await self.get(organization_id, id)
        return webhook, secret, revision

    async def replay(self, organization_id: str, id: str, *, after: int) -> tuple[Webhook, int]:
        """Send all changes after a revision again, and enable the webhook.

        Raises InvalidFields for a revision that does not exist yet.
        """
        [(done,)] = await self._database.fetch(
            organization_id,
            "SELECT replay_webhook(%(organization_id)s, %(id)s, %(after)s)",
            {"organization_id": organization_id, "id": id, "after": after},
        )
        self._changed()
        webhook, revision = await self.get(organization_id, id)
        if not done:
            raise InvalidFields.beyond_latest("after_revision", revision)
        return webhook, revision

    async def deliveries(
        self, organization_id: str, id: str, *, before: int, limit: int
    ) -> tuple[Sequence[Delivery], int]:
        """Return the log of deliveries with numbers below `before`, newest first."""
        _, revision = await self.get(organization_id, id)
        found = await self._database.fetch(
            organization_id,
            _DELIVERIES,
            {"organization_id": organization_id, "id": id, "before": before, "limit": limit},
        )
        return [_delivery(row) for row in found], revision

    def _parameters(self, content: WebhookContent) -> dict[str, Any]:
        return {
            "url": content.url,
            "description": content.description,
            "changes": sorted(change.value for change in content.selected.changes),
            "resource_id": content.selected.resource_id,
            "disabled": content.disabled,
            "header_names": [header.name for header in content.headers],
            "header_values": [
                None if header.value is None else self._keys.encrypt(header.value)
                for header in content.headers
            ],
        }


def new_secret() -> str:
    """Return a new secret in the format of Standard Webhooks."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _webhook(organization_id: str, row: Row) -> Webhook:
    return Webhook(
        organization_id=organization_id,
        id=row[0],
        content=WebhookContent(
            url=row[1],
            description=row[2],
            selected=ChangeFilter(resource_id=row[13], changes=frozenset(map(Change, row[3]))),
            disabled=row[4],
            headers=tuple(Header(name, None) for name in row[5]),
        ),
        disabled_reason=row[6],
        delivered_revision=row[7],
        failed_attempts=row[8],
        failing_since=row[9],
        next_attempt_at=row[10],
        created_at=row[11],
        updated_at=row[12],
    )


def _delivery(row: Row) -> Delivery:
    return Delivery(
        number=row[0],
        revision=row[1],
        attempt=row[2],
        attempted_at=row[3],
        duration_ms=row[4],
        http_status=row[5],
        error=row[6],
    )
