"""Converts between the messages of WebhookService and stored webhooks."""

from appointments.v1 import webhook_service_pb2 as rpc

from service import rules
from service.errors import InvalidFields
from service.messages import CHANGES, change_filter, timestamp
from service.webhooks.addresses import AddressRules
from service.webhooks.headers import check_headers
from service.webhooks.webhook import Delivery, Header, Webhook, WebhookContent


def content(
    request: rpc.CreateWebhookRequest | rpc.UpdateWebhookRequest, addresses: AddressRules
) -> WebhookContent:
    """Read the fields that a caller sets. Raises InvalidFields with every violation."""
    violations: rules.Violations = []
    rules.check_fields(request, "", violations)
    if not request.HasField("webhook"):
        violations.append(("webhook", "is required"))
        raise InvalidFields(violations)
    wanted = request.webhook
    before = len(violations)
    rules.check_fields(wanted, "webhook.", violations)
    if not any(field == "webhook.url" for field, _ in violations[before:]):
        error = addresses.url_error(wanted.url)
        if error is not None:
            violations.append(("webhook.url", error))
    selected = change_filter(wanted, "webhook.", violations)
    headers = _headers(wanted, violations, all_new=isinstance(request, rpc.CreateWebhookRequest))
    if violations:
        raise InvalidFields(violations)
    return WebhookContent(
        url=wanted.url,
        description=wanted.description,
        selected=selected,
        disabled=wanted.disabled,
        headers=headers,
    )


def _headers(
    wanted: rpc.Webhook, violations: rules.Violations, *, all_new: bool
) -> tuple[Header, ...]:
    """Read the headers. With `all_new` each needs a value, as there is no stored one to keep."""
    for index, each in enumerate(wanted.headers):
        rules.check_fields(each, f"webhook.headers[{index}].", violations)
        if all_new and not each.HasField("value"):
            violations.append((f"webhook.headers[{index}].value", "is required"))
    headers = tuple(
        Header(each.name, each.value if each.HasField("value") else None) for each in wanted.headers
    )
    check_headers(headers, "webhook.headers", violations)
    return headers


def webhook(stored: Webhook, *, secret: str | None = None) -> rpc.Webhook:
    """Return the message of a webhook, with `secret` if the caller may see it."""
    message = rpc.Webhook(
        organization_id=stored.organization_id,
        id=stored.id,
        url=stored.content.url,
        description=stored.content.description,
        changes=sorted(CHANGES[change] for change in stored.content.selected.changes),
        resource_id=stored.content.selected.resource_id,
        disabled=stored.content.disabled,
        disabled_reason=stored.disabled_reason,
        secret=secret,
        delivered_revision=stored.delivered_revision,
        failed_attempts=stored.failed_attempts,
        created_at=timestamp(stored.created_at),
        updated_at=timestamp(stored.updated_at),
        headers=[rpc.WebhookHeader(name=name) for name, _ in stored.content.headers],
    )
    if stored.failing_since is not None:
        message.failing_since.CopyFrom(timestamp(stored.failing_since))
        if not stored.content.disabled:
            message.next_attempt_at.CopyFrom(timestamp(stored.next_attempt_at))
    return message


def delivery(logged: Delivery) -> rpc.WebhookDelivery:
    return rpc.WebhookDelivery(
        revision=logged.revision,
        attempt=logged.attempt,
        attempted_at=timestamp(logged.attempted_at),
        duration_ms=logged.duration_ms,
        http_status=logged.http_status,
        error=logged.error,
    )
