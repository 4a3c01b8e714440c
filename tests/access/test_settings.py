"""Settings of access control that are wrong stop the start, with what to change."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from local.programs import ROOT
from runtime.settings import faults
from service.settings import Settings
from tests.access.issuer import AUDIENCE, ISSUER, SigningKey, write_keys
from tests.conftest import new_process

TOKENS = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
URL = "https://issuer.example/keys"
SAFE = "must be an https URL without a user; http is allowed for loopback only"
ALGORITHM = (
    "JWT_ALGORITHMS: 0: must be some of RS256, RS384, RS512, PS256, PS384, PS512, ES256,"
    " ES384, ES512, EdDSA, separated by commas"
)


def read(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Settings:
    for name, value in {"DATABASE_URL": "postgresql:///none", **variables}.items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_access_control_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, {})
    assert (settings.access_control, settings.reflection) == ("off", "on")


def test_the_defaults_of_the_compose_file_leave_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = (ROOT / "docker-compose.yml").read_text("utf-8")
    defaults = dict(re.findall(r"^ +((?:ACCESS|JWT)_\w+): \$\{\1:-(.*)\}$", composed, re.MULTILINE))
    assert set(defaults) == {"ACCESS_CONTROL", "JWT_KEYS_URL", "JWT_ISSUER", "JWT_AUDIENCE"}
    assert read(monkeypatch, defaults).access_control == "off"
    given = dict.fromkeys(defaults, URL) | {"ACCESS_CONTROL": "on"}
    assert read(monkeypatch, given).jwt_keys_url == URL


def test_one_setting_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, {"ACCESS_CONTROL": "on"}).access_control == "on"
    with_tokens = {"ACCESS_CONTROL": "on", "JWT_KEYS_URL": URL, **TOKENS}
    settings = read(monkeypatch, {**with_tokens, "JWT_ALGORITHMS": "PS256, EdDSA"})
    assert settings.jwt_algorithms == ("PS256", "EdDSA")


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"ACCESS_CONTROL": "yess"}, "ACCESS_CONTROL: Input should be 'on' or 'off'"),
        ({"JWT_KEYS_URL": URL}, "JWT_KEYS_URL needs ACCESS_CONTROL=on"),
        ({"JWT_ISSUER": ISSUER}, "JWT_ISSUER needs ACCESS_CONTROL=on"),
        ({"REFLECTION": "authenticated"}, "REFLECTION=authenticated needs ACCESS_CONTROL=on"),
        ({"RATE_LIMIT_PER_CREDENTIAL": "9"}, "RATE_LIMIT_PER_CREDENTIAL needs ACCESS_CONTROL=on"),
        (
            {"ACCESS_CONTROL": "on", "JWT_KEYS_URL": URL},
            "tokens need JWT_KEYS_FILE or JWT_KEYS_URL, JWT_ISSUER and JWT_AUDIENCE",
        ),
        (
            {"ACCESS_CONTROL": "on", **TOKENS},
            "tokens need JWT_KEYS_FILE or JWT_KEYS_URL, JWT_ISSUER and JWT_AUDIENCE",
        ),
        (
            {"ACCESS_CONTROL": "on", "JWT_KEYS_URL": URL, "JWT_KEYS_FILE": "keys.json", **TOKENS},
            "JWT_KEYS_FILE and JWT_KEYS_URL exclude each other",
        ),
        *(
            ({"ACCESS_CONTROL": "on", **TOKENS, "JWT_KEYS_URL": url}, f"JWT_KEYS_URL: {SAFE}")
            for url in (
                "http://issuer.example/keys",
                "http://127.0.0.1.example/keys",
                "https://user:secret@issuer.example/keys",
                "ftp://issuer.example/keys",
                "keys.json",
                "https:///keys",
            )
        ),
        ({"JWT_ALGORITHMS": "HS256"}, ALGORITHM),
        ({"JWT_ALGORITHMS": "none"}, ALGORITHM),
    ],
)
def test_wrong_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], fault: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        read(monkeypatch, variables)
    [found] = faults(caught.value)
    assert found.startswith(fault)
    assert "secret" not in found


@pytest.mark.parametrize("url", ["http://127.0.0.1:8/k", "http://[::1]/k", "http://localhost/k"])
def test_keys_may_come_from_this_machine_without_tls(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    variables = {"ACCESS_CONTROL": "on", "JWT_KEYS_URL": url, **TOKENS}
    assert read(monkeypatch, variables).jwt_keys_url == url


def test_a_file_without_signing_keys_stops_the_start(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for prepare, why in (
        (lambda: None, f"{path}: No such file or directory"),
        (lambda: path.write_text("{"), "the JWK set is not JSON"),
        (
            lambda: write_keys(path, SigningKey("a").jwk(use="enc")),
            "the JWK set has no key to check a signature of RS256, ES256, EdDSA with",
        ),
    ):
        prepare()
        variables = {"ACCESS_CONTROL": "on", "JWT_KEYS_FILE": str(path), **TOKENS}
        program = new_process("service", {"DATABASE_URL": database_url, **variables})
        assert program.process.wait(30) == 1
        program.stop()
        assert program.log_lines() == [f"error: JWT_KEYS_FILE: {why}"]
