"""The checker accepts good records, and finds each fault that is planted in one."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.torture.checker import check
from tests.torture.record import FAILURE, NOTHING, UNKNOWN, Call, Record, Recorder, Run
from tests.torture.script import STARTED, Script
from tests.torture.shown import time_of
from tests.writes.values import Content, Write


def content(start: int, end: int) -> Content:
    return Content(start=start, end=end)


def upsert(id: str, start: int, end: int) -> Write:
    return Write(kind="UPSERT", id=id, content=content(start, end))


@pytest.fixture
def script() -> Script:
    return Script()


def test_a_good_record_is_accepted(script: Script) -> None:
    script.upsert("a", 0, 10, key="k")
    script.upsert("a", 0, 10, key="k")
    script.upsert("b", 5, 15)
    script.upsert("b", 10, 20, hold_until=script.tick(6))
    script.list()
    script.write(upsert("c", 12, 14))
    script.upsert("c", 12, 14)
    script.write(Write(kind="CANCEL", id="a", cancel_updated_at=3))
    script.write(Write(kind="CANCEL", id="a", cancel_updated_at=5))
    script.upsert("a", 0, 10, updated_at=4)
    script.atomic(upsert("d", 30, 40), upsert("c", 40, 50))
    script.write(upsert("e", 60, 70), accepted=True)
    script.write(upsert("f", 65, 75), accepted=True)
    script.upsert("g", 90, 99, validate_only=True)
    script.get("c")
    script.list()
    script.watch()
    report = script.check()
    assert not report.findings, "\n".join(map(str, report.findings))
    assert report.figures["revisions"] == len(script.entries) == 8
    assert report.figures["refused"] == 2


def test_a_record_is_the_same_after_it_was_written_to_a_file(
    script: Script, tmp_path: Path
) -> None:
    script.upsert("a", 0, 10, additional_resource_ids=("r",))
    script.write(Write(kind="UPDATE", id="a", content=content(0, 5), fields=frozenset({"end"})))
    script.check()
    path = tmp_path / "record"
    with path.open("wb") as file:
        recorder = Recorder(file, Run(seed=0, started=STARTED))
        for call in script.calls:
            recorder.call(call)
        recorder.fault("kill", 0.5, 1.0)
    record = Record(path)
    assert [*record.organizations()] == [("o", script.calls)]
    assert record.calls == len(script.calls)
    assert not check(record).findings


def test_an_overlap(script: Script) -> None:
    script.upsert("a", 0, 10)
    call = script.upsert("b", 10, 20)
    # The service takes what overlaps.
    script.entries[1]["appointment"]["start"] = time_of(5)
    wanted = replace(call.request.items[0], write=upsert("b", 5, 20))
    script.edit(
        call,
        request=replace(call.request, items=(wanted,)),
        appointment=script.entries[1]["appointment"],
    )
    assert "the model says TIME_RANGE_CONFLICT" in script.found()


def test_a_lost_write(script: Script) -> None:
    script.upsert("a", 0, 10)
    script.upsert("b", 10, 20)
    del script.entries[1]
    assert "revision 2 is lost" in script.found()


def test_a_write_that_only_a_reader_saw_and_that_is_lost(script: Script) -> None:
    script.upsert("a", 0, 10)
    call = script.upsert("b", 10, 20)
    script.list()
    script.answered(call, {UNKNOWN: "the connection was lost"})
    del script.entries[1]
    assert "revision 2 is lost" in script.found()


def test_a_gap(script: Script) -> None:
    for number, id in enumerate("abc"):
        script.upsert(id, number * 10, number * 10 + 10)
    del script.entries[1]
    assert "the history has revision 3 as number 2" in script.found()


def test_a_wrong_order(script: Script) -> None:
    script.upsert("a", 0, 10)
    first = script.upsert("b", 10, 20)
    second = script.upsert("c", 20, 30)
    # The write that was made last had been answered before the other one began.
    script.edit(first, begin=second.begin, end=second.end)
    script.edit(second, begin=first.begin, end=first.end)
    assert "it made revision 2, and 3 was known before it began" in script.found()


def test_calls_that_ran_at_the_same_time_may_have_either_order(script: Script) -> None:
    first = script.upsert("b", 10, 20)
    second = script.upsert("c", 20, 30)
    script.edit(first, end=second.end + 0.2)
    script.edit(second, begin=first.begin)
    assert not script.found()


def test_an_effect_that_is_doubled(script: Script) -> None:
    script.upsert("a", 0, 10)
    script.upsert("a", 0, 20)
    again = script.entries[1]
    shown = {**again["appointment"], "version": 3, "revision": "3", "etag": "3"}
    script.entries.append({**again, "revision": "3", "appointment": shown})
    assert "call 2 makes it a second time" in script.found()


def test_an_unknown_write_may_have_happened_once_or_not(script: Script) -> None:
    script.answered(script.upsert("a", 0, 10), {UNKNOWN: "timeout"})
    script.list()
    report = script.check()
    assert not report.findings
    assert report.figures["unknown, and happened"] == 1

    other = Script()
    other.upsert("a", 0, 10)
    lost = other.upsert("b", 10, 20)
    other.answered(lost, {UNKNOWN: "timeout"})
    del other.entries[1]
    assert not other.found()


def test_an_unknown_write_that_happened_twice(script: Script) -> None:
    script.upsert("a", 0, 10)
    call = script.upsert("a", 0, 20)
    script.write(Write(kind="CANCEL", id="a"))
    again = script.entries[1]
    shown = {**again["appointment"], "version": 4, "revision": "4", "etag": "4"}
    script.entries.append({**again, "revision": "4", "appointment": shown})
    script.answered(call, {UNKNOWN: "timeout"})
    assert "makes it a second time" in script.found()


@pytest.mark.parametrize(
    "answer", [{NOTHING: "nothing was written"}, {"code": "HOLD_EXPIRED", "revision": 0}]
)
def test_an_effect_of_a_write_that_was_refused(script: Script, answer: dict[str, object]) -> None:
    call = script.upsert("a", 0, 10)
    script.answered(call, answer)
    assert "revision 1 (CREATED): call 1 was answered with" in script.found()


def test_a_stale_read(script: Script) -> None:
    script.upsert("a", 0, 10)
    before = script.list()
    script.upsert("b", 10, 20)
    script.answered(script.list(), {**before.answer})
    assert "it shows revision 1, and 2 was known before" in script.found()


def test_a_read_of_the_future(script: Script) -> None:
    script.upsert("a", 0, 10)
    early = script.list()
    later = script.upsert("b", 10, 20)
    listed = script.list()
    script.answered(early, {**listed.answer})
    assert early.end < later.begin
    assert "it shows revision 2 before that was asked for" in script.found()


def test_a_read_that_differs_from_its_revision(script: Script) -> None:
    script.upsert("a", 0, 10, title="t")
    call = script.get("a")
    script.edit(call, appointment={**call.answer["appointment"], "title": "u"})
    assert "the history has" in script.found()


def test_a_list_that_leaves_something_out(script: Script) -> None:
    script.upsert("a", 0, 10)
    script.upsert("b", 10, 20)
    script.edit(script.list(), appointments=[script.entries[0]["appointment"]])
    assert "the model lists ['a', 'b']" in script.found()


def test_a_held_slot_that_is_given_away(script: Script) -> None:
    script.upsert("a", 0, 10, hold_until=script.tick(100))
    call = script.upsert("b", 10, 20)
    script.entries[1]["appointment"]["start"] = time_of(0)
    wanted = replace(call.request.items[0], write=upsert("b", 0, 20))
    script.edit(
        call,
        request=replace(call.request, items=(wanted,)),
        appointment=script.entries[1]["appointment"],
    )
    assert "the model says TIME_RANGE_CONFLICT" in script.found()


def test_a_hold_that_ends_too_early(script: Script) -> None:
    script.upsert("a", 0, 10, hold_until=script.tick(4))
    script.now = 5
    script.upsert("b", 0, 10)
    assert [entry["change"] for entry in script.entries] == ["CREATED", "EXPIRED", "CREATED"]
    # The hold was longer than that.
    until = script.upsert("c", 50, 60, hold_until=script.tick(100)).answer["appointment"]
    for entry in script.entries[:2]:
        entry["appointment"]["holdUntil"] = until["holdUntil"]
    wanted = replace(content(0, 10), hold_until=script.tick(100))
    request = script.calls[0].request
    item = replace(request.items[0], write=replace(request.items[0].write, content=wanted))
    script.edit(script.calls[0], request=replace(request, items=(item,)))
    assert "revision 2 ends a hold that has not expired" in script.found()


def test_a_hold_that_is_shown_after_its_end(script: Script) -> None:
    script.upsert("a", 0, 10, hold_until=script.tick(3))
    held = script.get("a")
    script.now = 10
    late = script.get("a")
    assert late.answer["appointment"]["state"] == "EXPIRED"
    script.answered(late, {**held.answer})
    assert "'state': 'EXPIRED'" in script.found()


def test_a_refusal_without_a_reason(script: Script) -> None:
    script.upsert("a", 0, 10)
    script.upsert("b", 10, 20)
    refused = script.upsert("c", 5, 9)
    wanted = replace(refused.request.items[0], write=upsert("c", 30, 40))
    script.edit(refused, request=replace(refused.request, items=(wanted,)))
    assert "the model says CREATED" in script.found()


def test_a_refusal_that_names_other_conflicts(script: Script) -> None:
    script.upsert("a", 0, 10)
    script.upsert("b", 10, 20)
    script.edit(script.upsert("c", 5, 15), conflicts=[])
    assert "the model has the conflicts" in script.found()


@pytest.mark.parametrize(
    ("named", "more", "right"), [(20, True, True), (20, False, False), (19, True, False)]
)
def test_a_refusal_names_twenty_conflicts_and_says_that_there_are_more(
    script: Script, named: int, more: bool, right: bool
) -> None:
    for number in range(21):
        script.upsert(f"{number:02}", number, number + 1)
    refused = script.upsert("x", 0, 30)
    conflicts = refused.answer["conflicts"][:named]
    script.edit(refused, conflicts=conflicts, moreConflicts=more)
    assert ("the model has the conflicts" not in script.found()) is right


def test_a_batch_that_only_records_an_expiry_is_accepted(script: Script) -> None:
    script.upsert("a", 0, 10, updated_at=5, hold_until=script.tick(2))
    stale = replace(upsert("a", 0, 20), content=replace(content(0, 20), updated_at=3))
    script.now = 5
    call = script.atomic(stale)
    assert [result["outcome"] for result in call.answer["results"]] == ["STALE"]
    assert [entry["change"] for entry in script.entries] == ["CREATED", "EXPIRED"]
    assert not script.found()


@pytest.mark.parametrize(("end", "found"), [(20, ""), (15, "'' is busy in [(10, 20)]")])
def test_free_times_as_of_a_revision_within_a_batch(script: Script, end: int, found: str) -> None:
    """Appointments that change places overlap in between."""
    script.upsert("a", 0, 10)
    script.upsert("b", 10, 20)
    script.atomic(upsert("a", 10, 20), upsert("b", 0, 10))
    busy = [{"start": time_of(10), "end": time_of(end)}]
    free = [
        {"start": time_of(0), "end": time_of(10)},
        {"start": time_of(end), "end": time_of(30)},
    ]
    asks = {"from": 0, "to": 30, "resource_id": [""], "as_of_revision": 3}
    answer = {"resources": [{"resourceId": "", "busy": busy, "free": free}], "shown": 3}
    script.read("availability", asks, answer)
    told = script.found()
    assert found in told
    assert bool(told) is bool(found)


def test_half_an_atomic_batch(script: Script) -> None:
    script.upsert("x", 90, 99)
    script.atomic(upsert("a", 0, 10), upsert("b", 10, 20))
    del script.entries[2]
    found = script.found()
    assert "2 changes belong together" in found
    assert "is lost" in found


def test_half_an_atomic_batch_of_which_nothing_is_known(script: Script) -> None:
    call = script.atomic(upsert("a", 0, 10), upsert("b", 10, 20))
    script.answered(call, {UNKNOWN: "timeout"})
    del script.entries[1]
    assert "2 changes belong together" in script.found()


def test_a_change_that_nobody_asked_for(script: Script) -> None:
    script.upsert("a", 0, 10)
    script.entries[0]["actor"] = "somebody"
    assert "nobody made it" in script.found()


def test_a_change_that_differs_from_what_was_asked_for(script: Script) -> None:
    script.answered(script.upsert("a", 0, 10, title="t"), {UNKNOWN: "timeout"})
    script.entries[0]["appointment"]["title"] = "u"
    assert "title is 'u', not 't'" in script.found()


def test_an_idempotency_key_with_two_results(script: Script) -> None:
    script.upsert("a", 0, 10, key="k")
    script.upsert("a", 0, 20)
    again = script.upsert("a", 0, 10, key="k")
    assert again.answer["appointment"]["version"] == 1
    script.edit(again, outcome="UNCHANGED", appointment=script.entries[1]["appointment"])
    assert "the key 'k' has two results" in script.found()


def test_operations_in_another_order_than_accepted(script: Script) -> None:
    first = script.write(upsert("a", 0, 10), accepted=True)
    second = script.write(upsert("b", 10, 20), accepted=True)
    begin = second.end + 10
    for call in script.calls[:2]:
        script.edit(call, begin=call.begin + begin, end=call.end + begin)
    assert first.number != second.number
    found = script.found()
    assert "it was applied before call 3, accepted earlier" in found


def test_an_operation_that_never_ends(script: Script) -> None:
    script.write(upsert("a", 0, 10), accepted=True)
    script.calls[1] = replace(script.calls[1], answer={"done": False})
    assert "it was accepted, and never ended" in script.found()


def test_a_stream_with_a_gap(script: Script) -> None:
    for number, id in enumerate("abc"):
        script.upsert(id, number * 10, number * 10 + 10)
    script.watch()
    del script.calls[4]
    assert "the stream does not continue after revision 1" in script.found()


def test_an_etag_of_two_states(script: Script) -> None:
    script.upsert("a", 0, 10)
    script.upsert("b", 10, 20)
    script.entries[1]["appointment"]["etag"] = "1"
    assert "the etag '1' stands for different states" in script.found()


def test_an_answer_that_should_never_be_given(script: Script) -> None:
    call = script.upsert("a", 0, 10)
    script.answered(call, {FAILURE: "INTERNAL: a bug"})
    assert "it should never be answered: INTERNAL" in script.found()


def test_a_record_without_the_whole_history(script: Script) -> None:
    script.upsert("a", 0, 10)
    record = Record.of(Run(seed=0, started=STARTED), script.calls)
    assert any("the whole history" in finding.text for finding in check(record).findings)


def test_findings_name_their_call(script: Script) -> None:
    call: Call = script.upsert("a", 0, 10)
    script.answered(call, {FAILURE: "x"})
    assert any(finding.call == call.number for finding in script.check().findings)
