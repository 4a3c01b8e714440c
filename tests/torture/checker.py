"""Checks a record: whether the answers are those of one order of the calls that their times allow.

The service gives every change of an organization the next revision, and nearly every answer says
at which revision it was decided. So the order need not be searched for: the history is replayed by
the model, then each answer is judged in the state of its revision, and the times of the calls are
compared with the revisions. That takes time in proportion to the number of calls.

What an answer does not tell may be either way: a write whose caller gave up may have happened, but
at most once, and only if the history shows it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.torture.erasures import results
from tests.torture.instants import Instants, applied_in_order, is_fresh
from tests.torture.judge import Etags, Judge
from tests.torture.meanings import Meanings
from tests.torture.operations import Operations
from tests.torture.past import Past
from tests.torture.record import FAILURE, NOTHING, UNKNOWN, Call, Item, Json, Record, Run
from tests.torture.shown import SLACK
from tests.torture.streams import Webhooks, judge_streams
from tests.torture.variants import Variants


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that no order of the calls explains."""

    organization: str
    text: str
    call: int | None = None

    def __str__(self) -> str:
        which = "" if self.call is None else f", call {self.call}"
        return f"{self.organization}{which}: {self.text}"


@dataclass(slots=True)
class Report:
    """What was found, and how much was checked."""

    findings: list[Finding] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)


def check(record: Record) -> Report:
    """Check all organizations of a record."""
    report = Report()
    report.figures["faults"] = len(record.faults)
    for organization, calls in record.organizations():
        _Organization(record.run, organization, calls, report).check()
    return report


class _Organization:
    def __init__(self, run: Run, organization: str, calls: list[Call], report: Report) -> None:
        self._organization = organization
        self._report = report
        etags = Etags()
        for call in calls:
            for shown in _appointments(call.answer):
                if wrong := etags.learn(shown):
                    self._complain(wrong, call)
        meanings = Meanings(calls, etags)
        for again, wrong in meanings.problems:
            self._complain(wrong, again)
        self._calls = [meanings.of(call) for call in calls]
        self._by_number = {call.number: call for call in self._calls}
        pages = [call for call in self._calls if call.request.kind == "replay"]
        if not pages or pages[-1].answer.get("more", True):
            self._complain("the record does not have the whole history")
        entries = [entry for page in pages for entry in page.answer.get("entries", ())]
        # The writes with an idempotency key, by the key.
        self._uses: dict[str, list[tuple[Item, Json, Call]]] = {}
        for call in self._calls:
            validated = call.request.asks.get("validate_only", False)
            for item, answer in results(call):
                if item.write.key and not (validated or item.write.validate_only):
                    self._uses.setdefault(item.write.key, []).append((item, answer, call))
        variants = Variants(self._calls)
        self._past = Past(
            entries, self._by_number, variants.of, self._complain, started=run.started
        )
        self._judge = Judge(run, self._past, variants, etags)
        self._operations = Operations(self._calls)
        self._set_back = run.set_back
        self._instants = Instants(
            (
                (call.end, call.revision)
                for call in self._calls
                if call.revision is not None and "min_revision" not in call.request.asks
            ),
            [cause[0].begin if cause else 0.0 for cause in self._past.causes],
        )

    def check(self) -> None:
        figures = self._report.figures
        figures["revisions"] += self._past.latest
        self._check_effects()
        self._check_operations()
        self._check_erasures()
        for call, wrong in judge_streams(self._calls, self._past, self._instants):
            self._complain(wrong, call)
        for call, wrong in Webhooks(self._calls, self._past, self._instants).judge():
            self._complain(wrong, call)
        self._check_keys()
        for call in self._calls:
            figures["calls"] += 1
            figures[call.request.kind] += 1
            if FAILURE in call.answer:
                self._complain(f"it should never be answered: {call.answer[FAILURE]}", call)
            elif UNKNOWN in call.answer:
                figures["unknown"] += 1
                if any(self._is_effective(call)):
                    figures["unknown, and happened"] += 1
            elif NOTHING in call.answer:
                figures["nothing done"] += 1
            else:
                figures["refused"] += "code" in call.answer
                self._check_instant(call)
                self._check_answer(call)

    def _complain(self, text: str, call: Call | None = None) -> None:
        number = call.number if call else None
        self._report.findings.append(
            Finding(organization=self._organization, text=text, call=number)
        )

    def _is_effective(self, call: Call) -> Iterator[bool]:
        for index in range(len(call.request.items)):
            yield (call.number, index) in self._past.effective

    # The order

    def _check_instant(self, call: Call) -> None:
        revision = call.revision
        if revision is None:
            return
        if is_fresh(call) and revision < (known := self._instants.known(call.begin)):
            self._complain(f"it shows revision {revision}, and {known} was known before", call)
        least = call.request.asks.get("min_revision", 0)
        if revision < least and "code" not in call.answer:
            self._complain(f"it shows revision {revision}, and not at least {least}", call)
        if revision <= self._past.latest and not self._instants.possible(revision, call.end):
            self._complain(f"it shows revision {revision} before that was asked for", call)

    def _check_effects(self) -> None:
        """Check that no change is older than what was known before it was asked for."""
        for revision, cause in enumerate(self._past.causes, 1):
            if cause and (known := self._instants.known(cause[0].begin)) >= revision:
                text = f"it made revision {revision}, and {known} was known before it began"
                self._complain(text, cause[0])

    def _check_operations(self) -> None:
        ended = {
            self._operations.submitted[name].number: answer
            for name, (_, answer) in self._operations.ended.items()
        }
        applied = []
        for call in self._calls:
            if not call.request.accepted:
                continue
            end = ended.get(call.number)
            if end is not None and end.get("revision") is not None:
                applied.append((call, end["revision"]))
            elif "operation" in call.answer:
                self._complain("it was accepted, and never ended", call)
            if end is not None and "code" in end and any(self._is_effective(call)):
                self._complain(f"it was refused ({end['code']}), and made a change", call)
        for first, second in applied_in_order(applied):
            self._complain(f"it was applied before call {first.number}, accepted earlier", second)

    def _check_erasures(self) -> None:
        """Check that nothing that was accepted before a redaction brings a text back.

        Its time of acceptance is of another clock than that of the redaction.
        """
        for revision, (cause, entry) in enumerate(
            zip(self._past.causes, self._past.entries, strict=True), 1
        ):
            if cause is None or "operation" not in cause[0].answer or not entry["actor"]:
                continue
            for redacted in self._past.erasures.of(entry["appointment"]["id"]):
                by = self._past.causes[redacted - 1]
                if redacted < revision and by is not None and not by[0].request.accepted:
                    accepted = cause[0].end + self._set_back + SLACK
                    if accepted < by[0].begin:
                        text = f"it was accepted before the redaction of revision {redacted}"
                        self._complain(f"{text}, and applied with its text after it", cause[0])

    def _check_keys(self) -> None:
        """Check that an idempotency key has one write and one result."""
        for key, every in self._uses.items():
            uses = [use for use in every if "outcome" in use[1]]
            for item, other, call in uses[1:]:
                first, answer, _ = uses[0]
                if item.write.identity != first.write.identity:
                    self._complain(f"the key {key!r} was used for another write", call)
                elif _result(other) != _result(answer):
                    self._complain(f"the key {key!r} has two results", call)

    # The answers

    def _check_answer(self, call: Call) -> None:
        kind = call.request.kind
        if kind == "write":
            if "operation" not in call.answer:
                self._check_write(call, 0, call.answer, call.end)
        elif kind == "batch":
            self._check_batch(call)
        elif kind == "operation":
            if call.answer["done"] if "done" in call.answer else self._refused_operation(call):
                self._check_result(self._by_number[call.request.asks["of"]], call.answer, call)
        elif kind == "operations":
            if wrong := self._operations.judge(call):
                self._complain(wrong, call)
            for submitted, answer in self._operations.listed(call):
                self._check_result(submitted, answer, call)
        elif kind not in ("watch", "delivery", "webhook") and (wrong := self._judge.read(call)):
            self._complain(f"{kind} {dict(call.request.asks)}: {wrong}", call)

    def _refused_operation(self, call: Call) -> bool:
        self._complain(f"its operation is refused: {dict(call.answer)}", call)
        return False

    def _check_result(self, submitted: Call, answer: Json, read: Call) -> None:
        """Check the result of an operation, without what had been redacted before it was read."""
        seen = self._instants.known(read.begin), self._past.latest
        self._check_write(submitted, 0, answer, read.end, seen)

    def _check_write(
        self, call: Call, index: int, answer: Json, end: float, seen: Sequence[int] = ()
    ) -> None:
        revision = answer.get("revision")
        if revision is None:
            latest = call.revision if call.revision is not None else -1
            revisions = range(self._instants.known(call.begin), latest + 1)
        else:
            revisions = range(revision, revision + 1)
        if revisions and revisions[-1] > self._past.latest:
            text = f"revision {revisions[-1]} is lost: the history ends at {self._past.latest}"
            self._complain(text, call)
            return
        if not seen and revisions:
            seen = revisions[0], revisions[-1]
        wrong = self._judge.write(call, index, answer, revisions, end=end, seen=seen)
        if wrong and not self._is_remembered(call, index, answer):
            told = answer.get("outcome") or answer.get("code")
            write = call.request.items[index].write
            self._complain(f"{write} was answered {told} ({dict(answer)}): {wrong}", call)

    def _check_batch(self, call: Call) -> None:
        answer, revision = call.answer, call.revision
        if not call.request.asks.get("atomic"):
            for index, result in enumerate(answer.get("results", ())):
                if not result.keys() & {UNKNOWN, NOTHING}:
                    self._check_write(call, index, {**result, "revision": None}, call.end)
            if "results" not in answer:
                self._complain(f"a batch that is not atomic is refused: {dict(answer)}", call)
            return
        if revision is None or revision > self._past.latest:
            self._complain(f"revision {revision} is lost", call)
        elif "results" in answer and call.number in self._past.batches:
            for index, result in enumerate(answer["results"]):
                if wrong := self._judge.atomic_result(call, index, result, revision):
                    self._complain(f"item {index} of an atomic batch: {wrong}", call)
        elif wrong := self._judge.atomic(call, revision):
            self._complain(f"an atomic batch was answered {dict(answer)}: {wrong}", call)

    def _is_remembered(self, call: Call, index: int, answer: Json) -> bool:
        """Return whether an earlier use of the idempotency key explains the answer.

        The history does not show a write that changed nothing, but its key is remembered.
        """
        write = call.request.items[index].write
        for item, result, other in self._uses.get(write.key or "", ()):
            if other is call or other.begin > call.over:
                continue
            may_be = not other.decided or "operation" in other.answer or "outcome" in result
            same = item.write.identity == write.identity
            if answer.get("code") == "IDEMPOTENCY_KEY_REUSED":
                remembered = not same or bool(self._past.erasures.of(item.write.id))
            else:
                remembered = (
                    same
                    and ("outcome" not in result or _result(result) == _result(answer))
                    and not self._is_forgotten(item, answer)
                )
            if may_be and remembered:
                return True
        return False

    def _is_forgotten(self, item: Item, answer: Json) -> bool:
        """Return whether a redaction has erased a key whose first result is answered."""
        made, revision = _result(answer)[1], answer.get("revision")
        if not made or revision is None or answer.get("outcome") == "REDACTED":
            return False
        return self._past.erasures.between(item.write.id, int(made), revision)


def _result(answer: Json) -> tuple[str, str]:
    return answer.get("outcome", ""), answer.get("appointment", {}).get("revision", "")


def _appointments(answer: Json) -> Iterator[Json]:
    """Yield the appointments that an answer shows."""
    if "appointment" in answer:
        yield answer["appointment"]
    yield from answer.get("appointments", ())
    for result in answer.get("results", ()):
        if "appointment" in result:
            yield result["appointment"]
    for operation in answer.get("operations", ()):
        if "appointment" in operation:
            yield operation["appointment"]
    for entry in answer.get("entries", ()):
        yield entry["appointment"]
