"""Secrets and header values of webhooks are encrypted in the database."""

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from standardwebhooks import Webhook

from local.postgres import programs_directory
from local.programs import ROOT, Program, StartError
from service.webhooks.encryption import SecretKeys, SecretUnreadable, read_key
from tests.api import Organization
from tests.conftest import CreateDatabase, StartProgram
from tests.observing import until
from tests.receiver import Received, Receiver
from tests.rest_client import Client
from tests.webhooks.hooked import QUICK, Hooked

OLD, NEW = (base64.b64encode(bytes(range(first, first + 32))).decode() for first in (0, 100))
HEADER = "Bearer a-token-of-the-caller"
HEADERS = [{"name": "Authorization", "value": HEADER}]


@pytest.fixture
def url(create_database: CreateDatabase) -> str:
    return create_database()


@pytest.fixture
def hooked(
    url: str, start_service: StartProgram, start_gateway: StartProgram, organization: str
) -> Callable[[str], Any]:
    """Start a service with keys, and yield an organization and what the service logs."""

    @contextmanager
    def start(keys: str) -> Iterator[tuple[Hooked, Program]]:
        service = start_service(
            **{**QUICK, "DATABASE_URL": url, "SECRETS_KEYS": keys, "LOG_LEVEL": "debug"}
        )
        gateway = start_gateway(SERVICE_ADDRESS=service.address)
        with Receiver() as receiver, grpc.insecure_channel(service.address) as channel:
            org = Organization(AppointmentServiceStub(channel), organization)
            yield Hooked(Client(gateway, organization), org, receiver), service

    return start


@pytest.fixture
def worker(url: str, start_worker: StartProgram) -> Callable[[str], Program]:
    return lambda keys: start_worker(
        **{**QUICK, "DATABASE_URL": url, "SECRETS_KEYS": keys, "LOG_LEVEL": "debug"}
    )


def dump(url: str) -> str:
    command = [str(programs_directory() / "pg_dump"), "--data-only", "--inserts", url]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def rotate(url: str, keys: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "rotate-secrets"],
        env={**os.environ, "DATABASE_URL": url, "SECRETS_KEYS": keys},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def secrets_in(text: str, hook: dict[str, Any]) -> list[str]:
    plain = hook["secret"].removeprefix("whsec_")
    return [secret for secret in (plain, HEADER) if secret in text]


def check_signed(received: Received, hook: dict[str, Any]) -> None:
    assert Webhook(hook["secret"]).verify(received.text, dict(received.headers)) == received.json
    assert received.headers["Authorization"] == HEADER


def refused(start: Callable[[], object]) -> str:
    with pytest.raises(StartError) as caught:
        start()
    message = str(caught.value)
    assert "(exit code 1)" in message
    assert "Traceback" not in message
    assert OLD not in message
    assert NEW not in message
    return message


def test_neither_a_dump_nor_a_log_has_a_secret(
    url: str, hooked: Callable[[str], Any], worker: Callable[[str], Program]
) -> None:
    with hooked(OLD) as (place, service):
        hook = place.hook("/a", headers=HEADERS)
        failing = place.hook("/b", url="http://127.0.0.1:1/", headers=HEADERS)
        rotated = place.rest.call("POST", f"/webhooks/{hook['id']}:rotateSecret").json
        place.replace(hook, description="its headers keep their values")
        place.write(2)
        working = worker(OLD)
        until(lambda: place.reached(hook) == 2)
        for received in place.receiver.at("/a"):
            check_signed(received, hook)  # the old secret signs for a day
            check_signed(received, rotated)
        until(lambda: len(place.deliveries(failing)) > 1)
        text = dump(url)
        assert hook["id"] in text
        assert text.count("encrypted§") == 5
        logs = "\n".join(service.log_lines() + working.log_lines())
        assert "RotateWebhookSecret" in logs
        for each in (hook, rotated, failing):
            assert secrets_in(text, each) == []
            assert secrets_in(logs, each) == []
        assert OLD not in text
        assert OLD not in logs


def test_what_is_stored_in_plain_text_is_encrypted_by_a_command_and_keys_are_replaced(
    url: str, hooked: Callable[[str], Any], worker: Callable[[str], Program]
) -> None:
    with hooked("") as (place, service):
        service.wait_for_event(lambda event: event["event"] == "secrets are stored as plain text")
        hook = place.hook("/a", headers=HEADERS)
        assert len(secrets_in(dump(url), hook)) == 2
        for reached, keys in enumerate(("", OLD, f"{NEW},{OLD}", NEW)):
            if keys:
                done = rotate(url, keys)
                assert (done.returncode, done.stderr) == (0, "")
                changed = 0 if keys == NEW else 1
                assert f"the secrets of {changed} webhooks" in done.stdout
                assert secrets_in(dump(url), hook) == []
            working = worker(keys)
            place.write(1, first=reached)
            until(lambda reached=reached: place.reached(hook) == reached + 1)  # type: ignore[misc]
            check_signed(place.receiver.at("/a")[-1], hook)
            working.stop()


def test_without_the_key_nothing_starts_and_the_setting_is_named(
    url: str,
    hooked: Callable[[str], Any],
    worker: Callable[[str], Program],
    start_service: StartProgram,
) -> None:
    with hooked(OLD) as (place, _):
        place.hook("/a")
    for keys in ("", NEW):
        for start in (
            lambda keys=keys: worker(keys),
            lambda keys=keys: start_service(DATABASE_URL=url, SECRETS_KEYS=keys),
        ):
            assert "SECRETS_KEYS lacks the key with the id" in refused(start)
    done = rotate(url, NEW)
    assert done.returncode == 1
    assert "SECRETS_KEYS lacks the key with the id" in done.stderr
    assert "Traceback" not in done.stderr
    done = rotate(url, "")
    assert (done.returncode, "SECRETS_KEYS is not set" in done.stderr) == (1, True)


def test_a_worker_without_the_newest_key_loses_no_delivery(
    hooked: Callable[[str], Any], worker: Callable[[str], Program]
) -> None:
    """The service got the new key before the worker."""
    with hooked(f"{NEW},{OLD}") as (place, _):
        late = worker(OLD)
        hook = place.hook("/a", headers=HEADERS)
        place.write(2)
        postponed = late.wait_for_event(lambda event: event["event"] == "webhook postponed")
        assert "SECRETS_KEYS lacks the key" in postponed["error"]
        assert not any("Traceback" in line for line in late.log_lines())
        late.stop()
        found = place.read(hook)
        assert found.get("failedAttempts", 0) == 0
        assert not found.get("disabled")
        assert place.deliveries(hook) == []
        worker(f"{OLD},{NEW}")
        until(lambda: place.reached(hook) == 2, within=20)
        for received in place.receiver.at("/a"):
            check_signed(received, hook)


@pytest.mark.parametrize("key", ["secret", "QUJD", OLD[:-4] + "****", OLD + OLD])
def test_a_key_that_is_none_is_refused_and_not_shown(start_service: StartProgram, key: str) -> None:
    message = refused(lambda: start_service(SECRETS_KEYS=f"{OLD},{key}"))
    assert "SECRETS_KEYS: must be keys of 32 bytes in base64" in message
    assert key not in message.replace("secrets", "")


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    old, new = read_key(OLD), read_key(NEW)
    urlsafe = base64.urlsafe_b64encode(old).decode()
    assert read_key(f" {urlsafe} ") == old
    before, after = SecretKeys([old]), SecretKeys([new, old])
    stored = before.encrypt("é")
    assert after.decrypt(stored) == "é"
    renewed = after.renewed(stored)
    assert SecretKeys([new]).decrypt(renewed) == "é"
    assert after.renewed(renewed) == renewed
    with pytest.raises(SecretUnreadable, match="SECRETS_KEYS lacks the key"):
        before.decrypt(renewed)
    with pytest.raises(SecretUnreadable, match="damaged"):
        before.decrypt(stored[:-4] + "AAA=")
    for plain in ("", "whsec_QUJD", "encrypted", "encrypted:x"):
        assert SecretKeys([]).encrypt(plain) == plain
        assert after.decrypt(plain) == plain
        assert after.decrypt(after.renewed(plain)) == plain


def test_a_webhook_that_changes_meanwhile_keeps_its_new_secret(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT create_webhook('o', 'w', 'https://x', '', '{}', false, '{}', '{}', 'old', 0, 9)"
        )
        connection.execute("SELECT rotate_webhook_secret('o', 'w', 'new', 10)")
        replace = "SELECT reencrypt_webhook('o', 'w', %s, '{}', %s, '{}')"
        assert connection.execute(replace, (["old"], ["x"])).fetchone() == (False,)
        assert connection.execute(replace, (["new", "old"], ["a", "b"])).fetchone() == (True,)
        found = connection.execute("SELECT secret, old_secrets FROM webhooks").fetchone()
        assert found == ("a", ["b"])
