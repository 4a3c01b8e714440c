"""The shared stream between gateway and service: calls behave as if they were separate."""

import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest
from appointments.relay.v1 import relay_pb2 as pb
from appointments.relay.v1.relay_pb2_grpc import RelayServiceStub
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from local.programs import Program
from tests.api import Organization, at, batch_request, refusal, refusal_of, upsert_request
from tests.conftest import StartProgram
from tests.load import OWN_CONNECTION, UNCOMPRESSED, RestLoad
from tests.observing import PATIENT, held_lock, metric, metrics, until
from tests.rest_client import Answer, Client

# Otherwise gRPC lets a client that reads nothing receive some megabytes.
FIXED_WINDOW = (*UNCOMPRESSED, ("grpc.http2.bdp_probe", 0))

SERVICE = "appointments.v1.AppointmentService"


def call(number: int, method: str, request: Message | bytes, **fields: Any) -> pb.Call:
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return pb.Call(number=number, method=f"/{SERVICE}/{method}", request=data, **fields)


def with_metadata(*metadata: tuple[str, str | bytes]) -> list[pb.Metadata]:
    return [
        pb.Metadata(key=key, binary=value)
        if isinstance(value, bytes)
        else pb.Metadata(key=key, text=value)
        for key, value in metadata
    ]


def relay(channel: grpc.Channel, *requests: pb.RelayRequest) -> dict[int, pb.Answer]:
    """Send these messages, half-close, and return all replies by number."""
    responses = RelayServiceStub(channel).Relay(iter(requests), timeout=30)
    return {answer.number: answer for response in responses for answer in response.answers}


def upsert_call(organization: str, id: str, minute: int) -> pb.Call:
    return call(minute + 1, "UpsertAppointment", upsert_request(organization, id, minute))


class TestDirectAndRelayed:
    """Direct and relayed calls have the same results, logs and metrics."""

    @pytest.fixture
    def own(self, start_service: StartProgram, organization: str) -> Iterator[Organization]:
        self.service = start_service()
        with grpc.insecure_channel(self.service.address) as self.channel:
            org = Organization(AppointmentServiceStub(self.channel), organization)
            org.upsert("a", 0, 1, title="stored")
            yield org

    def unary(
        self, method: str, request: bytes, *metadata: tuple[str, str | bytes]
    ) -> tuple[bytes, str | None]:
        """Return a serialized response or status, and the revision."""
        send: Any = self.channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            response, done = send.with_call(request, metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            trailers = dict(error.trailing_metadata() or ())
            status = trailers.get("grpc-status-details-bin")
            if not isinstance(status, bytes):
                status = Status(code=error.code().value[0], message=error.details() or "")
                status = status.SerializeToString()
            assert Status.FromString(status).message == error.details()
            assert Status.FromString(status).code == error.code().value[0]
            return status, trailers.get("organization-revision")
        return response, dict(done.trailing_metadata()).get("organization-revision")

    def relayed(
        self, method: str, request: bytes, *metadata: tuple[str, str | bytes]
    ) -> tuple[bytes, str | None]:
        sent = call(7, method, request, metadata=with_metadata(*metadata))
        answer = relay(self.channel, pb.RelayRequest(calls=[sent]))[7]
        revision = answer.organization_revision
        return (
            answer.response if answer.HasField("response") else answer.error.SerializeToString(),
            str(revision) if answer.HasField("organization_revision") else None,
        )

    def logged(self, request_id: str) -> dict[str, Any]:
        line = self.service.wait_for_event(lambda event: event.get("request_id") == request_id)
        varying = ("request_id", "timestamp", "duration_ms")
        return {name: value for name, value in line.items() if name not in varying}

    @pytest.mark.parametrize(
        "case",
        [
            "unchanged", "stale", "taken", "mismatch", "invalid", "get", "list", "missing",
            "no organization", "malformed", "actor", "batch", "unknown",
        ],
    )  # fmt: skip
    def test_alike(self, own: Organization, case: str) -> None:
        upsert, actor = upsert_request(own.id, "a", 0), ""
        upsert.appointment.title = "stored"
        method, request = "UpsertAppointment", upsert.SerializeToString()
        match case:
            case "stale":
                upsert.appointment.updated_at.CopyFrom(at(-1e6))
                own.upsert("a", 0, 1, title="stored", updated_at=at(0))
                request = upsert.SerializeToString()
            case "taken":
                request = upsert_request(own.id, "b", 0).SerializeToString()
            case "mismatch":
                upsert.etag = "beef"
                request = upsert.SerializeToString()
            case "invalid":
                upsert.appointment.title = "x" * 2000
                upsert.appointment.ClearField("end")
                request = upsert.SerializeToString()
            case "get" | "missing":
                asked = rpc.GetAppointmentRequest(organization_id=own.id, id="a")
                asked.id = "a" if case == "get" else "none"
                method, request = "GetAppointment", asked.SerializeToString()
            case "list":
                method = "ListAppointments"
                request = rpc.ListAppointmentsRequest(organization_id=own.id).SerializeToString()
            case "no organization":
                method, request = "ListChanges", b""
            case "malformed":
                request = b"\xff\xff"
            case "actor":
                actor = "x" * 257
            case "batch":
                empty = Appointment(organization_id=own.id)
                method = "BatchUpsertAppointments"
                request = batch_request([upsert.appointment, empty]).SerializeToString()
            case "unknown":
                method = "DropAppointments"
        before = metrics(self.service)
        named = ("x-actor", actor)
        alone = self.unary(method, request, ("x-request-id", "unary"), named)
        between = metrics(self.service)
        assert self.relayed(method, request, ("x-request-id", "relayed"), named) == alone
        after = metrics(self.service)

        def counted(earlier: dict[str, float], later: dict[str, float]) -> dict[str, float]:
            counts = {
                name for name in later if name.startswith("appointments_request_seconds_count")
            }
            return {name: later[name] - earlier.get(name, 0) for name in counts}

        assert {name: n for name, n in counted(between, after).items() if n} == {
            name: n for name, n in counted(before, between).items() if n
        }
        if case != "unknown":
            assert sum(counted(before, between).values()) > 0
            assert self.logged("relayed") == self.logged("unary")

    @pytest.mark.parametrize(
        ("metadata", "actor"),
        [
            ([], ""),
            ([("x-actor", "ada")], "ada"),
            ([("x-actor-bin", "Zoë".encode())], "Zoë"),
            ([("x-actor-bin", b"")], ""),
            ([("x-other", "x"), ("x-actor", "ada"), ("x-other-bin", b"\xff")], "ada"),
            ([("x-actor", "a" * 257)], None),
            ([("x-actor-bin", "é".encode() * 257)], None),
            ([("x-actor-bin", b"\xff")], None),
            ([("x-actor-bin", b"a\n")], None),
            ([("x-actor", "a"), ("x-actor", "a")], None),
            ([("x-actor", "a"), ("x-actor-bin", b"a")], None),
        ],
        ids=str,
    )
    def test_metadata_are_read_alike(
        self, own: Organization, metadata: list[tuple[str, str | bytes]], actor: str | None
    ) -> None:
        for call, id in ((self.unary, "b"), (self.relayed, "c")):
            request = upsert_request(own.id, id, ord(id))
            result, _ = call("UpsertAppointment", request.SerializeToString(), *metadata)
            if actor is None:
                refused = refusal_of(Status.FromString(result), grpc.StatusCode.INVALID_ARGUMENT)
                assert refused.fields.keys() == {"x-actor"}
            else:
                [entry] = own.history(id).entries
                assert entry.actor == actor

    def test_a_deadline(self, own: Organization, database_url: str) -> None:
        request = upsert_request(own.id, "late", 5)
        stub = AppointmentServiceStub(self.channel)
        with held_lock(database_url, own.id) as lock:
            first = stub.UpsertAppointment.future(upsert_request(own.id, "first", 3))
            lock.wait_for(1)
            named = with_metadata(("x-request-id", "r"))
            sent = call(1, "UpsertAppointment", request, metadata=named, timeout_ms=200)
            answer = relay(self.channel, pb.RelayRequest(calls=[sent]))[1]
        assert answer.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert "is not known" in answer.error.message
        assert self.logged("r")["code"] == "DEADLINE_EXCEEDED"
        first.result()
        assert set(own.listed()) == {"a", "first"}


def test_calls_of_one_message_are_answered_each_as_it_finishes(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    other = f"{organization}-other"
    with (
        grpc.insecure_channel(service.address) as channel,
        held_lock(database_url, organization) as lock,
    ):
        calls = [upsert_call(organization, "waits", 0)]
        calls += [upsert_call(other, str(n), n) for n in range(1, 100)]
        responses = RelayServiceStub(channel).Relay(iter([pb.RelayRequest(calls=calls)]))
        answered: set[int] = set()
        while len(answered) < 99:
            answered |= {answer.number for answer in next(responses).answers}
        assert answered == set(range(2, 101))
        assert lock.waiting() == 1
        lock.release()
        assert [answer.number for answer in next(responses).answers] == [1]
        assert metric(service, "appointments_relayed_calls_sum") == 100
        assert metric(service, "appointments_relayed_calls_count") == 1


def test_a_call_that_was_cancelled_takes_its_queued_write_back(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    with grpc.insecure_channel(service.address) as channel:
        with held_lock(database_url, organization) as lock:

            def requests() -> Iterable[pb.RelayRequest]:
                yield pb.RelayRequest(calls=[upsert_call(organization, "first", 0)])
                lock.wait_for(1)
                calls = [upsert_call(organization, str(n), n) for n in (1, 2)]
                yield pb.RelayRequest(calls=calls)
                until(lambda: metric(service, "appointments_queued_writes") == 2)
                yield pb.RelayRequest(cancelled=[2, 99])
                service.wait_for_event(lambda event: event.get("code") == "CANCELLED")
                lock.release()

            responses = RelayServiceStub(channel).Relay(iter(requests()), timeout=30)
            answers = [answer.number for response in responses for answer in response.answers]
        assert answers == [1, 3]
        stored = Organization(AppointmentServiceStub(channel), organization).listed()
        assert set(stored) == {"first", "2"}


def test_a_stream_that_breaks_takes_its_queued_writes_back(
    start_service: StartProgram, start_gateway: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    with ThreadPoolExecutor() as pool, held_lock(database_url, organization) as lock:

        def upsert(id: str) -> Future[Answer]:
            return pool.submit(Client(gateway, organization).upsert, id, resourceId=id)

        waiting = [upsert("first")]
        lock.wait_for(1)
        waiting += [upsert("second"), upsert("third")]
        until(lambda: metric(service, "appointments_queued_writes") == 2)
        gateway.kill()
        cancelled = (
            'appointments_request_seconds_count{code="CANCELLED",method="UpsertAppointment"}'
        )
        until(lambda: metric(service, cancelled) == 3)
        assert all(isinstance(call.exception(), OSError) for call in waiting)
    with grpc.insecure_channel(service.address) as channel:
        org = Organization(AppointmentServiceStub(channel), organization)
        until(lambda: set(org.listed()) == {"first"})
        assert org.upsert("fourth", 5, 6).appointment.revision == 2
    assert not any("Traceback" in line for line in service.log_lines())


def test_many_requests_go_as_one_message(
    start_service: StartProgram, start_gateway: StartProgram, organization: str
) -> None:
    service = start_service()
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    messages, calls = "appointments_relayed_calls_count", "appointments_relayed_calls_sum"
    with RestLoad(gateway, organization, writers=16) as load:
        until(lambda: metric(service, calls) > metric(service, messages) + 100)
        load.stop()
    assert not load.failed
    assert metric(service, calls) == len(load.accepted)


def test_a_request_that_waits_keeps_no_other_waiting(
    start_service: StartProgram, start_gateway: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    gateway = start_gateway(SERVICE_ADDRESS=service.address, GATEWAY_TIMEOUT="60")
    with ThreadPoolExecutor() as pool, held_lock(database_url, organization) as lock:
        waiting = pool.submit(Client(gateway, organization).upsert)
        lock.wait_for(1)
        others = Client(gateway, f"{organization}-other")
        statuses = {others.upsert(str(n), resourceId=str(n)).status for n in range(50)}
        assert statuses == {201}
        assert not waiting.done()
        lock.release()
        assert waiting.result().status == 201


def test_a_caller_that_goes_away_takes_its_queued_write_back(
    start_service: StartProgram, start_gateway: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    gateway = start_gateway(SERVICE_ADDRESS=service.address, GATEWAY_TIMEOUT="60")
    with ThreadPoolExecutor() as pool, held_lock(database_url, organization) as lock:
        first = pool.submit(Client(gateway, organization).upsert, "first")
        lock.wait_for(1)
        gone = Client(gateway, organization)
        pool.submit(gone.upsert, "gone", resourceId="gone")
        until(lambda: metric(service, "appointments_queued_writes") == 1)
        gone.close()
        service.wait_for_event(lambda event: event.get("code") == "CANCELLED")
        lock.release()
        assert first.result().status == 201
    assert [item["id"] for item in Client(gateway, organization).stored()] == ["first"]


def test_a_request_that_takes_too_long_takes_its_queued_write_back(
    start_service: StartProgram, start_gateway: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    gateway = start_gateway(SERVICE_ADDRESS=service.address, GATEWAY_TIMEOUT="0.5")
    with ThreadPoolExecutor() as pool, held_lock(database_url, organization) as lock:
        first = pool.submit(Client(gateway, organization).upsert, "first")
        lock.wait_for(1)
        late = Client(gateway, organization).upsert("late", resourceId="late")
        assert (late.status, late.json["code"]) == (504, "DEADLINE_EXCEEDED")
        assert first.result().status == 504
        ended = 'appointments_request_seconds_count{{code="{}",method="UpsertAppointment"}}'
        codes = [ended.format(code) for code in ("CANCELLED", "DEADLINE_EXCEEDED")]
        until(lambda: sum(metric(service, code) for code in codes) == 2)
        lock.release()
    client = Client(gateway, organization)
    until(lambda: [item["id"] for item in client.stored()] == ["first"])


def test_a_large_answer(gateway: Program, org: Organization) -> None:
    attributes = {"text": "x" * 15_000}
    client = Client(gateway, org.id)
    for n in range(300):
        org.upsert(str(n), n, n + 1, attributes=attributes)
    page = client.call("GET", "/appointments", pageSize=1000)
    assert page.status == 200
    assert len(page.content) > 3_000_000
    assert 200 < len(page.json["appointments"]) < 300


def test_a_killed_service_fails_what_it_had_and_is_found_again(
    start_service: StartProgram, start_gateway: StartProgram, organization: str
) -> None:
    service = start_service()
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    with RestLoad(gateway, organization) as load:
        until(lambda: len(load.accepted) > 300)
        service.kill()
        until(lambda: len(load.failed) > 20)
        before = len(load.accepted)
        start_service(GRPC_PORT=str(service.port))
        until(lambda: len(load.accepted) > before + 100)
        load.stop()
    assert {status for _, status in load.failed} == {503}
    client = Client(gateway, organization)
    assert {client.call("GET", f"/appointments/{id}").status for id in load.accepted} == {200}


def test_sigterm_under_load_loses_nothing_that_was_accepted(
    start_service: StartProgram, start_gateway: StartProgram, org: Organization
) -> None:
    service = start_service()
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    with RestLoad(gateway, org.id) as load:
        until(lambda: len(load.accepted) > 500)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=5) == 0
        until(lambda: len(load.failed) > 20)
        load.stop()
    # Writes that succeeded are stored. Writes that failed are not: they were never accepted.
    assert set(org.listed(page_size=1000)) == set(load.accepted)
    assert {status for _, status in load.failed} == {503}
    org.check_history()


def test_a_call_that_was_accepted_is_answered_after_sigterm(
    start_service: StartProgram, start_gateway: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    with ThreadPoolExecutor() as pool, held_lock(database_url, organization) as lock:
        accepted = pool.submit(Client(gateway, organization).upsert)
        lock.wait_for(1)
        service.process.send_signal(signal.SIGTERM)
        until(lambda: Client(gateway, organization).call("GET", "/changes").status == 503)
        assert service.process.poll() is None
        lock.release()
        assert accepted.result().status == 201
    assert service.process.wait(timeout=5) == 0


def test_an_idle_stream_does_not_hold_the_end_up(
    start_service: StartProgram, start_gateway: StartProgram, organization: str
) -> None:
    service = start_service()
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    assert Client(gateway, organization).upsert().status == 201
    started = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - started < 5


def resident(program: Program) -> int:
    size: int = psutil.Process(program.process.pid).memory_info().rss
    return size


@pytest.mark.parametrize(
    ("method", "per_message", "most"),
    [
        # The answers have 15 KB: 4 MiB, a window and a message of calls.
        ("GetAppointment", 100, 500),
        # Needs no credential, like a refusal because of a missing one. The answers are tiny.
        ("Unknown", 1000, 30_000),
    ],
)
def test_a_client_that_does_not_read_is_not_read_and_is_cut_off(
    start_service: StartProgram, organization: str, method: str, per_message: int, most: int
) -> None:
    service = start_service(WATCH_PATIENCE="3")
    relayed = "appointments_relayed_calls_sum"
    answered = (
        'appointments_request_seconds_count{code="OK",method="GetAppointment"}'
        if method == "GetAppointment"
        else relayed
    )
    with (
        grpc.insecure_channel(service.address, FIXED_WINDOW) as channel,
        grpc.insecure_channel(service.address, OWN_CONNECTION) as other,
    ):
        org = Organization(AppointmentServiceStub(other), organization)
        org.upsert("a", 0, 1, attributes={"text": "x" * 15_000})
        get = rpc.GetAppointmentRequest(organization_id=organization, id="a").SerializeToString()

        def requests() -> Iterator[pb.RelayRequest]:
            # More than three times as many as are answered, each after those before it.
            for first in range(0, 4 * most, per_message):
                numbers = range(first + 1, first + 1 + per_message)
                yield pb.RelayRequest(calls=[call(number, method, get) for number in numbers])
                give_up = time.monotonic() + 1
                while metric(service, answered) - count < first + per_message:
                    if time.monotonic() > give_up:
                        break
                    time.sleep(0.01)

        warm = [call(number, method, get) for number in range(per_message)]
        relay(other, pb.RelayRequest(calls=warm))
        before = resident(service)
        count = metric(service, answered)
        unread = RelayServiceStub(channel).Relay(requests())
        last = count
        while (now := metric(service, answered)) == count or now > last:
            last = now
            time.sleep(2)
        assert last - count <= most
        # Others notice nothing.
        assert relay(other, pb.RelayRequest(calls=[call(7, "GetAppointment", get)]))[7].response
        assert resident(service) - before < 40_000_000
        ended = service.wait_for_event(lambda event: event.get("event") == "relay ended")
        assert ended["reason"] == "SLOW_READER"
        with pytest.raises(grpc.RpcError) as caught:  # what had arrived comes first
            list(unread)
        refused = refusal(caught.value)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SLOW_READER")
        assert org.get("a").id == "a"


def test_a_client_that_reads_late_gets_every_answer(
    start_service: StartProgram, organization: str
) -> None:
    service = start_service()
    with grpc.insecure_channel(service.address, UNCOMPRESSED) as channel:
        org = Organization(AppointmentServiceStub(channel), organization)
        org.upsert("a", 0, 1, attributes={"text": "x" * 15_000})
        get = rpc.GetAppointmentRequest(organization_id=organization, id="a")
        count, each = 2000, 100

        def requests() -> Iterator[pb.RelayRequest]:
            for first in range(0, count, each):
                calls = [call(n, "GetAppointment", get) for n in range(first, first + each)]
                yield pb.RelayRequest(calls=calls)

        responses = RelayServiceStub(channel).Relay(requests(), timeout=60)
        until(lambda: metric(service, "appointments_relayed_calls_sum") > 300)
        numbers = [answer.number for response in responses for answer in response.answers]
    assert sorted(numbers) == list(range(count))
