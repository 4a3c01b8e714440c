"""Writing: one call of apply_writes a batch."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
import psycopg

from service.database import Database, explain
from service.domain import (
    Appointment,
    Cancel,
    Conflict,
    Outcome,
    State,
    Write,
    WriteResult,
    idempotency_digest,
)
from service.errors import (
    AppointmentExists,
    AppointmentNotFound,
    EtagMismatch,
    IdempotencyKeyReused,
    ServiceError,
    TimeRangeTaken,
)
from service.metrics import Metrics

_APPLY = """
    SELECT outcome, organization_revision, lock_wait,
        appointment_id, resource_id, start_time, end_time, title, attributes::text,
        created_at, updated_at, state, version, revision, conflicts
    FROM apply_writes(%s::text, %s::json)
"""

_OVERLAPPING = "SELECT overlapping_appointments(%s, %s, %s, %s, %s)"

# The constraint that refuses overlaps whatever wrote them.
_NO_OVERLAP = "appointments_no_overlap"

_OUTCOMES = frozenset(Outcome)


class WriteStore:
    """Applies writes of one organization in one transaction."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics

    async def apply(
        self, organization_id: str, writes: Sequence[Write]
    ) -> list[WriteResult | Exception]:
        """Apply writes in order and return, for each, its result or why it failed.

        A batch that the database refuses as a whole was rolled back; it is applied
        again one write at a time, so that only the write at fault fails.

        Raises LockTimeout, DatabaseUnavailable or Overloaded for the whole batch.
        """
        async with self._database.connection() as connection:
            try:
                cursor = await connection.execute(
                    _APPLY, (organization_id, _parameters(writes)), binary=True
                )
                rows = await cursor.fetchall()
            except psycopg.Error as error:
                refusal = await explain(connection, error)
            else:
                self._metrics.lock_wait_seconds.observe(rows[0][2])
                return [_result(organization_id, row) for row in rows]
        if isinstance(refusal, ServiceError):
            raise refusal
        if len(writes) == 1:
            return [await self._blame(organization_id, writes[0], refusal)]
        results: list[WriteResult | Exception] = []
        for write in writes:
            try:
                results += await self.apply(organization_id, [write])
            except ServiceError as error:
                results.append(error)
        return results

    async def _blame(self, organization_id: str, write: Write, refusal: psycopg.Error) -> Exception:
        """Return what a single write is answered that the database refused.

        An overlap that only the exclusion constraint noticed takes a row that was
        written by other means than apply_writes; it is a conflict all the same.
        """
        if isinstance(write, Cancel) or refusal.diag.constraint_name != _NO_OVERLAP:
            return refusal
        async with self._database.connection() as connection:
            cursor = await connection.execute(
                _OVERLAPPING,
                (organization_id, write.resource_id, write.id, write.start, write.end),
            )
            row = await cursor.fetchone()
        return TimeRangeTaken(_conflicts(row[0] if row else None))


def _parameters(writes: Sequence[Write]) -> str:
    return orjson.dumps([_parameter(write) for write in writes]).decode()


def _parameter(write: Write) -> dict[str, Any]:
    parameter: dict[str, Any] = {
        "id": write.id,
        "expected_revision": write.expected_revision,
        "actor": write.actor,
        "validate_only": write.validate_only,
    }
    if write.idempotency_key is not None:
        parameter["idempotency_key"] = write.idempotency_key
        parameter["idempotency_digest"] = idempotency_digest(write).hex()
    if isinstance(write, Cancel):
        parameter["kind"] = "CANCEL"
    else:
        parameter |= {
            "kind": "UPSERT",
            "resource_id": write.resource_id,
            "start_time": write.start,
            "end_time": write.end,
            "title": write.title,
            "attributes": orjson.Fragment(write.attributes),
            "created_at": write.created_at,
            "updated_at": write.updated_at,
            "create_only": write.create_only,
        }
    return parameter


def _result(organization_id: str, row: tuple[Any, ...]) -> WriteResult | ServiceError:
    outcome, revision = row[0], row[1]
    if outcome in _OUTCOMES:
        return WriteResult(
            outcome=Outcome(outcome),
            organization_revision=revision,
            appointment=Appointment(
                organization_id=organization_id,
                id=row[3],
                resource_id=row[4],
                start=row[5],
                end=row[6],
                title=row[7],
                attributes=row[8],
                created_at=row[9],
                updated_at=row[10],
                state=State(row[11]),
                version=row[12],
                revision=row[13],
            ),
        )
    return _refusal(outcome, revision, row[14])


def _refusal(outcome: str, revision: int, conflicts: list[dict[str, Any]] | None) -> ServiceError:
    match outcome:
        case "TIME_RANGE_CONFLICT":
            return TimeRangeTaken(_conflicts(conflicts), organization_revision=revision)
        case "APPOINTMENT_NOT_FOUND":
            return AppointmentNotFound(
                "the organization has no appointment with this id", organization_revision=revision
            )
        case "APPOINTMENT_EXISTS":
            return AppointmentExists(
                "an appointment with this id exists already; write without create_only to"
                " replace it",
                organization_revision=revision,
            )
        case "ETAG_MISMATCH":
            return EtagMismatch(
                "the stored appointment does not have this etag; read it again and decide anew",
                organization_revision=revision,
            )
        case "IDEMPOTENCY_KEY_REUSED":
            return IdempotencyKeyReused(
                "an earlier, different write carried this idempotency key; take a new key for"
                " every new write",
                organization_revision=revision,
            )
    raise ValueError(f"apply_writes returned the unknown outcome {outcome!r}")


def _conflicts(found: list[dict[str, Any]] | None) -> list[Conflict]:
    return [
        Conflict(
            id=item["id"],
            start=datetime.fromisoformat(item["start"]),
            end=datetime.fromisoformat(item["end"]),
            version=item["version"],
        )
        for item in found or ()
    ]
