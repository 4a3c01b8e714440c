"""Reading the present, the past and the changes."""

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.webhook_service_pb2 import ListWebhookDeliveriesRequest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from service.rpc import page_tokens
from tests.api import Organization, at, refusal


@pytest.fixture
def day(org: Organization) -> Organization:
    """Two rooms, six appointments, one of them cancelled, one over the whole day."""
    org.upsert("a", 0, 30, resource_id="room 1")
    org.upsert("b", 30, 60, resource_id="room 1")
    org.upsert("c", 60, 90, resource_id="room 1")
    org.upsert("gone", 20, 50, resource_id="room 2")
    org.cancel("gone")
    org.upsert("d", 30, 45, resource_id="room 2")
    org.upsert("long", -600, 600, resource_id="room 3")
    return org


def ids(page: rpc.ListAppointmentsResponse) -> list[str]:
    return [item.id for item in page.appointments]


def test_a_list_is_by_start_then_id(day: Organization) -> None:
    page = day.list_page()
    assert ids(page) == ["long", "a", "b", "d", "c"]
    assert page.revision == 7
    assert page.next_page_token == ""


def test_cancelled_ones_are_shown_on_demand(day: Organization) -> None:
    assert ids(day.list_page(include_cancelled=True)) == ["long", "a", "gone", "b", "d", "c"]


def test_a_list_of_one_resource(day: Organization) -> None:
    assert ids(day.list_page(resource_id="room 1")) == ["a", "b", "c"]
    assert ids(day.list_page(resource_id="")) == []


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (30, 60, ["long", "b", "d"]),
        (29, 31, ["long", "a", "b", "d"]),
        (45, 46, ["long", "b"]),
        (None, 0, ["long"]),
        (None, 1, ["long", "a"]),
        (60, None, ["long", "c"]),
        (59.9, None, ["long", "b", "c"]),
        (600, None, []),
        (None, -600, []),
        # At one time: what runs then, from its first instant to before its end.
        (0, 0, ["long", "a"]),
        (29.9, 29.9, ["long", "a"]),
        (30, 30, ["long", "b", "d"]),
        (-600, -600, ["long"]),
        (600, 600, []),
    ],
)
def test_a_window_shows_what_intersects_it(
    day: Organization, start: float | None, end: float | None, expected: list[str]
) -> None:
    window: dict[str, Timestamp] = {}
    if start is not None:
        window["from"] = at(start)
    if end is not None:
        window["to"] = at(end)
    assert ids(day.list_page(**window)) == expected
    assert ids(day.list_page(**window)) == expected  # from memory
    assert ids(day.list_page(as_of_revision=7, **window)) == expected


def test_a_window_with_cancelled_ones(day: Organization) -> None:
    window = {"from": at(40), "to": at(45), "include_cancelled": True}
    assert ids(day.list_page(**window)) == ["long", "gone", "b", "d"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 100])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"include_cancelled": True},
        {"from": at(25)},
        {"from": at(25), "include_cancelled": True},
    ],
)
def test_pages_together_are_the_whole_list(
    day: Organization, size: int, filters: dict[str, object]
) -> None:
    whole = day.list_page(**filters)
    found: list[str] = []
    token = ""
    while True:
        page = day.list_page(page_size=size, page_token=token, **filters)
        assert len(page.appointments) <= size
        found += ids(page)
        token = page.next_page_token
        if not token:
            break
    assert found == ids(whole)


def test_a_page_token_is_refused_with_other_filters(day: Organization) -> None:
    token = day.list_page(page_size=1).next_page_token
    assert day.list_page(page_size=3, page_token=token).appointments
    for other in ({"resource_id": "room 1"}, {"include_cancelled": True}, {"from": at(0)}):
        with pytest.raises(grpc.RpcError) as caught:
            day.list_page(page_token=token, **other)
        assert set(refusal(caught.value).fields) == {"page_token"}
    for elsewhere in (
        lambda: day.history("a", page_token=token),
        lambda: day.list_page(page_token=token[:-2]),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            elsewhere()
        assert set(refusal(caught.value).fields) == {"page_token"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (rpc.ListAppointmentsRequest(), rpc.ListAppointmentsRequest(organization_id="default")),
        (rpc.ListChangesRequest(), rpc.ListChangesRequest(organization_id="default")),
        (
            rpc.ListAppointmentHistoryRequest(id="a"),
            rpc.ListAppointmentHistoryRequest(id="a", organization_id="default"),
        ),
        (
            ListWebhookDeliveriesRequest(id="w"),
            ListWebhookDeliveriesRequest(id="w", organization_id="default"),
        ),
        (
            rpc.ListAppointmentsRequest(to=Timestamp(seconds=1, nanos=5_999)),
            rpc.ListAppointmentsRequest(to=Timestamp(seconds=1, nanos=5_000)),
        ),
        (rpc.ListAppointmentsRequest(page_size=5), rpc.ListAppointmentsRequest(min_revision=0)),
    ],
    ids=str,
)
def test_a_page_token_is_good_for_the_same_question_in_other_words(
    one: Message, other: Message
) -> None:
    for first, second in ((one, other), (other, one)):
        token = page_tokens.encode(first, [7])
        assert page_tokens.decode(second, token, (page_tokens.revision,)) == [7]


def test_the_unnamed_resource_and_all_resources_are_two_questions(day: Organization) -> None:
    token = day.list_page(page_size=1).next_page_token
    with pytest.raises(grpc.RpcError) as caught:
        day.list_page(page_token=token, resource_id="")
    assert set(refusal(caught.value).fields) == {"page_token"}


def test_a_window_that_ends_before_it_starts_is_refused(day: Organization) -> None:
    window = {"from": at(1), "to": at(0)}
    with pytest.raises(grpc.RpcError) as caught:
        day.list_page(**window)
    assert set(refusal(caught.value).fields) == {"to"}


def test_ids_are_compared_byte_for_byte(org: Organization) -> None:
    same_to_the_eye = ("\u00c4", "A\u0308", "\u00c4 ")
    for name in same_to_the_eye:
        org.upsert(name, 0, 30, resource_id=name)
    assert set(org.listed()) == set(same_to_the_eye)
    for name in same_to_the_eye:
        assert ids(org.list_page(resource_id=name)) == [name]


def test_the_past_is_read_by_revision(org: Organization) -> None:
    first = org.upsert("a", 0, 30).appointment
    moved = org.upsert("a", 60, 90).appointment
    org.upsert("b", 0, 30)
    cancelled = org.cancel("a").appointment
    assert org.get("a", as_of_revision=1) == first
    assert org.get("a", as_of_revision=2) == org.get("a", as_of_revision=3) == moved
    assert org.get("a", as_of_revision=4) == cancelled
    assert ids(org.list_page(as_of_revision=0)) == []
    assert list(org.list_page(as_of_revision=1).appointments) == [first]
    assert ids(org.list_page(as_of_revision=3)) == ["b", "a"]
    assert org.list_page(as_of_revision=3).revision == 3
    assert ids(org.list_page(as_of_revision=4)) == ["b"]
    assert ids(org.list_page(as_of_revision=4, include_cancelled=True)) == ["b", "a"]
    assert ids(org.list_page(as_of_revision=3, **{"from": at(45)})) == ["a"]
    with pytest.raises(grpc.RpcError) as caught:
        org.get("b", as_of_revision=2)
    assert refusal(caught.value).reason == "APPOINTMENT_NOT_FOUND"


def test_the_past_is_read_by_time(org: Organization) -> None:
    versions = [org.upsert("a", minute, minute + 1).appointment for minute in range(9)]
    recorded = [entry.recorded_at for entry in org.history("a").entries]
    for time, version in zip(recorded, versions, strict=True):
        assert org.get("a", as_of_time=time) == version
        assert list(org.list_page(as_of_time=time).appointments) == [version]
    just_before = Timestamp()
    just_before.FromNanoseconds(recorded[4].ToNanoseconds() - 1_000)
    assert org.get("a", as_of_time=just_before) == versions[3]
    with pytest.raises(grpc.RpcError) as caught:
        org.get("a", as_of_time=Timestamp(seconds=0))
    assert refusal(caught.value).reason == "APPOINTMENT_NOT_FOUND"


def test_pages_of_the_past_stay_at_their_revision(org: Organization) -> None:
    for number in range(4):
        org.upsert(str(number), number, number + 1)
    future = Timestamp(seconds=32_503_680_000)
    page = org.list_page(page_size=2, as_of_time=future)
    org.cancel("2")
    org.upsert("later", 2, 2.5)
    rest = org.list_page(page_size=2, as_of_time=future, page_token=page.next_page_token)
    assert ids(page) + ids(rest) == ["0", "1", "2", "3"]
    assert rest.revision == page.revision == 4


def test_history_is_oldest_first_and_in_pages(org: Organization) -> None:
    org.upsert("a", 0, 30)
    org.upsert("b", 30, 60)
    org.upsert("a", 0, 20)
    org.cancel("a")
    org.upsert("a", 0, 30)
    entries = org.history("a").entries
    assert [(entry.revision, entry.appointment.version) for entry in entries] == [
        (1, 1),
        (3, 2),
        (4, 3),
        (5, 4),
    ]
    change = pb.HistoryEntry
    assert [entry.change for entry in entries] == [
        change.CREATED,
        change.UPDATED,
        change.CANCELLED,
        change.UPDATED,
    ]
    first = org.history("a", page_size=3)
    second = org.history("a", page_size=3, page_token=first.next_page_token)
    assert [*first.entries, *second.entries] == list(entries)
    assert second.next_page_token == ""


def test_history_of_an_unknown_id_is_not_found(org: Organization) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        org.history("a")
    refused = refusal(caught.value)
    assert (refused.reason, refused.organization_revision) == ("APPOINTMENT_NOT_FOUND", 0)


def test_changes_come_after_a_revision(org: Organization) -> None:
    for number in range(5):
        org.upsert(str(number), number, number + 1)
    assert [entry.revision for entry in org.changes(after_revision=2)] == [3, 4, 5]
    assert org.changes(after_revision=5) == org.changes(after_revision=50) == []
    page = org.stub.ListChanges(
        rpc.ListChangesRequest(organization_id=org.id, after_revision=1, page_size=2)
    )
    assert ([entry.revision for entry in page.entries], page.revision) == ([2, 3], 5)
    assert page.next_page_token


def test_a_page_is_cut_before_it_is_too_large_for_a_client(org: Organization) -> None:
    text = {"text": "x" * 16_000}
    for number in range(250):
        org.upsert(f"{number:03}", number, number + 1, attributes=text)
    page = org.list_page(page_size=1000)
    assert page.ByteSize() < 4 * 1024 * 1024
    assert 0 < len(page.appointments) < 250
    assert len(org.listed(page_size=1000)) == 250
    org.check_history()


@pytest.mark.parametrize(
    "position",
    [
        ["2030-01-07T08:00:00+00:00", "a\0", None],
        ["2030-01-07T08:00:00", "a", None],
        ["soon", "a", None],
        [1, "a", None],
        ["2030-01-07T08:00:00+00:00", "a", -1],
        ["2030-01-07T08:00:00+00:00", "a", 1e30],
        ["2030-01-07T08:00:00+00:00", "a", True],
        ["2030-01-07T08:00:00+00:00"],
    ],
    ids=str,
)
def test_a_forged_page_token_is_a_field_error(
    org: Organization, position: list[str | int | None]
) -> None:
    """The token's digest is not secret, so its content must be validated."""
    token = page_tokens.encode(rpc.ListAppointmentsRequest(organization_id=org.id), position)
    with pytest.raises(grpc.RpcError) as caught:
        org.list_page(page_token=token)
    assert set(refusal(caught.value).fields) == {"page_token"}


def test_a_list_asked_for_again_shows_what_was_written_between(org: Organization) -> None:
    for number in range(5):
        assert org.list_page() == org.list_page()
        org.upsert("moved", number, number + 1)
        [shown] = org.list_page().appointments
        assert shown.version == number + 1
    org.cancel("moved")
    assert not org.list_page().appointments
