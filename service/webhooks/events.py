"""What is sent of a change: by the rules of Standard Webhooks."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import orjson
from standardwebhooks import Webhook as Signer

from service import messages
from service.domain import HistoryEntry


def body_of(entry: HistoryEntry) -> str:
    """Write the JSON of a change: always the same text for the same change."""
    data = messages.history_json(entry)
    event = {
        "type": messages.change_type(entry),
        "timestamp": data["recordedAt"],
        "data": data,
    }
    return orjson.dumps(event, option=orjson.OPT_SORT_KEYS).decode()


def headers_of(
    webhook_id: str, entry: HistoryEntry, body: str, *, secrets: Sequence[str], time: datetime
) -> Mapping[str, str]:
    """Make the headers of one attempt, signed with every secret.

    The id is the same for every attempt to send this change to this webhook, also after a
    replay: a receiver tells by it what it has already.
    """
    message_id = f"{webhook_id}.{entry.revision}"
    signatures = [Signer(secret).sign(message_id, time, body) for secret in secrets]
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(time.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
