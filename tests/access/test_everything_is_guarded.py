"""Every RPC, route, stream and page with every kind of wrong credential: nothing is given away.

What there is comes from the descriptors, the reflection of the service and the router of the
gateway, so something new without a rule fails here. All tables are locked meanwhile: a refusal
needs none of them, so neither its content nor its duration can tell what is stored.
"""

import re
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from appointments.v1.webhook_service_pb2 import CreateWebhookRequest, Webhook
from appointments.v1.webhook_service_pb2_grpc import WebhookServiceStub
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway import app
from gateway.http.credentials import MAX_LENGTH
from gateway.http.handler import DOCS_PATH
from gateway.http.router import Router
from gateway.settings import Settings
from local.programs import Program
from service.access.principal import ADMIN, READ, SCOPES, WEBHOOKS, WRITE
from tests.access.calling import Answer, Browser, Credentials, comparable, plain, relayed
from tests.access.credentials import (
    PERMISSION_DENIED,
    UNAUTHENTICATED,
    Issuer,
    Keys,
    Wrong,
    wrong_credentials,
)
from tests.access.everything import (
    MORNING,
    NOON,
    OPEN_PATHS,
    OPEN_SERVICES,
    OPERATIONS,
    SERVICES,
    URL,
    HttpCall,
    Place,
    http_calls,
    rpc_calls,
)
from tests.api import soon
from tests.conftest import CreateDatabase, StartProgram, listening
from tests.receiver import LOOPBACK
from tests.rest_client import Events

MARKER = "only-for-those-who-may"
"""In everything that is stored."""
SHOWING = {
    "GetAppointment",
    "ListAppointments",
    "ListAppointmentHistory",
    "ListChanges",
    "WatchAppointments",
    "GetWebhook",
    "ListWebhooks",
}
READING = ("Get", "List", "Wait", "Query", "Watch")
NOWHERE = Place(
    organization="nowhere",
    appointment="none",
    held="none",
    webhook="none",
    operation="organizations/nowhere/operations/01a20b2f-6c0b-7a51-9d0e-3f5b6f1c2a77",
)
TELLING = {"etag", "last-modified", "location", "organization-revision", "appointment-outcome"}
TABLES = """
    SELECT c.oid::regclass::text FROM pg_class c
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Service and gateway with access control, and an organization that must not be touched."""

    url: str
    service: Program
    gateway: Program
    channel: grpc.Channel
    place: Place
    issuer: Issuer
    keys: Keys
    good: Sequence[Credentials]
    """For everything: a token and a key."""
    wrong: Mapping[str, Wrong]

    def answers(
        self, place: Place, credentials: Credentials, scopes: Collection[str] = ()
    ) -> Iterator[tuple[str, Answer]]:
        """Make every call by every way, except those that need one of the scopes."""
        calls = [call for call in rpc_calls(place) if call.scope not in scopes]
        for call in calls:
            yield f"{call.name}, plain", plain(self.channel, call, credentials)
        unary = [call for call in calls if not call.method.server_streaming]
        for call, answer in zip(unary, relayed(self.channel, unary, credentials), strict=True):
            yield f"{call.name}, relayed", answer
        with closing(Browser(self.gateway)) as browser:
            for request in http_calls(place):
                if request.scope not in scopes:
                    yield f"{request.name}, HTTP", browser.send(request, credentials)

    def snapshot(self) -> Mapping[str, list[str]]:
        """Return every row of every table."""
        with psycopg.connect(self.url) as connection:
            return {table: _rows(connection, table) for table in _tables(connection)}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let nobody read or write any table but that of API keys, which is read all the time."""
        with psycopg.connect(self.url) as connection:
            tables = [table for table in _tables(connection) if table != "api_keys"]
            connection.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE".encode())
            yield
            connection.rollback()


def _tables(connection: psycopg.Connection) -> list[str]:
    return [name for (name,) in connection.execute(TABLES)]


def _rows(connection: psycopg.Connection, table: str) -> list[str]:
    query = f"SELECT stored::text FROM {table} AS stored ORDER BY 1"
    return [row for (row,) in connection.execute(query.encode())]


def furnished(channel: grpc.Channel, organization: str, credentials: Credentials) -> Place:
    """Store one of everything in a new organization."""
    metadata = [("authorization", each) for each in credentials]
    appointments: Any = AppointmentServiceStub(channel)
    webhooks: Any = WebhookServiceStub(channel)

    def upsert(id: str, hour: int, **fields: Any) -> rpc.UpsertAppointmentRequest:
        return rpc.UpsertAppointmentRequest(
            appointment=Appointment(
                organization_id=organization,
                id=id,
                title=MARKER,
                start=Timestamp(seconds=MORNING.seconds + hour * 3600),
                end=Timestamp(seconds=NOON.seconds + hour * 3600),
                **fields,
            )
        )

    appointments.UpsertAppointment(upsert("stored", 0), metadata=metadata)
    appointments.UpsertAppointment(upsert("held", 1, hold_until=soon(3600)), metadata=metadata)
    webhook = Webhook(organization_id=organization, url=URL, description=MARKER)
    created = webhooks.CreateWebhook(CreateWebhookRequest(webhook=webhook), metadata=metadata)
    submission = rpc.SubmitAppointmentRequest(upsert=upsert("submitted", 2))
    operation = appointments.SubmitAppointment(submission, metadata=metadata)
    return Place(organization=organization, webhook=created.webhook.id, operation=operation.name)


@pytest.fixture(scope="module")
def world(
    create_database: CreateDatabase,
    fork: StartProgram,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    url = create_database()
    issuer, keys = Issuer(), Keys(url)
    settings = {
        **issuer.settings(tmp_path_factory.mktemp("issuer") / "keys.json"),
        "DATABASE_URL": url,
        "LOCK_TIMEOUT": "1",
        "LOG_LEVEL": "debug",
        "REFLECTION": "authenticated",
        "STATEMENT_TIMEOUT": "1",
        "WEBHOOK_ALLOWED_NETWORKS": LOOPBACK,
    }
    good = ((f"Bearer {issuer.token()}",), (f"Bearer {keys.key()}",))
    with ExitStack() as stack:
        service = listening(stack, fork("service", settings))
        gateway = listening(
            stack, fork("gateway", {"LOG_LEVEL": "debug", "SERVICE_ADDRESS": service.address})
        )
        channel = stack.enter_context(grpc.insecure_channel(service.address))
        yield World(
            url=url,
            service=service,
            gateway=gateway,
            channel=channel,
            place=furnished(channel, "theirs", good[0]),
            issuer=issuer,
            keys=keys,
            good=good,
            wrong=dict(wrong_credentials(issuer, keys)),
        )


def reflected(world: World, credentials: Credentials) -> set[str]:
    """Return the names of all services."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(world.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    metadata = [("authorization", each) for each in credentials]
    [response] = stub.ServerReflectionInfo(iter([request]), metadata=metadata)
    return {each.name for each in response.list_services_response.service}


def test_every_rpc_needs_the_usual_scope_or_more() -> None:
    for call in rpc_calls(NOWHERE):
        if call.method.containing_service.name == "WebhookService":
            usual = WEBHOOKS
        elif call.name.startswith(READING) and call.method.containing_service is not OPERATIONS:
            usual = READ
        else:
            usual = WRITE
        assert call.scope in {usual, ADMIN}, call.name


def test_every_service_is_walked_or_known_to_be_open(world: World) -> None:
    served = reflected(world, world.good[0])
    assert served == {service.full_name for service in SERVICES} | OPEN_SERVICES


async def test_every_route_is_walked_or_known_to_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    added: set[tuple[str, str]] = set()
    add = Router.add

    def record(router: Router[Any], method: str, template: str, endpoint: Any) -> None:
        added.add((method, template))
        add(router, method, template, endpoint)

    monkeypatch.setattr(Router, "add", record)
    settings = Settings(gateway_port=0, gateway_metrics_port=0, gateway_host="127.0.0.1")
    async with app.serving(settings):
        routed = {(method, path) for method, path in added if not path.startswith(DOCS_PATH)}
    walked = {(call.method, call.template) for call in http_calls(NOWHERE)}
    assert {each for each in walked if each[0] != "HEAD"} | OPEN_PATHS == routed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_requests_are_good(world: World) -> None:
    """With the right credentials each is answered, and each write changes the database."""
    numbers = iter(range(1_000_000))

    def fresh() -> Place:
        return furnished(world.channel, f"control-{next(numbers)}", world.good[0])

    def check(name: str, answer: Answer, before: Mapping[str, list[str]]) -> None:
        assert answer.code in {"OK", "200", "201", "202", "304"}, (name, answer)
        assert (world.snapshot() == before) == name.startswith(READING), name

    for index, named in enumerate(rpc_calls(NOWHERE)):
        credentials = world.good[index % 2]
        for relay in (False, True)[: 1 if named.method.server_streaming else 2]:
            call = rpc_calls(fresh())[index]
            before = world.snapshot()
            if relay:
                [answer] = relayed(world.channel, [call], credentials)
            else:
                answer = plain(world.channel, call, credentials)
            check(call.name, answer, before)
            assert MARKER.encode() in answer.content or call.name not in SHOWING, call.name
    with closing(Browser(world.gateway)) as browser:
        for index, _ in enumerate(http_calls(NOWHERE)):
            request = http_calls(fresh())[index]
            before = world.snapshot()
            check(request.name, browser.send(request, world.good[index % 2]), before)


def test_those_who_may_need_the_tables(world: World) -> None:
    """So that the lock of the tables shows that others do not."""
    read = next(call for call in rpc_calls(world.place) if call.name == "GetAppointment")
    with world.locked():
        assert plain(world.channel, read, world.good[0]).code == "UNAVAILABLE"
    assert plain(world.channel, read, world.good[0]).code == "OK"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_given_away(world: World) -> None:
    before = world.snapshot()
    count = 0
    with world.locked():
        for name, wrong in world.wrong.items():
            answers: dict[str, Answer] = {}
            for call, answer in world.answers(world.place, wrong.credentials, wrong.scopes):
                assert not fault_of(answer, wrong), (name, call, fault_of(answer, wrong), answer)
                assert call not in answers
                answers[call] = answer
            count += len(answers)
            if wrong.code == UNAUTHENTICATED:
                continue  # what is called is not known yet
            for call, other in world.answers(NOWHERE, wrong.credentials, wrong.scopes):
                assert comparable(answers[call]) == comparable(other), (name, call)
    assert world.snapshot() == before
    assert count > 80 * len(world.wrong)


def fault_of(answer: Answer, wrong: Wrong) -> str:
    """Return what is wrong with a refusal, empty if nothing is."""
    http = answer.code.isdecimal()
    status = {UNAUTHENTICATED: "401", PERMISSION_DENIED: "403"}[wrong.code]
    code, reason = (status if http else wrong.code), wrong.code
    if http and len(wrong.credentials) > 1:
        code, reason = "400", "INVALID_FIELD"
    names = {name.lower() for name in answer.headers}
    if answer.code != code or (answer.content and answer.reason != reason):
        return f"not {code} {reason}"
    if MARKER.encode() in answer.content or not TELLING.isdisjoint(names):
        return "tells something"
    if http and "www-authenticate" not in names:
        return "does not say how to authenticate"
    if any(len(each) > 40 and each[-40:].encode() in answer.content for each in wrong.credentials):
        return "repeats the credentials"
    return ""


def test_a_refusal_names_the_scope_of_the_document(world: World) -> None:
    """What the option of an RPC says, by HTTP and by gRPC, is what its callers are told."""
    for scope in SCOPES:
        wrong = world.wrong[f"token without {scope}"]
        challenge = f'Bearer realm="appointments", error="insufficient_scope", scope="{scope}"'
        answers = list(world.answers(world.place, wrong.credentials, wrong.scopes))
        assert answers or scope == ADMIN
        for call, answer in answers:
            if answer.code == "403":
                assert answer.headers["WWW-Authenticate"] == challenge, call
            else:
                info = ErrorInfo()
                assert Status.FromString(answer.content).details[0].Unpack(info)
                assert info.metadata["scope"] == scope, call


def test_reflection_is_for_callers_if_configured(world: World) -> None:
    for name, wrong in world.wrong.items():
        if wrong.code == UNAUTHENTICATED:
            with pytest.raises(grpc.RpcError) as refused:
                reflected(world, wrong.credentials)
            error: Any = refused.value
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED, name
        else:
            assert reflected(world, wrong.credentials)


def test_health_is_open(world: World) -> None:
    stub = health_pb2_grpc.HealthStub(world.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICES[0].full_name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with closing(Browser(world.gateway)) as browser:
        for method, path in OPEN_PATHS:
            call = HttpCall(name=path, scope="", method=method, template=path, target=path)
            for credentials in ((), ("Bearer wrong",)):
                open_to_all = browser.send(call, credentials)
                assert open_to_all.code == "200"
                assert MARKER.encode() not in open_to_all.content


def test_an_event_stream_ends_with_its_credentials(world: World) -> None:
    key = world.keys.key(organizations=["theirs"])
    headers = {"Authorization": f"Bearer {key}"}
    with Events(world.gateway, "theirs", 0, **headers) as stream:
        assert stream.event() is not None
        world.keys.revoke(key)
        while stream.event() is not None:
            pass
        assert stream.reader.comments[-1] == "the service refuses to go on"
    with closing(HTTPConnection("127.0.0.1", world.gateway.port, timeout=30)) as connection:
        again = {**headers, "Accept": "text/event-stream"}
        connection.request("GET", "/api/changes?organizationId=theirs", headers=again)
        assert connection.getresponse().status == 401


def test_the_longest_credentials_reach_every_kind_of_call(world: World) -> None:
    """With the longest actor, whose characters take four bytes each, and the longest request id."""
    room = MAX_LENGTH - len("Bearer ")
    short = world.issuer.token(padding="")
    # Base64 has four characters for three bytes.
    token = world.issuer.token(padding="x" * ((room - len(short)) // 4 * 3 - 3))
    assert room - 10 <= len(token) <= room
    headers = {
        "Authorization": f"Bearer {token}",
        "X-Actor": ("\U0001f4c5" * 256).encode().decode("latin-1"),
        "X-Request-Id": "x" * 128,
    }
    with Events(world.gateway, "theirs", 0, **headers) as stream:
        assert stream.event() is not None
    with closing(HTTPConnection("127.0.0.1", world.gateway.port, timeout=30)) as connection:
        for path in ("/api/appointments", "/api/appointments.ics", "/api/operations"):
            connection.request("GET", f"{path}?organizationId=theirs", headers=headers)
            response = connection.getresponse()
            assert (response.status, len(response.read()) > 0) == (200, True)


def test_no_log_contains_credentials(world: World) -> None:
    """Neither of calls that are refused, nor of those that fail unexpectedly or are no HTTP."""
    given = [each for wrong in world.wrong.values() for each in wrong.credentials]
    given += [each for credentials in world.good for each in credentials]
    for wrong in world.wrong.values():
        refused = world.answers(NOWHERE, wrong.credentials, wrong.scopes)
        for _ in zip(range(3), refused, strict=False):
            pass
        with closing(Browser(world.gateway)) as browser:
            for call in http_calls(NOWHERE)[:2]:
                if call.scope not in wrong.scopes:
                    browser.send(call, wrong.credentials)
    with socket.create_connection(("127.0.0.1", world.gateway.port)) as broken:
        broken.sendall(f"GET / HTTP/1.1\r\nAuthorization: {given[-1]}\r\n: x\r\n\r\n".encode())
        assert b" 400 " in broken.recv(1000)
    read = next(call for call in rpc_calls(world.place) if call.name == "QueryAvailability")
    with psycopg.connect(world.url, autocommit=True) as connection:
        connection.execute("ALTER VIEW own.appointments RENAME TO elsewhere")
        try:
            failed = [plain(world.channel, read, each).code for each in world.good]
        finally:
            connection.execute("ALTER VIEW own.elsewhere RENAME TO appointments")
    assert failed == ["INTERNAL", "INTERNAL"]
    world.service.wait_for_event(lambda event: event.get("code") == "INTERNAL")
    logged = "\n".join(world.service.log_lines() + world.gateway.log_lines())
    assert "UNAUTHENTICATED" in logged
    for each in given:
        for part in each.split():
            # The parts of a token, a key, and what has the form of one.
            for piece in re.split(r"[.\"]", part):
                assert len(piece) < 16 or piece not in logged, f"{each}: {piece}"
