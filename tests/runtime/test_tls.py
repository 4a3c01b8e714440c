"""Certificates in files: errors name the setting, and renewals are found."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from prometheus_client import CollectorRegistry, Gauge
from structlog.testing import capture_logs

from gateway.settings import Settings as GatewaySettings
from local.programs import StartError
from runtime import files as runtime_files
from runtime.files import FilesUnfit, SettingFile
from runtime.tls import CertificateFiles, Certificates, CertificateWatch, PairFiles
from service.settings import Settings as ServiceSettings
from tests.certificates import DAY, Authority, Files, Volume
from tests.conftest import new_process
from tests.runtime.test_settings import faults_of, read

LOOK = 0.02


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    return Files(tmp_path).write(authority.issue(), authority)


def of(files: Files) -> CertificateFiles:
    return CertificateFiles(
        pair=PairFiles(
            certificate=SettingFile(setting="GRPC_TLS_CERTIFICATE", path=files.certificate),
            key=SettingFile(setting="GRPC_TLS_KEY", path=files.key),
        ),
        authorities=SettingFile(setting="GRPC_TLS_CLIENT_CA", path=files.ca),
    )


def gauge() -> Gauge:
    return Gauge("expiry", "", ["setting"], registry=CollectorRegistry())


@asynccontextmanager
async def followed(
    files: Files, monkeypatch: pytest.MonkeyPatch, use: Any = None
) -> AsyncIterator[CertificateWatch]:
    monkeypatch.setattr(runtime_files, "INTERVAL", LOOK)
    watch = CertificateWatch(of(files), gauge())
    task = asyncio.create_task(watch.follow(use))
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def until(condition: Callable[[], bool]) -> None:
    give_up = monotonic() + 10
    while not condition():
        assert monotonic() < give_up
        await asyncio.sleep(LOOK / 4)


def spoil(files: Files, name: str, authority: Authority) -> None:
    """Make one of the files unusable, in the way of this name."""
    if name == "no certificate":
        files.certificate.unlink()
    elif name == "no key":
        files.key.unlink()
    elif name == "no authorities":
        files.ca.unlink()
    elif name == "a directory":
        files.key.unlink()
        files.key.mkdir()
    elif name == "an empty certificate":
        files.certificate.write_bytes(b"")
    elif name == "half a certificate":
        files.certificate.write_bytes(files.certificate.read_bytes()[:300])
    elif name == "half a key":
        files.key.write_bytes(files.key.read_bytes()[:100])
    elif name == "the key of another":
        files.key.write_bytes(authority.issue().key)
    elif name == "an encrypted key":
        files.write(authority.issue(passphrase="secret"))
    else:
        files.ca.write_bytes(b"no authority")


UNFIT = [
    ("no certificate", "GRPC_TLS_CERTIFICATE", "cannot be read: No such file"),
    ("no key", "GRPC_TLS_KEY", "cannot be read: No such file"),
    ("no authorities", "GRPC_TLS_CLIENT_CA", "cannot be read: No such file"),
    ("a directory", "GRPC_TLS_KEY", "cannot be read: Is a directory"),
    ("an empty certificate", "GRPC_TLS_CERTIFICATE", "has no certificate in PEM"),
    ("half a certificate", "GRPC_TLS_CERTIFICATE", "has no certificate in PEM, or a damaged one"),
    ("half a key", "GRPC_TLS_KEY", "is not a private key in PEM"),
    ("the key of another", "GRPC_TLS_KEY", "is not the key of the certificate in"),
    ("an encrypted key", "GRPC_TLS_KEY", "store the key without a passphrase"),
    ("no PEM", "GRPC_TLS_CLIENT_CA", "has no certificate in PEM"),
]


@pytest.mark.parametrize(
    ("key", "supported"),
    [
        (ec.generate_private_key(ec.SECP384R1()), True),
        (rsa.generate_private_key(65537, 2048), True),
        (ec.generate_private_key(ec.SECP521R1()), False),
        (ec.generate_private_key(ec.SECP256K1()), False),
        (ed25519.Ed25519PrivateKey.generate(), False),
        (ed448.Ed448PrivateKey.generate(), False),
    ],
)
def test_keys_that_some_clients_do_not_accept_are_refused(
    files: Files, authority: Authority, key: CertificateIssuerPrivateKeyTypes, supported: bool
) -> None:
    files.write(authority.issue(key=key))
    if supported:
        of(files).read()
        return
    with pytest.raises(FilesUnfit, match=r"GRPC_TLS_KEY: .* is of a kind that is not supported"):
        of(files).read()


@pytest.mark.parametrize(("how", "setting", "why"), UNFIT)
def test_files_that_cannot_be_used_are_named_with_their_setting(
    files: Files, authority: Authority, how: str, setting: str, why: str
) -> None:
    of(files).read()
    spoil(files, how, authority)
    with pytest.raises(FilesUnfit) as caught:
        of(files).read()
    said = str(caught.value)
    assert said.startswith(f"{setting}: {files.directory}/")
    assert why in said
    assert "\n" not in said


@pytest.mark.parametrize(("how", "setting", "why"), UNFIT)
async def test_what_cannot_be_used_changes_nothing_until_it_is_mended(
    files: Files,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    setting: str,
    why: str,
) -> None:
    with capture_logs() as logs:
        async with followed(files, monkeypatch) as watch:
            first = watch.current
            spoil(files, how, authority)
            await until(lambda: bool(logs))
            await asyncio.sleep(5 * LOOK)
            assert watch.current is first
            if how == "a directory":
                files.key.rmdir()
            files.write(authority.issue(), authority)
            await until(lambda: watch.current is not first)
    warning, renewed = logs  # each once
    assert (warning["event"], warning["log_level"]) == ("certificates not renewed", "warning")
    assert warning["error"].startswith(f"{setting}: ")
    assert why in warning["error"]
    assert renewed["event"] == "certificates renewed"
    assert renewed["GRPC_TLS_CERTIFICATE"] == str(files.certificate)


async def test_a_certificate_and_its_key_are_never_mixed(
    files: Files, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = [authority.issue() for _ in range(5)]
    pairs = {(each.certificate, each.key) for each in renewed}
    used: list[Certificates] = []

    async def use(certificates: Certificates) -> None:
        used.append(certificates)

    async with followed(files, monkeypatch, use) as watch:
        for number, each in enumerate(renewed):
            first, second = (files.certificate, each.certificate), (files.key, each.key)
            for path, content in (second, first) if number % 2 else (first, second):
                path.write_bytes(content)
                await asyncio.sleep(3 * LOOK)  # long enough to be looked at twice
            await until(lambda: len(used) > number)  # noqa: B023
            assert watch.current is used[-1]
    assert {(each.pair.chain, each.pair.key) for each in used if each.pair} == pairs
    assert len(used) == len(renewed)


async def test_a_volume_of_kubernetes_is_followed(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume(tmp_path / "volume")
    volume.publish(authority.issue(), authority)
    async with followed(volume.files, monkeypatch) as watch:
        other = Authority()
        issued = other.issue()
        volume.publish(issued, other)
        await until(lambda: watch.current.authorities == other.certificate)
        assert watch.current.pair is not None
        assert (watch.current.pair.chain, watch.current.pair.key) == (
            issued.certificate,
            issued.key,
        )


async def test_what_the_program_refuses_to_use_is_logged_and_not_current(
    files: Files, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(_: Certificates) -> None:
        raise FilesUnfit("not that one")

    with capture_logs() as logs:
        async with followed(files, monkeypatch, use) as watch:
            first = watch.current
            files.write(authority.issue())
            await until(lambda: bool(logs))
            assert watch.current is first
    assert [(each["event"], each["error"]) for each in logs] == [
        ("certificates not renewed", "not that one")
    ]


async def test_an_expired_certificate_is_logged_once_and_used(
    files: Files, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(authority.issue(ends=-DAY))
    with capture_logs() as logs:
        async with followed(files, monkeypatch):
            await asyncio.sleep(5 * LOOK)
            files.write(authority.issue(ends=timedelta(seconds=2)))
            await until(lambda: len(logs) == 3)
    assert [each["event"] for each in logs] == [
        "certificate expired",
        "certificates renewed",
        "certificate expired",  # while it was in use
    ]
    assert logs[0]["log_level"] == "warning"


def test_the_end_of_the_certificate_is_a_metric(files: Files, authority: Authority) -> None:
    expiry = gauge()
    watch = CertificateWatch(of(files), expiry)
    assert watch.current.pair is not None
    [sample] = [sample for metric in expiry.collect() for sample in metric.samples]
    assert sample.labels == {"setting": "GRPC_TLS_CERTIFICATE"}
    assert sample.value == watch.current.pair.expiry.timestamp()


def test_a_key_is_not_shown(files: Files) -> None:
    assert files.key.read_text().splitlines()[1] not in repr(of(files).read())


@pytest.mark.parametrize(
    ("settings", "variables", "said"),
    [
        (
            ServiceSettings,
            {"GRPC_TLS_CERTIFICATE": "/a"},
            "GRPC_TLS_CERTIFICATE and GRPC_TLS_KEY must be set together",
        ),
        (
            ServiceSettings,
            {"GRPC_TLS_KEY": "/a"},
            "GRPC_TLS_CERTIFICATE and GRPC_TLS_KEY must be set together",
        ),
        (
            ServiceSettings,
            {"GRPC_TLS_CLIENT_CA": "/a"},
            "GRPC_TLS_CLIENT_CA needs GRPC_TLS_CERTIFICATE and GRPC_TLS_KEY",
        ),
        (ServiceSettings, {"GRPC_MTLS_PORT": "1"}, "GRPC_MTLS_PORT needs GRPC_TLS_CLIENT_CA"),
        (
            GatewaySettings,
            {"GATEWAY_TLS_KEY": "/a"},
            "GATEWAY_TLS_CERTIFICATE and GATEWAY_TLS_KEY must be set together",
        ),
        (
            GatewaySettings,
            {"SERVICE_TLS_CERTIFICATE": "/a", "SERVICE_TLS_CA": "/a"},
            "SERVICE_TLS_CERTIFICATE and SERVICE_TLS_KEY must be set together",
        ),
        (
            GatewaySettings,
            {"SERVICE_TLS_CERTIFICATE": "/a", "SERVICE_TLS_KEY": "/a"},
            "SERVICE_TLS_CERTIFICATE needs SERVICE_TLS_CA",
        ),
        (
            GatewaySettings,
            {"SERVICE_TLS_SERVER_NAME": "a"},
            "SERVICE_TLS_SERVER_NAME needs SERVICE_TLS_CA",
        ),
    ],
)
def test_a_setting_without_those_it_needs_is_refused(
    settings: Any, variables: dict[str, str], said: str
) -> None:
    assert faults_of(settings, **variables) == [said]


def test_without_settings_there_is_no_tls() -> None:
    assert read(ServiceSettings).tls_files is None
    gateway = read(GatewaySettings)
    assert gateway.https_files is None
    assert gateway.service_tls_files is None


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("service", ("GRPC_TLS_CERTIFICATE", "GRPC_TLS_KEY")),
        ("gateway", ("GATEWAY_TLS_CERTIFICATE", "GATEWAY_TLS_KEY")),
        ("gateway", ("SERVICE_TLS_CERTIFICATE", "SERVICE_TLS_KEY")),
    ],
)
def test_a_program_ends_with_one_line_that_names_the_setting_of_the_file(
    files: Files, authority: Authority, module: str, names: tuple[str, str]
) -> None:
    files.key.write_bytes(authority.issue().key)
    program = new_process(
        module,
        {
            "DATABASE_URL": "postgresql://somebody@nowhere/none",
            "SERVICE_TLS_CA": str(files.ca),
            names[0]: str(files.certificate),
            names[1]: str(files.key),
        },
    )
    said = rf"error: {names[1]}: {files.key} is not the key of the certificate .* \(exit code 1\)$"
    with pytest.raises(StartError, match=said):
        program.wait_until_listening()
    assert len(program.log_lines()) == 1
