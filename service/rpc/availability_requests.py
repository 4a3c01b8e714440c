"""Reads requests of QueryAvailability."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from appointments.v1 import availability_pb2 as rpc

from service import rules
from service.availability.local_clock import zone_names
from service.availability.opening_hours import weekly
from service.availability.query import AvailabilityQuery
from service.availability.ranges import Ranges
from service.errors import InvalidFields
from service.times import microseconds

MAX_RANGE = timedelta(days=366)
MAX_GRANULARITY = timedelta(days=1)
MAX_BUFFER = timedelta(days=31)
# Of all resources. About as many ranges as fit into a response, which bounds the work.
MAX_OPENINGS = 200_000
MAX_HOURS_LENGTH = rules.of(
    rpc.QueryAvailabilityRequest.DESCRIPTOR.fields_by_name["opening_hours"]
).max_length
_TOO_MANY_OPENINGS = (
    f"must not open more than {MAX_OPENINGS:,} times in all; ask for a shorter range of time or for"
    " fewer resources"
)


def read_query(request: rpc.QueryAvailabilityRequest) -> AvailabilityQuery:
    """Convert a request. Raises InvalidFields, naming every invalid field."""
    violations: rules.Violations = []
    rules.check_fields(request, "", violations)
    start = rules.read_time(request, "from", "", violations, required=True)
    end = rules.read_time(request, "to", "", violations, required=True)
    if start is not None and end is not None:
        _check_range(start, end, violations)
    _check_resources(request.resource_id, violations)
    if request.match not in rpc.QueryAvailabilityRequest.Match.values():
        violations.append(("match", "must be EACH or ALL"))
    duration = rules.read_duration(request, "duration", violations, most=rules.MAX_DURATION)
    granularity = rules.read_duration(request, "granularity", violations, most=MAX_GRANULARITY)
    before, after = (
        rules.read_duration(request, name, violations, most=MAX_BUFFER, positive=False)
        for name in ("buffer_before", "buffer_after")
    )
    opening_hours = _opening_hours(request, violations)
    zone = _zone(request, violations)
    together = request.match == rpc.QueryAvailabilityRequest.ALL
    if opening_hours is not None and start is not None and end is not None:
        entries = 1 if together else len(request.resource_id)
        if len(opening_hours.starts) * ((end - start).days // 7 + 1) * entries > MAX_OPENINGS:
            violations.append(("opening_hours", _TOO_MANY_OPENINGS))
    if violations or start is None or end is None:
        raise InvalidFields(violations)
    return AvailabilityQuery(
        start=microseconds(start),
        end=microseconds(end),
        together=together,
        duration=duration or granularity or 0,
        granularity=granularity,
        opening_hours=opening_hours,
        zone=zone,
        buffer_before=before or 0,
        buffer_after=after or 0,
    )


def _check_range(start: datetime, end: datetime, violations: rules.Violations) -> None:
    if end <= start:
        violations.append(("to", "must be after from"))
    elif end - start > MAX_RANGE:
        violations.append(("to", f"must be at most {MAX_RANGE.days} days after from"))


def _check_resources(resource_ids: Sequence[str], violations: rules.Violations) -> None:
    if not resource_ids:
        violations.append(("resource_id", "is required"))
    seen: set[str] = set()
    for index, resource_id in enumerate(resource_ids):
        if resource_id in seen:
            violations.append((f"resource_id[{index}]", "must not be repeated"))
        seen.add(resource_id)


def _opening_hours(
    request: rpc.QueryAvailabilityRequest, violations: rules.Violations
) -> Ranges | None:
    if not request.opening_hours:
        return None
    if not request.time_zone:
        violations.append(("time_zone", "is required with opening hours"))
    opened = Ranges()
    for index, text in enumerate(request.opening_hours):
        if not 0 < len(text) <= MAX_HOURS_LENGTH:
            continue  # a violation of the field's own rules
        try:
            more = weekly([text])
        except ValueError as error:
            violations.append((f"opening_hours[{index}]", str(error)))
        else:
            opened = Ranges.union(opened, more)
    return opened


def _zone(request: rpc.QueryAvailabilityRequest, violations: rules.Violations) -> ZoneInfo:
    name = request.time_zone or "UTC"
    if name not in zone_names():
        violations.append(
            ("time_zone", "must be the name of an IANA time zone, such as Europe/Berlin")
        )
        name = "UTC"
    return ZoneInfo(name)
