"""The request body and headers of a change, as Standard Webhooks specifies them."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import orjson
from standardwebhooks import Webhook as Signer

from service import messages
from service.domain import HistoryEntry


def body_of(entry: HistoryEntry) -> str:
    """Return the JSON of a change. In one epoch, the same change always gives the same text."""
    data = messages.history_json(entry)
    event = {
        "type": messages.change_type(entry),
        "timestamp": data["recordedAt"],
        "data": data,
    }
    if epoch := entry.appointment.epoch:
        event["epoch"] = epoch
    return orjson.dumps(event, option=orjson.OPT_SORT_KEYS).decode()


def headers_of(
    webhook_id: str, entry: HistoryEntry, body: str, *, secrets: Sequence[str], time: datetime
) -> Mapping[str, str]:
    """Return the headers of one attempt, signed with every secret.

    All attempts to send a change to a webhook have the same `webhook-id`, also after a
    replay, so that receivers can recognize duplicates. In another epoch, a revision is another
    change.
    """
    message_id = ".".join(filter(None, (webhook_id, f"{entry.revision}", entry.appointment.epoch)))
    signatures = [Signer(secret).sign(message_id, time, body) for secret in secrets]
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(time.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
