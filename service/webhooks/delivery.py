"""The duty of a worker: to send every change to every webhook that wants it.

Each webhook is sent to in a task of its own, which ends after a while, so that those that
wait get its place. One that hangs or fails has its place for one attempt only, and those
that failed the last time share half of the places.
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
from service.domain import HistoryEntry
from service.errors import ServiceError
from service.metrics import Metrics
from service.reads.store import ReadStore
from service.webhooks.addresses import AddressRules
from service.webhooks.claims import ClaimStore, Sent
from service.webhooks.events import body_of, headers_of
from service.webhooks.resolver import LookUp, look_up
from service.webhooks.sender import Sender
from service.webhooks.webhook import Attempt, Claim

# What a worker has sent and not recorded yet; so much is sent again if it dies.
GROUP = 50
GROUP_SECONDS = 0.5
# How long a webhook with ever more to send keeps its place.
TURN_SECONDS = 5.0
# How long what is under way may take when the worker is told to stop.
STOP_SECONDS = 3.0
# Looking for work takes at most this part of one connection's time.
POLL_SHARE = 0.1
GONE = 410
LOOP = "send to webhooks"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many webhooks at once, and how fast; times are in seconds."""

    places: int
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
        metrics: Metrics,
        *,
        pace: Pace,
        look_up: LookUp = look_up,
    ) -> None:
        self._claims = claims
        self._reads = reads
        self._rules = rules
        self._metrics = metrics
        self._pace = pace
        self._look_up = look_up
        self._stopping = False
        # By whether the webhook's last attempt had failed.
        self._tasks: dict[asyncio.Task[None], bool] = {}

    async def run(self) -> NoReturn:
        """Send until cancelled; what is under way then may end, for a moment."""
        self._stopping = False
        sender = Sender(
            self._rules,
            self._metrics,
            timeout=self._pace.timeout,
            connections=self._pace.places,
            look_up=self._look_up,
        )
        async with sender:
            try:
                while True:
                    await self._start_due(sender)
            finally:
                await self._stop()

    async def _start_due(self, sender: Sender) -> None:
        """Take as many webhooks as there are places, and wait for the next time."""
        places = self._pace.places - len(self._tasks)
        # Half of all, but not those that others need now.
        failing_places = max(0, self._pace.places // 2 - sum(self._tasks.values()))
        failing_places = min(failing_places, places // 2)
        started = monotonic()
        try:
            claimed = await self._claim(places - failing_places, failing_places)
        except ServiceError as error:
            log.warning("no webhooks could be claimed", error=error.message)
            await asyncio.sleep(1.0)
            return
        taken = monotonic() - started
        for claim in claimed:
            task = asyncio.create_task(self._serve(sender, claim, started + self._pace.lease))
            self._tasks[task] = claim.attempts > 0
            task.add_done_callback(self._tasks.pop)
        if self._pace.places - len(self._tasks) < 2:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        # If all places were taken up there may be more to be done now.
        pause = self._pace.poll_interval if len(claimed) < places else 0.0
        await asyncio.sleep(max(pause, taken / POLL_SHARE))

    async def _claim(self, places: int, failing_places: int) -> list[Claim]:
        """Claim webhooks; cancelled, let go of what the database was about to give."""
        claiming = asyncio.create_task(
            self._claims.claim(places=places, failing_places=failing_places)
        )
        try:
            return await asyncio.shield(claiming)
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
        turn = _Turn(self._claims, self._pace, claim, leased_until)
        wait = 0.0
        try:
            await self._send_all(sender, turn)
        except ServiceError as error:
            # What was not recorded will be sent again.
            log.warning("a webhook waits", webhook=claim.id, error=error.message)
            wait = self._pace.first_retry
        except Exception as error:  # noqa: BLE001  every other webhook goes on
            self._tell(error, claim)
            turn.at_fault = True
        finally:
            await self._end(turn, wait)

    async def _end(self, turn: "_Turn", wait: float) -> None:
        """Record what is to be recorded; if that fails, nobody sends before the lease ends."""
        try:
            await turn.end(wait=wait)
        except ServiceError as error:
            log.warning("a webhook waits", webhook=turn.claim.id, error=error.message)
        except Exception as error:  # noqa: BLE001  every other webhook goes on
            self._tell(error, turn.claim)

    def _tell(self, error: Exception, claim: Claim) -> None:
        errors = self._metrics.unexpected_errors
        log_unexpected(LOOP, error, errors, organization=claim.organization_id, webhook=claim.id)

    async def _send_all(self, sender: Sender, turn: "_Turn") -> None:
        end = monotonic() + TURN_SECONDS
        while turn.lasts and monotonic() < end:
            page = await self._reads.history(
                turn.claim.organization_id, None, after=turn.reached, limit=GROUP, min_revision=None
            )
            for entry in page.items:
                if self._stopping or not turn.lasts:
                    return
                await _send(sender, turn, entry)
            if not page.items or turn.reached >= page.revision:
                return
            await turn.record()


class _Turn:
    """A webhook in the hands of this worker: what was sent, and what of it is recorded."""

    def __init__(self, claims: ClaimStore, pace: Pace, claim: Claim, leased_until: float) -> None:
        self.claim = claim
        self.reached = claim.cursor
        self._claims = claims
        self._pace = pace
        self._leased_until = leased_until
        self._sent: list[Sent] = []
        self._recorded_at = monotonic()
        self._over = False
        # The worker failed at the change that comes next.
        self.at_fault = False

    @property
    def lasts(self) -> bool:
        """Whether another request may be sent: it must end within the lease."""
        if self._over or self.claim.disabled:
            return False
        return monotonic() + self._pace.timeout < self._leased_until

    @property
    def attempt(self) -> int:
        """The number of the next attempt."""
        return self.claim.attempts + 1 if self.reached == self.claim.cursor else 1

    def pass_over(self, revision: int) -> None:
        self.reached = revision

    async def took(self, sent: Sent) -> None:
        """Note that a change was taken; record it with others."""
        self._sent.append(sent)
        self.reached = sent.revision
        if monotonic() - self._recorded_at >= GROUP_SECONDS or len(self._sent) >= GROUP:
            await self.record()

    async def failed(self, sent: Sent) -> None:
        """Record a failure, which ends the turn."""
        await self.record()
        if self._over:
            return
        self._over = True
        outcome = sent.outcome
        failed = await self._claims.fail(
            self.claim,
            sent,
            wait=self._wait(sent.attempt, outcome.retry_after),
            gone=outcome.http_status == GONE,
        )
        if failed is None:
            await self._claims.release(self.claim, wait=0.0)
        elif failed.disabled:
            log.warning(
                "a webhook is disabled",
                organization=failed.organization_id,
                webhook=failed.id,
                error=outcome.error,
            )

    async def record(self, *, release: bool = False) -> None:
        """Record what was taken since the last time."""
        if self._over or (self.reached == self.claim.cursor and not release):
            return
        asked = monotonic()
        # Not again after an error: whether it was recorded is not known.
        self._over = True
        claim = await self._claims.advance(
            self.claim, self._sent, reached=self.reached, release=release
        )
        if claim is None:
            # Not ours any more, or it is to begin elsewhere: who takes it next begins there.
            await self._claims.release(self.claim, wait=0.0)
            return
        self._over = release
        self.claim = claim
        self._sent = []
        self._recorded_at = monotonic()
        self._leased_until = asked + self._pace.lease

    async def end(self, *, wait: float) -> None:
        """Record what was taken, or a fault, and let others have the webhook.

        If nothing was taken it is to `wait` (seconds).
        """
        if self._over:
            return
        if self.at_fault:
            # Revisions have no gaps.
            await self.failed(Sent(self.reached + 1, self.attempt, _fault()))
        elif self.reached == self.claim.cursor:
            self._over = True
            await self._claims.release(self.claim, wait=wait)
        else:
            await self.record(release=True)

    def _wait(self, attempt: int, retry_after: float | None) -> float:
        """Return how long to wait before the next attempt: twice as long every time.

        Part of it is chance, so that those that failed together do not come together.
        """
        longest = self._pace.longest_retry
        wait = min(self._pace.first_retry * 2.0 ** min(attempt - 1, 60), longest)
        wait *= random.uniform(0.5, 1.0)  # noqa: S311
        return max(wait, min(retry_after or 0.0, longest))


async def _send(sender: Sender, turn: _Turn, entry: HistoryEntry) -> None:
    claim = turn.claim
    if claim.changes and entry.change not in claim.changes:
        turn.pass_over(entry.revision)
        return
    body = body_of(entry)
    own = dict(zip(claim.header_names, claim.header_values, strict=True))
    ours = headers_of(claim.id, entry, body, secrets=claim.live_secrets, time=datetime.now(UTC))
    outcome = await sender.send(claim.url, body, {**own, **ours}, repeat=turn.attempt == 1)
    sent = Sent(entry.revision, turn.attempt, outcome)
    if sent.outcome.taken:
        await turn.took(sent)
    else:
        await turn.failed(sent)


def _fault() -> Attempt:
    """What a change came to that could not be read, signed, sent or judged."""
    return Attempt(
        result="fault", ended=monotonic(), error="the service failed; its own log says why"
    )
