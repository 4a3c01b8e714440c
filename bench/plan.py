"""The plan: which loads are measured, and the limits they are compared with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from bench.workload import Operation

Interface = Literal["SQL", "gRPC", "REST", "worker"]
Queue = Literal["postgres", "rabbitmq"]

GROUPS = (
    "hot",
    "many",
    "eventual",
    "contended",
    "batches",
    "holds",
    "reads",
    "availability",
    "growth",
    "organizations",
    "overload",
)
# What --quick compares with empty servers; everything would take more than two minutes.
QUICK_EMPTY = ("hot", "reads")
READ_STORED = 1_000
RESOURCES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load. `in_flight` is the number of pgbench clients, gRPC calls or HTTP connections.

    Each organization has `stored` appointments of so many `resources` at the start. If `polite`,
    callers wait after a refusal for as long as it asks.

    For asynchronous writes: `worker` says whether a worker runs at the same time. The interface
    "worker" applies the writes that were accepted without a worker. If `paced`, the call rate
    is half of the slowest rate before it in the round (accepting, applying, both together).
    `against` is the number of organizations of the synchronous writes that are the limit.
    """

    interface: Interface
    in_flight: int
    operation: Operation = "upsert"
    organizations: int = 1
    stored: int = 0
    resources: int = 1
    polite: bool = False
    title: str = ""  # if loads of a group have different titles
    worker: bool = False
    paced: bool = False
    against: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Loads that are measured alternately with their limits, round by round.

    `settings` are those of the service and the gateway. `empty` says whether loads are compared
    with empty servers too.
    """

    name: str
    title: str
    limits: Sequence[Load]
    loads: Sequence[Load]
    empty: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)

    def limits_of(self, load: Load) -> list[Load]:
        """Return the limits with at most the load's `in_flight`, or the smallest limits."""
        if load in self.limits:
            return []
        smallest = min(limit.in_flight for limit in self.limits)
        most = max(smallest, load.in_flight)
        return [
            limit
            for limit in self.limits
            if limit.in_flight <= most and load.against in (None, limit.organizations)
        ]

    def has_empty(self, load: Load) -> bool:
        """Return whether a load is compared with an empty server."""
        return (
            self.empty
            and load in self.loads
            and load.interface in {"gRPC", "REST"}
            and not (load.polite or load.worker)
        )

    def without_wrk(self) -> "Group":
        """Return the group without the loads that need wrk."""
        loads = [load for load in self.loads if load.interface != "REST" or load.polite]
        return replace(self, loads=loads)


def plan(*, quick: bool) -> list[Group]:
    """Return all groups; if quick, with fewer loads and fewer stored appointments."""
    if quick:
        groups = [
            _group("hot", "one organization", limits=[16], grpc=[64], rest=[64]),
            _group(
                "many",
                "1,000 organizations",
                limits=[16],
                grpc=[64],
                rest=[64],
                organizations=1_000,
            ),
            *_eventual(quick=True),
            _contended(),
            _batches(16),
            *_holds(),
            *_reads(organizations=10),
            *_availability(stored=10_000),
            *(_growth(stored) for stored in (1_000, 10_000)),
            *_overload(),
        ]
        return [replace(group, empty=group.name in QUICK_EMPTY) for group in groups]
    one, many = "one organization", "1,000 organizations"
    return [
        _group("hot", one, limits=[1], grpc=[1], rest=[1]),
        _group("hot", one, limits=[16, 64], grpc=[8, 64, 256], rest=[16, 64, 256]),
        _group("many", many, limits=[1], grpc=[1], organizations=1_000),
        _group(
            "many", many, limits=[16, 64], grpc=[8, 64, 256], rest=[16, 64], organizations=1_000
        ),
        *_eventual(quick=False),
        _contended(),
        _batches(1),
        _batches(16),
        *_holds(),
        *_reads(organizations=100),
        *_availability(stored=100_000),
        *(_growth(stored) for stored in (1_000, 100_000, 1_000_000)),
        *(
            _group(
                "organizations",
                f"{number:,} organizations",
                limits=[16],
                grpc=[64],
                organizations=number,
            )
            for number in (100, 10_000)
        ),
        *_overload(),
    ]


def _group(
    name: str,
    title: str,
    *,
    limits: Sequence[int],
    grpc: Sequence[int] = (),
    rest: Sequence[int] = (),
    operation: Operation = "upsert",
    organizations: int = 1,
    stored: int = 0,
    resources: int = 1,
) -> Group:
    def loads(interface: Interface, in_flight: Sequence[int]) -> list[Load]:
        return [
            Load(
                interface=interface,
                in_flight=number,
                operation=operation,
                organizations=organizations,
                stored=stored,
                resources=resources,
            )
            for number in in_flight
        ]

    return Group(
        name=name,
        title=title,
        limits=loads("SQL", limits),
        loads=[*loads("gRPC", grpc), *loads("REST", rest)],
    )


def _eventual(*, quick: bool) -> list[Group]:
    """Asynchronous writes, compared with synchronous ones.

    They are accepted without a worker, then applied by one, then both happen together. If
    quick, with many organizations only.
    """
    names: dict[Queue, str] = {"postgres": "PostgreSQL", "rabbitmq": "RabbitMQ"}
    shapes = {1: "one organization", 1_000: "1,000 organizations"}

    def loads(shape: str, organizations: int, name: str) -> Iterator[Load]:
        submitting = Load(
            interface="gRPC",
            in_flight=64,
            operation="submit",
            organizations=organizations,
            title=f"{shape}, accepted ({name})",
            against=organizations,
        )
        yield submitting
        if organizations > 1:
            yield replace(submitting, interface="REST")
        yield replace(
            submitting,
            interface="worker",
            in_flight=1,
            title=f"{shape}, then applied",
            worker=True,
            against=1,
        )
        together = replace(submitting, title=f"{shape}, both together", worker=True)
        yield together
        yield replace(together, title=f"{shape}, at half the rate", paced=True)

    return [
        Group(
            name="eventual",
            title=f"accepted ({name})",
            limits=[
                Load(
                    interface="gRPC",
                    in_flight=64,
                    organizations=organizations,
                    title=f"{shape}, synchronous",
                )
                for organizations, shape in shapes.items()
            ],
            loads=[
                load
                for organizations, shape in shapes.items()
                if organizations > 1 or not quick
                for load in loads(shape, organizations, name)
            ],
            settings={"OPERATION_QUEUE": queue} if queue != "postgres" else {},
        )
        for queue, name in names.items()
    ]


def _contended() -> Group:
    return _group("contended", "contended", limits=[16], rest=[64], operation="contend")


def _batches(in_flight: int) -> Group:
    return _group(
        "batches",
        "batches of 100",
        limits=[in_flight],
        grpc=[in_flight],
        operation="batch",
    )


def _holds() -> list[Group]:
    """Holds and their confirmations, as many of each; a call is one of them."""
    return [
        _group(
            "holds",
            title,
            limits=[16],
            grpc=[64],
            operation="hold",
            organizations=organizations,
        )
        for title, organizations in (
            ("holds, one organization", 1),
            ("holds, 1,000 organizations", 1_000),
        )
    ]


def _reads(*, organizations: int) -> list[Group]:
    titles: dict[Operation, str] = {
        "get": "Get",
        "list": "List of 20",
        "page": "the same list of 20",
    }
    return [
        _group(
            "reads",
            title,
            limits=[16],
            grpc=[64],
            rest=[64],
            operation=operation,
            organizations=organizations,
            stored=READ_STORED,
        )
        for operation, title in titles.items()
    ]


def _availability(*, stored: int) -> list[Group]:
    """Free times of 100 resources that have all stored appointments within a year."""
    titles: dict[Operation, str] = {
        "availability": "free in a year, 100 resources",
        "calendar": "the same year again",
        "booking": "half hours in a week, 10 resources",
    }
    return [
        _group(
            "availability",
            title,
            limits=in_flight,
            grpc=in_flight,
            rest=in_flight,
            operation=operation,
            stored=stored,
            resources=RESOURCES,
        )
        for operation, title in titles.items()
        for in_flight in ([8, 64] if operation == "booking" else [8],)
    ]


def _growth(stored: int) -> Group:
    return _group(
        "growth",
        f"{stored:,} stored",
        limits=[16],
        grpc=[64],
        rest=[64],
        stored=stored,
    )


def _overload() -> list[Group]:
    """Five times as many callers as the capacity, compared with callers within the capacity.

    The service has its smallest possible queue. The gateway's capacity is so small that the
    callers need fewer file descriptors than the usual limit of 1,024.
    """
    return [
        Group(
            name="overload",
            title="overloaded service",
            limits=[Load(interface="gRPC", in_flight=256)],
            loads=[Load(interface="gRPC", in_flight=5_000, polite=True)],
            settings={"MAX_QUEUED_WRITES": "1000"},
        ),
        Group(
            name="overload",
            title="overloaded gateway",
            limits=[Load(interface="REST", in_flight=64, polite=True)],
            loads=[Load(interface="REST", in_flight=640, polite=True)],
            settings={"GATEWAY_MAX_IN_FLIGHT": "128"},
        ),
    ]
