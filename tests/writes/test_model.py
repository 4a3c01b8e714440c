"""The service compared with the model: any sequence of calls gives the same results.

MODEL_EXAMPLES sets the number of sequences. A failure prints the calls that lead to it.
"""

import os
import uuid
from dataclasses import replace
from typing import Any, ClassVar

import grpc
import hypothesis.strategies as st
import pytest
from appointments.v1 import appointment_pb2 as pb
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.verify.command import parse, verify
from tests.api import at, refusal
from tests.operations.place import Place
from tests.writes.caller import Caller
from tests.writes.comparison import Comparison
from tests.writes.model import Model
from tests.writes.requests import timestamp
from tests.writes.strategies import (
    CREATE_ONLY,
    ETAGS,
    FEW,
    FEW_ETAGS,
    FEW_IDS,
    MAYBE_KEY,
    MAYBE_TIME,
    MINUTES,
    WAYS,
    contents,
    updates,
)
from tests.writes.values import Content, Write

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "80"))


class ServiceAgainstModel(RuleBasedStateMachine):
    place: ClassVar[Place]

    @initialize()
    def start(self) -> None:
        self.caller = Caller(self.place, f"model-{uuid.uuid4()}")
        self.org = self.caller.org
        self.model = Model()
        self.written: list[Write] = []
        self.comparison = Comparison(self.caller)

    # Writes

    @rule(
        id=FEW_IDS,
        content=contents(),
        etag=ETAGS,
        create_only=CREATE_ONLY,
        key=MAYBE_KEY,
        suggest=st.sampled_from([0, 0, 1, 3]),
        way=WAYS,
    )
    def upsert(
        self,
        id: str,
        content: Content,
        etag: str | None,
        create_only: bool,
        key: str | None,
        suggest: int,
        way: str,
    ) -> None:
        write = Write(
            kind="UPSERT", id=id, content=content, create_only=create_only, key=key, suggest=suggest
        )
        self.write(write, etag=etag, way=way)

    @rule(id=FEW_IDS, content=contents(), suggest=st.integers(0, 3))
    def plain_upsert(self, id: str, content: Content, suggest: int) -> None:
        self.write(Write(kind="UPSERT", id=id, content=content, suggest=suggest))

    @rule(update=updates(), etag=ETAGS, key=MAYBE_KEY, way=WAYS)
    def update(
        self, update: tuple[Write, str], etag: str | None, key: str | None, way: str
    ) -> None:
        write, mask = update
        self.write(replace(write, key=key), etag=etag, mask=mask, way=way)

    @rule(id=FEW_IDS, etag=ETAGS, key=MAYBE_KEY, way=WAYS)
    def confirm(self, id: str, etag: str | None, key: str | None, way: str) -> None:
        self.write(Write(kind="CONFIRM", id=id, key=key), etag=etag, way=way)

    @rule(id=FEW_IDS, updated_at=MAYBE_TIME, etag=ETAGS, key=MAYBE_KEY, way=WAYS)
    def cancel(
        self, id: str, updated_at: int | None, etag: str | None, key: str | None, way: str
    ) -> None:
        write = Write(kind="CANCEL", id=id, cancel_updated_at=updated_at, key=key)
        self.write(write, etag=etag, way=way)

    @rule(id=FEW_IDS, etag=ETAGS, key=MAYBE_KEY, way=WAYS)
    def redact(self, id: str, etag: str | None, key: str | None, way: str) -> None:
        self.write(Write(kind="REDACT", id=id, key=key), etag=etag, way=way)

    @rule(
        write=st.one_of(
            st.builds(Write, kind=st.just("UPSERT"), id=FEW_IDS, content=contents()),
            st.builds(Write, kind=st.sampled_from(["CONFIRM", "CANCEL", "REDACT"]), id=FEW_IDS),
            updates().map(lambda update: update[0]),
        ),
        etag=ETAGS,
        key=MAYBE_KEY,
    )
    def validate(self, write: Write, etag: str | None, key: str | None) -> None:
        self.write(replace(write, validate_only=True, key=key), etag=etag)

    @rule(
        id=FEW_IDS,
        content=contents(holds=st.none()),
        etag=FEW_ETAGS,
        key=MAYBE_KEY,
        way=WAYS,
        late=st.lists(WAYS, max_size=2),
        late_key=st.uuids().map(str),
    )
    def hold_briefly(
        self,
        id: str,
        content: Content,
        etag: str | None,
        key: str | None,
        way: str,
        late: list[str],
        late_key: str,
    ) -> None:
        """Hold until the end of this tick, begin the next one, and perhaps write too late."""
        held = replace(content, hold_until=self.model.tick)
        self.write(Write(kind="UPSERT", id=id, content=held, key=key), etag=etag, way=way)
        self.caller.end_tick()
        self.model.tick = self.caller.tick
        if content.updated_at is not None:
            former = replace(content, updated_at=content.updated_at - 1)
            for way_again in late:
                again = Write(kind="UPSERT", id=id, content=former, key=late_key)
                self.write(again, way=way_again)

    @rule(id=FEW_IDS)
    def a_worker_records_an_expiry(self, id: str) -> None:
        self.caller.record_expiry(id)
        self.model.expire({id})

    @precondition(lambda self: self.model.due)
    @rule(
        data=st.data(),
        id=FEW_IDS,
        content=contents(),
        atomic=st.booleans(),
        key=MAYBE_KEY,
        way=WAYS,
    )
    def take_the_place_of_an_expired_hold(
        self,
        data: st.DataObject,
        id: str,
        content: Content,
        atomic: bool,
        key: str | None,
        way: str,
    ) -> None:
        held = data.draw(st.sampled_from(self.model.due)).content
        resource = data.draw(st.sampled_from(held.resources))
        more = tuple(other for other in content.additional_resource_ids if other != resource)
        wanted = replace(
            content,
            resource_id=resource,
            additional_resource_ids=more,
            start=held.start,
            end=held.start + content.end - content.start,
        )
        if atomic:
            self.write_atomically({id: wanted}, [(None, False, key)])
        else:
            self.write(Write(kind="UPSERT", id=id, content=wanted, key=key, suggest=2), way=way)

    @precondition(lambda self: self.written)
    @rule(data=st.data(), key=st.none() | st.uuids().map(str), way=WAYS)
    def repeat_an_earlier_write(self, data: st.DataObject, key: str | None, way: str) -> None:
        """Send it with its key; or with a new key and twice, with another write in between."""
        earlier = data.draw(st.sampled_from(self.written))
        again = replace(
            earlier,
            key=key or earlier.key,
            expected=None,
            create_only=False,
            validate_only=False,
        )
        self.write(again, way=way)
        if key is not None:
            between = data.draw(st.none() | contents())
            kind = "UPSERT" if between else "CANCEL"
            self.write(Write(kind=kind, id=earlier.id, content=between))
            self.write(again, way=way)

    @rule(
        items=st.lists(
            st.tuples(FEW_IDS, contents(), CREATE_ONLY, MAYBE_KEY), min_size=1, max_size=6
        ),
        validate_only=st.booleans(),
    )
    def batch(
        self, items: list[tuple[str, Content, bool, str | None]], validate_only: bool
    ) -> None:
        writes = [
            Write(
                kind="UPSERT",
                id=id,
                content=content,
                create_only=create_only,
                key=key,
                validate_only=validate_only,
            )
            for id, content, create_only, key in items
        ]
        self.written += writes
        found = self.caller.send_batch(
            [(write, "") for write in writes], atomic=False, validate_only=validate_only
        )
        assert isinstance(found, list), found
        self.comparison.results([self.model.apply(write) for write in writes], found)
        assert found[0].revision == self.model.revision

    @rule(
        contents=st.dictionaries(FEW_IDS, contents(), min_size=1),
        conditions=st.lists(
            st.tuples(FEW_ETAGS, CREATE_ONLY, MAYBE_KEY), min_size=FEW, max_size=FEW
        ),
        validate_only=st.booleans(),
    )
    def atomic_batch(
        self,
        contents: dict[str, Content],
        conditions: list[tuple[str | None, bool, str | None]],
        validate_only: bool,
    ) -> None:
        self.write_atomically(contents, conditions, validate_only=validate_only)

    @precondition(lambda self: len(self.model.stored) > 1)
    @rule(data=st.data(), etag=st.sampled_from([None, "stored"]), changed=st.none() | contents())
    def change_places(self, data: st.DataObject, etag: str | None, changed: Content | None) -> None:
        """Move each appointment to the place of another, and perhaps one of them elsewhere."""
        ids = sorted(self.model.stored)
        others = data.draw(st.permutations(ids))
        wanted = {
            id: replace(self.model.stored[other].content, updated_at=None, hold_until=None)
            for id, other in zip(ids, others, strict=True)
        }
        if changed is not None:
            wanted[others[0]] = changed
        self.write_atomically(wanted, [(etag, False, None)] * FEW)

    # Reads

    @rule(
        resource=st.none() | st.sampled_from(["", "r", "s", "t"]),
        start=st.none() | MINUTES,
        length=st.none() | st.integers(min_value=0, max_value=8),
        cancelled=st.booleans(),
        page_size=st.integers(min_value=1, max_value=4),
        data=st.data(),
    )
    def list_a_window(  # hypothesis passes them by name
        self,
        resource: str | None,
        start: int | None,
        length: int | None,
        cancelled: bool,
        page_size: int,
        data: st.DataObject,
    ) -> None:
        end = None if length is None else (start or 0) + length
        as_of = data.draw(st.none() | st.integers(min_value=0, max_value=self.model.revision))
        as_of_tick = None
        if as_of is None:
            as_of_tick = data.draw(st.none() | st.integers(0, self.model.tick))
        filters: dict[str, Any] = {"include_cancelled": cancelled, "page_size": page_size}
        if resource is not None:
            filters["resource_id"] = resource
        if start is not None:
            filters["from"] = at(start)
        if end is not None:
            filters["to"] = at(end)
        if as_of is not None:
            filters["as_of_revision"] = as_of
        if as_of_tick is not None:
            filters["as_of_time"] = timestamp(self.caller.began[as_of_tick])
        expected = self.model.listed(
            as_of=as_of,
            as_of_tick=as_of_tick,
            resource=resource,
            start=start,
            end=end,
            cancelled=cancelled,
        )
        self.comparison.list(expected, self.org.listed(**filters).values())

    @rule(id=FEW_IDS, data=st.data())
    def get(self, id: str, data: st.DataObject) -> None:
        as_of = data.draw(st.none() | st.integers(0, self.model.revision))
        expected = [item for item in self.model.listed(as_of=as_of) if item.id == id]
        try:
            found = [self.org.get(id, as_of_revision=as_of)]
        except grpc.RpcError as error:
            assert refusal(error).reason == "APPOINTMENT_NOT_FOUND"
            found = []
        self.comparison.list(expected, found)

    @invariant()
    def the_state_is_the_models(self) -> None:
        self.comparison.list(self.model.listed(), self.org.listed().values())

    def teardown(self) -> None:
        if not hasattr(self, "org"):
            return
        for id in sorted(self.model.stored):
            self.a_worker_records_an_expiry(id)
        entries = self.org.changes()
        assert [
            (pb.HistoryEntry.Change.Name(entry.change), entry.idempotency_key) for entry in entries
        ] == [(change.change, change.key or "") for change in self.model.history]
        for entry, change in zip(entries, self.model.history, strict=True):
            self.comparison.stored(change.stored, entry.appointment)
        for id in self.model.stored:
            assert list(self.org.history(id).entries) == [
                entry for entry in entries if entry.appointment.id == id
            ]
        etags = self.comparison.etags
        assert len({*etags.values()}) == len(etags)
        self.org.check_history()

    # Each write is sent to both

    def write_atomically(
        self,
        contents: dict[str, Content],
        conditions: list[tuple[str | None, bool, str | None]],
        *,
        validate_only: bool = False,
    ) -> None:
        writes: list[tuple[Write, str]] = []
        used: set[str | None] = {None}
        for (id, content), (etag, create_only, key) in zip(
            contents.items(), conditions, strict=False
        ):
            expected, tag = self.choose(id, etag)
            write = Write(
                kind="UPSERT",
                id=id,
                content=content,
                expected=expected,
                create_only=create_only,
                key=None if key in used else key,
            )
            used.add(key)
            writes.append((write, tag))
            self.written.append(write)
        answers = self.model.apply_atomically(
            [write for write, _ in writes], validate_only=validate_only
        )
        found = self.caller.send_batch(writes, atomic=True, validate_only=validate_only)
        if isinstance(found, list):
            assert isinstance(answers, list), f"not refused: {found}"
            self.comparison.results(answers, found)
            assert found[0].revision == self.model.revision
        else:
            assert isinstance(answers, dict), f"refused: {found}"
            assert found.refusal is not None
            assert (found.result, found.revision) == ("BATCH_REFUSED", self.model.revision)
            self.comparison.refused_items(answers, found.refusal.items)

    def write(
        self, write: Write, *, etag: str | None = None, mask: str = "names", way: str = "call"
    ) -> None:
        expected, tag = self.choose(write.id, etag)
        write = replace(write, expected=expected)
        self.written.append(write)
        found = self.caller.send(write, tag, mask=mask, way=way)
        self.comparison.result(self.model.apply(write), found)
        assert found.revision in (None, self.model.revision)

    def choose(self, id: str, etag: str | None) -> tuple[tuple[int, bool] | None, str]:
        """Return what a write expects, and its etag."""
        stored = next((item.etag for item in self.model.listed() if item.id == id), None)
        return self.comparison.choose(etag, stored)


@pytest.mark.timeout(240 + 4 * EXAMPLES)
def test_the_service_does_what_the_model_does(place: Place) -> None:
    ServiceAgainstModel.place = place
    machine = ServiceAgainstModel.TestCase
    machine.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=40,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
    assert verify(place.url, parse([])) == 0
