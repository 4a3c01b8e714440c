"""Applies batches of writes: apply_writes for one batch, apply_batches for several."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString

import orjson
import psycopg

from service.domain import (
    Cancel,
    Conflict,
    Outcome,
    Write,
    WriteResult,
    idempotency_digest,
)
from service.errors import (
    AppointmentExists,
    AppointmentNotFound,
    DatabaseUnavailable,
    EtagMismatch,
    IdempotencyKeyReused,
    LockTimeout,
    ServiceError,
    TimeRangeConflict,
)
from service.metrics import Metrics
from service.postgres import rows
from service.postgres.database import Database
from service.postgres.rows import Row

# The columns that apply_writes and apply_batches return for each write.
APPLIED: LiteralString = (
    f"outcome, organization_revision, lock_wait, conflicts, {rows.APPOINTMENT_OF_ROW}"
)

_APPLY: LiteralString = f"SELECT {APPLIED} FROM apply_writes(%s::text, %s::json)"

_APPLY_BATCHES: LiteralString = f"SELECT {APPLIED} FROM apply_batches(%s::json)"

_OVERLAPPING: LiteralString = """
    SELECT
        overlapping_appointments(
            %(organization_id)s, %(resource_id)s, %(id)s, %(start)s, %(end)s
        ),
        (SELECT coalesce(max(revision), 0) FROM organizations
         WHERE organization_id = %(organization_id)s)
"""

# The exclusion constraint, which also refuses overlaps of rows written without apply_writes.
_NO_OVERLAP = "appointments_no_overlap"

_OUTCOMES = {outcome.value: outcome for outcome in Outcome}
_BUSY = "BUSY"


class WriteStore:
    """Applies writes. A batch is one transaction."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics

    async def apply(
        self, organization_id: str, writes: Sequence[Write]
    ) -> list[WriteResult | Exception]:
        """Apply writes in order; return the result or the error of each.

        If the database refuses the whole batch, it was rolled back. The writes are then
        applied one by one, so that only the one that caused the error fails.

        Raises LockTimeout, DatabaseUnavailable or Overloaded for the whole batch.
        """
        try:
            parameters = (organization_id, _json(_parameters(writes)))
            found = await self._database.fetch(_APPLY, parameters)
        except psycopg.Error as refusal:
            if refusal.sqlstate is None:
                raise  # not reported by the server, so perhaps not rolled back
            if len(writes) == 1:
                return [await self._error_of(organization_id, writes[0], refusal)]
            return await self._apply_one_by_one(organization_id, writes)
        return self._results(organization_id, found)

    async def apply_batches(
        self, batches: Sequence[tuple[str, Sequence[Write]]]
    ) -> list[list[WriteResult | Exception] | None]:
        """Apply one batch per organization, in one round trip and one transaction.

        The result of a batch is None if nothing of it was written and the caller must apply
        it separately: another session holds the organization's lock, or the whole call failed.

        Raises DatabaseUnavailable or Overloaded for all batches.
        """
        parameter = [
            {"organization_id": organization_id, "writes": _parameters(writes)}
            for organization_id, writes in batches
        ]
        try:
            found = await self._database.fetch(_APPLY_BATCHES, (_json(parameter),))
        except LockTimeout:
            return [None] * len(batches)
        except psycopg.Error as refusal:
            if refusal.sqlstate is None:
                raise  # not reported by the server, so perhaps not rolled back
            return [None] * len(batches)
        results: list[list[WriteResult | Exception] | None] = []
        position = 0
        for organization_id, writes in batches:
            if found[position][0] == _BUSY:
                results.append(None)
                position += 1
            else:
                end = position + len(writes)
                results.append(self._results(organization_id, found[position:end]))
                position = end
        return results

    def _results(self, organization_id: str, found: Sequence[Row]) -> list[WriteResult | Exception]:
        self._metrics.lock_wait_seconds.observe(found[0][2])
        return [_result(organization_id, row) for row in found]

    async def _apply_one_by_one(
        self, organization_id: str, writes: Sequence[Write]
    ) -> list[WriteResult | Exception]:
        """Apply writes one by one, until a call fails as a whole.

        Raises nothing, since the writes before the failure must keep their results.
        """
        results: list[WriteResult | Exception] = []
        for write in writes:
            try:
                results += await self.apply(organization_id, [write])
            except Exception as error:  # noqa: BLE001  # the previous results are kept
                remaining = len(writes) - len(results) - 1
                not_tried = DatabaseUnavailable(
                    "the database is unavailable; nothing was written, try again later"
                )
                return [*results, error, *[not_tried] * remaining]
        return results

    async def _error_of(
        self, organization_id: str, write: Write, refusal: psycopg.Error
    ) -> Exception:
        """Return the error of a single write that the database refused.

        A violation of the exclusion constraint is a conflict. It occurs if the other
        appointment was written without apply_writes.
        """
        if isinstance(write, Cancel) or refusal.diag.constraint_name != _NO_OVERLAP:
            return refusal
        [(overlapping, revision)] = await self._database.fetch(
            _OVERLAPPING,
            {
                "organization_id": organization_id,
                "resource_id": write.resource_id,
                "id": write.id,
                "start": write.start,
                "end": write.end,
            },
        )
        return TimeRangeConflict(_conflicts(overlapping), organization_revision=revision)


def _parameters(writes: Sequence[Write]) -> list[dict[str, Any]]:
    return [write_parameter(write) for write in writes]


def _json(value: list[dict[str, Any]]) -> str:
    return orjson.dumps(value).decode()


def write_parameter(write: Write) -> dict[str, Any]:
    """Return a write as apply_writes expects it, ready for `orjson.dumps`."""
    parameter: dict[str, Any] = {
        "id": write.id,
        "updated_at": write.updated_at,
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
            "create_only": write.create_only,
        }
    return parameter


def _result(organization_id: str, row: Row) -> WriteResult | ServiceError:
    outcome, revision = row[0], row[1]
    done = _OUTCOMES.get(outcome)
    if done is not None:
        return WriteResult(
            outcome=done,
            organization_revision=revision,
            appointment=rows.appointment(organization_id, row[4:]),
        )
    return refusal(outcome, revision, row[3])


def refusal(outcome: str, revision: int, conflicts: list[dict[str, Any]] | None) -> ServiceError:
    """Return the error for an outcome of apply_writes. Raises ValueError for others."""
    match outcome:
        case "TIME_RANGE_CONFLICT":
            return TimeRangeConflict(_conflicts(conflicts), organization_revision=revision)
        case "APPOINTMENT_NOT_FOUND":
            return AppointmentNotFound(
                "the organization has no appointment with this id", organization_revision=revision
            )
        case "APPOINTMENT_EXISTS":
            return AppointmentExists(
                "an appointment with this id exists already, perhaps a cancelled one",
                organization_revision=revision,
            )
        case "ETAG_MISMATCH":
            return EtagMismatch(
                "no stored appointment has this id and etag; read it again and decide anew",
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
