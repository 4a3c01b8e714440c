"""Times as microseconds since 1970-01-01T00:00Z."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def microseconds(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


def time_at(microseconds: int) -> datetime:
    """Return a time in UTC. Raises OverflowError outside of the years 1 to 9999."""
    return EPOCH + microseconds * MICROSECOND


# From which PostgreSQL counts.
POSTGRES_EPOCH = microseconds(datetime(2000, 1, 1, tzinfo=UTC))
