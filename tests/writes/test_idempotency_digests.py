"""The digests of writes, which a database keeps forever."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from google.protobuf.json_format import ParseDict

from service.domain import Write, idempotency_digest
from service.rpc.write_requests import WriteReader
from tests.api import Organization

LATER = datetime(2031, 1, 1, tzinfo=UTC)
READER = WriteReader(timedelta(days=1))


def upsert(appointment: dict[str, Any], **options: Any) -> Write:
    request = {"appointment": appointment, **options}
    return READER.read(ParseDict(request, rpc.UpsertAppointmentRequest()), actor="")


def update(appointment: dict[str, Any], **options: Any) -> Write:
    request = {"appointment": appointment, **options}
    return READER.read(ParseDict(request, rpc.UpdateAppointmentRequest()), actor="")


def confirm(**request: Any) -> Write:
    return READER.read(ParseDict(request, rpc.ConfirmAppointmentRequest()), actor="")


def cancel(**request: Any) -> Write:
    return READER.read(ParseDict(request, rpc.CancelAppointmentRequest()), actor="")


PLAIN = {
    "resourceId": "room-1",
    "start": "2030-01-07T08:00:00Z",
    "end": "2030-01-07T08:30:00Z",
    "title": "Planning",
}
FULL = {
    "organizationId": "o",
    "id": "ä/1",
    "resourceId": "room 2",
    "start": "2030-01-07T08:00:00.000001Z",
    "end": "2030-01-07T08:30:00.500Z",
    "title": 'Zoë said "no" \U0001f600',
    "attributes": {"z": [1, 2.5, 1e21, True, None], "a": {"ö": "", "b": 0.1}},
    "createdAt": "2029-12-31T23:59:59Z",
    "updatedAt": "2030-01-01T00:00:00Z",
}
# Add a digest for every new field. Never change an existing one.
PINNED: dict[str, tuple[Write, str]] = {
    "upsert": (
        upsert({"id": "a", **PLAIN}),
        "017b00049c86ccfc62b69d1fe2ca70744a936d08d5fc073dbc2675293b20b780e9",
    ),
    "upsert without id": (
        upsert(PLAIN),
        "01257131d013e9478f61bcd3803ca8bddd2a2173b8b3d120f2314ab4040c6fb082",
    ),
    "upsert with every field": (
        upsert(FULL, etag="1f", idempotencyKey="k"),
        "01a7fbed4351bca80f864937494e382340b288c9da3bcc3345130623a2e082a119",
    ),
    "upsert of several resources": (
        upsert({"id": "a", **PLAIN, "additionalResourceIds": ["nurse", "anna"]}),
        "01e8b6a7957cf926a8265e06131dc57092d21e683c811881edf36cb71499addf10",
    ),
    "hold": (
        upsert({"id": "a", **PLAIN, "holdUntil": "2030-01-01T00:00:00Z"}, suggest=3),
        "018e0e09819d4c923e1d0d26a43550b452f0ad09fd896f3ffb217a3977cd15c12b",
    ),
    "update": (
        update({"id": "a", **PLAIN}, updateMask="title,holdUntil,start"),
        "01fb857f1d8d57a7b2b380e9fc31cd2716c95ecf0c1f584667d5c143c024d8ec40",
    ),
    "update with every field": (
        update(
            {
                **FULL,
                "additionalResourceIds": ["nurse"],
                "holdUntil": "2030-01-01T00:00:00Z",
            },
            updateMask="*",
            etag="1f",
            idempotencyKey="k",
        ),
        "0197ce152a759caf46ee0e9d32324a0d3f1e8ee9cba2385131a8ac08b7b9bd1501",
    ),
    "update of attributes": (
        update({"id": "a"}, attributesPatch={"b": None, "a": {"c": 1}}),
        "016d071b2e2868cd443b69e55bedc7433528bfb999195a6e57648a9b2e96f52cf4",
    ),
    "confirm": (
        confirm(id="a", etag="1f", idempotencyKey="k"),
        "01bb371e2f17509aba4b713e2d40b8a4dc5bcf22baad866c62b1dcf1f24847ab2f",
    ),
    "cancel": (
        cancel(id="a"),
        "0140cdc9af8377275b70f6c4ba8f438f2298bc6be8d4a921c34aea0e638228f419",
    ),
    "cancel with a time": (
        cancel(id="a", updatedAt="2030-01-07T08:00:00Z", etag="1f", idempotencyKey="k"),
        "0165df3b64136ccbce1b5170320ec528154731cf23716cd1f8772d18af9fd1c26e",
    ),
}
# A different value for every field that makes a write a different one.
OF_AN_UPSERT: dict[str, object] = {
    "id": "b",
    "resource_id": "room-2",
    "start": datetime(2030, 1, 7, 8, 1, tzinfo=UTC),
    "end": LATER,
    "title": "Review",
    "attributes": '{"a":1}',
    "created_at": LATER,
    "updated_at": LATER,
    "additional_resource_ids": ("anna",),
    "hold_until": LATER,
}
OF_AN_UPDATE: dict[str, object] = {
    "fields": frozenset(["title"]),
    **OF_AN_UPSERT,
    "attributes_patch": '{"a":1}',
}
OF_A_CANCEL: dict[str, object] = {"id": "b", "updated_at": LATER}
# Fields that say how to apply a write, and do not change its identity.
BESIDE: dict[str, object] = {
    "expected_revision": 7,
    "create_only": True,
    "idempotency_key": "other",
    "validate_only": True,
    "actor": "somebody",
    "max_hold": timedelta(days=2),
    "suggest": 3,
    "allow_missing": True,
    "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


@pytest.mark.parametrize("name", PINNED)
def test_a_known_request_has_its_digest_for_ever(name: str) -> None:
    write, digest = PINNED[name]
    assert idempotency_digest(write).hex() == digest


@pytest.mark.parametrize(
    ("write", "content", "undecided"),
    [
        # The id counts only if the caller set it: see the pinned digests.
        (PINNED["upsert"][0], OF_AN_UPSERT, {"id_given"}),
        (PINNED["update with every field"][0], OF_AN_UPDATE, set()),
        (PINNED["confirm"][0], {"id": "b"}, set()),
        (PINNED["cancel"][0], OF_A_CANCEL, set()),
    ],
    ids=["upsert", "update", "confirm", "cancel"],
)
def test_of_every_field_it_is_known_whether_it_counts(
    write: Write, content: dict[str, object], undecided: set[str]
) -> None:
    """A new field must be added to one of the tables above."""
    names = {field.name for field in fields(write)}
    assert names <= content.keys() | BESIDE.keys() | undecided
    changed = {
        name
        for name, value in {**content, **BESIDE}.items()
        if name in names
        and idempotency_digest(replace(write, **{name: value}))  # type: ignore[arg-type]
        != idempotency_digest(write)
    }
    assert changed == content.keys()


def test_a_made_id_does_not_count() -> None:
    assert upsert(PLAIN).id != upsert(PLAIN).id
    assert idempotency_digest(upsert(PLAIN)) == idempotency_digest(upsert(PLAIN))


def test_the_database_keeps_the_digest_with_its_version(
    org: Organization, database_url: str
) -> None:
    for key in ("made", "unchanged"):
        org.upsert("a", 0, 30, title="Planning", resource_id="room-1", idempotency_key=key)
    org.cancel("a", idempotency_key="cancelled")
    with psycopg.connect(database_url) as database:
        stored = database.execute(
            """
            SELECT idempotency_key, encode(idempotency_digest, 'hex')
            FROM appointment_history
            WHERE organization_id = %(organization)s AND idempotency_key IS NOT NULL
            UNION ALL
            SELECT idempotency_key, encode(idempotency_digest, 'hex')
            FROM unchanged_writes
            WHERE organization_id = %(organization)s
            ORDER BY 1
            """,
            {"organization": org.id},
        ).fetchall()
    assert stored == [
        ("cancelled", PINNED["cancel"][1]),
        ("made", PINNED["upsert"][1]),
        ("unchanged", PINNED["upsert"][1]),
    ]
