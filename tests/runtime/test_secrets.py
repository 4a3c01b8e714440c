"""Secret settings from files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from gateway.settings import Settings as GatewaySettings
from local.programs import ROOT
from local.stack import base_environment
from runtime.secrets import is_secret, secret_of
from service.settings import Settings as ServiceSettings
from tests.conftest import CreateDatabase, StartProgram
from tests.runtime.test_settings import faults_of, read

URL = "postgresql://somebody:s3cret@nowhere/none"


def written(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_the_end_of_the_last_line_is_no_part_of_a_secret(tmp_path: Path, end: str) -> None:
    path = written(tmp_path / "url", URL + end)
    assert read(ServiceSettings, DATABASE_URL="", DATABASE_URL_FILE=path).database_url == URL
    assert secret_of("DATABASE_URL", {"DATABASE_URL_FILE": path}) == URL


def test_every_secret_setting_can_come_from_a_file_and_is_documented(tmp_path: Path) -> None:
    values = {
        "DATABASE_URL": URL,
        "DATABASE_READ_URL": "postgresql://me:s3cret@replica/none",
        "AMQP_URL": "amqp://me:s3cret@broker/",
    }
    files = {f"{name}_FILE": written(tmp_path / name, value) for name, value in values.items()}
    settings = read(ServiceSettings, **dict.fromkeys(values, ""), **files)
    assert {name: getattr(settings, name.lower()) for name in values} == values
    secrets = [
        name.upper()
        for model in (ServiceSettings, GatewaySettings)
        for name, field in model.model_fields.items()
        if is_secret(field)
    ]
    assert set(secrets) >= set(values)
    section = (ROOT / "docs/security.md").read_text("utf-8").split("## Secrets in files")[1]
    assert re.findall(r"`([A-Z_]+)`, ", section.split("\n\n")[1] + ", ") == secrets


def test_a_setting_that_is_no_secret_has_no_file(tmp_path: Path) -> None:
    path = written(tmp_path / "port", "1")
    assert read(ServiceSettings, GRPC_PORT_FILE=path).grpc_port == 50051


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "DATABASE_URL_FILE: {} cannot be read: No such file or directory"),
        ("", "DATABASE_URL_FILE: {} is empty"),
        ("\n", "DATABASE_URL_FILE: {} is empty"),
        (b"s3cret\xff", "DATABASE_URL_FILE: {} is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_without_its_content(
    tmp_path: Path, content: str | bytes | None, said: str
) -> None:
    path = str(tmp_path / "url") if content is None else written(tmp_path / "url", content)
    expected = "DATABASE_URL: " + said.format(path)
    assert faults_of(ServiceSettings, DATABASE_URL="", DATABASE_URL_FILE=path) == [expected]
    others = faults_of(ServiceSettings, DATABASE_URL="", DATABASE_URL_FILE=path, GRPC_PORT="x")
    assert expected in others
    assert len(others) == 2


def test_both_are_refused_and_no_value_is_shown(tmp_path: Path) -> None:
    path = written(tmp_path / "url", "amqp://me:s3cret@broker/")
    [said] = faults_of(ServiceSettings, AMQP_URL="amqp://me:s3cret@other/", AMQP_URL_FILE=path)
    assert said == "AMQP_URL: AMQP_URL and AMQP_URL_FILE must not both be set"


def test_a_wrong_value_in_a_file_is_refused_and_not_shown(tmp_path: Path) -> None:
    path = written(tmp_path / "url", "http://me:s3cret@broker/")
    [said] = faults_of(ServiceSettings, AMQP_URL_FILE=path)
    assert said.startswith("AMQP_URL: must be like amqp://")
    assert "s3cret" not in said


def test_an_empty_name_of_a_file_is_none() -> None:
    assert read(ServiceSettings, DATABASE_URL=URL, DATABASE_URL_FILE="").database_url == URL


def test_service_and_migrations_read_the_file(
    create_database: CreateDatabase, start_service: StartProgram, tmp_path: Path
) -> None:
    url = create_database()
    path = written(tmp_path / "url", url + "\n")
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**base_environment(), "PATH": programs, "DATABASE_URL_FILE": path}

    def migrate(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "service.postgres.migration", "status"],
            cwd=ROOT,
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    done = migrate()
    assert done.returncode == 0, done.stderr
    assert "Pending: 0" in done.stdout
    refused = migrate(DATABASE_URL=url)
    assert refused.returncode == 1
    assert refused.stderr == ("error: DATABASE_URL and DATABASE_URL_FILE must not both be set\n")
    service = start_service(DATABASE_URL="", DATABASE_URL_FILE=path)
    with psycopg.connect(url) as sql:
        [(count,)] = sql.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        ).fetchall()
    assert count > 0
    assert service.ready
