"""A database is sound after redactions, and what they cannot have left is found."""

import time
from contextlib import closing

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb

from tests.api import at, soon
from tests.conftest import CreateDatabase, StartProgram
from tests.operations.submissions import Submissions
from tests.verify.conftest import apply_queued
from tests.verify.verified import verified


def redact_all(submissions: Submissions, sql: psycopg.Connection) -> None:
    """Redact appointments in every state, before and after their writes are applied."""
    org = submissions.org
    org.upsert("a", 0, 30, resource_id="r1", additional_resource_ids=["r2"], title="t")
    org.upsert("a", 0, 30, resource_id="r3", title="t", idempotency_key="moved")
    org.upsert("a", 0, 30, resource_id="r3", title="t", idempotency_key="unchanged")
    org.redact("a", idempotency_key="redacted")
    org.redact("a", idempotency_key="redacted again")
    org.upsert("a", 0, 30, resource_id="r1", title="new", idempotency_key="new")
    org.upsert("c", 0, 30, title="t", updated_at=at(1))
    org.cancel("c")
    org.redact("c")
    org.upsert("h", 0, 30, title="t", hold_until=soon(3600))
    org.redact("h")
    org.upsert("e", 40, 50, title="t", hold_until=soon(1.5))
    while org.get("e").state != pb.Appointment.EXPIRED:
        time.sleep(0.01)
    org.redact("e")
    for _ in range(2):
        submissions.upsert(None, 60, 70, title="t", idempotency_key="accepted")
    submissions.redact("a", idempotency_key="accepted redaction")
    apply_queued(sql)
    [twice] = [item.id for item in org.listed().values() if item.start == at(60)]
    submissions.upsert(twice, 60, 80, title="t", idempotency_key="later")
    org.redact(twice)


def test_redactions_leave_it_sound_and_what_is_wrong_in_them_is_found(
    create_database: CreateDatabase, start_service: StartProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    url = create_database()
    service = start_service(DATABASE_URL=url)
    with (
        grpc.insecure_channel(service.address) as channel,
        closing(psycopg.connect(url, autocommit=True)) as sql,
    ):
        redact_all(Submissions(channel, "o"), sql)
        sound = verified(url, capsys)
        assert (sound.code, sound.findings) == (0, [])
        assert sound.result["digestsNotRecomputed"] == 0

        # The followers of a resource are left out, a state and a title have changed, and a key is
        # that of another write.
        sql.execute(
            "UPDATE appointment_history SET released_resource_ids = '{r1}',"
            " idempotency_digest = decode('01' || repeat('00', 32), 'hex') WHERE revision = 3"
        )
        sql.execute("UPDATE appointment_history SET title = 'x' WHERE revision = 1")
        sql.execute("UPDATE appointment_history SET state = 'ACTIVE' WHERE revision = 7")
        found = verified(url, capsys).findings
        assert {("digest", "a", 3), ("released", "a", 3), ("transition", "c", 7)} <= {*found}


def test_what_a_redaction_has_not_erased_is_found(
    create_database: CreateDatabase, start_service: StartProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    url = create_database()
    service = start_service(DATABASE_URL=url)
    with (
        grpc.insecure_channel(service.address) as channel,
        closing(psycopg.connect(url, autocommit=True)) as sql,
    ):
        org = Submissions(channel, "o").org
        org.upsert("a", 0, 30, title="t", attributes={"a": 1}, idempotency_key="k")
        org.upsert("a", 0, 40, title="t")
        org.redact("a", idempotency_key="redacted")
        org.upsert("a", 0, 50, title="again", idempotency_key="new")
        assert verified(url, capsys).code == 0
        for edit, expected in (
            ("title = 'x'", [("content", "a", 3), ("erased", "a", 2)]),
            ("attributes = '{\"a\":1}'", [("content", "a", 3), ("erased", "a", 2)]),
            ("actor = 'x'", [("erased", "a", 2)]),
            (
                "idempotency_key = 'k', idempotency_digest = '\\x01' || sha256('')",
                [("erased", "a", 2)],
            ),
        ):
            sql.execute(f"UPDATE appointment_history SET {edit} WHERE revision = 2".encode())
            found = verified(url, capsys).findings
            sql.execute(
                "UPDATE appointment_history SET title = '', attributes = '{}', actor = '',"
                " idempotency_key = NULL, idempotency_digest = NULL WHERE revision = 2"
            )
            assert sorted(found, key=str) == sorted(expected, key=str)
