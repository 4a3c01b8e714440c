"""A database where operations wait until the test starts a worker."""

import json

import grpc
import psycopg

from local.programs import Program
from tests.operations.submissions import Submissions

# Leases that end soon, in a worker whose calls are short.
SHORT = {"OPERATION_LEASE": "0.5", "LOCK_TIMEOUT": "0.2", "STATEMENT_TIMEOUT": "0.2"}


class Place:
    """A database of the test's own, with a service and no worker."""

    def __init__(self, url: str, service: Program, channel: grpc.Channel) -> None:
        self.url = url
        self.service = service
        self.channel = channel
        self.sql = psycopg.connect(url, autocommit=True)

    def organization(self, id: str) -> Submissions:
        return Submissions(self.channel, id)

    def count(self, table: str, where: str = "true") -> int:
        row = self.sql.execute(f"SELECT count(*) FROM {table} WHERE {where}".encode()).fetchone()
        assert row is not None
        number: int = row[0]
        return number

    def all_applied(self) -> bool:
        return self.count("queued_operations") == 0

    def waited_for(self) -> bool:
        """Return whether the service polls for the end of an operation."""
        asked = "query LIKE '%FROM finished_operations(%'"
        return self.count("pg_stat_activity", f"pid <> pg_backend_pid() AND {asked}") > 0

    def queue(self, organization: str, *writes: str) -> None:
        """Insert operations into the queue without the service's checks."""
        self.sql.execute(
            "INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)"
            " SELECT %s, gen_random_uuid(), now(), write::json FROM unnest(%s::text[]) AS write",
            (organization, list(writes)),
        )


def queued_write(id: str, minute: int, **fields: object) -> str:
    return json.dumps(
        {
            "kind": "UPSERT",
            "id": id,
            "resource_id": "",
            "start_time": f"2030-01-07T{minute // 60:02}:{minute % 60:02}:00Z",
            "end_time": f"2030-01-07T{minute // 60:02}:{minute % 60:02}:30Z",
            "title": "",
            "attributes": {},
            "actor": "",
            "validate_only": False,
            **fields,
        }
    )
