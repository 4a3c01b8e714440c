"""Whether appointments overlapped at any revision of the history.

Each time that an appointment gets a place, it has it from that revision until the one at which
it leaves it. Two of them overlap if they share a resource, a time, and a revision.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import LiteralString, NamedTuple

from service.verify.findings import Finding
from service.verify.kinds import IN_BATCH
from service.verify.snapshot import IN_PART, Part, Snapshot

FOREVER = 2**63 - 1

# The places, by resource and start. The changes of an atomic batch follow each other, are
# upserts, and have the same time; it goes on after that time if an expired hold is recorded in
# between. `run` is the first revision of changes that may have been one batch.
_PLACES: LiteralString = f"""
    WITH entry AS (
        SELECT
            *,
            state IN ('ACTIVE', 'HELD') AS occupies,
            recorded_at = lag(recorded_at) OVER by_revision AS same_time,
            change = ANY (%(in_batch)s::text [])
                AND lag(change) OVER by_revision = ANY (%(in_batch)s::text []) AS both_in_batch
        FROM (
            SELECT
                organization_id, revision, change, recorded_at, appointment_id, resource_id,
                additional_resource_ids, start_time, end_time, state
            FROM appointment_history
            WHERE {IN_PART}
        ) AS h
        WINDOW by_revision AS (PARTITION BY organization_id ORDER BY revision)
    ),
    in_runs AS (
        SELECT
            *,
            max(revision) FILTER (
                WHERE (both_in_batch AND (same_time OR change = 'EXPIRED')) IS NOT TRUE
            ) OVER (PARTITION BY organization_id ORDER BY revision) AS run
        FROM entry
    ),
    compared AS (
        SELECT
            *,
            lag(ROW(occupies, resource_id, additional_resource_ids, start_time, end_time))
                OVER by_appointment
                IS DISTINCT FROM
                ROW(occupies, resource_id, additional_resource_ids, start_time, end_time) AS moved
        FROM in_runs
        WINDOW by_appointment AS (
            PARTITION BY organization_id, appointment_id ORDER BY revision
        )
    ),
    placed AS (
        SELECT
            *,
            lead(revision) OVER by_appointment AS until,
            lead(run) OVER by_appointment AS until_run
        FROM compared
        WHERE moved
        WINDOW by_appointment AS (
            PARTITION BY organization_id, appointment_id ORDER BY revision
        )
    )
    SELECT
        organization_id, occupied.resource_id, appointment_id, start_time, end_time,
        revision, coalesce(until, {FOREVER}), coalesce(until_run, {FOREVER})
    FROM placed
    CROSS JOIN LATERAL unnest(array_prepend(resource_id, additional_resource_ids))
        AS occupied (resource_id)
    WHERE occupies
    ORDER BY organization_id, occupied.resource_id, start_time, revision
"""


class Place(NamedTuple):
    """A range that an appointment had on a resource, from a revision until another.

    `until_run` is the first revision of the changes that may have been one batch with `until`.
    """

    organization_id: str
    resource_id: str
    appointment_id: str
    start: int
    end: int
    since: int
    until: int
    until_run: int


def past_overlaps(snapshot: Snapshot, part: Part) -> Iterator[Finding]:
    """Yield the overlaps of the history, each at the revision that made it.

    Needs memory for the places of one resource that share a moment, from all revisions.
    """
    timeline = Timeline()
    parameters = {**part.parameters, "in_batch": IN_BATCH}
    for row in snapshot.stream(_PLACES, parameters, raw_times=True):
        yield from timeline.add(Place(*row))


class Timeline:
    """The places of a resource that contain a moment, which moves forward.

    They are kept by revision and disjoint, so that only neighbours have to be compared: of a
    place that overlaps another, only the revisions of its own are kept.
    """

    def __init__(self) -> None:
        self._resource = ("", "")
        self._since: list[int] = []
        self._until: list[int] = []
        self._places: list[Place] = []
        # The end and the first revision of each.
        self._ends: list[tuple[int, int]] = []

    def add(self, place: Place) -> Iterator[Finding]:
        """Move to the start of a place and add it; yield its overlaps."""
        if self._resource != place[:2]:
            self._resource = place[:2]
            for kept in (self._since, self._until, self._places, self._ends):
                kept.clear()
        while self._ends and self._ends[0][0] <= place.start:
            _, since = heapq.heappop(self._ends)
            self._remove(bisect_left(self._since, since))
        since = place.since
        at = bisect_right(self._since, since)
        if at and self._until[at - 1] > since:
            at -= 1
        while since < place.until:
            if at == len(self._since) or self._since[at] >= place.until:
                self._insert(at, since, place.until, place)
                break
            if since < self._since[at]:
                self._insert(at, since, self._since[at], place)
                at += 1
            if (found := _overlap(self._places[at], place)) is not None:
                yield found
            since = max(since, self._until[at])
            at += 1

    def _insert(self, at: int, since: int, until: int, place: Place) -> None:
        self._since.insert(at, since)
        self._until.insert(at, until)
        self._places.insert(at, place)
        heapq.heappush(self._ends, (place.end, since))

    def _remove(self, at: int) -> None:
        del self._since[at], self._until[at], self._places[at]


def _overlap(one: Place, other: Place) -> Finding | None:
    """Return what is wrong with two places, unless it can be between changes of a batch."""
    since = max(one.since, other.since)
    until, run = min((place.until, place.until_run) for place in (one, other))
    if run <= since:
        return None
    first, second = sorted((one, other), key=lambda place: place.since)
    end = "on" if until == FOREVER else f"to {until - 1}"
    return Finding(
        check="past-overlap",
        organization_id=second.organization_id,
        appointment_id=second.appointment_id,
        revision=since,
        expected=f"a range of the resource {second.resource_id!r} that nothing else has",
        stored=f"an overlap with appointment {first.appointment_id!r}, which has it since revision"
        f" {first.since}, from revision {since} {end}",
    )
