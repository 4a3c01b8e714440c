"""A database that was edited by hand: each edit is found, and nothing else."""

import psycopg
import pytest

from service.domain import Change
from service.verify.kinds import KINDS
from tests.verify.verified import check_sound, verified

# What stands in the way of the edits.
PROTECTION = """
    ALTER TABLE appointments
        DROP CONSTRAINT appointments_no_overlap, DROP CONSTRAINT appointments_state_known,
        DROP CONSTRAINT appointments_start_before_end;
    ALTER TABLE appointment_history DROP CONSTRAINT appointment_history_key_has_digest;
"""


def test_a_database_with_every_kind_of_write_is_sound(
    sound: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check_sound(sound, capsys)
    assert (found["organizations"], found["changes"]) == (2, 23)
    # A partial update, and one of which the caller's time is no longer stored.
    assert found["digestsNotRecomputed"] == 1
    assert found["digestsRecomputed"] == 8


def test_every_kind_of_change_has_rules() -> None:
    assert KINDS.keys() == {change.value for change in Change}


# An edit by name: the statements, and what is found: check, appointment, revision.
EDITS: dict[str, tuple[str, list[tuple[str, str | None, int | None]]]] = {
    "a range that another appointment has": (
        """
        UPDATE appointments SET start_time = start_time - interval '10 minutes'
        WHERE appointment_id = 'b' AND organization_id = 'o';
        UPDATE appointments SET end_time = end_time + interval '20 minutes'
        WHERE appointment_id = 'h' AND organization_id = 'o'
        """,
        [("row", "b", 13), ("row", "h", 5), ("overlap", "b", 13)],
    ),
    "a resource twice": (
        "UPDATE appointments SET resource_id = 'r3' WHERE appointment_id = 'm' AND ordinal = 1",
        [("row", "m", 10), ("overlap", "m", 10)],
    ),
    "an overlap in the past": (
        # "a" left r1 with revision 3, and "h" came with revision 4.
        """
        UPDATE appointment_history SET resource_id = 'r1', placed = false,
            released_resource_ids = NULL
        WHERE organization_id = 'o' AND revision = 3;
        UPDATE appointments SET resource_id = 'r1'
        WHERE organization_id = 'o' AND appointment_id = 'a'
        """,
        [("overlap", "h", 5), ("past-overlap", "h", 4)],
    ),
    "an overlap that has ended": (
        # "e" has expired when "b" takes its place.
        """
        UPDATE appointment_history h
        SET change = after.change, appointment_id = after.appointment_id, state = after.state,
            version = after.version, title = after.title, created_at = after.created_at,
            updated_at = after.updated_at, hold_until = after.hold_until, placed = after.placed,
            recorded_at = after.recorded_at
        FROM appointment_history after
        WHERE h.organization_id = 'o' AND after.organization_id = 'o'
            AND h.revision IN (7, 8) AND after.revision = 15 - h.revision;
        UPDATE appointment_history SET recorded_at = recorded_at + interval '1 microsecond',
            change = 'CANCELLED', state = 'CANCELLED'
        WHERE organization_id = 'o' AND revision = 8;
        UPDATE appointments SET revision = 8, state = 'CANCELLED'
        WHERE organization_id = 'o' AND appointment_id = 'e'
        """,
        [("expiry", "e", 8), ("past-overlap", "b", 7)],
    ),
    "a revision left out": (
        """
        UPDATE appointment_history SET revision = 17 WHERE organization_id = 'o' AND revision = 16;
        UPDATE appointments SET revision = 17 WHERE organization_id = 'o' AND revision = 16;
        UPDATE operations SET revision = 17, organization_revision = 17 WHERE revision = 16;
        UPDATE organizations SET revision = 17 WHERE organization_id = 'o'
        """,
        [("gap", "w", 17)],
    ),
    "a change deleted": (
        "DELETE FROM appointment_history WHERE organization_id = 'o' AND revision = 2",
        [("gap", "a", 3), ("version", "a", 3)],
    ),
    "a change recorded before the one before it": (
        """
        UPDATE appointment_history SET recorded_at = '2020-01-01'
        WHERE organization_id = 'o' AND revision = 10;
        UPDATE appointments SET updated_at_given = true WHERE appointment_id = 'm' AND ordinal = 0
        """,
        [("recorded-time", "m", 10)],
    ),
    "a latest revision that no change has": (
        "UPDATE organizations SET revision = 20 WHERE organization_id = 'o'",
        [("latest-revision", None, 16)],
    ),
    "an organization without changes": (
        "INSERT INTO organizations VALUES ('x', 1, now())",
        [("latest-revision", None, 1)],
    ),
    "an organization without a row": (
        "DELETE FROM organizations WHERE organization_id = 'p'",
        [("latest-revision", None, 7)],
    ),
    "a version left out": (
        """
        UPDATE appointment_history SET version = 4 WHERE organization_id = 'o' AND revision = 3;
        UPDATE appointments SET version = 4 WHERE organization_id = 'o' AND appointment_id = 'a'
        """,
        [("version", "a", 3)],
    ),
    "a kind of change that does not exist": (
        """
        UPDATE appointment_history SET change = 'MOVED' WHERE organization_id = 'o' AND revision = 2
        """,
        [("transition", "a", 2)],
    ),
    "a second creation": (
        """
        UPDATE appointment_history SET change = 'CREATED'
        WHERE organization_id = 'o' AND revision = 2
        """,
        [("transition", "a", 2)],
    ),
    "a range that ends before it begins": (
        """
        UPDATE appointment_history SET end_time = start_time - interval '1 minute'
        WHERE organization_id = 'o' AND revision = 9
        """,
        [("range", "m", 9)],
    ),
    "a range without end": (
        """
        UPDATE appointment_history SET end_time = 'infinity'
        WHERE organization_id = 'o' AND revision = 9
        """,
        [("range", "m", 9)],
    ),
    "a firm appointment with the end of a hold": (
        """
        UPDATE appointment_history SET hold_until = '2030-01-01'
        WHERE organization_id = 'o' AND revision = 16;
        UPDATE appointments SET hold_until = '2030-01-01'
        WHERE organization_id = 'o' AND revision = 16
        """,
        [("hold", "w", 16)],
    ),
    "a cancel that changes the title": (
        """
        UPDATE appointment_history SET title = 'x' WHERE organization_id = 'o' AND revision = 12;
        UPDATE appointments SET title = 'x' WHERE organization_id = 'o' AND appointment_id = 'c'
        """,
        [("content", "c", 12)],
    ),
    "a confirmation that moves": (
        """
        UPDATE appointment_history SET resource_id = 'r7', placed = true
        WHERE organization_id = 'o' AND revision = 5;
        UPDATE appointments SET resource_id = 'r7'
        WHERE organization_id = 'o' AND appointment_id = 'h'
        """,
        [("content", "h", 5)],
    ),
    "a hold recorded as expired before its end": (
        """
        UPDATE appointment_history SET hold_until = '2030-01-01'
        WHERE organization_id = 'o' AND appointment_id = 'e';
        UPDATE appointments SET hold_until = '2030-01-01'
        WHERE organization_id = 'o' AND appointment_id = 'e'
        """,
        [("expiry", "e", 7)],
    ),
    "a hold confirmed after its end": (
        """
        UPDATE appointment_history SET hold_until = created_at, idempotency_key = NULL,
            idempotency_digest = NULL
        WHERE organization_id = 'o' AND revision = 4
        """,
        [("expiry", "h", 5)],
    ),
    "a move that lists of the past do not find": (
        """
        UPDATE appointment_history SET placed = false WHERE organization_id = 'o' AND revision = 3
        """,
        [("placed", "a", 3)],
    ),
    "a new title that lists of the past look up": (
        """
        UPDATE appointment_history SET placed = true WHERE organization_id = 'o' AND revision = 13
        """,
        [("placed", "b", 13)],
    ),
    "a resource that was not left": (
        """
        UPDATE appointment_history SET released_resource_ids = '{r4,r5}'
        WHERE organization_id = 'o' AND revision = 10
        """,
        [("released", "m", 10)],
    ),
    "resources that are not released": (
        """
        UPDATE appointment_history SET released_resource_ids = NULL
        WHERE organization_id = 'o' AND revision = 10
        """,
        [("released", "m", 10)],
    ),
    "an appointment deleted": (
        "DELETE FROM appointments WHERE organization_id = 'o' AND appointment_id = 'w'",
        [("row", "w", 16)],
    ),
    "an appointment that no change made": (
        """
        INSERT INTO appointments (organization_id, appointment_id, resource_id, start_time,
            end_time, title, attributes, created_at, updated_at, updated_at_given, state, version,
            revision)
        VALUES ('o', 'z', 'r9', '2030-01-01', '2030-01-02', '', '{}', now(), now(), true, 'ACTIVE',
            1, 3)
        """,
        [("row", "z", 3)],
    ),
    "a row of a further resource deleted": (
        "DELETE FROM appointments WHERE appointment_id = 'm' AND ordinal = 2",
        [("row", "m", 10)],
    ),
    "a row of a further resource too many": (
        """
        INSERT INTO appointments (organization_id, appointment_id, ordinal, resource_id, start_time,
            end_time, title, attributes, created_at, updated_at, updated_at_given, state, version,
            revision)
        SELECT organization_id, appointment_id, 3, 'r9', start_time,
            end_time, title, attributes, created_at, updated_at, updated_at_given, state, version,
            revision
        FROM appointments WHERE appointment_id = 'm' AND ordinal = 2
        """,
        [("row", "m", 10)],
    ),
    "the rows of further resources exchanged": (
        """
        UPDATE appointments SET resource_id = CASE ordinal WHEN 1 THEN 'r6' ELSE 'r5' END
        WHERE appointment_id = 'm' AND ordinal > 0
        """,
        [("row", "m", 10), ("row", "m", 10)],
    ),
    "an expired hold that is held again": (
        """
        UPDATE appointments SET state = 'HELD' WHERE organization_id = 'o' AND appointment_id = 'e'
        """,
        [("row", "e", 7), ("overlap", "e", 7)],
    ),
    "the time of an update that nobody sent": (
        """
        UPDATE appointment_history SET updated_at = '2020-01-01'
        WHERE organization_id = 'o' AND appointment_id = 'h';
        UPDATE appointments SET updated_at = '2020-01-01'
        WHERE organization_id = 'o' AND appointment_id = 'h'
        """,
        [("bookkeeping", "h", 5)],
    ),
    "the time of a cancel in an appointment that is not cancelled": (
        "UPDATE appointments SET cancel_updated_at = now() WHERE appointment_id = 'w'",
        [("bookkeeping", "w", 16)],
    ),
    "a cancel before what it cancels": (
        "UPDATE appointments SET cancel_updated_at = '2020-01-01' WHERE appointment_id = 'c'",
        [("bookkeeping", "c", 12)],
    ),
    "a time that was sent in the row of a further resource": (
        """
        UPDATE appointments SET updated_at_given = true WHERE appointment_id = 'm' AND ordinal = 1
        """,
        [("bookkeeping", "m", 10)],
    ),
    "the digest of a confirmation": (
        """
        UPDATE appointment_history SET idempotency_digest = set_byte(idempotency_digest, 9, 0)
        WHERE organization_id = 'o' AND revision = 5
        """,
        [("digest", "h", 5)],
    ),
    "a digest of another version": (
        """
        UPDATE appointment_history SET idempotency_digest = set_byte(idempotency_digest, 0, 2)
        WHERE organization_id = 'o' AND revision = 1
        """,
        [("digest", "a", 1)],
    ),
    "a digest that is too short": (
        """
        UPDATE appointment_history SET idempotency_digest = substr(idempotency_digest, 1, 32)
        WHERE organization_id = 'o' AND revision = 1
        """,
        [("digest", "a", 1)],
    ),
    "a key without a digest": (
        """
        UPDATE appointment_history SET idempotency_digest = NULL
        WHERE organization_id = 'o' AND revision = 1
        """,
        [("digest", "a", 1)],
    ),
    "the title of a queued write": (
        """
        UPDATE queued_operations
        SET write = replace(write::text, '"title":""', '"title":"other"')::json
        """,
        [("digest", "later", None)],
    ),
    "a key that changed nothing and something": (
        """
        INSERT INTO unchanged_writes
        SELECT organization_id, 'created', idempotency_digest, outcome, revision
        FROM unchanged_writes WHERE idempotency_key = 'unchanged'
        """,
        [("unchanged-write", "a", 3)],
    ),
    "a key that left what does not exist": (
        "UPDATE unchanged_writes SET revision = 99 WHERE idempotency_key = 'stale'",
        [("unchanged-write", None, 99)],
    ),
    "a key that left a hold that was none": (
        "UPDATE unchanged_writes SET revision = -3 WHERE idempotency_key = 'unchanged'",
        [("unchanged-write", "a", 3)],
    ),
    "a digest of an unchanged write": (
        "UPDATE unchanged_writes SET idempotency_digest = '' WHERE idempotency_key = 'stale'",
        [("unchanged-write", "c", 12)],
    ),
    "a result of another appointment": (
        "UPDATE operations SET revision = 8 WHERE revision = 16",
        [("operation", "w", 8)],
    ),
    "a result that is another kind of change": (
        "UPDATE operations SET outcome = 'UPDATED' WHERE revision = 16",
        [("operation", "w", 16)],
    ),
    "a result that does not exist": (
        "UPDATE operations SET revision = 99 WHERE revision = 16",
        [("operation", "w", 99), ("operation", "w", 99)],
    ),
    "an operation after the latest revision": (
        "UPDATE operations SET organization_revision = 17 WHERE revision = 16",
        [("operation", "w", 16)],
    ),
    "a successful operation without its result": (
        "UPDATE operations SET revision = NULL WHERE revision = 16",
        [("operation", "w", None)],
    ),
    "a refused operation with a result": (
        "UPDATE operations SET revision = 15 WHERE outcome = 'TIME_RANGE_CONFLICT'",
        [("operation", "t", 15), ("operation", "t", 15)],
    ),
    "two operations with one effect": (
        """
        INSERT INTO operations (organization_id, operation_id, accepted_at, finished_at,
            appointment_id, outcome, organization_revision, revision)
        SELECT organization_id, gen_random_uuid(), accepted_at, finished_at,
            appointment_id, outcome, organization_revision, revision
        FROM operations WHERE revision = 16
        """,
        [("operation", "w", 16), ("operation", "w", 16)],
    ),
    "a failed operation without an error": (
        "UPDATE operations SET outcome = 'FAILED' WHERE outcome = 'TIME_RANGE_CONFLICT'",
        [("operation", "t", None)],
    ),
    "a result of an expired hold that was none": (
        "UPDATE operations SET revision = -16 WHERE revision = 16",
        [("operation", "w", 16)],
    ),
    "a finished operation that is queued": (
        """
        INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)
        SELECT organization_id, operation_id, accepted_at, '{"id": "w"}'
        FROM operations WHERE revision = 16
        """,
        [("operation", "w", None)],
    ),
    "a webhook that got what does not exist": (
        "UPDATE webhooks SET cursor_revision = 17",
        [("position", None, 17)],
    ),
    "a delivery of what does not exist": (
        "UPDATE webhook_deliveries SET revision = 17",
        [("position", None, 17)],
    ),
    "a consumer that got what does not exist": (
        "UPDATE event_cursors SET revision = 17",
        [("position", None, 17)],
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_found(edit: str, copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    statements, expected = EDITS[edit]
    with psycopg.connect(copy) as connection:
        if edit == "a range without end" and connection.info.server_version < 17_00_00:
            # An index on the length of the range cannot store it.
            with pytest.raises(psycopg.errors.DatetimeFieldOverflow):
                connection.execute(f"{PROTECTION}; {statements}".encode())
            return
        connection.execute(f"{PROTECTION}; {statements}".encode())
    found = verified(copy, capsys)
    assert sorted(found.findings, key=str) == sorted(expected, key=str), found.result
    assert found.code == 1
    for finding in found.result["findings"]:
        assert finding["expected"] != finding["stored"]
