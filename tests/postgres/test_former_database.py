"""A database of the former migrations goes on with its rows and the digests of its keys."""

import json
import shutil
from pathlib import Path

import psycopg
import pytest

from local.postgres import EmbeddedPostgres
from local.programs import ROOT
from tests.conftest import OwnPostgres
from tests.postgres.test_migrations import rows, run_migrate, schema
from tests.verify.verified import check_sound, verified

PREPARATION = ROOT / "migrations" / "from_20261126000070.sql"
FORMER = [
    *(f"2026112200000{number}" for number in range(1, 8)),
    *(f"202611260000{number}" for number in (10, 20, 60, 61, 62, 70)),
]
NEWEST = "20261126000105"
DIGEST = "ab" * 32
# What the former migrations left otherwise, apart from the signatures of functions.
DIFFERENCES = """
    DROP FUNCTION organization_lock_key;
    CREATE FUNCTION create_webhook(
        text, text, text, text, text [], boolean, text, bigint, integer
    ) RETURNS void LANGUAGE sql AS '';
    ALTER TABLE webhooks DROP CONSTRAINT webhooks_headers_have_values;
    ALTER TABLE webhooks ADD CONSTRAINT webhooks_headers_have_values
        CHECK (cardinality(header_names) = cardinality(header_values)) NOT VALID;
    DELETE FROM schema_migrations;
"""


def apply(connection: psycopg.Connection, key: str, digest: str, **fields: object) -> str:
    """Book an appointment, always the same one apart from the fields that are given."""
    write = {
        "kind": "UPSERT",
        "id": "a",
        "resource_id": "r",
        "start_time": "2030-01-07T08:00:00Z",
        "end_time": "2030-01-07T09:00:00Z",
        "title": "",
        "attributes": {},
        "create_only": False,
        "idempotency_key": key,
        "idempotency_digest": digest,
        "actor": "",
        "validate_only": False,
        **fields,
    }
    row = connection.execute(
        "SELECT outcome FROM apply_writes('o', %s::json)", [json.dumps([write])]
    ).fetchone()
    assert row is not None
    outcome: str = row[0]
    return outcome


@pytest.fixture
def server(own_postgres: OwnPostgres) -> EmbeddedPostgres:
    return own_postgres(migrated=False)


@pytest.fixture
def early(server: EmbeddedPostgres, tmp_path: Path) -> str:
    """A database with the first migrations."""
    url = server.url("appointments")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    directory = shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    for path in directory.glob("[0-9]*.sql"):
        if path.name.partition("_")[0] > NEWEST:  # the former ones had nothing of these
            path.unlink()
    assert run_migrate(url, directory=directory).returncode == 0
    return url


@pytest.fixture
def former(early: str) -> str:
    """A database as the former migrations made it, with two keys of theirs."""
    with psycopg.connect(early) as connection:
        outcomes = [apply(connection, key, DIGEST) for key in ("made", "unchanged")]
        assert outcomes == ["CREATED", "UNCHANGED"]
        connection.execute(DIFFERENCES.encode())
        for version in FORMER:
            connection.execute("INSERT INTO schema_migrations (version) VALUES (%s)", [version])
    return early


def prepare(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(PREPARATION.read_bytes())


def test_it_becomes_as_a_new_one_and_its_keys_are_known(
    server: EmbeddedPostgres, former: str
) -> None:
    assert run_migrate(former).returncode != 0
    prepare(former)
    done = run_migrate(former)
    assert (done.returncode, done.stderr) == (0, "")
    new = server.create_database("new")
    assert run_migrate(new).returncode == 0
    assert schema(former) == schema(new)
    with psycopg.connect(former) as connection:
        for key, outcome in (("made", "CREATED"), ("unchanged", "UNCHANGED")):
            assert apply(connection, key, f"01{DIGEST}") == outcome
            assert apply(connection, key, f"01{'cd' * 32}") == "IDEMPOTENCY_KEY_REUSED"
    assert rows(former, "SELECT count(*) FROM appointment_history") == [(1,)]


def test_the_check_of_a_database_accepts_what_the_former_ones_did_not_record(
    early: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They recorded neither the resource that a move left nor which changes were moves."""
    digest = f"01{DIGEST}"
    with psycopg.connect(early) as connection:
        assert apply(connection, "made", digest) == "CREATED"
        assert apply(connection, "unchanged", digest) == "UNCHANGED"
        assert apply(connection, "moved", digest, resource_id="s") == "UPDATED"
        assert apply(connection, "titled", digest, resource_id="s", title="t") == "UPDATED"
        assert apply(connection, "", digest, kind="CANCEL", idempotency_key=None) == "CANCELLED"
        assert apply(connection, "b made", digest, id="b", resource_id="s") == "CREATED"
    assert run_migrate(early).returncode == 0
    assert check_sound(early, capsys)["changes"] == 5
    with psycopg.connect(early) as connection:
        assert (
            apply(connection, "b titled", digest, id="b", resource_id="s", title="t") == "UPDATED"
        )
        assert apply(connection, "b moved", digest, id="b", title="t") == "UPDATED"
    check_sound(early, capsys)
    with psycopg.connect(early) as connection:
        connection.execute(
            "UPDATE appointment_history SET released_resource_ids = NULL WHERE revision = 7"
        )
    # Revision 2 is without it too, but 6 is the first that they would have recorded otherwise.
    assert verified(early, capsys).findings == [("released", "b", 7)]


def test_one_with_a_key_in_its_queue_stays_as_it_is(former: str) -> None:
    before = schema(former)
    with psycopg.connect(former) as connection:
        connection.execute(
            "INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)"
            " VALUES ('o', gen_random_uuid(), now(), '{\"idempotency_key\": \"k\"}')"
        )
    with pytest.raises(psycopg.errors.RaiseException, match="an idempotency key are queued"):
        prepare(former)
    assert schema(former) == before


def test_one_of_other_migrations_stays_as_it_is(former: str) -> None:
    before = schema(former)
    with psycopg.connect(former) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE version = %s", [FORMER[-1]])
    with pytest.raises(psycopg.errors.RaiseException, match="is not at 20261126000070"):
        prepare(former)
    assert schema(former) == before
