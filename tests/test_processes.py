"""Several processes on one port: how they serve, count, die and end together."""

import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program, StartError
from local.stack import ANY_PORT, DATABASE, base_environment
from tests.api import Organization
from tests.conftest import OwnPostgres, StartProgram
from tests.load import OWN_CONNECTION, Load
from tests.observing import metric, metrics, until
from tests.test_operation import http_status

CONNECTIONS = 24  # all of them go to one of two processes once in eight million times
WRITES = 10


def processes_of(program: Program) -> list[psutil.Process]:
    return psutil.Process(program.process.pid).children()


def connections(program: Program, process: psutil.Process) -> int:
    """How many callers a process has."""
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.laddr.port == program.port
        for each in process.net_connections("tcp")
    )


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=5)[1]


class NeverBack:
    """Asserts of every look at the metrics that nothing counted is less than before."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.counted: dict[str, float] = {}

    def look(self) -> None:
        seen = {
            name: value
            for name, value in metrics(self._program).items()
            if name.startswith(("appointments_", "gateway_"))
            and any(part in name for part in ("_count", "_sum", "_bucket"))
        }
        for name, value in self.counted.items():
            assert seen[name] >= value, name
        self.counted = seen


def test_two_processes_share_one_organization_and_add_up(
    start_service: StartProgram, organization: str
) -> None:
    service = start_service(PROCESSES="2")

    def write(caller: int) -> list[str]:
        """Write ranges that touch this caller's own and are those of every other."""
        outcomes = []
        for number in range(WRITES):
            try:
                callers[caller].upsert(f"{caller}-{number}", number, number + 1)
                outcomes.append("OK")
            except grpc.RpcError as error:
                outcomes.append(error.code().name)
        return outcomes

    with ExitStack() as stack, ThreadPoolExecutor(CONNECTIONS) as pool:
        channels = [
            stack.enter_context(grpc.insecure_channel(service.address, OWN_CONNECTION))
            for _ in range(CONNECTIONS)
        ]
        callers = [Organization(AppointmentServiceStub(each), organization) for each in channels]
        outcomes = [code for codes in pool.map(write, range(CONNECTIONS)) for code in codes]
        assert all(connections(service, process) for process in processes_of(service))
        callers[0].check_history()
        assert len(callers[0].changes()) == WRITES
    assert outcomes.count("OK") == WRITES
    assert outcomes.count("ALREADY_EXISTS") == CONNECTIONS * WRITES - WRITES
    name = 'appointments_request_seconds_{}{{code="{}",{}method="UpsertAppointment"}}'.format
    samples = metrics(service)
    assert samples[name("count", "OK", "")] == WRITES
    assert samples[name("bucket", "OK", 'le="+Inf",')] == WRITES
    assert samples[name("count", "ALREADY_EXISTS", "")] == CONNECTIONS * WRITES - WRITES
    assert samples["appointments_batch_writes_sum"] == CONNECTIONS * WRITES
    until(lambda: metric(service, 'appointments_pool_connections{pool="write",state="idle"}') == 8)
    assert samples['process_cpu_seconds_total{process="0"}'] > 0
    assert samples['process_cpu_seconds_total{process="1"}'] > 0


def test_a_killed_worker_is_replaced_and_what_it_counted_stays(
    start_service: StartProgram, stub: AppointmentServiceStub, organization: str
) -> None:
    service = start_service(PROCESSES="2")
    watch = NeverBack(service)

    def look_until(wanted: Callable[[], bool]) -> None:
        def looked() -> bool:
            watch.look()
            return wanted()

        until(looked)

    with Load(service.address, organization) as load:
        look_until(lambda: len(load.accepted) > 200)
        victim = max(processes_of(service), key=lambda process: connections(service, process))
        victim.kill()
        ended = service.wait_for_event(lambda event: event.get("event") == "process ended")
        assert (ended["pid"], ended["code"]) == (victim.pid, -signal.SIGKILL)
        began = service.wait_for_event(lambda event: event.get("event") == "process listening")
        assert began["pid"] in {process.pid for process in processes_of(service)}
        before = len(load.accepted)
        look_until(lambda: len(load.accepted) > before + 200)
        load.stop()
    watch.look()
    name = 'appointments_request_seconds_count{code="OK",method="UpsertAppointment"}'
    assert watch.counted[name] > 400
    assert {code for _, code in load.failed} <= {grpc.StatusCode.UNAVAILABLE}
    org = Organization(stub, organization)
    assert set(load.accepted) <= set(org.listed(page_size=1000))
    org.check_history()


def test_sigterm_under_load_ends_all_processes_and_loses_nothing(
    start_service: StartProgram, stub: AppointmentServiceStub, organization: str, tmp_path: Path
) -> None:
    service = start_service(PROCESSES="2", TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir())
    processes = processes_of(service)
    with Load(service.address, organization) as load:
        until(lambda: len(load.accepted) > 300)
        service.process.send_signal(signal.SIGTERM)
        service.process.send_signal(signal.SIGINT)  # a second one changes nothing
        assert service.process.wait(timeout=20) == 0
        load.stop()
    assert gone(processes)
    assert not list(tmp_path.iterdir())
    org = Organization(stub, organization)
    assert set(org.listed(page_size=1000)) == set(load.accepted)
    codes = {code for _, code in load.failed}
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    org.check_history()
    events = [json.loads(line)["event"] for line in service.log_lines()]
    assert [event for event in events if event != "request"] == ["listening", "stopping", "stopped"]


def test_a_killed_supervisor_takes_its_processes_along(
    start_service: StartProgram, tmp_path: Path
) -> None:
    service = start_service(PROCESSES="2", TMPDIR=str(tmp_path))
    processes = processes_of(service)
    assert len(processes) == 2
    service.kill()
    assert gone(processes)
    until(lambda: not list(tmp_path.iterdir()))
    start_service(GRPC_PORT=str(service.port))  # free again, for one process too


@pytest.mark.parametrize(
    ("program", "name", "metrics_name"),
    [
        ("service", "GRPC_PORT", "METRICS_PORT"),
        ("gateway", "GATEWAY_PORT", "GATEWAY_METRICS_PORT"),
    ],
)
def test_no_two_programs_share_a_port(
    request: pytest.FixtureRequest, program: str, name: str, metrics_name: str
) -> None:
    start = request.getfixturevalue(f"start_{program}")
    one, several = start(), start(PROCESSES="2")
    taken = [
        {name: str(one.port), "PROCESSES": "2"},
        {name: str(several.port), "PROCESSES": "2"},
        {name: str(several.port)},
        {metrics_name: str(one.metrics_port), "PROCESSES": "2"},
    ]
    for settings in taken:
        with pytest.raises(StartError, match=r"cannot listen on 127.0.0.1:\d+.*\(exit code 1\)"):
            start(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"DATABASE_URL": "postgresql://x@127.0.0.1:1/none"}, "DATABASE_URL"),
        ({"CHANNELZ_PORT": "0"}, "PROCESSES=1"),
        ({"PROCESSES": "0"}, "PROCESSES: "),
    ],
)
def test_what_keeps_processes_from_starting_is_told_once(
    database_url: str, settings: dict[str, str], said: str
) -> None:
    program = Program(
        "service",
        {
            **base_environment(),
            **ANY_PORT,
            "DATABASE_URL": database_url,
            "PROCESSES": "2",
            **settings,
        },
    )
    with pytest.raises(StartError, match=r"\(exit code 1\)"):
        program.wait_until_listening()
    (line,) = program.log_lines()
    assert said in line


def test_a_worker_that_cannot_start_again_is_tried_less_and_less_often(
    own_postgres: OwnPostgres, start_service: StartProgram
) -> None:
    postgres = own_postgres()
    service = start_service(PROCESSES="2", DATABASE_URL=postgres.url(DATABASE))
    postgres.stop(immediate=True)
    processes_of(service)[0].kill()

    def code_after(delay: float) -> int:
        event = service.wait_for_event(
            lambda event: event.get("event") == "process ended" and event["delay"] == delay
        )
        return int(event["code"])

    assert [code_after(delay) for delay in (0.1, 0.2, 0.4)] == [-signal.SIGKILL, 1, 1]
    postgres.start()
    service.wait_for_event(lambda event: event.get("event") == "process listening")
    assert len(processes_of(service)) == 2


def test_a_gateway_of_two_processes_adds_up_and_outlives_one(start_gateway: StartProgram) -> None:
    gateway = start_gateway(PROCESSES="2")
    watch = NeverBack(gateway)
    name = 'gateway_request_seconds_count{method="ListChanges",status="200"}'

    def ask(count: int) -> None:
        for _ in range(count):  # each over a connection of its own
            assert http_status(f"{gateway.url}/api/changes") == 200

    ask(20)
    watch.look()
    assert watch.counted[name] == 20
    victim = processes_of(gateway)[0]
    victim.kill()
    gateway.wait_for_event(lambda event: event.get("event") == "process listening")
    ask(20)
    watch.look()
    assert watch.counted[name] == 40
    assert metric(gateway, "gateway_calls_in_flight") == 0
    assert gateway.stop() == 0


def test_a_gateway_reaches_all_processes_of_the_service(
    start_service: StartProgram, start_gateway: StartProgram, organization: str
) -> None:
    service = start_service(PROCESSES="2")
    gateway = start_gateway(SERVICE_ADDRESS=service.address, SERVICE_CONNECTIONS=str(CONNECTIONS))
    for number in range(20 * CONNECTIONS):  # organizations enough for every connection
        assert http_status(f"{gateway.url}/api/changes?organizationId={number}") == 200
    reached = [connections(service, process) for process in processes_of(service)]
    assert sum(reached) == CONNECTIONS
    assert all(reached)
