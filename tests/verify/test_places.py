"""The overlaps of the past are those that a comparison of all pairs of places finds."""

from itertools import combinations

import hypothesis.strategies as st
from hypothesis import given, settings

from service.verify.places import FOREVER, Place, Timeline

# An appointment, its range from now on, empty if it occupies nothing, and whether the change
# begins something new, so that it is no part of the batch of the change before it.
CHANGES = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.integers(0, 6),
        st.integers(0, 3),
        st.sampled_from([True, True, False]),
    ),
    max_size=30,
)


def places_of(changes: list[tuple[str, int, int, bool]]) -> list[Place]:
    runs: list[int] = []
    for revision, change in enumerate(changes, 1):
        runs.append(revision if change[3] or not runs else runs[-1])
    places = []
    for revision, (id, start, length, _) in enumerate(changes, 1):
        later = (n for n, change in enumerate(changes, 1) if n > revision and change[0] == id)
        until = next(later, FOREVER)
        if length:
            places.append(
                Place(
                    organization_id="o",
                    resource_id="r",
                    appointment_id=id,
                    start=start,
                    end=start + length,
                    since=revision,
                    until=until,
                    until_run=FOREVER if until == FOREVER else runs[until - 1],
                )
            )
    return sorted(places, key=lambda place: (place.start, place.since))


def overlapping(one: Place, other: Place) -> bool:
    since, (until, run) = (
        max(one.since, other.since),
        min((place.until, place.until_run) for place in (one, other)),
    )
    return one.start < other.end and other.start < one.end and since < until and not run <= since


@settings(max_examples=500, deadline=None)
@given(CHANGES)
def test_a_timeline_finds_an_overlap_exactly_if_there_is_one(
    changes: list[tuple[str, int, int, bool]],
) -> None:
    places = places_of(changes)
    timeline = Timeline()
    found = {
        (finding.appointment_id, finding.revision)
        for place in places
        for finding in timeline.add(place)
    }
    expected = {
        (max(pair, key=lambda place: place.since).appointment_id, max(p.since for p in pair))
        for pair in combinations(places, 2)
        if overlapping(*pair)
    }
    assert found <= expected
    assert bool(found) == bool(expected)
