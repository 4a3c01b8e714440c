"""Whether idempotency digests are those of the writes that are stored next to them.

A digest is of what the caller sent, which is only partly stored: not whether the caller chose the
id and the times of an upsert, nor the mask and patch of a partial update. So each likely write
is tried. A digest that none of them has is wrong only if there can be no other write.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

from service.domain import (
    DIGEST_VERSION,
    Cancel,
    Confirm,
    Redact,
    Update,
    Upsert,
    Write,
    idempotency_digest,
)
from service.verify.findings import Finding
from service.verify.snapshot import IN_PART, Part, Row, Snapshot

LENGTH = len(DIGEST_VERSION) + 32

# The time of a cancel is in the row of the appointment until its next change, or a later cancel.
_KEYED: LiteralString = f"""
    SELECT
        h.organization_id, h.appointment_id, h.revision, h.change, h.idempotency_digest,
        h.resource_id, h.additional_resource_ids, h.start_time, h.end_time, h.title,
        h.attributes::text, h.created_at, h.updated_at, h.hold_until, h.recorded_at,
        a.revision IS NOT NULL AND a.cancel_updated_at IS NULL,
        a.cancel_updated_at
    FROM (
        SELECT * FROM appointment_history
        WHERE idempotency_key IS NOT NULL
            AND isfinite(start_time) AND isfinite(end_time)
            AND isfinite(created_at) AND isfinite(updated_at)
            AND {IN_PART}
    ) AS h
    LEFT JOIN appointments a
        ON h.change = 'CANCELLED'
            AND a.organization_id = h.organization_id
            AND a.appointment_id = h.appointment_id
            AND a.ordinal = 0
            AND a.revision = h.revision
"""

# The writes that are stored as they were sent, so not those that a redaction has changed.
_SENT: LiteralString = f"""
    SELECT
        organization_id, operation_id::text, write::text,
        (write -> 'attributes')::text, (write -> 'attributes_patch')::text
    FROM (
        SELECT organization_id, operation_id, write FROM queued_operations
        WHERE {IN_PART}
        UNION ALL
        SELECT organization_id, operation_id, write FROM operations
        WHERE write IS NOT NULL AND {IN_PART}
    ) AS sent
    WHERE write ->> 'idempotency_digest' IS NOT NULL AND write ->> 'redacted' IS NULL
"""

# Keys of writes that changed nothing. Their revision is that of the appointment that they left,
# negative if its hold had expired without a change that says so. A key is in one table only.
UNCHANGED: LiteralString = f"""
    SELECT
        'unchanged-write', u.organization_id, h.appointment_id, abs(u.revision),
        fault.expected, fault.stored
    FROM (SELECT * FROM unchanged_writes WHERE {IN_PART}) AS u
    LEFT JOIN appointment_history h
        ON h.organization_id = u.organization_id AND h.revision = abs(u.revision)
    LEFT JOIN appointment_history changed
        ON changed.organization_id = u.organization_id
            AND changed.idempotency_key = u.idempotency_key
    CROSS JOIN LATERAL (VALUES
        (
            h.revision IS NULL,
            'a change that the key ' || to_json(u.idempotency_key) || ' left', 'none'
        ),
        (
            u.revision < 0 AND h.state <> 'HELD',
            'a hold that had expired', 'the state ' || h.state
        ),
        (
            changed.revision IS NOT NULL,
            'the key ' || to_json(u.idempotency_key) || ' of one write',
            'also that of revision ' || changed.revision
        ),
        (
            octet_length(u.idempotency_digest) <> {LENGTH}
                OR get_byte(u.idempotency_digest, 0) <> {DIGEST_VERSION[0]},
            'a digest of {LENGTH} bytes and version {DIGEST_VERSION[0]}',
            left(encode(u.idempotency_digest, 'hex'), 80)
        )
    ) AS fault (found, expected, stored)
    WHERE fault.found
"""


class Digests:
    """Checks digests, and counts how many could be computed again."""

    def __init__(self) -> None:
        self.recomputed = 0
        self.not_recomputed = 0

    def check(self, snapshot: Snapshot, part: Part) -> Iterator[Finding]:
        """Yield the digests that are wrong."""
        for row in snapshot.stream(_KEYED, part.parameters):
            change: str = row[3]
            certain = change in ("CONFIRMED", "REDACTED") or bool(row[15])
            expected = self._expected(row[4], _writes_of_change(row), certain=certain)
            if expected is not None:
                yield Finding(
                    check="digest",
                    organization_id=row[0],
                    appointment_id=row[1],
                    revision=row[2],
                    expected=expected,
                    stored=_shown(row[4]),
                )
        for organization_id, operation_id, *texts in snapshot.stream(_SENT, part.parameters):
            fields = json.loads(texts[0])
            digest = bytes.fromhex(fields["idempotency_digest"])
            writes = _writes_of_operation(fields, *texts[1:])
            expected = self._expected(digest, writes, certain=True)
            if expected is not None:
                yield Finding(
                    check="digest",
                    organization_id=organization_id,
                    appointment_id=fields["id"],
                    expected=expected,
                    stored=f"{_shown(digest)} in operation {operation_id}",
                )

    def _expected(
        self, digest: bytes | None, writes: Iterator[Write], *, certain: bool
    ) -> str | None:
        """Return what is expected instead of a digest that is wrong, else None.

        `certain` means that the write was one of these.
        """
        if digest is None or len(digest) != LENGTH or not digest.startswith(DIGEST_VERSION):
            return f"a digest of {LENGTH} bytes and version {DIGEST_VERSION[0]}"
        computed = b""
        for write in writes:
            computed = idempotency_digest(write)
            if computed == digest:
                self.recomputed += 1
                return None
        if certain:
            return _shown(computed)
        self.not_recomputed += 1
        return None


def _shown(digest: bytes | None) -> str:
    return "no digest" if digest is None else f"digest {digest[:40].hex()}"


def _writes_of_change(row: Row) -> Iterator[Write]:
    """Yield the writes that probably made a change, the likely ones first.

    Those of a cancel, a confirmation or a redaction are all that there can be.
    """
    appointment_id, change, recorded_at = row[1], row[3], row[14]
    if change == "CONFIRMED":
        yield _confirm(appointment_id)
    elif change == "REDACTED":
        yield _redact(appointment_id)
    elif change == "CANCELLED":
        for updated_at in {row[16], None}:
            yield _cancel(appointment_id, updated_at)
    elif change in ("CREATED", "UPDATED"):
        # A time that is not that of the change was sent, unless an earlier change had it. The
        # service chooses ids only for new appointments.
        created_at = None if row[11] == recorded_at else row[11]
        updated_at = None if row[12] == recorded_at else row[12]
        possible = (
            [(created_at, True), (created_at, False)]
            if change == "CREATED"
            else [(None, True), (row[11], True)]
        )
        for created, id_given in possible:
            yield _upsert(
                appointment_id,
                id_given=id_given,
                resource_id=row[5],
                additional_resource_ids=row[6],
                start=row[7],
                end=row[8],
                title=row[9],
                attributes=row[10],
                created_at=created,
                updated_at=updated_at,
                hold_until=row[13],
            )


def _writes_of_operation(
    fields: dict[str, Any], attributes: str, attributes_patch: str | None
) -> Iterator[Write]:
    """Yield the writes that an operation can be."""
    appointment_id = fields["id"]
    times = {name: _time(fields.get(name)) for name in ("created_at", "updated_at", "hold_until")}
    match fields["kind"]:
        case "CONFIRM":
            yield _confirm(appointment_id)
        case "REDACT":
            yield _redact(appointment_id)
        case "CANCEL":
            yield _cancel(appointment_id, times["updated_at"])
        case "UPDATE":
            yield Update(
                id=appointment_id,
                fields=frozenset(fields["fields"]),
                resource_id=fields["resource_id"],
                additional_resource_ids=tuple(fields.get("additional_resource_ids") or ()),
                start=_time(fields["start_time"]),
                end=_time(fields["end_time"]),
                title=fields["title"],
                attributes=attributes,
                attributes_patch=attributes_patch,
                created_at=times["created_at"],
                updated_at=times["updated_at"],
                hold_until=times["hold_until"],
                max_hold=timedelta(),
                allow_missing=False,
                expected_revision=None,
                idempotency_key=None,
                validate_only=False,
                actor="",
            )
        case "UPSERT":
            for id_given in (True, False):
                yield _upsert(
                    appointment_id,
                    id_given=id_given,
                    resource_id=fields["resource_id"],
                    additional_resource_ids=fields.get("additional_resource_ids"),
                    start=datetime.fromisoformat(fields["start_time"]),
                    end=datetime.fromisoformat(fields["end_time"]),
                    title=fields["title"],
                    attributes=attributes,
                    **times,
                )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _confirm(id: str) -> Confirm:
    return Confirm(
        id=id, expected_revision=None, idempotency_key=None, validate_only=False, actor=""
    )


def _redact(id: str) -> Redact:
    return Redact(id=id, expected_revision=None, idempotency_key=None, validate_only=False)


def _cancel(id: str, updated_at: datetime | None) -> Cancel:
    return Cancel(
        id=id,
        updated_at=updated_at,
        expected_revision=None,
        idempotency_key=None,
        validate_only=False,
        actor="",
    )


def _upsert(
    id: str,
    *,
    id_given: bool,
    resource_id: str,
    additional_resource_ids: Sequence[str] | None,
    start: datetime,
    end: datetime,
    title: str,
    attributes: str,
    created_at: datetime | None,
    updated_at: datetime | None,
    hold_until: datetime | None,
) -> Upsert:
    return Upsert(
        id=id,
        id_given=id_given,
        resource_id=resource_id,
        additional_resource_ids=tuple(additional_resource_ids or ()),
        start=start,
        end=end,
        title=title,
        attributes=attributes,
        created_at=created_at,
        updated_at=updated_at,
        hold_until=hold_until,
        max_hold=timedelta(),
        expected_revision=None,
        create_only=False,
        idempotency_key=None,
        validate_only=False,
        suggest=0,
        actor="",
    )
