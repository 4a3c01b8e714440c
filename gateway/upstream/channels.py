"""Connections to the service."""

from grpc import aio

_OPTIONS = (
    # Otherwise channels to the same address share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    # Calls are distributed over all addresses of a name; changes are noticed within seconds.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A page of a thousand appointments with attributes exceeds the default of 4 MiB.
    ("grpc.max_receive_message_length", -1),
    # The service compresses nothing, and gRPC would decompress a response of any size.
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


def open_channel(address: str) -> aio.Channel:
    """Return a channel with a connection of its own to the service."""
    return aio.insecure_channel(address, options=_OPTIONS)
