"""Unexpected errors in the gateway end the affected calls, are logged, and affect no others."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from appointments.v1 import appointment_service_pb2 as pb
from grpc import aio

from gateway.upstream import relay
from gateway.upstream.channels import Connection
from gateway.upstream.watch import Watch
from tests.gateway.conftest import running_gateway
from tests.gateway.fake_service import fake_service


async def metric(gateway: Any, name: str) -> float:
    url = f"http://127.0.0.1:{gateway.listening.metrics_port}/metrics"
    async with gateway.client.get(url) as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("step", ["_read", "_next_message"])
async def test_a_fault_of_the_shared_stream_ends_it_and_the_next_call_opens_another(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(_: object) -> None:
        raise KeyError("injected")

    async with fake_service() as service, running_gateway(service) as gateway:
        with monkeypatch.context() as broken:
            broken.setattr(relay._Stream, step, fail)
            assert (await gateway.upsert()).status == 503
        assert await metric(gateway, "gateway_unexpected_errors_total") == 1
        assert (await gateway.upsert()).status == 201


async def begin_and_say_nothing_more(_: bytes, __: object) -> AsyncIterator[bytes]:
    yield pb.WatchAppointmentsResponse().SerializeToString()
    await asyncio.Event().wait()


async def test_a_stream_whose_two_ends_go_together_leaves_no_failure_behind() -> None:
    """The reader has gone when the read fails."""
    server = aio.server()
    watching: Any = grpc.unary_stream_rpc_method_handler(begin_and_say_nothing_more)
    methods = {"WatchAppointments": watching}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("appointments.v1.AppointmentService", methods)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    failures: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    try:
        connection = Connection(f"127.0.0.1:{port}")
        watch = Watch(connection, timeout=5.0, heartbeat=0.05, outage_timeout=5.0)
        request = pb.WatchAppointmentsRequest()
        messages = watch.follow(request, (), request_id="r")
        assert await anext(messages)
        assert await anext(messages) is None
        await server.stop(0)
        await asyncio.sleep(0.2)  # the reading has failed by then
        await messages.aclose()
        del messages
        await connection.close()
        gc.collect()
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(before)
    assert failures == []
