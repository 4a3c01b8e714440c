"""Creates, reads, updates and deletes webhooks for their organizations."""

import base64
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

from service.domain import Outcome, new_id
from service.errors import InvalidFields, WebhookLimitReached, WebhookNotFound
from service.postgres.database import Database
from service.postgres.rows import Row
from service.webhooks.webhook import Delivery, Header, Webhook, WebhookContent

SECRET_BYTES = 32

_COLUMNS: LiteralString = """
    webhook_id, url, description, changes, disabled, header_names, disabled_reason,
    cursor_revision, attempts, failing_since, next_attempt_at, created_at, updated_at
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

_DELETE: LiteralString = f"DELETE FROM webhooks WHERE {_THIS} RETURNING {_COLUMNS}"

# A worker that is sending to this webhook notices that the cursor has changed, and stops.
_REPLAY: LiteralString = f"""
    UPDATE webhooks
    SET cursor_revision = %(after)s,
        disabled = false,
        disabled_reason = '',
        attempts = 0,
        failing_since = NULL,
        next_attempt_at = now(),
        updated_at = now()
    WHERE {_THIS}
        AND %(after)s <= coalesce(
            (SELECT o.revision FROM organizations o WHERE o.organization_id = %(organization_id)s),
            0
        )
    RETURNING {_COLUMNS}
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

    Every method also returns the organization's revision, and raises WebhookNotFound for an
    id that the organization does not have.
    """

    def __init__(self, database: Database, *, most: int, secret_overlap: float) -> None:
        self._database = database
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
            "SELECT outcome, organization_revision FROM create_webhook("
            " %(organization_id)s, %(id)s, %(url)s, %(description)s, %(changes)s, %(disabled)s,"
            " %(header_names)s, %(header_values)s, %(secret)s, %(after)s, %(most)s)",
            {
                "organization_id": organization_id,
                "id": webhook_id,
                "secret": secret,
                "after": after,
                "most": self._most,
                **_parameters(content),
            },
        )
        if outcome == "BEYOND":
            raise InvalidFields.beyond_latest("after_revision", revision)
        if outcome == "LIMIT_REACHED":
            raise WebhookLimitReached(
                f"the organization has {self._most} webhooks already; delete one first",
                organization_revision=revision,
            )
        webhook, revision = await self.get(organization_id, webhook_id)
        return webhook, secret, revision

    async def get(self, organization_id: str, id: str) -> tuple[Webhook, int]:
        return await self._one(_GET, organization_id, id)

    async def list(self, organization_id: str) -> tuple[Sequence[Webhook], int]:
        """Return all webhooks of an organization, oldest first."""
        found = await self._database.fetch(
            _WITH_REVISION.format(query=_LIST), {"organization_id": organization_id}
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
            "SELECT replace_webhook("
            " %(organization_id)s, %(id)s, %(url)s, %(description)s, %(changes)s, %(disabled)s,"
            " %(header_names)s, %(header_values)s)",
            {"organization_id": organization_id, "id": id, **_parameters(content)},
        )
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
        _, revision = await self._one(_DELETE, organization_id, id)
        return revision

    async def rotate(self, organization_id: str, id: str) -> tuple[Webhook, str, int]:
        """Return a new secret. The old one also signs for `secret_overlap` seconds."""
        secret = new_secret()
        await self._database.fetch(
            "SELECT rotate_webhook_secret(%(organization_id)s, %(id)s, %(secret)s, %(overlap)s)",
            {
                "organization_id": organization_id,
                "id": id,
                "secret": secret,
                "overlap": self._secret_overlap,
            },
        )
        webhook, revision = await self.get(organization_id, id)
        return webhook, secret, revision

    async def replay(self, organization_id: str, id: str, *, after: int) -> tuple[Webhook, int]:
        """Send all changes after a revision again, and enable the webhook.

        Raises InvalidFields for a revision that does not exist yet.
        """
        try:
            return await self._one(_REPLAY, organization_id, id, {"after": after})
        except WebhookNotFound:
            _, revision = await self.get(organization_id, id)
            if after > revision:
                raise InvalidFields.beyond_latest("after_revision", revision) from None
            raise

    async def deliveries(
        self, organization_id: str, id: str, *, before: int, limit: int
    ) -> tuple[Sequence[Delivery], int]:
        """Return the log of deliveries with numbers below `before`, newest first."""
        _, revision = await self.get(organization_id, id)
        found = await self._database.fetch(
            _DELIVERIES,
            {"organization_id": organization_id, "id": id, "before": before, "limit": limit},
        )
        return [_delivery(row) for row in found], revision

    async def _one(
        self,
        query: LiteralString,
        organization_id: str,
        id: str,
        parameters: Mapping[str, Any] | None = None,
    ) -> tuple[Webhook, int]:
        [(revision, *row)] = await self._database.fetch(
            _WITH_REVISION.format(query=query),
            {"organization_id": organization_id, "id": id, **(parameters or {})},
        )
        if row[0] is None:
            raise WebhookNotFound(NOT_FOUND, organization_revision=revision)
        return _webhook(organization_id, tuple(row)), revision


def new_secret() -> str:
    """Return a new secret in the format of Standard Webhooks."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _parameters(content: WebhookContent) -> dict[str, Any]:
    return {
        "url": content.url,
        "description": content.description,
        "changes": sorted(change.value for change in content.changes),
        "disabled": content.disabled,
        "header_names": [header.name for header in content.headers],
        "header_values": [header.value for header in content.headers],
    }


def _webhook(organization_id: str, row: Row) -> Webhook:
    return Webhook(
        organization_id=organization_id,
        id=row[0],
        content=WebhookContent(
            url=row[1],
            description=row[2],
            changes=frozenset(map(Outcome, row[3])),
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
