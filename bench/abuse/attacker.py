"""The program of one attack: `python -m bench.abuse.attacker NAME TARGET`, with JSON of Target.

It has the lowest priority, so that it takes no processor time from what it attacks: on two cores
its own work would otherwise be measured.
"""

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from bench.abuse import connections, frames, receivers, requests
from bench.abuse.target import Attack, Target

ATTACKS: dict[str, Attack] = {
    "idle": connections.idle,
    "slow-headers": connections.slow_headers,
    "slow-bodies": connections.slow_bodies,
    "slow-reads": connections.slow_reads,
    "events": connections.events,
    "unread-streams": frames.unread_streams,
    "partial-messages": frames.partial_messages,
    "rapid-reset": frames.rapid_reset,
    "continuation": frames.continuation,
    "inflating-messages": frames.inflating_messages,
    "wide-messages": frames.wide_messages,
    "wide-attributes": frames.wide_attributes,
    "inflating-bodies": requests.inflating_bodies,
    "wide-bodies": requests.wide_bodies,
    "wide-objects": requests.wide_objects,
    "deep-bodies": requests.deep_bodies,
    "dearest-query": requests.dearest_query,
    "receivers": receivers.receivers,
}

LOWEST = 19


def take_lowest_priority() -> None:
    """Give way to all other processes.

    Linux may share the processors among sessions first (sched(7), autogroup). The priority of a
    process counts only within its session then, so it needs one of its own.
    """
    os.setsid()
    os.nice(LOWEST)
    with suppress(FileNotFoundError):
        Path("/proc/self/autogroup").write_text(str(LOWEST))


if __name__ == "__main__":
    take_lowest_priority()
    json.dump(asyncio.run(ATTACKS[sys.argv[1]](Target(**json.loads(sys.argv[2])))), sys.stdout)
