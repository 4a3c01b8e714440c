"""Connections to the service."""

import asyncio
import json
import os
from collections.abc import Callable

import grpc
import structlog
from grpc import aio

from runtime.tls import Certificates

# Seconds for which calls wait for the handshake with new certificates on the old connection.
HANDSHAKE_TIMEOUT = 5.0
# Seconds for which a replaced connection continues its calls. None of them lasts that long.
OLD_CONNECTION_GRACE = 120.0

LANE = "x-lane"
"""Metadata of a call. Calls with the same value go to the same address of the service, from any
gateway, while the addresses are the same. When an address comes or goes, only as many values move
as have to. Calls without it go to any address."""

# gRPC ignores `requestHashHeader` without this (gRFC A76).
_HASH_BY_HEADER = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"
_BY_LANE = {"loadBalancingConfig": [{"ring_hash_experimental": {"requestHashHeader": LANE}}]}

_OPTIONS = (
    # Otherwise channels to the same address share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", json.dumps(_BY_LANE)),
    # Do not look for a service configuration in DNS: one query less for each resolution.
    ("grpc.service_config_disable_resolution", 1),
    # New addresses of a name are noticed within seconds.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A page of a thousand appointments with attributes exceeds the default of 4 MiB.
    ("grpc.max_receive_message_length", -1),
    # Do not accept compressed responses, so that the service sends none: between programs that
    # are near each other it costs more than it saves. gRPC would decompress one of any size.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # Reconnect within a second when the service is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Detect a peer that disappeared without closing the connection, on idle streams too.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),  # bounds TCP's acknowledgements alone
    ("grpc.http2.ping_timeout_ms", 15_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Unread data of a stream is limited to 64 KiB; otherwise the window grows to megabytes.
    ("grpc.http2.bdp_probe", 0),
)

log = structlog.get_logger()


class Connection:
    """A connection to the service, which is replaced when certificates are renewed.

    Without `certificates` it does not use TLS. `server_name` is the name to expect in the
    service's certificate if it is not the host of the address.

    Call methods on `channel`, taken anew for each call. `when_replaced` has functions that are
    called when the channel is replaced. Streams end themselves then, so that they continue on
    the new one.
    """

    def __init__(
        self, address: str, certificates: Certificates | None = None, server_name: str | None = None
    ) -> None:
        self._address = address
        self._server_name = server_name
        self._closing: set[asyncio.Task[None]] = set()
        self.when_replaced: set[Callable[[], object]] = set()
        self.channel = self._open(certificates)

    async def replace(self, certificates: Certificates) -> None:
        """Move to a new connection with these certificates.

        Waits for its handshake, so that no call has to. If that fails, moves all the same: what
        has been replaced is not to be trusted or shown any more.
        """
        replacement = self._open(certificates)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await replacement.channel_ready()
        except TimeoutError:
            log.warning("no connection to the service with the renewed certificates")
        replaced, self.channel = self.channel, replacement
        for call in list(self.when_replaced):
            call()
        closing = asyncio.create_task(replaced.close(OLD_CONNECTION_GRACE))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Cancel all calls."""
        for closing in self._closing:
            closing.cancel()
        await self.channel.close()

    def _open(self, certificates: Certificates | None) -> aio.Channel:
        os.environ[_HASH_BY_HEADER] = "true"
        if certificates is None:
            return aio.insecure_channel(self._address, options=_OPTIONS)
        pair = certificates.pair
        credentials = grpc.ssl_channel_credentials(
            certificates.authorities, pair.key if pair else None, pair.chain if pair else None
        )
        options = list(_OPTIONS)
        if self._server_name is not None:
            options.append(("grpc.ssl_target_name_override", self._server_name))
        return aio.secure_channel(self._address, credentials, options=options)
