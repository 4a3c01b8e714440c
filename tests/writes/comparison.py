"""Compares what the service responds with what the model says."""

from collections.abc import Iterable

from appointments.v1 import appointment_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from tests.api import MORNING, at
from tests.writes.caller import Caller, Responded
from tests.writes.requests import struct
from tests.writes.values import ANY_ETAG, Answer, Conflict, Stored


class Comparison:
    """Compares the appointments of one organization, and remembers their etags."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        # The etags by what they stand for.
        self.etags: dict[tuple[int, bool], str] = {}

    def choose(
        self, which: str | None, stored: tuple[int, bool] | None
    ) -> tuple[tuple[int, bool] | None, str]:
        """Return an etag to expect, by what it stands for, and as it is sent.

        `which` is `*`, `stored`, `other`, or None for no condition.
        """
        if which is None:
            return None, ""
        if which == "*":
            return ANY_ETAG, "*"
        if which == "stored" and stored is not None:
            return stored, self.etags[stored]
        others = {known: tag for known, tag in self.etags.items() if known != stored}
        return max(others.items(), default=((-1, False), "none"))

    def results(self, expected: Iterable[Answer], found: Iterable[Responded]) -> None:
        for answer, responded in zip(expected, found, strict=True):
            self.result(answer, responded)

    def result(self, expected: Answer, found: Responded) -> None:
        assert found.result == expected.result, found
        if found.refusal:
            self.conflicts(expected.conflicts, found.refusal.conflicts)
            assert not found.refusal.more_conflicts
            assert [(free.start, free.end) for free in found.refusal.alternatives] == [
                (at(start), at(end)) for start, end in expected.alternatives
            ]
        else:
            assert expected.stored is not None
            assert found.appointment is not None
            self.stored(expected.stored, found.appointment)

    def refused_items(
        self, expected: dict[int, Answer], found: Iterable[pb.BatchRefusal.Item]
    ) -> None:
        """Compare the refused items of an atomic batch, by their index."""
        items = {item.index: item for item in found}
        assert {index: item.code for index, item in items.items()} == {
            index: answer.result for index, answer in expected.items()
        }
        assert list(items) == sorted(items)
        for index, item in items.items():
            self.conflicts(expected[index].conflicts, item.conflicts)

    @staticmethod
    def conflicts(
        expected: Iterable[Conflict], found: Iterable[pb.TimeRangeConflict.Conflict]
    ) -> None:
        assert [
            (
                other.id,
                other.start,
                other.end,
                other.version,
                tuple(other.resource_ids),
                other.index if other.HasField("index") else None,
            )
            for other in found
        ] == [
            (
                other.id,
                at(other.start),
                at(other.end),
                other.version,
                other.resource_ids,
                other.index,
            )
            for other in expected
        ]

    def list(self, expected: Iterable[Stored], found: Iterable[pb.Appointment]) -> None:
        expected, found = [*expected], [*found]
        assert [item.id for item in found] == [item.id for item in expected]
        for stored, item in zip(expected, found, strict=True):
            self.stored(stored, item)

    def stored(self, stored: Stored, found: pb.Appointment) -> None:
        content = stored.content
        state = pb.Appointment.State.Name(found.state)
        assert (found.id, found.version, found.revision, state) == (
            stored.id,
            stored.version,
            stored.revision,
            stored.state,
        )
        if stored.revision:
            assert self.etags.setdefault(stored.etag, found.etag) == found.etag
        else:
            assert not found.etag
        assert (found.resource_id, *found.additional_resource_ids) == content.resources
        assert (found.title, found.attributes) == (content.title, struct(content.attributes))
        assert (found.start, found.end) == (at(content.start), at(content.end))
        _compare_time(content.created_at, found.created_at)
        _compare_time(content.updated_at, found.updated_at)
        if content.hold_until is None:
            assert not found.HasField("hold_until")
        else:
            assert found.hold_until == self._caller.held_until(content.hold_until)


def _compare_time(minute: int | None, found: Timestamp) -> None:
    """A time that is not set is the commit's, which is earlier than the times of the tests."""
    if minute is None:
        assert found.seconds < MORNING.timestamp()
    else:
        assert found == at(minute)
