"""Attempts are recorded and retried with backoff, whatever a receiver responds."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from email.utils import format_datetime
from ipaddress import ip_network
from time import monotonic
from typing import NamedTuple
from uuid import uuid4

import grpc
import psycopg
import pytest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from local.programs import Program
from service.domain import ALL_CHANGES
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.notifications import Wakeup
from service.postgres.session import CALLER_ROLE, WORKER_ROLE, Timeouts
from service.reads.store import ReadStore
from service.webhooks.addresses import AddressRules
from service.webhooks.claims import ClaimStore
from service.webhooks.delivery import LOOP, Deliverer, DeliverySettings
from service.webhooks.encryption import SecretKeys
from service.webhooks.sender import MAX_ERROR, Sender, read_retry_after
from service.webhooks.store import WebhookStore
from service.webhooks.webhook import WebhookContent
from tests.api import Organization
from tests.receiver import LOOPBACK
from tests.webhooks.answers import ANSWERS, CLOSED, NAMED, VALUES, status
from tests.webhooks.raw_receiver import Answer, End, RawReceiver, raw_receiver

RULES = AddressRules([ip_network(LOOPBACK)])
TIMEOUT = 1.0
SETTINGS = DeliverySettings(
    slots=64,
    poll_interval=0.02,
    lease=3.0,
    timeout=TIMEOUT,
    first_retry=0.2,
    longest_retry=0.8,
)

LOG = """
    SELECT attempt, http_status, error FROM webhook_deliveries
    WHERE webhook_id = %s ORDER BY delivery_id
"""
STATE = """
    SELECT w.attempts, w.disabled, extract(epoch FROM w.next_attempt_at - (
        SELECT max(d.attempted_at + make_interval(secs => d.duration_ms / 1000.0))
        FROM webhook_deliveries d
        WHERE d.webhook_id = w.webhook_id
    ))::float8
    FROM webhooks w
    WHERE w.webhook_id = %s
"""


class LogEntry(NamedTuple):
    attempt: int
    code: int | None
    error: str


class State(NamedTuple):
    """`wait` is from the end of the last attempt to the next one, in seconds."""

    attempts: int
    disabled: bool
    wait: float


Log = list[LogEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A deliverer in this process, with all that it needs."""

    database: Database
    org: Organization
    url: str
    metrics: Metrics

    @asynccontextmanager
    async def hooks(self, receiver: RawReceiver, paths: list[str]) -> AsyncIterator[dict[str, str]]:
        """Register webhooks by path, and make one change for all of them."""
        store = WebhookStore(
            self.database, SecretKeys([]), changed=lambda: None, most=1000, secret_overlap=1.0
        )
        ids = {}
        for path in paths:
            content = WebhookContent(
                url=f"http://127.0.0.1:{receiver.port}{path}",
                description="",
                selected=ALL_CHANGES,
                disabled=False,
                headers=(),
            )
            webhook, _, _ = await store.create(self.org.id, content, after=None)
            ids[path] = webhook.id
        self.org.upsert(str(uuid4()), 0, 1, resource_id=str(uuid4()))
        try:
            yield ids
        finally:
            for id in ids.values():
                await store.delete(self.org.id, id)

    async def deliver(self, seconds: float, ids: Collection[str], *, attempts: int) -> None:
        """Deliver for some seconds, and until each webhook has had a number of attempts."""
        claims = ClaimStore(self.database, lease=SETTINGS.lease, give_up_after=1000.0)
        deliverer = Deliverer(
            claims,
            ReadStore(self.database, None),
            RULES,
            SecretKeys([]),
            self.metrics,
            wakeup=Wakeup(),
            settings=SETTINGS,
        )
        running = asyncio.create_task(deliverer.run())
        await asyncio.wait({running}, timeout=seconds)
        async with asyncio.timeout(20):
            while any(len(log) < attempts for log, _ in self.seen(ids)):
                await asyncio.wait({running}, timeout=0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    def seen(self, ids: Collection[str]) -> Iterator[tuple[Log, State]]:
        """Return the log and the state of webhooks."""
        with psycopg.connect(self.url) as connection:
            for id in ids:
                log = connection.execute(LOG, (id,)).fetchall()
                state = connection.execute(STATE, (id,)).fetchone()
                assert state is not None
                yield [LogEntry(*row) for row in log], State(*state)


@pytest.fixture(scope="module")
async def sending(programs: tuple[Program, Program], url: str) -> AsyncIterator[Sending]:
    service, _ = programs
    metrics = Metrics()
    database = Database(
        url,
        name="test",
        connections=4,
        max_waiting=200,
        timeouts=Timeouts(connection=5.0, lock=5.0, statement=10.0),
        role=WORKER_ROLE,
        replica=False,
        metrics=metrics,
    )
    with grpc.insecure_channel(service.address) as channel:
        async with database:
            org = Organization(AppointmentServiceStub(channel), "any-answer")
            yield Sending(database=database, org=org, url=url, metrics=metrics)


def most_requests(seconds: float) -> int:
    """Return the maximum number of requests that the backoff allows in a time."""
    count, passed, wait = 1, 0.0, SETTINGS.first_retry
    while (passed := passed + 0.5 * wait) <= seconds:
        count, wait = count + 1, min(2 * wait, SETTINGS.longest_retry)
    return count


async def check_all(sending: Sending, answers: Mapping[str, Answer]) -> dict[str, Log]:
    """Send to all of them for a while; check the recorded attempts and the backoff."""
    async with raw_receiver(answers) as receiver, sending.hooks(receiver, list(answers)) as ids:
        began = monotonic()
        await sending.deliver(1.5, ids.values(), attempts=1)
        passed = monotonic() - began
        logs = {}
        for path, (log, state) in zip(ids, sending.seen(ids.values()), strict=True):
            requests = receiver.at(path)
            # One more only if a reused connection was closed.
            most = len(log) + (1 if requests and requests[0].reused else 0)
            assert len(requests) <= most, (path, len(requests), log)
            assert len(log) <= most_requests(passed), (path, log)
            assert [each.attempt for each in log] == list(range(1, len(log) + 1)), (path, log)
            check_end(path, log, state)
            logs[path] = log
    return logs


def codes_of(log: Log) -> set[int | None]:
    return {each.code for each in log}


def check_end(path: str, log: Log, state: State) -> None:
    last = log[-1]
    if not last.error:
        assert last.code in range(200, 300), path
        assert (len(log), state.attempts, state.disabled) == (1, 0, False), path
    elif last.code == 410:
        assert (len(log), state.disabled) == (1, True), path
    else:
        assert (state.attempts, state.disabled) == (len(log), False), path
        wait = min(SETTINGS.first_retry * 2 ** (len(log) - 1), SETTINGS.longest_retry)
        assert 0.5 * wait - 0.01 <= state.wait, (path, state)


async def test_what_is_no_proper_answer_is_a_failed_attempt(sending: Sending) -> None:
    logs = await check_all(sending, NAMED)
    for path in NAMED:
        assert all(each.error for each in logs[path]), path
        if path.startswith(("/410-", "/503-")):
            assert int(path[1:4]) in codes_of(logs[path]), path
    for path in ("/endless-body", "/late-bad-chunks", "/cut-in-the-body", "/interim"):
        assert codes_of(logs[path]) & {500, 503}, path


FUZZ = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(FUZZ, max_examples=8)
@given(st.lists(ANSWERS, min_size=1, max_size=40))
async def test_any_bytes_are_recorded_and_backed_off_from(
    sending: Sending, answers: list[Answer]
) -> None:
    await check_all(sending, {f"/{number}": each for number, each in enumerate(answers)})


@settings(FUZZ, max_examples=50)
@given(st.lists(ANSWERS, min_size=8, max_size=8))
async def test_any_bytes_are_judged(answers: list[Answer]) -> None:
    by_path = {f"/{number}": each for number, each in enumerate(answers)}
    sender = Sender(RULES, Metrics(), timeout=0.3, connections=8)
    async with raw_receiver(by_path) as receiver, sender:
        base = f"http://127.0.0.1:{receiver.port}"
        attempts = await asyncio.gather(*(sender.send(base + path, "{}", {}) for path in by_path))
    for path, each in zip(by_path, attempts, strict=True):
        # On a busy machine, the time may be over before it is sent.
        assert len(receiver.at(path)) in ({0, 1} if each.result == "timeout" else {1})
        assert each.delivered == (each.http_status is not None and 200 <= each.http_status < 300)
        assert each.error.isprintable()
        assert len(each.error) <= MAX_ERROR
        assert each.http_status is None or 100 <= each.http_status <= 999
        assert each.retry_after is None or not math.isnan(each.retry_after)
        assert 0 < each.seconds < 5


@given(VALUES | st.text(max_size=40))
def test_a_time_to_wait_is_read_or_is_none(value: str) -> None:
    seconds = read_retry_after(value)
    assert seconds is None or not math.isnan(seconds)


@given(st.datetimes(min_value=datetime(1980, 1, 1)), st.timezones())  # noqa: DTZ001
def test_a_date_to_wait_for_is_seconds_from_now(time: datetime, zone: tzinfo) -> None:
    moment = time.replace(microsecond=0, tzinfo=UTC)
    left = (moment - datetime.now(UTC)).total_seconds()
    dates = [format_datetime(moment, usegmt=True), format_datetime(moment).replace("+", "-")]
    with suppress(OverflowError):  # a date that no zone shifts beyond the years there are
        dates.append(format_datetime(moment.astimezone(zone)))
    for date in dates:
        seconds = read_retry_after(date)
        assert seconds is not None
        assert abs(seconds - left) <= 5, date


async def test_a_kept_connection_that_was_closed_costs_one_more_request_at_first(
    sending: Sending,
) -> None:
    """Only for the first attempt, since the connection may have been closed before."""
    kept = status(503, "Content-Length: 0", end=End.KEEP)
    sender = Sender(RULES, Metrics(), timeout=2.0, connections=8)
    async with raw_receiver({"/kept": kept, "/closes": Answer()}) as receiver, sender:
        base = f"http://127.0.0.1:{receiver.port}"
        for reused, resend, requests in ((False, True, 1), (True, True, 2), (True, False, 1)):
            before = len(receiver.at("/closes"))
            if reused:
                await sender.send(f"{base}/kept", "{}", {})
            attempt = await sender.send(f"{base}/closes", "{}", {}, resend=resend)
            assert attempt.result == "connection"
            sent = receiver.at("/closes")[before:]
            assert [each.reused for each in sent] == ([reused] * requests)[:1] + [False] * (
                requests - 1
            )


@pytest.fixture
def broken(sending: Sending) -> Iterator[Callable[[str, str], None]]:
    """Break the database, and repair it at the end."""
    undone = []

    def change(statement: str, undo: str) -> None:
        with psycopg.connect(sending.url, autocommit=True) as connection:
            connection.execute(statement.encode())
        undone.append(undo)

    yield change
    with psycopg.connect(sending.url, autocommit=True) as connection:
        for undo in undone:
            connection.execute(undo.encode())


def faults(sending: Sending) -> float:
    name, labels = "appointments_unexpected_errors_total", {"loop": LOOP}
    return sending.metrics.registry.get_sample_value(name, labels) or 0.0


async def test_a_fault_of_the_worker_is_recorded_and_backed_off_from(
    sending: Sending, broken: Callable[[str, str], None]
) -> None:
    """It can neither read the changes nor, with the other webhook, sign them."""
    for statement, undo in (
        ("UPDATE webhooks SET secret = 'whsec_?'", "SELECT 1"),
        (
            f"REVOKE SELECT ON own.appointment_history FROM {CALLER_ROLE}, {WORKER_ROLE}",
            f"GRANT SELECT ON own.appointment_history TO {CALLER_ROLE}, {WORKER_ROLE}",
        ),
    ):
        before = faults(sending)
        async with raw_receiver() as receiver, sending.hooks(receiver, ["/a"]) as ids:
            broken(statement, undo)
            began = monotonic()
            with capture_logs() as logged:
                await sending.deliver(1.0, ids.values(), attempts=2)
            passed = monotonic() - began
            [(log, state)] = sending.seen(ids.values())
            assert receiver.requests == []
        assert len(log) <= most_requests(passed)
        assert {(each.code, each.error) for each in log} == {
            (None, "the service failed; its own log says why")
        }
        assert [each.attempt for each in log] == list(range(1, len(log) + 1))
        check_end("/a", log, state)
        assert faults(sending) == before + len(log)
        assert [each["event"] for each in logged] == ["unexpected error"] * len(log)


@pytest.mark.parametrize("code", [204, 503])
async def test_what_cannot_be_recorded_is_not_sent_again_before_the_lease_ends(
    sending: Sending, broken: Callable[[str, str], None], code: int
) -> None:
    answers = {"/a": status(code, CLOSED)}
    async with raw_receiver(answers) as receiver, sending.hooks(receiver, ["/a"]) as ids:
        broken(
            "REVOKE EXECUTE ON FUNCTION advance_webhook, fail_webhook FROM appointments_service",
            "GRANT EXECUTE ON FUNCTION advance_webhook, fail_webhook TO appointments_service",
        )
        before = faults(sending)
        with capture_logs() as logged:
            await sending.deliver(SETTINGS.lease + 1.0, ids.values(), attempts=0)
        first, second = receiver.at("/a")
        assert second.at - first.at >= SETTINGS.lease - 0.1
        assert faults(sending) == before + 2
        assert len(logged) == 2
        [(log, _)] = sending.seen(ids.values())
        assert log == []
