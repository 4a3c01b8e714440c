"""Databases of managed offers: nobody is a superuser, and the owner may not create roles."""

import re

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb

from local.postgres import EmbeddedPostgres
from local.programs import ROOT
from tests.commands import run_command
from tests.conftest import OwnPostgres, StartProgram
from tests.operations.submissions import Submissions, response_of
from tests.postgres.test_migrations import rows, run_migrate

NAME = "appointments_owner"


@pytest.fixture
def server(own_postgres: OwnPostgres) -> EmbeddedPostgres:
    """A new server without the service's roles, whose `admin` may create roles and databases."""
    server = own_postgres(migrated=False)
    with psycopg.connect(server.url(), autocommit=True) as superuser:
        superuser.execute("CREATE ROLE admin LOGIN CREATEROLE CREATEDB")
    return server


def url_of(server: EmbeddedPostgres, user: str, database: str) -> str:
    return server.url(database).replace("postgres@", f"{user}@")


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def command(url: str, *arguments: str) -> str:
    done = run_command(url, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documented() -> list[str]:
    """Return the statements for an administrator in the documents."""
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.split("## Managed PostgreSQL")[1].split("\n## ")[0]
    block = section.split("```sql roles.sql\n")[1].split("```")[0]
    return [each.strip() for each in block.split(";") if each.strip()]


def use(start_service: StartProgram, start_worker: StartProgram, *, owner: str, login: str) -> None:
    """Run programs as the login, and commands as the owner."""
    service = start_service(DATABASE_URL=login)
    start_worker(DATABASE_URL=login)
    with grpc.insecure_channel(service.address) as channel:
        clinic = Submissions(channel, "clinic")
        assert clinic.org.upsert("a", 0, 30).outcome == pb.CREATED
        operation = clinic.wait(clinic.upsert("b", 30, 60))
        assert response_of(operation).id == "b"
        clinic.org.check_history()
    assert command(login, "verify").startswith("sound: organizations 1, appointments 2, ")
    assert command(
        owner,
        "keys",
        "create",
        "--subject",
        "s",
        "--all-organizations",
        "--scope",
        "appointments.read",
    )
    command(owner, "purge", "clinic", "--yes-delete", "clinic")
    assert command(owner, "verify").startswith("sound: organizations 0, ")


def test_the_documented_statements_serve_an_owner_without_rights(
    server: EmbeddedPostgres, start_service: StartProgram, start_worker: StartProgram
) -> None:
    execute(url_of(server, "admin", "postgres"), *documented())
    owner = url_of(server, NAME, "appointments_of_owner")
    assert rows(
        owner, f"SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = '{NAME}'"
    ) == [(False, False)]
    done = run_migrate(owner)
    assert (done.returncode, done.stderr) == (0, "")
    login = url_of(server, "appointments_login", "appointments_of_owner")
    use(start_service, start_worker, owner=owner, login=login)


def test_an_owner_who_may_not_create_roles_is_told_what_an_administrator_must_do(
    server: EmbeddedPostgres,
) -> None:
    admin = url_of(server, "admin", "postgres")
    execute(
        admin,
        f"CREATE ROLE {NAME} LOGIN",
        f"GRANT {NAME} TO admin",
        f"CREATE DATABASE plain OWNER {NAME}",
    )
    owner = url_of(server, NAME, "plain")
    done = run_migrate(owner)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"the user {NAME} may not create roles" in done.stderr
    assert rows(
        owner, "SELECT to_regclass('organizations'), to_regrole('appointments_caller')"
    ) == [(None, None)]
    statements = re.findall(r"(?:CREATE|GRANT) .+?;", done.stderr)
    execute(admin, statements[0])
    # The other one is still missing.
    again = run_migrate(owner)
    assert statements[0] not in again.stderr
    [statement] = re.findall(r"(?:CREATE|GRANT) .+?;", again.stderr)
    execute(admin, statement)
    assert run_migrate(owner).returncode == 0


def test_an_owner_who_may_create_roles_needs_no_administrator(
    server: EmbeddedPostgres, start_service: StartProgram
) -> None:
    execute(url_of(server, "admin", "postgres"), "CREATE DATABASE own")
    owner = url_of(server, "admin", "own")
    done = run_migrate(owner)
    assert (done.returncode, done.stderr) == (0, "")
    service = start_service(DATABASE_URL=owner)
    with grpc.insecure_channel(service.address) as channel:
        assert Submissions(channel, "clinic").org.upsert("a", 0, 30).outcome == pb.CREATED
