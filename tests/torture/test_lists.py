"""The checker finds what streams, webhooks, lists and calendars leave out, and ids made twice."""

from dataclasses import replace
from typing import Any

import pytest

from tests.torture.record import Call
from tests.torture.script import Script
from tests.torture.shown import event_of, time_of
from tests.writes.values import Content, Write


@pytest.fixture
def script() -> Script:
    return Script()


def upsert(id: str, start: int, **fields: Any) -> Write:
    return Write(kind="UPSERT", id=id, content=Content(start=start, end=start + 10), **fields)


# Streams with filters


def change(script: Script) -> None:
    script.upsert("a", 0, 10, resource_id="r")
    script.upsert("b", 0, 10)
    script.upsert("c", 10, 20, resource_id="r")
    script.write(Write(kind="CANCEL", id="a"))
    script.write(Write(kind="REDACT", id="b"))
    script.write(Write(kind="REDACT", id="c"))


def followed(script: Script, **filters: Any) -> list[Call]:
    change(script)
    script.watch(**filters)
    return [call for call in script.calls if call.request.kind == "watch"]


@pytest.mark.parametrize(
    ("filters", "sent"),
    [
        ({"resource_id": "r"}, [1, 3, 4, 6]),
        ({"changes": ["CANCELLED"]}, [4, 5, 6]),
        ({"resource_id": "r", "changes": ["CANCELLED"]}, [4, 6]),
    ],
)
def test_a_filtered_stream(script: Script, filters: dict[str, Any], sent: list[int]) -> None:
    messages = followed(script, **filters)
    assert [message.answer["revision"] for message in messages] == sent
    assert not script.found()


def test_a_filtered_stream_that_leaves_something_out(script: Script) -> None:
    messages = followed(script, resource_id="r")
    script.calls.remove(messages[1])
    assert "after revision 1: it sent [4], not [3, 4]" in script.found()


def test_a_filtered_stream_that_leaves_a_redaction_out(script: Script) -> None:
    messages = followed(script, changes=["CREATED"])
    script.edit(messages[-1], entries=[])
    assert "it sent [], not [6]" in script.found()


def test_a_filtered_stream_that_says_it_is_further_than_it_is(script: Script) -> None:
    messages = followed(script, resource_id="r")
    script.edit(messages[0], revision=3)
    assert "it sent [1], not [1, 3]" in script.found()


def test_a_filtered_stream_that_sends_what_is_not_selected(script: Script) -> None:
    messages = followed(script, changes=["CREATED"])
    script.edit(messages[-1], entries=[script.entries[3], *messages[-1].answer["entries"]])
    assert "the stream does not continue after revision" in script.found()


# Webhooks


@pytest.mark.parametrize("filters", [{}, {"resource_id": "r"}, {"changes": ["CANCELLED"]}])
def test_a_webhook(script: Script, filters: dict[str, Any]) -> None:
    change(script)
    first, *others = script.deliver(**filters)
    assert others
    assert not script.found()
    # It may be sent again, and late.
    script.calls.append(replace(first, number=100, begin=script.now + 1, end=script.now + 1))
    assert not script.found()


@pytest.mark.parametrize("late", [True, False])
def test_a_webhook_that_sends_what_the_history_does_not_have(script: Script, late: bool) -> None:
    script.upsert("a", 0, 10, resource_id="r")
    sent, *_ = script.deliver(resource_id="r")
    assert not script.found()
    begin = script.now + 2 if late else sent.end
    answer = {**sent.answer, "entries": [{**script.entries[0], "revision": "2"}]}
    script.calls.append(replace(sent, number=100, begin=begin, end=begin, answer=answer))
    found = script.found()
    assert not found if late else "revision 2 is lost: the history ends at 1" in found


def test_a_webhook_that_leaves_something_out(script: Script) -> None:
    change(script)
    sent = script.deliver(resource_id="r")
    script.calls.remove(sent[1])
    assert "the webhook sent revision 4 before 3 was accepted" in script.found()


def test_a_webhook_that_leaves_the_last_one_out(script: Script) -> None:
    change(script)
    *_, last, read = script.deliver()
    script.calls.remove(last)
    assert "revision 6 is delivered, and 6 was not accepted" in script.found()
    script.edit(read, delivered=5)
    assert not script.found()


def test_a_webhook_that_does_not_send_again_what_was_not_accepted(script: Script) -> None:
    change(script)
    sent = script.deliver()
    script.edit(sent[0], accepted=False)
    assert "the webhook sent revision 2 before 1 was accepted" in script.found()


def test_a_webhook_that_does_not_wait_for_the_answer(script: Script) -> None:
    change(script)
    sent = script.deliver()
    script.edit(sent[0], end=sent[1].end)
    assert "the webhook sent revision 2 before 1 was accepted" in script.found()


def test_a_webhook_that_sends_what_it_does_not_select(script: Script) -> None:
    change(script)
    first, *_ = script.deliver(changes=["CANCELLED"])
    script.edit(first, entries=[script.entries[0]])
    assert "the webhook sent revision 1, which it does not select" in script.found()


def test_a_webhook_that_sends_another_text(script: Script) -> None:
    change(script)
    first, *_ = script.deliver()
    entry = script.entries[0]
    script.edit(first, entries=[{**entry, "appointment": {**entry["appointment"], "title": "t"}}])
    assert "the webhook sent {" in script.found()


# Ids that the service makes


def test_an_id_that_the_service_makes(script: Script) -> None:
    made = script.write(upsert("made", 0, generated=True, key="k"))
    again = script.write(upsert("made", 0, generated=True, key="k"))
    lost = script.write(upsert("lost", 20, generated=True))
    refused = script.write(upsert("refused", 5, generated=True))
    accepted = script.write(upsert("accepted", 40, generated=True), accepted=True)
    script.answered(lost, {"unknown": "timeout"})
    assert refused.answer["code"] == "TIME_RANGE_CONFLICT"
    # Their callers do not know the ids.
    for call in (made, again, lost, refused, accepted):
        [item] = call.request.items
        item = replace(item, write=replace(item.write, id=""))
        script.edit(call, request=replace(call.request, items=(item,)), **lost_or(script, call))
    assert not script.found()


def lost_or(script: Script, call: Call) -> dict[str, Any]:
    """Return an answer as it was edited last."""
    return dict(next(other for other in script.calls if other.number == call.number).answer)


def test_an_id_that_the_service_makes_twice(script: Script) -> None:
    first = script.write(upsert("made", 0, generated=True))
    second = script.write(upsert("other", 20, generated=True))
    script.entries[1]["appointment"]["id"] = "made"
    script.edit(second, appointment=script.entries[1]["appointment"])
    found = script.found()
    assert f"the service made the id 'made', as for call {first.number}" in found
    assert "the history has" in found or "is not what call 2 does there" in found


# Lists of operations


def listed(script: Script, **asks: Any) -> Call:
    script.write(upsert("a", 0), accepted=True)
    script.write(upsert("b", 5), accepted=True)
    script.write(upsert("c", 10), accepted=True)
    return script.operations(**asks)


def test_a_list_of_operations(script: Script) -> None:
    call = listed(script)
    assert [one.get("outcome") for one in call.answer["operations"]] == ["CREATED", None, "CREATED"]
    assert not script.found()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_operation_is_missing_from_the_list(script: Script, place: int) -> None:
    call = listed(script)
    operations = call.answer["operations"]
    left = [one for number, one in enumerate(operations) if number != place]
    script.edit(call, operations=left)
    assert f"it leaves out {operations[place]['operation']}" in script.found()


def test_an_operation_is_missing_between_two_pages(script: Script) -> None:
    call = listed(script)
    latest, middle, first = call.answer["operations"]
    script.edit(call, operations=[latest], next="token")
    asks = {"filter": "", "page_size": 1, "page_token": "token", "after": latest["operation"]}
    page = script.operations(**asks)
    script.edit(page, operations=[middle, first])
    assert not script.found()
    script.edit(page, operations=[first])
    assert f"it leaves out {middle['operation']}" in script.found()


def test_operations_in_a_wrong_order(script: Script) -> None:
    call = listed(script)
    script.edit(call, operations=[*reversed(call.answer["operations"])])
    assert "it does not have the latest first" in script.found()


def test_a_filter_of_operations_that_lets_others_pass(script: Script) -> None:
    listed(script, filter="error:*")
    assert "the filter 'error:*' does not select" in script.found()


def test_a_list_with_another_result_than_the_operation_has(script: Script) -> None:
    call = listed(script)
    latest, *others = call.answer["operations"]
    script.edit(call, operations=[{**latest, "outcome": "UPDATED"}, *others])
    assert "was answered UPDATED" in script.found()


# Calendars, and conditional reads


def calendar(script: Script) -> Call:
    script.upsert("a", 0, 10, title="t", resource_id="r", additional_resource_ids=("s",))
    script.upsert("b", 0, 10, hold_until=script.tick(1000))
    events = [event_of(entry["appointment"], "o") for entry in script.entries]
    return script.read("calendar", {}, {"events": events})


def test_a_calendar(script: Script) -> None:
    first, second = calendar(script).answer["events"]
    assert (first["STATUS"], first["SUMMARY"], first["LOCATION"]) == ("CONFIRMED", "t", "r, s")
    assert (second["STATUS"], "SUMMARY" in second) == ("TENTATIVE", False)
    assert not script.found()


def test_a_calendar_that_leaves_something_out(script: Script) -> None:
    call = calendar(script)
    script.edit(call, events=call.answer["events"][1:])
    assert "the model has the events" in script.found()


def test_a_read_that_says_that_nothing_has_changed(script: Script) -> None:
    script.upsert("a", 0, 10)
    asks = {"id": "a", "if_none_match": "1"}
    script.read("get", asks, {"not_modified": True, "etag": "1"})
    assert not script.found()
    script.upsert("a", 0, 20)
    script.read("get", asks, {"not_modified": True, "etag": "1"})
    assert "it is not modified, and is" in script.found()


@pytest.mark.parametrize("wrong", [False, True])
def test_times_when_several_resources_are_free_at_once(script: Script, wrong: bool) -> None:
    script.upsert("a", 0, 10, resource_id="r")
    script.upsert("b", 12, 20, resource_id="s")
    script.upsert("c", 0, 30)
    busy = [{"start": time_of(0), "end": time_of(10)}, {"start": time_of(12), "end": time_of(20)}]
    short = {"start": time_of(10), "end": time_of(12)}
    long = {"start": time_of(20), "end": time_of(30)}
    asks = {"from": 0, "to": 30, "resource_id": ["r", "s"], "match": "ALL", "duration": 5}
    together = {"busy": busy, "free": [short, long] if wrong else [long]}
    script.read("availability", asks, {"resources": [together], "shown": 3})
    found = script.found()
    assert found.endswith("}]") if wrong else not found
    assert ("'r' and 's' is free in [(20, 30)]" in found) is wrong


def test_a_page_of_changes_that_begins_too_late(script: Script) -> None:
    change(script)
    for after, first in ((2, 2), (2, 3)):
        asks = {"after_revision": 0, "page_size": 2, "page_token": "token", "after": after}
        page = {"entries": script.entries[first : first + 2], "more": True, "next": "token"}
        call = script.read("changes", asks, page)
        assert bool(script.found()) is (first == 3)
    assert f"call {call.number}: changes" in script.found()
