"""Writing: one call of apply_writes a batch, or of apply_batches for several."""

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
    TimeRangeTaken,
)
from service.metrics import Metrics
from service.postgres import rows
from service.postgres.database import Database
from service.postgres.rows import Row

# What apply_writes and apply_batches return for each write.
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

# The constraint that refuses overlaps whatever wrote them.
_NO_OVERLAP = "appointments_no_overlap"

_OUTCOMES = {outcome.value: outcome for outcome in Outcome}
_BUSY = "BUSY"


class WriteStore:
    """Applies writes, all of one organization's batch in one transaction."""

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
        try:
            parameters = (organization_id, _json(_parameters(writes)))
            found = await self._database.fetch(_APPLY, parameters)
        except psycopg.Error as refusal:
            if refusal.sqlstate is None:
                raise  # not the server's word, so not certainly rolled back
            if len(writes) == 1:
                return [await self._blame(organization_id, writes[0], refusal)]
            return await self._apply_alone(organization_id, writes)
        return self._results(organization_id, found)

    async def apply_batches(
        self, batches: Sequence[tuple[str, Sequence[Write]]]
    ) -> list[list[WriteResult | Exception] | None]:
        """Apply one batch for each of several organizations, in one round trip and commit.

        None stands for a batch of which nothing was written and which is to be applied
        by itself: its organization is locked by another session, or something kept the
        call as a whole from going on.

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
                raise  # not the server's word, so not certainly rolled back
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

    async def _apply_alone(
        self, organization_id: str, writes: Sequence[Write]
    ) -> list[WriteResult | Exception]:
        """Apply writes one at a time, up to the first that finds the database in trouble.

        Raises nothing: what was written before the trouble keeps its result.
        """
        results: list[WriteResult | Exception] = []
        for write in writes:
            try:
                results += await self.apply(organization_id, [write])
            except Exception as trouble:  # noqa: BLE001  # those before it keep their results
                untried = len(writes) - len(results) - 1
                not_done = DatabaseUnavailable(
                    "the database is in trouble; nothing was written, try again later"
                )
                return [*results, trouble, *[not_done] * untried]
        return results

    async def _blame(self, organization_id: str, write: Write, refusal: psycopg.Error) -> Exception:
        """Return what a single write is answered that the database refused.

        An overlap that only the exclusion constraint noticed takes a row that was
        written by other means than apply_writes; it is a conflict all the same.
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
        return TimeRangeTaken(_conflicts(overlapping), organization_revision=revision)


def _parameters(writes: Sequence[Write]) -> list[dict[str, Any]]:
    return [write_parameter(write) for write in writes]


def _json(value: list[dict[str, Any]]) -> str:
    return orjson.dumps(value).decode()


def write_parameter(write: Write) -> dict[str, Any]:
    """Return a write as apply_writes takes it, for orjson."""
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
    """Return the error that an outcome of apply_writes is, if it is one."""
    match outcome:
        case "TIME_RANGE_CONFLICT":
            return TimeRangeTaken(_conflicts(conflicts), organization_revision=revision)
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
