"""All checks, in order, applied to each part of a snapshot."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import LiteralString

from service.verify import digests, history, operations, places, state
from service.verify.findings import Finding
from service.verify.kinds import ERASING, KEEPING, KINDS, TRANSITIONS
from service.verify.snapshot import Part, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check, with what it is about, for the display of progress."""

    title: str
    find: Callable[[Snapshot, Part], Iterator[Finding]]


def all_checks(keys: digests.Digests) -> Sequence[Check]:
    return [
        Check(title=title, find=find)
        for title, find in (
            ("revisions", _statement(history.REVISIONS)),
            ("latest revisions", _statement(history.LATEST)),
            ("changes", _statement(history.CHANGES)),
            ("rows", _statement(state.ROWS)),
            ("overlaps", _statement(state.OVERLAPS)),
            ("past overlaps", places.past_overlaps),
            ("digests", keys.check),
            ("unchanged writes", _statement(digests.UNCHANGED)),
            ("operations", _statement(operations.OPERATIONS)),
            ("positions of consumers", _statement(operations.POSITIONS)),
        )
    ]


def _statement(statement: LiteralString) -> Callable[[Snapshot, Part], Iterator[Finding]]:
    """Return the check by a statement that returns the columns of a finding."""

    def find(snapshot: Snapshot, part: Part) -> Iterator[Finding]:
        parameters = {
            **part.parameters,
            "kinds": sorted(KINDS),
            "transitions": TRANSITIONS,
            "keeping": KEEPING,
            "erasing": ERASING,
        }
        for name, organization_id, appointment_id, revision, expected, stored in snapshot.stream(
            statement, parameters
        ):
            yield Finding(
                check=name,
                organization_id=organization_id,
                appointment_id=appointment_id,
                revision=revision,
                expected=expected,
                stored=stored,
            )

    return find
