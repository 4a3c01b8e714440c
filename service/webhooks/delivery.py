"""Sends every change to every webhook that selects it.

A worker has a limited number of slots, and a task per claimed webhook. A task ends after
TURN_SECONDS, so that other webhooks get its slot. A webhook that hangs or fails occupies a
slot for one attempt only. Webhooks whose last attempt failed get at most half of the slots.
"""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import NoReturn

import structlog

from runtime.backoff import log_unexpected
from runtime.tracing import TRACEPARENT, current_tracer
from runtime.turns import result_of
from service.domain import HistoryEntry
from service.errors import ServiceError
from service.metrics import Metrics
from service.postgres.notifications import Wakeup
from service.reads.store import ReadStore
from service.webhooks.addresses import AddressRules
from service.webhooks.claims import ClaimStore, Sent
from service.webhooks.encryption import SecretKeys, SecretUnreadable
from service.webhooks.events import body_of, headers_of
from service.webhooks.resolver import LookUp, look_up
from service.webhooks.sender import Sender
from service.webhooks.webhook import Attempt, Claim

# Progress is recorded after this many changes or seconds. A worker that dies sends the
# changes since then again.
GROUP = 50
GROUP_SECONDS = 0.5
# How long a webhook keeps its slot while it has changes to send.
TURN_SECONDS = 5.0
# How long requests in flight may take when the worker stops.
STOP_SECONDS = 3.0
# Polling uses at most this share of one connection's time.
POLL_SHARE = 0.1
GONE = 410
# Before the next look at a webhook whose secret cannot be decrypted.
UNREADABLE_SECONDS = 10.0
LOOP = "send to webhooks"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """`slots` is the number of webhooks that are sent to at the same time. Times: seconds."""

    slots: int
    poll_interval: float
    lease: float
    timeout: float
    first_retry: float
    longest_retry: float


class Deliverer:
    def __init__(
        self,
        claims: ClaimStore,
        reads: ReadStore,
        rules: AddressRules,
        keys: SecretKeys,
        metrics: Metrics,
        *,
        wakeup: Wakeup,
        settings: DeliverySettings,
        look_up: LookUp = look_up,
    ) -> None:
        self._keys = keys
        self._claims = claims
        self._reads = reads
        self._rules = rules
        self._metrics = metrics
        # For changes, and for webhooks that may be due again.
        self._wakeup = wakeup
        self._settings = settings
        self._look_up = look_up
        self._stopping = False
        # The value is whether the webhook's last attempt failed.
        self._tasks: dict[asyncio.Task[None], bool] = {}

    async def run(self) -> NoReturn:
        """Send until cancelled. Requests in flight may then take up to STOP_SECONDS."""
        self._stopping = False
        sender = Sender(
            self._rules,
            self._metrics,
            timeout=self._settings.timeout,
            connections=self._settings.slots,
            look_up=self._look_up,
        )
        async with sender:
            try:
                while True:
                    await self._start_due(sender)
            finally:
                await self._stop()

    async def _start_due(self, sender: Sender) -> None:
        """Claim a webhook for each free slot, then wait until others may be due."""
        slots = self._settings.slots - len(self._tasks)
        # Failing webhooks get at most half of all slots, and half of the free ones.
        failing_slots = max(0, self._settings.slots // 2 - sum(self._tasks.values()))
        failing_slots = min(failing_slots, slots // 2)
        started = monotonic()
        try:
            claimed = await self._claim(slots - failing_slots, failing_slots)
        except ServiceError as error:
            log.warning("webhooks not claimed", error=error.message)
            await asyncio.sleep(1.0)
            return
        taken = monotonic() - started
        for claim in claimed:
            task = asyncio.create_task(self._serve(sender, claim, started + self._settings.lease))
            self._tasks[task] = claim.attempts > 0
            task.add_done_callback(self._tasks.pop)
        if self._settings.slots - len(self._tasks) < 2:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        # More webhooks may be due if every slot was filled.
        all_claimed = len(claimed) < slots
        pause = self._settings.poll_interval if all_claimed else 0.0
        await asyncio.sleep(max(pause, taken / POLL_SHARE))
        if all_claimed:
            await self._wakeup.wait()

    async def _claim(self, slots: int, failing_slots: int) -> list[Claim]:
        """Claim webhooks. If cancelled, release the webhooks that were just claimed."""
        claiming = asyncio.create_task(self._claims.claim(slots=slots, failing_slots=failing_slots))
        try:
            return await result_of(claiming)
        except asyncio.CancelledError:
            self._stopping = True
            await asyncio.wait({claiming}, timeout=STOP_SECONDS)
            with suppress(ServiceError, asyncio.InvalidStateError):
                for claim in claiming.result():
                    await self._claims.release(claim, wait=0.0)
            raise

    async def _stop(self) -> None:
        self._stopping = True
        tasks = set(self._tasks)
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in pending:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, sender: Sender, claim: Claim, leased_until: float) -> None:
        webhook = _ClaimedWebhook(self._claims, self._settings, claim, leased_until)
        wait = 0.0
        try:
            await self._send_all(sender, webhook)
        except ServiceError as error:
            # Changes that were not recorded will be sent again.
            log.warning("webhook postponed", webhook=claim.id, error=error.message)
            wait = self._settings.first_retry
        except SecretUnreadable as error:
            # Not an attempt: it is sent once a worker has the key.
            log.warning("webhook postponed", webhook=claim.id, error=str(error))
            wait = UNREADABLE_SECONDS
        except Exception as error:  # noqa: BLE001  must not affect other webhooks
            self._log_unexpected(error, claim)
            webhook.internal_error = True
        finally:
            await self._end(webhook, wait)

    async def _end(self, webhook: "_ClaimedWebhook", wait: float) -> None:
        """Record and release. If that fails, no worker sends before the lease expires."""
        try:
            await webhook.end(wait=wait)
        except ServiceError as error:
            log.warning("webhook postponed", webhook=webhook.claim.id, error=error.message)
        except Exception as error:  # noqa: BLE001  must not affect other webhooks
            self._log_unexpected(error, webhook.claim)
        self._wakeup.wake_in(webhook.due_in)

    def _log_unexpected(self, error: Exception, claim: Claim) -> None:
        errors = self._metrics.unexpected_errors
        log_unexpected(LOOP, error, errors, organization=claim.organization_id, webhook=claim.id)

    async def _send_all(self, sender: Sender, webhook: "_ClaimedWebhook") -> None:
        end = monotonic() + TURN_SECONDS
        while webhook.may_send and monotonic() < end:
            selected = webhook.claim.selected
            page = await self._reads.changes(
                webhook.claim.organization_id,
                selected,
                after=webhook.reached,
                limit=GROUP,
                min_revision=None,
            )
            traces: dict[int, str] = {}
            if current_tracer.get() is not None and page.items:
                traces = await self._claims.trace_contexts(
                    webhook.claim, after=webhook.reached, through=page.items[-1].revision
                )
            for entry in page.items:
                if self._stopping or not webhook.may_send:
                    return
                if webhook.claim.selected != selected:
                    break
                webhook.skip_to(entry.revision - 1)
                await self._send(sender, webhook, entry, traces.get(entry.revision))
            else:
                webhook.skip_to(page.reached)
                if page.reached >= page.revision:
                    return
            await webhook.record()

    async def _send(
        self, sender: Sender, webhook: "_ClaimedWebhook", entry: HistoryEntry, trace: str | None
    ) -> None:
        claim = webhook.claim
        body = body_of(entry)
        values = map(self._keys.decrypt, claim.header_values)
        own = dict(zip(claim.header_names, values, strict=True))
        secrets = [self._keys.decrypt(stored) for stored in claim.live_secrets]
        ours = headers_of(claim.id, entry, body, secrets=secrets, time=datetime.now(UTC))
        headers = {**own, **ours}
        span = None
        tracer = current_tracer.get()
        if tracer is not None and trace is not None:
            span = tracer.begin("send to webhook", trace, kind="client")
            if span is not None and TRACEPARENT not in map(str.lower, own):
                headers[TRACEPARENT] = span.traceparent
        outcome = await sender.send(claim.url, body, headers, resend=webhook.attempt == 1)
        if span is not None:
            span.end(
                error=None if outcome.delivered else outcome.result,
                organization=claim.organization_id,
                webhook=claim.id,
                revision=entry.revision,
                attempt=webhook.attempt,
                http_status=outcome.http_status,
            )
        sent = Sent(entry.revision, webhook.attempt, outcome)
        if sent.outcome.delivered:
            await webhook.delivered(sent)
        else:
            await webhook.failed(sent)


class _ClaimedWebhook:
    """A webhook that this worker has leased, and the changes not recorded yet."""

    def __init__(
        self, claims: ClaimStore, settings: DeliverySettings, claim: Claim, leased_until: float
    ) -> None:
        self.claim = claim
        self.reached = claim.cursor
        self._claims = claims
        self._settings = settings
        self._leased_until = leased_until
        self._sent: list[Sent] = []
        self._recorded_at = monotonic()
        self._ended = False
        # Seconds after which it may be due, once it is released.
        self.due_in = 0.0
        # Set if the next change caused an unexpected error in the worker itself.
        self.internal_error = False

    @property
    def may_send(self) -> bool:
        """Whether another request can be sent and time out before the lease expires."""
        if self._ended or self.claim.disabled:
            return False
        return monotonic() + self._settings.timeout < self._leased_until

    @property
    def attempt(self) -> int:
        """The number of the next attempt."""
        return self.claim.attempts + 1 if self.reached == self.claim.cursor else 1

    def skip_to(self, revision: int) -> None:
        """Note that the webhook selects no change that follows, up to a revision."""
        if not self._ended:
            self.reached = revision

    async def delivered(self, sent: Sent) -> None:
        """Note that a change was delivered. It is recorded together with others."""
        self._sent.append(sent)
        self.reached = sent.revision
        if monotonic() - self._recorded_at >= GROUP_SECONDS or len(self._sent) >= GROUP:
            await self.record()

    async def failed(self, sent: Sent) -> None:
        """Record a failure, and release the webhook."""
        await self.record()
        if self._ended:
            return
        self._ended = True
        outcome = sent.outcome
        wait = self._retry_delay(sent.attempt, outcome.retry_after)
        failed = await self._claims.fail(
            self.claim,
            sent,
            wait=wait,
            gone=outcome.http_status == GONE,
        )
        if failed is None:
            await self._claims.release(self.claim, wait=0.0)
            return
        self.due_in = wait
        if failed.disabled:
            log.warning(
                "webhook disabled",
                organization=failed.organization_id,
                webhook=failed.id,
                error=outcome.error,
            )

    async def record(self, *, release: bool = False) -> None:
        """Record the progress since the last time."""
        if self._ended or (self.reached == self.claim.cursor and not release):
            return
        asked = monotonic()
        # Not repeated after an error, since the progress may have been recorded.
        self._ended = True
        claim = await self._claims.advance(
            self.claim, self._sent, reached=self.reached, release=release
        )
        if claim is None:
            # The lease was lost or the webhook replayed: the next claim has the new cursor.
            await self._claims.release(self.claim, wait=0.0)
            return
        self._ended = release
        self.claim = claim
        self._sent = []
        self._recorded_at = monotonic()
        self._leased_until = asked + self._settings.lease

    async def end(self, *, wait: float) -> None:
        """Record the progress or the internal error, and release the webhook.

        Without progress the webhook is due after `wait` (seconds).
        """
        if self._ended:
            return
        if self.internal_error:
            # The change that failed has the next revision, since revisions have no gaps.
            await self.failed(Sent(self.reached + 1, self.attempt, _internal_error()))
        elif self.reached == self.claim.cursor:
            self._ended = True
            self.due_in = wait
            await self._claims.release(self.claim, wait=wait)
        else:
            await self.record(release=True)

    def _retry_delay(self, attempt: int, retry_after: float | None) -> float:
        """Return the delay before the next attempt (seconds), which doubles every time.

        Jitter keeps webhooks that failed together from being retried together.
        """
        longest = self._settings.longest_retry
        wait = min(self._settings.first_retry * 2.0 ** min(attempt - 1, 60), longest)
        wait *= random.uniform(0.5, 1.0)  # noqa: S311
        return max(wait, min(retry_after or 0.0, longest))


def _internal_error() -> Attempt:
    """The outcome of a change for which reading, signing or sending raised an error."""
    return Attempt(
        result="fault", ended=monotonic(), error="the service failed; its own log says why"
    )
