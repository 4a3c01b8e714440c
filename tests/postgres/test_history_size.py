"""Workers report how large the history is."""

from collections.abc import Callable

from local.programs import Program
from tests.observing import metric, until
from tests.operations.place import Place


def test_a_worker_reports_the_size_of_the_history(
    place: Place, start_place_worker: Callable[..., Program]
) -> None:
    place.organization("clinic").org.upsert("a", 9, 10)
    worker = start_place_worker()
    until(lambda: metric(worker, "appointments_history_bytes") >= 8192)
    row = place.sql.execute(
        "SELECT pg_total_relation_size('public.appointment_history')"
    ).fetchone()
    assert row == (metric(worker, "appointments_history_bytes"),)
