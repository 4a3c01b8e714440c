"""Entity tags of lists: the request, the state of the organization, and when its first hold ends.

A tag does not depend on the process that makes it, so every process accepts those of all others.
It is opaque to callers, and weak: equal pages of different states have different tags.
"""

import hashlib
from collections.abc import Collection
from datetime import UTC, datetime

from appointments.v1 import appointment_pb2, appointment_service_pb2
from appointments.v1.appointment_service_pb2 import ListAppointmentsRequest

from service.reads.moments import Moment, Now
from service.rpc.page_tokens import normalized
from service.times import microseconds, time_at

# Fields that do not change what a page shows.
_IGNORED_FIELDS = frozenset({"if_none_match", "min_revision"})

# Another version of the messages may render the same state differently, so its tags must differ.
_MESSAGES = hashlib.sha256(
    appointment_pb2.DESCRIPTOR.serialized_pb + appointment_service_pb2.DESCRIPTOR.serialized_pb
).digest()


def list_etag(
    request: ListAppointmentsRequest, moment: Moment, first_expiry: datetime | None
) -> str:
    """Return the tag of a page that shows a moment. `first_expiry` is None without holds."""
    revision, recorded_at = moment
    until = "" if first_expiry is None else f"-{microseconds(first_expiry):x}"
    digest = hashlib.sha256(_MESSAGES)
    digest.update(normalized(request, _IGNORED_FIELDS).SerializeToString(deterministic=True))
    digest.update(f"/{revision}/{recorded_at and recorded_at.astimezone(UTC)}/{until}".encode())
    return digest.hexdigest()[:16] + until


def current_etag(known: Collection[str], request: ListAppointmentsRequest, now: Now) -> str | None:
    """Return the known tag that is still that of the page, if any, without reading the page."""
    for tag in known:
        _, _, until = tag.partition("-")
        try:
            first_expiry = time_at(int(until, 16)) if until else None
        except (ValueError, OverflowError):
            continue
        if (
            now.shows(now.moment, first_expiry)
            and list_etag(request, now.moment, first_expiry) == tag
        ):
            return tag
    return None
