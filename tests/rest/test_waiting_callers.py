"""Callers that wait for operations: they delay no others, and their number is limited."""

from concurrent.futures import ThreadPoolExecutor

from tests.conftest import StartProgram
from tests.observing import metric, until
from tests.operations.place import Place
from tests.rest_client import Client

UNDER_WAY = "gateway_calls_in_flight"


def test_those_who_wait_keep_nobody_out_and_are_limited(
    place: Place, start_gateway: StartProgram
) -> None:
    gateway = start_gateway(SERVICE_ADDRESS=place.service.address, GATEWAY_MAX_IN_FLIGHT="1")
    waits, comes = Client(gateway, "org"), Client(gateway, "org")
    with ThreadPoolExecutor() as pool:
        # No worker runs.
        waiting = pool.submit(waits.upsert, "a", Prefer="respond-async, wait=5")
        until(place.waited_for)
        assert metric(gateway, UNDER_WAY) == 1
        assert comes.call("GET", "/appointments").status == 200
        # The limit of waiting callers is reached, so this is refused at once.
        accepted = comes.upsert("b", Prefer="respond-async, wait=20")
        assert accepted.status == 202
        path = f"/operations/{accepted.json['name'].rpartition('/')[2]}"
        assert comes.call("GET", path).status == 200
        refused = comes.call("GET", path, wait="20s")
        assert (refused.status, refused.json["code"]) == (429, "OVERLOADED")
        assert metric(gateway, UNDER_WAY) == 1
        assert waiting.result().status == 202
    assert metric(gateway, UNDER_WAY) == 0
    assert comes.call("GET", path, wait="0.1s").status == 200
