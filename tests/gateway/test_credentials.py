"""Credentials: forwarded as they are, and what a refusal by the service says about them."""

from base64 import b64encode

import pytest
from google.protobuf.any_pb2 import Any as PackedAny
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from tests.gateway.conftest import Gateway, running_gateway
from tests.gateway.fake_service import FakeService, Refusal
from tests.gateway.raw_http import connection, request

CALENDAR = "/api/appointments.ics"
APPOINTMENT = "/api/appointments/a"
REQUESTS = [
    ("GET", APPOINTMENT),
    ("HEAD", APPOINTMENT),
    ("DELETE", APPOINTMENT),
    ("GET", "/api/appointments"),
    ("GET", CALENDAR),
    ("POST", f"{APPOINTMENT}:confirm"),
]


def basic(text: str) -> str:
    return f"Basic {b64encode(text.encode()).decode()}"


def refuse(fake: FakeService, code: StatusCode, **metadata: str) -> None:
    """Let the service refuse every call."""
    reason = PackedAny()
    reason.Pack(ErrorInfo(reason=code.name, domain="appointments.v1", metadata=metadata))

    async def behave() -> None:
        raise Refusal(Status(code=code.value[0], message="why", details=[reason]))

    fake.behave = behave


def authorization(fake: FakeService) -> str | None:
    """Return what the service received with the last call."""
    given: str | None = fake.call.context.authorization
    return given


@pytest.mark.parametrize(("method", "target"), REQUESTS)
@pytest.mark.parametrize("given", ["Bearer a.b-c~d+e/f==", "bearer x", "Other x y", "x"])
async def test_credentials_are_forwarded(
    rest: Gateway, method: str, target: str, given: str
) -> None:
    answer = await rest.send(method, target, headers={"authorization": given})
    assert answer.status == 200
    assert authorization(rest.service) == given
    await rest.send(method, target)
    assert not authorization(rest.service)


async def test_a_submission_forwards_them(rest: Gateway) -> None:
    refuse(rest.service, StatusCode.UNAUTHENTICATED)
    answer = await rest.upsert(headers={"Authorization": "Bearer x", "Prefer": "respond-async"})
    assert answer.status == 401
    assert authorization(rest.service) == "Bearer x"


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ([b"Authorization: Bearer a", b"Authorization: Bearer a"], "repeated"),
        ([b"Authorization: Bearer a", b"authorization: Basic a"], "repeated"),
        ([b"Authorization: Bearer " + b"a" * 5994], "6000 characters"),
        ([b"Authorization: Bearer \xc3\xb6"], "ASCII"),
        ([b"Authorization: Bearer \xff"], "ASCII"),
        ([b"Authorization: Bearer\ta"], "ASCII"),
        ([b"Authorization: "], "ASCII"),
    ],
)
@pytest.mark.parametrize("target", [APPOINTMENT, CALENDAR, "/api/operations"])
async def test_a_header_that_cannot_be_forwarded_is_refused(
    rest: Gateway, target: str, headers: list[bytes], what: str
) -> None:
    sent = request(f"GET {target}").replace(b"Host: x", b"\r\n".join([b"Host: x", *headers]))
    async with connection(rest) as raw:
        answer = await raw.send(sent)
    assert answer.status == 400
    assert answer.problem["code"] == "INVALID_FIELD"
    [error] = answer.problem["errors"]
    assert error["field"] == "Authorization"
    assert what in error["detail"]
    [challenge] = answer.headers.get_all("WWW-Authenticate")
    assert challenge == 'Bearer realm="appointments", error="invalid_request"'
    assert rest.service.calls == 0


async def test_the_longest_credentials_arrive(rest: Gateway) -> None:
    given = f"Bearer {'a' * 5993}"
    answer = await rest.send("GET", APPOINTMENT, headers={"Authorization": given})
    assert answer.status == 200
    assert authorization(rest.service) == given


@pytest.mark.parametrize(
    ("user", "token"),
    [("ada:key_1~x", "key_1~x"), (":k", "k"), ("a:k:with:colons", "k:with:colons"), ("ö:k", "k")],
)
async def test_a_calendar_takes_a_key_as_password(rest: Gateway, user: str, token: str) -> None:
    for scheme in ("Basic", "basic", "BASIC"):
        given = basic(user).replace("Basic", scheme)
        answer = await rest.send("GET", CALENDAR, headers={"Authorization": given})
        assert answer.status == 200
        assert authorization(rest.service) == f"Bearer {token}"


NO_KEYS = ["a", "a:", "a:\n", "a:ö"]


@pytest.mark.parametrize("given", ["Basic", "Basic ", "Basic !", "Basic YQ", *map(basic, NO_KEYS)])
async def test_a_password_that_is_no_key_is_left_to_the_service(rest: Gateway, given: str) -> None:
    answer = await rest.send("GET", CALENDAR, headers={"Authorization": given})
    assert answer.status == 200
    assert authorization(rest.service) == given.strip()


@pytest.mark.parametrize(("method", "target"), [each for each in REQUESTS if each[1] != CALENDAR])
async def test_nothing_else_takes_a_password(rest: Gateway, method: str, target: str) -> None:
    """A browser remembers passwords and sends them by itself, to any request of any page."""
    await rest.send(method, target, headers={"Authorization": basic("a:k")})
    assert authorization(rest.service) == basic("a:k")


@pytest.mark.parametrize(("method", "target"), REQUESTS)
@pytest.mark.parametrize(
    ("given", "error"),
    [
        (None, ""),
        ("Other x", ""),
        ("Bearer x", ', error="invalid_token"'),
        ("bearer x", ', error="invalid_token"'),
    ],
)
async def test_a_401_says_how_to_authenticate(
    rest: Gateway, method: str, target: str, given: str | None, error: str
) -> None:
    refuse(rest.service, StatusCode.UNAUTHENTICATED)
    answer = await rest.send(method, target, headers={"Authorization": given} if given else {})
    assert answer.status == 401
    if method != "HEAD":
        assert (answer.json["code"], answer.json["detail"]) == ("UNAUTHENTICATED", "why")
    first, *others = answer.headers.getall("WWW-Authenticate")
    assert first == f'Bearer realm="appointments"{error}'
    asks_for_password = ['Basic realm="appointments", charset="UTF-8"']
    assert others == (asks_for_password if target == CALENDAR else [])
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(("method", "target"), REQUESTS)
async def test_a_403_names_the_scope_that_lacks(rest: Gateway, method: str, target: str) -> None:
    expected = 'Bearer realm="appointments", error="insufficient_scope"'
    for metadata, challenge in (
        ({}, expected),
        ({"scope": "appointments.read"}, f'{expected}, scope="appointments.read"'),
    ):
        refuse(rest.service, StatusCode.PERMISSION_DENIED, **metadata)
        answer = await rest.send(method, target, headers={"Authorization": "Bearer x"})
        assert answer.status == 403
        assert answer.headers.getall("WWW-Authenticate") == [challenge]
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("target", [CALENDAR, APPOINTMENT])
async def test_a_password_counts_only_where_it_is_taken(rest: Gateway, target: str) -> None:
    refuse(rest.service, StatusCode.UNAUTHENTICATED)
    answer = await rest.send("GET", target, headers={"Authorization": basic("a:k")})
    challenges = answer.headers.getall("WWW-Authenticate")
    assert ('error="invalid_token"' in challenges[0]) == (target == CALENDAR)


async def test_responses_without_refusal_have_no_challenge(rest: Gateway) -> None:
    refuse(rest.service, StatusCode.NOT_FOUND)
    for target in (APPOINTMENT, "/nowhere"):
        answer = await rest.send("GET", target, headers={"Authorization": "Bearer x"})
        assert answer.status == 404
        assert "WWW-Authenticate" not in answer.headers


@pytest.mark.parametrize("setting", ["on", "off"])
async def test_the_document_is_served_as_configured(fake: FakeService, setting: str) -> None:
    paths = ["/api/openapi.json", "/api/docs", "/api/docs/docs.js", "/api/docs/swagger-ui.css"]
    async with running_gateway(fake, gateway_docs=setting) as gateway:
        for path in paths:
            answer = await gateway.send("GET", path)
            assert answer.status == (200 if setting == "on" else 404)
            if setting == "off":
                assert answer.json["detail"] == "There is no route with this path."
        assert (await gateway.send("GET", "/healthz")).status == 200
