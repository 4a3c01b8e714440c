"""Checks the keys of stored secrets at start, and encrypts all secrets by the first key.

Services and workers may run while secrets are encrypted anew, if they have all the keys.
"""

import structlog

from service.errors import ServiceError
from service.postgres.database import Database
from service.webhooks.encryption import SETTING, SecretKeys, SecretUnreadable, missing

COMMAND = "rotate-secrets"
# Webhooks that are read at a time.
BATCH = 100

log = structlog.get_logger()


class KeysMissing(Exception):
    """SECRETS_KEYS lacks a key that encrypts what is stored. The message names it by its id."""


async def check_keys(database: Database, keys: SecretKeys) -> None:
    """Raise KeysMissing if a stored secret cannot be decrypted; warn of those to encrypt.

    A database that does not respond is not checked.
    """
    try:
        found = await database.fetch_across("SELECT webhook_key_ids()")
    except ServiceError as error:
        log.warning("keys of stored secrets not checked", error=error.message)
        return
    used = {key_id for (key_id,) in found}
    lacking = sorted(key_id for key_id in used if key_id and key_id not in keys)
    if lacking:
        raise KeysMissing(missing(lacking))
    if keys.current is None:
        log.warning("secrets are stored as plain text", advice=f"set {SETTING}")
    elif used - {keys.current}:
        log.warning(
            "secrets are stored as plain text or under an old key",
            advice=f"run python -m service {COMMAND}",
        )


async def rotate_secrets(database: Database, keys: SecretKeys) -> int:
    """Encrypt by the first key what is stored as plain text or under another key.

    Returns the number of webhooks that were changed. Afterwards no other key is needed. Raises
    KeysMissing, and what Database.fetch raises.
    """
    if keys.current is None:
        raise KeysMissing(f"{SETTING} is not set: it lists the keys, and the first one encrypts")
    done = 0
    while True:
        rotated, all_done = await _rotate_once(database, keys, keys.current)
        done += rotated
        if all_done:
            return done


async def _rotate_once(database: Database, keys: SecretKeys, current: str) -> tuple[int, bool]:
    """Encrypt every webhook once. Those that a caller changes meanwhile are left."""
    done, all_done = 0, True
    after = ("", "")
    while True:
        found = await database.fetch_across(
            "SELECT organization_id, webhook_id, secrets, header_values"
            " FROM webhooks_without_key(%s, %s, %s, %s)",
            (current, *after, BATCH),
        )
        for organization_id, webhook_id, *old in found:
            after = (organization_id, webhook_id)
            try:
                new = [[keys.renewed(stored) for stored in values] for values in old]
            except SecretUnreadable as error:
                raise KeysMissing(f"the webhook {webhook_id}: {error}") from error
            [(replaced,)] = await database.fetch(
                organization_id,
                "SELECT reencrypt_webhook(%s, %s, %s, %s, %s, %s)",
                (*after, *old, *new),
            )
            done += replaced
            all_done = all_done and replaced
        if len(found) < BATCH:
            return done, all_done
