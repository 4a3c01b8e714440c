"""Attacks by connections and by streams that are left open."""

import asyncio
import re
import shutil
from collections import Counter
from contextlib import suppress
from typing import Any

from bench.abuse.target import Target

CONNECTIONS = 10_000
AT_ONCE = 200
DEAR = "dear-0"
COLORS = re.compile(r"\x1b\[[0-9;]*m")


async def _open(
    address: tuple[str, int], sent: bytes, counted: Counter[str], seconds: float
) -> None:
    """Open a connection and keep it; read slowly what comes, and count how it ends."""
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        counted["not accepted"] += 1
        return
    try:
        async with asyncio.timeout(seconds):
            writer.write(sent)
            first = await reader.readline() if sent else b""
            if first:
                counted[first.split(b" ", 2)[1].decode()] += 1
            while await reader.read(65_536):
                pass
            counted["closed by the gateway"] += 1
    except TimeoutError:
        counted["open to the end"] += 1
    except OSError:
        counted["reset"] += 1
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _many(target: Target, sent: bytes) -> dict[str, Any]:
    counted: Counter[str] = Counter()
    end = asyncio.get_running_loop().time() + target.seconds
    tasks = set()
    for number in range(CONNECTIONS):
        left = end - asyncio.get_running_loop().time()
        tasks.add(
            asyncio.create_task(_open(target.host(target.gateway), sent, counted, max(left, 0)))
        )
        if number % AT_ONCE == 0:
            await asyncio.sleep(0.05)
    await asyncio.wait(tasks)
    return dict(counted)


async def idle(target: Target) -> dict[str, Any]:
    """10,000 connections to the gateway that send nothing."""
    return await _many(target, b"")


async def events(target: Target) -> dict[str, Any]:
    """10,000 server-sent event streams."""
    head = (
        f"GET /api/changes?organizationId={DEAR}&afterRevision=99999 HTTP/1.1\r\nHost: x\r\n"
        "Accept: text/event-stream\r\n\r\n"
    )
    return await _many(target, head.encode())


async def _slowhttptest(target: Target, *options: str) -> dict[str, Any]:
    program = shutil.which("slowhttptest")
    if program is None:
        raise FileNotFoundError("slowhttptest is missing: apt-get install slowhttptest")
    url = f"http://{target.gateway}/api/appointments"
    common = ["-c", "4000", "-r", "1000", "-l", str(int(target.seconds)), "-p", "5"]
    process = await asyncio.create_subprocess_exec(
        program, *options, *common, "-u", url, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    lines = COLORS.sub("", output.decode(errors="replace")).splitlines()
    last = {
        name: next((line.split()[-1] for line in reversed(lines) if name in line), "?")
        for name in ("connected", "closed", "service available")
    }
    return {"slowhttptest": last}


async def slow_headers(target: Target) -> dict[str, Any]:
    """4,000 connections that send a header line every 5 s (slowhttptest -H)."""
    return await _slowhttptest(target, "-H", "-i", "5")


async def slow_bodies(target: Target) -> dict[str, Any]:
    """4,000 connections that send a body in pieces, one every 5 s (slowhttptest -B)."""
    return await _slowhttptest(
        target, "-B", "-i", "5", "-s", "8192", "-x", "10", "-t", "POST", "-f", "application/json"
    )


async def slow_reads(target: Target) -> dict[str, Any]:
    """4,000 connections that read a list by 8 bytes a second (slowhttptest -X)."""
    return await _slowhttptest(
        target, "-X", "-k", "3", "-w", "10", "-y", "20", "-n", "1", "-z", "8"
    )
