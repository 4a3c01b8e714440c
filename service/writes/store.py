"""Applies batches of writes: apply_writes for one batch, apply_batches for several."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

import orjson
import psycopg

from public_json.reasons import Reason
from service import rules
from service.domain import (
    AtomicBatch,
    Cancel,
    Confirm,
    Conflict,
    Expire,
    Outcome,
    Redact,
    TimeRange,
    Update,
    Upsert,
    Write,
    WriteResult,
    idempotency_digest,
)
from service.errors import (
    AppointmentCancelled,
    AppointmentExists,
    AppointmentFirm,
    AppointmentNotFound,
    BatchRefused,
    DatabaseUnavailable,
    EtagMismatch,
    HoldExpired,
    IdempotencyKeyReused,
    InvalidFields,
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
    f"outcome, organization_revision, lock_wait, conflicts, alternatives, {rows.APPOINTMENT_OF_ROW}"
)

_APPLY: LiteralString = f"SELECT {APPLIED} FROM apply_writes(%s::text, %s::json)"

_APPLY_BATCHES: LiteralString = f"SELECT {APPLIED} FROM apply_batches(%s::json)"

_APPLY_ATOMICALLY: LiteralString = f"SELECT {APPLIED} FROM apply_atomically(%s::text, %s::json, %s)"

_CONFLICTS: LiteralString = "SELECT conflicts_of_write(%s::text, %s::json)"

_REVISION: LiteralString = """
    SELECT coalesce(max(revision), 0) FROM organizations WHERE organization_id = %s
"""

# The exclusion constraint, which also refuses overlaps of rows written without apply_writes.
_NO_OVERLAP = "appointments_no_overlap"

_OUTCOMES = {outcome.value: outcome for outcome in Outcome}
_BUSY = "BUSY"
_NOT_WRITTEN = "NOT_WRITTEN"

_KEPT = "a field that is not sent keeps its stored value"
# The fields that are invalid only together with stored fields.
_INVALID = {
    "RANGE_INVALID": (
        "appointment.end",
        f"must be after start, by at most {rules.MAX_DURATION.days:,} days; {_KEPT}",
    ),
    "RESOURCES_INVALID": (
        "appointment.additional_resource_ids",
        f"must differ from the appointment's first resource; {_KEPT}",
    ),
    "ATTRIBUTES_INVALID": (
        "attributes_patch",
        f"must leave attributes of at most {rules.MAX_ATTRIBUTES_BYTES:,} bytes as JSON text",
    ),
}

_REFUSALS: dict[str, tuple[type[ServiceError], str]] = {
    error.reason: (error, message)
    for error, message in (
        (AppointmentNotFound, "the organization has no appointment with this id"),
        (
            AppointmentExists,
            "an appointment with this id exists already, perhaps a cancelled one",
        ),
        (
            EtagMismatch,
            "no stored appointment has this id and etag; read it again and decide anew",
        ),
        (
            IdempotencyKeyReused,
            (
                "another write carried this idempotency key, or its appointment was redacted"
                " since; take a new key each time"
            ),
        ),
        (AppointmentCancelled, "the appointment is cancelled; an upsert brings it back"),
        (HoldExpired, "the hold of the appointment has expired; an upsert brings it back"),
        (AppointmentFirm, "a firm appointment cannot be held; cancel it first"),
    )
}


class WriteStore:
    """Applies writes. A batch is one transaction, after which `changed` is called."""

    def __init__(self, database: Database, metrics: Metrics, changed: Callable[[], None]) -> None:
        self._database = database
        self._metrics = metrics
        self._changed = changed

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
            found = await self._database.fetch(organization_id, _APPLY, parameters)
        except psycopg.Error as refusal:
            if refusal.sqlstate is None:
                raise  # not reported by the server, so perhaps not rolled back
            if len(writes) == 1:
                return [await self._error_of(organization_id, writes[0], refusal)]
            return await self._apply_one_by_one(organization_id, writes)
        self._changed()
        return self._results(organization_id, writes, found)

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
            found = await self._database.fetch_across(_APPLY_BATCHES, (_json(parameter),))
        except LockTimeout:
            return [None] * len(batches)
        except psycopg.Error as refusal:
            if refusal.sqlstate is None:
                raise  # not reported by the server, so perhaps not rolled back
            return [None] * len(batches)
        self._changed()
        results: list[list[WriteResult | Exception] | None] = []
        position = 0
        for organization_id, writes in batches:
            if found[position][0] == _BUSY:
                results.append(None)
                position += 1
            else:
                end = position + len(writes)
                results.append(self._results(organization_id, writes, found[position:end]))
                position = end
        return results

    async def apply_atomically(self, organization_id: str, batch: AtomicBatch) -> list[WriteResult]:
        """Apply upserts together, judged on the final state; return the result of each.

        Raises BatchRefused if any of them is refused; nothing was written then. Raises
        LockTimeout, DatabaseUnavailable or Overloaded.
        """
        parameters = (organization_id, _json(_parameters(batch.upserts)), batch.validate_only)
        found = await self._database.fetch(organization_id, _APPLY_ATOMICALLY, parameters)
        self._changed()
        self._metrics.lock_wait_seconds.observe(found[0][2])
        results = [
            None
            if row[0] == _NOT_WRITTEN
            else _result(organization_id, write, row, self._database.epoch)
            for write, row in zip(batch.upserts, found, strict=True)
        ]
        written = [result for result in results if isinstance(result, WriteResult)]
        if len(written) == len(results):
            return written
        raise BatchRefused(
            {
                index: result
                for index, result in enumerate(results)
                if isinstance(result, ServiceError)
            },
            organization_revision=found[0][1],
        )

    def _results(
        self, organization_id: str, writes: Sequence[Write], found: Sequence[Row]
    ) -> list[WriteResult | Exception]:
        self._metrics.lock_wait_seconds.observe(found[0][2])
        return [
            _result(organization_id, write, row, self._database.epoch)
            for write, row in zip(writes, found, strict=True)
        ]

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
        if refusal.diag.constraint_name != _NO_OVERLAP:
            return refusal
        [(conflicts,)] = await self._database.fetch(
            organization_id, _CONFLICTS, (organization_id, _json(write_parameter(write)))
        )
        [(revision,)] = await self._database.fetch(organization_id, _REVISION, (organization_id,))
        return TimeRangeConflict(_conflicts(conflicts), organization_revision=revision)


def _parameters(writes: Sequence[Write]) -> list[dict[str, Any]]:
    return [write_parameter(write) for write in writes]


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def write_parameter(write: Write) -> dict[str, Any]:
    """Return a write as apply_writes expects it, ready for `orjson.dumps`."""
    if isinstance(write, Expire):
        return {"kind": "EXPIRE", "id": write.id, "actor": "", "validate_only": False}
    parameter: dict[str, Any] = {
        "id": write.id,
        "expected_revision": write.expected_revision,
        "actor": "" if isinstance(write, Redact) else write.actor,
        "validate_only": write.validate_only,
    }
    if write.idempotency_key is not None:
        parameter["idempotency_key"] = write.idempotency_key
        parameter["idempotency_digest"] = idempotency_digest(write).hex()
    if write.trace is not None:
        parameter["trace"] = write.trace
    match write:
        case Confirm():
            parameter["kind"] = "CONFIRM"
        case Redact():
            parameter["kind"] = "REDACT"
        case Cancel():
            parameter["kind"] = "CANCEL"
            parameter["updated_at"] = write.updated_at
        case Update():
            parameter["kind"] = "UPDATE"
            parameter["fields"] = sorted(write.fields)
            parameter["allow_missing"] = write.allow_missing
            parameter |= _content(write)
            if write.attributes_patch is not None:
                parameter["attributes_patch"] = orjson.Fragment(write.attributes_patch)
        case Upsert():
            parameter["kind"] = "UPSERT"
            parameter["create_only"] = write.create_only
            parameter |= _content(write)
            if write.suggest:
                parameter["suggest"] = write.suggest
    return parameter


def _content(write: Upsert | Update) -> dict[str, Any]:
    content: dict[str, Any] = {
        "resource_id": write.resource_id,
        "start_time": write.start,
        "end_time": write.end,
        "title": write.title,
        "attributes": orjson.Fragment(write.attributes),
        "created_at": write.created_at,
        "updated_at": write.updated_at,
    }
    if write.additional_resource_ids:
        content["additional_resource_ids"] = write.additional_resource_ids
    if write.hold_until is not None:
        content["hold_until"] = write.hold_until
        content["max_hold"] = write.max_hold.total_seconds()
    return content


def _result(organization_id: str, write: Write, row: Row, epoch: str) -> WriteResult | ServiceError:
    outcome, revision = row[0], row[1]
    done = _OUTCOMES.get(outcome)
    if done is not None:
        return WriteResult(
            outcome=done,
            organization_revision=revision,
            appointment=rows.appointment(organization_id, row[5:], epoch=epoch),
        )
    # No other write is refused for its hold.
    max_hold = write.max_hold if isinstance(write, Upsert | Update) else timedelta()
    return refusal(outcome, revision, row[3], row[4], max_hold=max_hold)


def refusal(
    outcome: str,
    revision: int,
    conflicts: list[dict[str, Any]] | None,
    alternatives: list[dict[str, Any]] | None,
    *,
    max_hold: timedelta,
) -> ServiceError:
    """Return the error for an outcome of apply_writes. Raises ValueError for others."""
    if outcome == "HOLD_UNTIL_INVALID":
        hours = max_hold / timedelta(hours=1)
        problem = f"must be later than now, by at most {hours:,g} hours"
        return InvalidFields([("appointment.hold_until", problem)], organization_revision=revision)
    if outcome in _INVALID:
        return InvalidFields([_INVALID[outcome]], organization_revision=revision)
    if outcome == Reason.TIME_RANGE_CONFLICT:
        free = [
            TimeRange(
                start=datetime.fromisoformat(item["start"]), end=datetime.fromisoformat(item["end"])
            )
            for item in alternatives or ()
        ]
        return TimeRangeConflict(_conflicts(conflicts), free, organization_revision=revision)
    if outcome in _REFUSALS:
        error, message = _REFUSALS[outcome]
        return error(message, organization_revision=revision)
    raise ValueError(f"apply_writes returned the unknown outcome {outcome!r}")


def _conflicts(found: list[dict[str, Any]] | None) -> list[Conflict]:
    return [
        Conflict(
            id=item["id"],
            start=datetime.fromisoformat(item["start"]),
            end=datetime.fromisoformat(item["end"]),
            version=item["version"],
            # Operations that the previous version applied do not have them.
            resource_ids=item.get("resource_ids", ()),
            index=item.get("index"),
        )
        for item in found or ()
    ]
