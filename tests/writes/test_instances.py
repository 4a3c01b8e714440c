"""Several instances of the service run side by side and stay correct."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from tests.api import Organization
from tests.conftest import StartProgram
from tests.load import OWN_CONNECTION
from tests.observing import metrics

CALLERS = 24
WRITES = 10


def test_two_instances_share_one_organization(
    start_service: StartProgram, organization: str
) -> None:
    instances = [start_service(), start_service()]

    def write(caller: int) -> list[str]:
        """Write adjacent ranges; all callers write the same ones."""
        outcomes = []
        for number in range(WRITES):
            try:
                callers[caller].upsert(f"{caller}-{number}", number, number + 1)
                outcomes.append("OK")
            except grpc.RpcError as error:
                outcomes.append(error.code().name)
        return outcomes

    with ExitStack() as stack, ThreadPoolExecutor(CALLERS) as pool:
        channels = [
            stack.enter_context(
                grpc.insecure_channel(instances[number % 2].address, OWN_CONNECTION)
            )
            for number in range(CALLERS)
        ]
        callers = [Organization(AppointmentServiceStub(each), organization) for each in channels]
        outcomes = [code for codes in pool.map(write, range(CALLERS)) for code in codes]
        callers[0].check_history()
        assert len(callers[0].changes()) == WRITES
    assert outcomes.count("OK") == WRITES
    assert outcomes.count("ALREADY_EXISTS") == CALLERS * WRITES - WRITES
    counted = [metrics(instance)["appointments_batch_writes_sum"] for instance in instances]
    assert counted == [CALLERS // 2 * WRITES] * 2
