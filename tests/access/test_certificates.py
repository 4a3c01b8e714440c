"""Certificates of callers as credentials."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from cryptography import x509

from local.programs import ROOT, Program, StartError
from runtime.files import FilesUnfit, SettingFile
from service.access.certificates import read_callers
from service.access.principal import ADMIN, READ, SCOPES, WRITE, Principal
from service.settings import Settings
from tests.access.caller import Caller, bearer, create, key_table
from tests.certificates import Authority, Files, Issued, channel_to
from tests.conftest import CreateDatabase, StartProgram, new_process
from tests.observing import until
from tests.rest.event_source import EventSource
from tests.rest_client import Client, status_and_code
from tests.runtime.test_settings import faults_of

BOOKING = "spiffe://example.org/booking"
ALL = f"[{', '.join(repr(scope) for scope in SCOPES)}]"


def entry(identity: str, organizations: str, scopes: str = ALL, more: str = "") -> str:
    return f'["{identity}"]\norganizations = {organizations}\nscopes = {scopes}\n{more}\n'


def callers(path: Path, text: str | bytes) -> dict[str, Principal]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_callers(SettingFile(setting="ACCESS_CERTIFICATES", path=path))


def test_a_file_lists_what_identities_allow(tmp_path: Path) -> None:
    text = entry(BOOKING, "['a', 'b']", f"['{READ}', '{WRITE}']", 'subject = "booking"')
    text += entry("cn:Zoë", "'*'", f"['{ADMIN}']") + entry("dns:a.example", "['*']")
    found = callers(tmp_path / "callers.toml", text)
    assert found == {
        BOOKING: Principal(
            subject="booking",
            credential_id=f"certificate:{BOOKING}",
            organizations=frozenset({"a", "b"}),
            scopes=frozenset({READ, WRITE}),
        ),
        "cn:Zoë": Principal(
            subject="cn:Zoë",
            credential_id="certificate:cn:Zoë",
            organizations=None,
            scopes=frozenset({ADMIN}),
        ),
        # As in tokens: in a list, it is the organization of that name.
        "dns:a.example": Principal(
            subject="dns:a.example",
            credential_id="certificate:dns:a.example",
            organizations=frozenset({"*"}),
            scopes=frozenset(SCOPES),
        ),
    }


def test_the_example_of_the_documents_is_one(tmp_path: Path) -> None:
    section = (ROOT / "docs/access.md").read_text("utf-8").split("```toml callers.toml\n")[1]
    found = callers(tmp_path / "callers.toml", section.partition("```")[0])
    assert {identity: each.subject for identity, each in found.items()} == {
        BOOKING: "booking",
        "dns:reports.example": "dns:reports.example",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff", "is not UTF-8"),
        ("[", "is not TOML: "),
        (entry(BOOKING, "['a']") * 2, "is not TOML: "),
        ("a = 1", "is wrong at a"),
        (entry(BOOKING, "[]"), f"is wrong at {BOOKING}, organizations"),
        (entry(BOOKING, "'all'"), f"is wrong at {BOOKING}, organizations"),
        (entry(BOOKING, "['a', '']"), f"is wrong at {BOOKING}, organizations"),
        (entry(BOOKING, "['a']", "[]"), f"is wrong at {BOOKING}, scopes"),
        (entry(BOOKING, "['a']", "['read']"), f"is wrong at {BOOKING}: read is no scope"),
        (entry(BOOKING, "['a']", more="role = 'x'"), f"is wrong at {BOOKING}, role"),
        (entry(BOOKING, "['a']", more="subject = ''"), f"is wrong at {BOOKING}: the subject"),
        (entry("dns:" + "a" * 300, "['a']"), ": the subject must have 1 to 256 characters"),
        (entry("booking", "['a']"), "is wrong at booking: an identity begins with spiffe://"),
    ],
)
def test_a_wrong_file_is_named_with_what_to_mend(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    path = tmp_path / "callers.toml"
    with pytest.raises(FilesUnfit) as caught:
        callers(path, text)
    assert str(caught.value).startswith(f"ACCESS_CERTIFICATES: {path} ")
    assert said in str(caught.value)


def test_certificates_need_access_control_and_an_authority(tmp_path: Path) -> None:
    assert faults_of(Settings, ACCESS_CERTIFICATES="/callers") == [
        "ACCESS_CERTIFICATES needs ACCESS_CONTROL=on"
    ]
    assert faults_of(Settings, ACCESS_CERTIFICATES="/callers", ACCESS_CONTROL="on") == [
        "ACCESS_CERTIFICATES needs GRPC_TLS_CLIENT_CA"
    ]


@dataclass(frozen=True, slots=True)
class Secured:
    """A service whose callers may show certificates of `authority`, listed in `listed`."""

    program: Program
    database_url: str
    authority: Authority
    files: Files
    listed: Path

    def issue(self, identity: str) -> Issued:
        return self.authority.issue("name", [x509.UniformResourceIdentifier(identity)])

    @contextmanager
    def channel(self, identity: str) -> Iterator[grpc.Channel]:
        with channel_to(self.program.address, self.authority, self.issue(identity)) as channel:
            yield channel

    @contextmanager
    def caller(self, identity: str, organization: str) -> Iterator[Caller]:
        with self.channel(identity) as channel:
            yield Caller(AppointmentServiceStub(channel), organization)


@pytest.fixture
def secured(
    create_database: CreateDatabase, start_service: StartProgram, tmp_path: Path, organization: str
) -> Secured:
    url = create_database()
    authority = Authority()
    files = Files(tmp_path).write(authority.issue(), authority)
    listed = tmp_path / "callers.toml"
    listed.write_text(entry(BOOKING, f"['{organization}']", more='subject = "booking"'))
    program = start_service(
        DATABASE_URL=url,
        GRPC_TLS_CERTIFICATE=str(files.certificate),
        GRPC_TLS_KEY=str(files.key),
        GRPC_TLS_CLIENT_CA=str(files.ca),
        ACCESS_CONTROL="on",
        ACCESS_CERTIFICATES=str(listed),
        REFLECTION="authenticated",
    )
    return Secured(program, url, authority, files, listed)


def test_a_listed_certificate_is_a_credential(secured: Secured, organization: str) -> None:
    with secured.caller(BOOKING, organization) as caller:
        assert caller.write(()) == ""
        assert caller.actors(()) == ["booking"]
        other = Caller(caller.stub, f"{organization}-other")
        assert other.write(()) == "PERMISSION_DENIED"
    with secured.caller("spiffe://example.org/unknown", organization) as unknown:
        refused = unknown.get(())
    assert refused is not None
    assert refused.reason == "UNAUTHENTICATED"
    assert "spiffe://example.org/unknown is not listed" in refused.message


def test_another_credential_takes_its_place(secured: Secured, organization: str) -> None:
    with key_table(secured.database_url) as table:
        key = create(table, f"{organization}-other").text
    with secured.caller(BOOKING, organization) as caller:
        assert caller.write(bearer("apk_wrong")) == "UNAUTHENTICATED"
        other = Caller(caller.stub, f"{organization}-other")
        until(lambda: other.write(bearer(key)) == "")
        assert caller.write(bearer(key)) == "PERMISSION_DENIED"


def test_the_certificate_of_a_gateway_is_no_credential_of_its_callers(
    secured: Secured, start_gateway: StartProgram, tmp_path: Path, organization: str
) -> None:
    shown = secured.issue(BOOKING)
    directory = tmp_path / "gateway"
    directory.mkdir()
    files = Files(directory).write(shown, secured.authority)
    gateway = start_gateway(
        SERVICE_ADDRESS=secured.program.address,
        SERVICE_TLS_CA=str(files.ca),
        SERVICE_TLS_CERTIFICATE=str(files.certificate),
        SERVICE_TLS_KEY=str(files.key),
    )
    with secured.caller(BOOKING, organization) as caller:
        assert caller.write(()) == ""  # the certificate itself would do
    client = Client(gateway, organization)
    assert client.send("GET", "/readyz").status == 200
    assert status_and_code(client.upsert("b")) == (401, "UNAUTHENTICATED")
    assert status_and_code(client.call("GET", "/appointments")) == (401, "UNAUTHENTICATED")
    # For it the gateway makes a call of its own, not one on a relay stream.
    with EventSource(gateway, organization) as source:
        until(lambda: source.refusal is not None or source.streams > 0)
    assert source.refusal == 401
    with key_table(secured.database_url) as table:
        key = create(table, organization).text
    until(lambda: client.upsert("b", Authorization=f"Bearer {key}", resourceId="2").status == 201)


def test_the_file_is_read_again_and_a_watch_of_a_removed_caller_ends(
    secured: Secured, organization: str
) -> None:
    with (
        secured.caller(BOOKING, organization) as caller,
        secured.caller("spiffe://example.org/new", organization) as new,
    ):
        assert caller.write(()) == ""
        request = rpc.WatchAppointmentsRequest(organization_id=organization, after_revision=0)
        watching = caller.stub.WatchAppointments(request, timeout=60)
        assert next(watching).revision == 1
        secured.listed.write_text("[")
        warning = secured.program.wait_for_event(
            lambda event: event["event"] == "callers with certificates not renewed"
        )
        assert warning["error"].startswith(f"ACCESS_CERTIFICATES: {secured.listed} is not TOML")
        assert caller.write(()) == ""
        secured.listed.write_text(entry("spiffe://example.org/new", "'*'"))
        until(lambda: new.write((), "b", 10) == "")
        assert caller.write(()) == "UNAUTHENTICATED"
        with pytest.raises(grpc.RpcError) as ended:
            for _ in watching:
                pass
        assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_wrong_file_ends_the_start_with_one_line(secured: Secured) -> None:
    secured.listed.write_text("[")
    program = new_process(
        "service",
        {
            "DATABASE_URL": secured.database_url,
            "GRPC_TLS_CERTIFICATE": str(secured.files.certificate),
            "GRPC_TLS_KEY": str(secured.files.key),
            "GRPC_TLS_CLIENT_CA": str(secured.files.ca),
            "ACCESS_CONTROL": "on",
            "ACCESS_CERTIFICATES": str(secured.listed),
        },
    )
    with pytest.raises(StartError, match=r"error: ACCESS_CERTIFICATES: \S+ is not TOML"):
        program.wait_until_listening()
    assert len(program.log_lines()) == 1
