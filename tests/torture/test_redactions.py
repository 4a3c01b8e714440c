"""The checker knows what a redaction erases, and finds what is there all the same."""

from dataclasses import replace
from typing import Any

import pytest

from tests.torture.record import UNKNOWN, Item
from tests.torture.script import Script
from tests.writes.values import Content, Write

REDACT = Write(kind="REDACT", id="a")


@pytest.fixture
def script() -> Script:
    return Script()


def upsert(**fields: Any) -> Write:
    content = Content(start=0, end=10, title="Anna", attributes={"phone": "555"})
    return replace(Write(kind="UPSERT", id="a", content=content), **fields)


def test_a_good_record_is_accepted(script: Script) -> None:
    content = Content(start=0, end=12, title="Anna", hold_until=script.tick(3))
    held = Write(kind="UPSERT", id="a", content=content, key="k")
    script.write(held)
    script.upsert("b", 20, 30, title="Ben")
    script.watch()
    script.now = 10
    script.upsert("c", 11, 20)
    script.write(replace(REDACT, validate_only=True))
    script.write(replace(REDACT, key="r"))
    script.write(REDACT)
    script.write(replace(REDACT, key="r"))
    assert script.write(held).answer["code"] == "IDEMPOTENCY_KEY_REUSED"
    script.get("a")
    script.list()
    script.history("a")
    script.upsert("a", 30, 40, title="Anna", updated_at=7)
    script.write(REDACT, accepted=True)
    script.upsert("a", 40, 50, title="Anna", updated_at=7)
    script.watch()
    report = script.check()
    assert not report.findings, "\n".join(map(str, report.findings))
    changes = [entry["change"] for entry in script.entries]
    assert (changes.count("REDACTED"), changes.count("EXPIRED")) == (2, 1)
    assert report.figures["refused"] == 1


def test_who_made_what_is_erased_is_known_by_the_answer(script: Script) -> None:
    first = script.write(upsert())
    script.upsert("a", 0, 20, title="Anna")
    script.write(REDACT)
    assert not script.found()
    wanted = replace(first.request.items[0].write, content=Content(start=3, end=10))
    script.edit(first, request=replace(first.request, items=(Item(write=wanted),)))
    assert "revision 1 (CREATED of 'a') is not what call 1 does there" in script.found()


def test_who_made_what_is_erased_may_be_a_call_whose_answer_was_lost(script: Script) -> None:
    lost = script.write(upsert())
    script.write(REDACT)
    script.answered(lost, {UNKNOWN: "timeout"})
    assert not script.found()
    script.answered(lost, {"nothing": "nothing was written"})
    assert "nobody made it" in script.found()


@pytest.mark.parametrize("text", [{"title": "Anna"}, {"attributes": {"phone": "555"}}])
def test_an_appointment_that_still_has_its_text(script: Script, text: dict[str, object]) -> None:
    script.write(upsert())
    script.write(REDACT)
    call = script.get("a")
    script.edit(call, appointment={**call.answer["appointment"], **text})
    assert "its text differs or is erased" in script.found()


def test_a_past_state_that_still_has_its_text(script: Script) -> None:
    script.write(upsert())
    before = script.get("a").answer["appointment"]
    script.write(REDACT)
    script.read("get", {"id": "a", "as_of_revision": 1}, {"appointment": before})
    assert "its text differs or is erased" in script.found()


def test_a_history_that_still_has_its_text(script: Script) -> None:
    script.write(upsert())
    before = script.history("a").answer["entries"]
    script.write(REDACT)
    script.history("a")
    assert not script.found()
    script.edit(script.history("a"), entries=[*before, script.entries[1]])
    assert "the history has 2 entries there, not these 2" in script.found()


def test_a_text_that_was_erased_too_early(script: Script) -> None:
    script.write(upsert())
    early = script.get("a")
    script.write(REDACT)
    shown = {**early.answer["appointment"], "title": "", "attributes": {}}
    script.edit(early, appointment=shown)
    assert "its text differs or is erased" in script.found()


def test_a_text_that_the_redaction_left_in_the_history(script: Script) -> None:
    script.write(upsert())
    before = script.entries[0]
    script.write(REDACT)
    for kept in ("actor", "appointment"):
        script.entries[0] = {**script.entries[0], kept: before[kept]}
        assert "revision 1" in script.found()


def test_a_redaction_that_is_not_recorded(script: Script) -> None:
    script.write(upsert())
    script.write(REDACT)
    del script.entries[1]
    assert "revision 2 is lost" in script.found()


def test_a_redaction_that_says_who_asked_for_it(script: Script) -> None:
    script.write(upsert())
    script.write(REDACT)
    script.entries[1]["actor"] = "2"
    assert "revision 2 has the actor '2'" in script.found()


def test_a_stream_that_began_later_and_still_has_the_text(script: Script) -> None:
    script.write(upsert())
    before = script.entries[0]
    script.write(REDACT)
    script.watch()
    assert not script.found()
    script.edit(script.calls[2], entries=[before])
    assert "the stream sent revision 1 as" in script.found()


def test_a_stream_that_ran_already_may_have_the_text(script: Script) -> None:
    script.write(upsert())
    before = script.entries[0]
    redaction = script.write(REDACT)
    script.watch()
    script.edit(script.calls[2], entries=[before], begin=redaction.begin)
    script.edit(script.calls[3], begin=redaction.begin)
    assert not script.found()


def test_an_operation_that_still_has_the_text(script: Script) -> None:
    submitted = script.submit(upsert())
    ended = script.finish(submitted)
    script.write(REDACT)
    asks = {"operation": submitted.answer["operation"], "of": submitted.number}
    again = script.read("operation", asks, {})
    erased = {**ended.answer["appointment"], "title": "", "attributes": {}}
    script.answered(again, {**ended.answer, "appointment": erased})
    assert not script.found()
    script.answered(again, {**ended.answer})
    assert "the history has at revision 1" in script.found()


def test_what_was_accepted_before_is_applied_without_its_text(script: Script) -> None:
    script.upsert("a", 0, 20)
    submitted = script.submit(upsert(key="k"))
    script.write(REDACT)
    script.finish(submitted, without_text=True)
    assert (script.entries[2]["change"], script.entries[2]["actor"]) == ("UPDATED", "")
    # Its key is not kept, nor forgotten.
    again = script.write(upsert(key="k"))
    del script.entries[3]
    script.answered(again, {"code": "IDEMPOTENCY_KEY_REUSED", "detail": "", "revision": 3})
    assert not script.found()


def test_what_was_accepted_before_brings_its_text_back(script: Script) -> None:
    script.upsert("a", 0, 20)
    submitted = script.submit(upsert())
    script.write(REDACT)
    script.finish(submitted)
    assert "it was accepted before the redaction of revision 2" in script.found()


def test_what_was_accepted_later_loses_its_text(script: Script) -> None:
    script.upsert("a", 0, 20)
    script.write(REDACT)
    script.finish(script.submit(upsert()), without_text=True)
    assert "revision 3 (UPDATED of 'a') is not what call 3 does there" in script.found()


@pytest.mark.parametrize(
    ("title", "found"), [("Anna", "the history has at revision 1"), ("", "has been erased")]
)
def test_an_idempotency_key_that_is_not_forgotten(script: Script, title: str, found: str) -> None:
    first = script.write(upsert(key="k"))
    script.write(REDACT)
    again = script.write(upsert(key="k"))
    assert again.answer["code"] == "IDEMPOTENCY_KEY_REUSED"
    shown = first.answer["appointment"] if title else script.entries[0]["appointment"]
    script.answered(again, {**first.answer, "appointment": shown, "revision": 2})
    assert found in script.found()


def test_a_late_write_that_is_not_stale(script: Script) -> None:
    script.upsert("a", 0, 10, title="Anna", updated_at=7)
    script.write(REDACT)
    late = script.upsert("a", 0, 10, title="Anna", updated_at=7)
    assert late.answer["outcome"] == "STALE"
    script.edit(late, outcome="UNCHANGED")
    assert "the model says STALE" in script.found()


def test_a_webhook_that_sends_the_text_long_after_the_redaction(script: Script) -> None:
    script.write(upsert())
    before = script.entries[0]
    script.write(REDACT)
    first, *_ = script.deliver()
    script.edit(first, entries=[before])
    # It may have been read before.
    assert not script.found()
    script.now += 60
    again = script.deliver()[0]
    script.edit(again, entries=[before])
    assert "the webhook sent {" in script.found()


@pytest.mark.parametrize("title", ["Anna", ""])
def test_what_somebody_read_tells_how_an_accepted_write_was_applied(
    script: Script, title: str
) -> None:
    """The history does not tell any more: a second redaction has erased it."""
    script.upsert("a", 0, 20)
    submitted = script.submit(upsert())
    by = script.write(REDACT)
    script.finish(submitted, without_text=not title)
    assert script.get("a").answer["appointment"]["title"] == title
    if title:
        # It may have been accepted after the redaction.
        script.edit(submitted, end=by.end)
        script.write(REDACT)
    assert not script.found()
    script.write(upsert())
    script.write(REDACT)
    assert not script.found()


def test_a_late_write_that_was_refused_is_no_time_that_a_redaction_found(script: Script) -> None:
    script.upsert("b", 0, 10)
    script.upsert("a", 20, 30)
    script.write(REDACT)
    script.write(REDACT)
    refused = script.upsert("a", 0, 10, updated_at=7)
    assert refused.answer["code"] == "TIME_RANGE_CONFLICT"
    assert not script.found()
