"""Rate limits as callers see them, by both doors."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from time import monotonic

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program
from tests.access.caller import bearer, calling, create, key_table
from tests.api import appointment, batch_request, refusal, upsert_request
from tests.conftest import StartProgram
from tests.observing import until
from tests.rest_client import Client, status_and_code


@pytest.fixture
def limited(start_service: StartProgram) -> Program:
    # So long a window that nothing is added during a test.
    return start_service(RATE_LIMIT_PER_ORGANIZATION="20", RATE_LIMIT_WINDOW="1000")


def test_what_is_above_the_limit_is_refused_by_rest(
    limited: Program, start_gateway: StartProgram, organization: str, database_url: str
) -> None:
    gateway = start_gateway(SERVICE_ADDRESS=limited.address)
    client = Client(gateway, organization)
    answers = [client.call("GET", "/appointments/a") for _ in range(12)]
    assert [answer.status for answer in answers] == [404] * 10 + [429] * 2
    assert answers[0].headers["RateLimit-Policy"] == '"organization";q=20;w=1000'
    assert answers[0].headers["RateLimit"] == '"organization";r=9;t=50'
    refused = answers[-1]
    assert status_and_code(refused) == (429, "RATE_LIMITED")
    assert re.fullmatch('"organization";r=0;t=(4[89].|500)', refused.headers["RateLimit"])
    assert 30 < int(refused.headers["Retry-After"]) <= 50
    assert Client(gateway, f"{organization}-2").call("GET", "/appointments/a").status == 404
    with psycopg.connect(database_url, autocommit=True) as sql:
        until(lambda: sql.execute("SELECT count(*) FROM request_buckets").fetchone() != (0,))


def test_a_batch_counts_as_its_writes(limited: Program, organization: str) -> None:
    minutes = range(30)
    batch = batch_request(
        appointment(organization, f"a{minute}", minute, minute + 1) for minute in minutes
    )
    with grpc.insecure_channel(limited.address) as channel:
        stub = AppointmentServiceStub(channel)
        assert len(stub.BatchUpsertAppointments(batch).results) == 30
        # 20 more than may come at once: 1,000 seconds, and 50 for one more.
        with pytest.raises(grpc.RpcError) as caught:
            stub.UpsertAppointment(upsert_request(organization, "b", 40))
        ended = refusal(caught.value)
        assert (ended.code, ended.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert ended.retry_after is not None
        assert 1000 < ended.retry_after <= 1050
        assert isinstance(caught.value, grpc.Call)
        metadata = dict(caught.value.trailing_metadata())
        assert metadata["ratelimit-policy"] == '"organization";q=20;w=1000'
        assert re.fullmatch('"organization";r=0;t=1[45]..', str(metadata["ratelimit"]))
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.WatchAppointments(rpc.WatchAppointmentsRequest(organization_id=organization)))
        assert refusal(caught.value).reason == "RATE_LIMITED"


def test_a_batch_that_is_too_large_counts_as_the_largest(
    start_service: StartProgram, organization: str
) -> None:
    service = start_service(RATE_LIMIT_PER_ORGANIZATION="10000", RATE_LIMIT_WINDOW="1000")
    batch = batch_request([appointment(organization, "a", 0, 1)] * 3000)
    with grpc.insecure_channel(service.address) as channel:
        stub = AppointmentServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.BatchUpsertAppointments(batch)
        assert isinstance(caught.value, grpc.Call)
        metadata = dict(caught.value.trailing_metadata())
    # A thousand at once, less a thousand.
    assert re.fullmatch('"organization";r=[0-9];t=(9.|100)', str(metadata["ratelimit"]))


def test_a_credential_has_one_limit_for_all_its_organizations(
    database_url: str, start_service: StartProgram, organization: str
) -> None:
    service = start_service(
        ACCESS_CONTROL="on",
        RATE_LIMIT_PER_CREDENTIAL="10",
        RATE_LIMIT_PER_ORGANIZATION="1000",
        RATE_LIMIT_WINDOW="1000",
    )
    with key_table(database_url) as table, calling(service, organization) as caller:
        key, other = create(table), create(table)
        with calling(service, f"{organization}-2") as second:
            spent = [each.reason(bearer(key.text)) for each in (caller, second) for _ in range(6)]
            assert spent == ["APPOINTMENT_NOT_FOUND"] * 10 + ["RATE_LIMITED"] * 2
            assert second.reason(bearer(other.text)) == "APPOINTMENT_NOT_FOUND"
        rotated = table.rotate(key.id, overlap=timedelta(0))
        until(lambda: caller.reason(bearer(rotated.text)) != "UNAUTHENTICATED")
        assert caller.reason(bearer(rotated.text)) == "RATE_LIMITED"


def test_processes_share_the_limit(
    start_service: StartProgram, start_gateway: StartProgram, organization: str
) -> None:
    services = [start_service(RATE_LIMIT_PER_ORGANIZATION="200") for _ in range(2)]
    gateways = [start_gateway(SERVICE_ADDRESS=service.address) for service in services]
    began = monotonic()

    def demand(gateway: Program) -> int:
        client, admitted = Client(gateway, organization), 0
        while monotonic() - began < 10:
            admitted += client.call("GET", "/appointments/a").status == 404
        return admitted

    with ThreadPoolExecutor(4) as pool:
        admitted = sum(pool.map(demand, gateways * 2))
    assert 0.8 * 200 <= admitted <= 1.2 * 200


def test_without_limits_nothing_is_said(gateway: Program, organization: str) -> None:
    answer = Client(gateway, organization).call("GET", "/appointments/a")
    assert "RateLimit" not in answer.headers
    assert "RateLimit-Policy" not in answer.headers


def test_a_refused_write_writes_nothing(
    limited: Program, start_gateway: StartProgram, organization: str
) -> None:
    client = Client(start_gateway(SERVICE_ADDRESS=limited.address), organization)
    statuses = [client.upsert(f"a{number}", resourceId=str(number)).status for number in range(14)]
    assert statuses == [201] * 10 + [429] * 4
    unlimited = Client(start_gateway(), organization)
    assert {stored["id"] for stored in unlimited.stored()} == {f"a{number}" for number in range(10)}
