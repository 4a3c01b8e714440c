"""The service: its address, the credential, and calls that are repeated until they succeed."""

import ipaddress
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, TypeVar

import click
import grpc
from appointments.v1.appointment_service_pb2 import ListAppointmentsRequest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from client.errors import INTERRUPTED, SERVICE_FAILED, CommandError, Fault, fault_of

# In seconds.
TIMEOUT = 30.0
CONNECT_TIMEOUT = 10.0
GIVE_UP_AFTER = 60.0
FIRST_DELAY = 0.2
LONGEST_DELAY = 10.0

_CHANNEL = (
    # A page of 1,000 appointments has up to 16 MB.
    ("grpc.max_receive_message_length", -1),
    # Compression would cost the service more time than the transfer takes.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The options that every command has."""

    address: str
    organization: str
    token_file: str | None
    tls: bool
    plaintext: bool
    ca: str | None
    certificate: str | None
    key: str | None

    @classmethod
    def options(cls, command: Command) -> Command:
        """Give a command these options, as arguments of the same names."""
        file = click.Path(exists=True, dir_okay=False)
        for option in reversed(
            (
                click.option(
                    "--address",
                    envvar="APPOINTMENTS_ADDRESS",
                    default="localhost:50051",
                    show_default=True,
                    show_envvar=True,
                    help="Host and port of the service (gRPC).",
                ),
                click.option(
                    "--organization",
                    envvar="APPOINTMENTS_ORGANIZATION",
                    default="default",
                    show_default=True,
                    show_envvar=True,
                ),
                click.option(
                    "--token-file",
                    type=file,
                    help="Contains the API key or token. Otherwise: APPOINTMENTS_TOKEN.",
                ),
                click.option("--tls", is_flag=True, help="Use TLS, with public authorities."),
                click.option("--ca", type=file, help="Use TLS, with this authority."),
                click.option("--certificate", type=file, help="A certificate to show."),
                click.option("--key", type=file, help="The key of --certificate."),
                click.option(
                    "--plaintext",
                    is_flag=True,
                    help="Send a token without TLS to another machine too.",
                ),
            )
        ):
            command = option(command)
        return command


class Service:
    """Calls for one organization. Temporary errors are waited out, unless `stop` is set."""

    def __init__(
        self, stub: AppointmentServiceStub, organization: str, token: str | None, stop: Event
    ) -> None:
        self.organization = organization
        self.stop = stop
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def start(self, rpc: str, request: object) -> "grpc.Future[Any]":
        """Start a call. Its result is for `finish`."""
        future: grpc.Future[Any] = getattr(self._stub, rpc).future(
            request, timeout=TIMEOUT, metadata=self._metadata
        )
        return future

    def finish(
        self, rpc: str, request: object, call: "grpc.Future[Any]", patience: "Patience"
    ) -> Any:  # noqa: ANN401
        """Return the response, and repeat the call if it fails temporarily.

        Raises grpc.RpcError if it fails for good, and CommandError if it does so for a minute.
        """
        while True:
            try:
                return call.result()
            except grpc.RpcError as error:
                fault = fault_of(error)
                if not fault.temporary:
                    raise
                patience.wait(fault)
            call = self.start(rpc, request)

    def call(self, rpc: str, request: object) -> Any:  # noqa: ANN401  a message of any type
        """Make a call. Raises CommandError if it fails."""
        try:
            return self.finish(rpc, request, self.start(rpc, request), Patience(self.stop))
        except grpc.RpcError as error:
            raise failed(fault_of(error)) from error

    def stream(self, rpc: str, request: object) -> Any:  # noqa: ANN401  a stream of any type
        """Start a call whose response is a stream."""
        return getattr(self._stub, rpc)(request, metadata=self._metadata)


class Patience:
    """Waits with growing pauses until a call succeeds, for at most GIVE_UP_AFTER seconds."""

    def __init__(self, stop: Event) -> None:
        self._stop = stop
        self._begun = monotonic()
        self._delay = FIRST_DELAY

    def wait(self, fault: Fault) -> None:
        """Wait before the next attempt. Raises CommandError if it is not worth it any more."""
        # Callers that failed together must not come back together.
        delay = max(self._delay, fault.retry_after) * random.uniform(1, 1.5)  # noqa: S311  no secret
        if monotonic() + delay > self._begun + GIVE_UP_AFTER:
            raise CommandError(f"gave up after a minute of attempts: {fault}", SERVICE_FAILED)
        self._delay = min(2 * self._delay, LONGEST_DELAY)
        if self._stop.wait(delay):
            raise CommandError(f"interrupted; the service was not available: {fault}", INTERRUPTED)


def failed(fault: Fault) -> CommandError:
    """Return the end of a command whose call was refused."""
    hint = ""
    if fault.reason == "UNAUTHENTICATED":
        hint = " (the token comes from --token-file or APPOINTMENTS_TOKEN)"
    return CommandError(f"{fault}{hint}", SERVICE_FAILED)


@contextmanager
def connected(to: Address, stop: Event) -> Iterator[Service]:
    """Yield the service. Raises CommandError if nothing answers there."""
    token = _token(to)
    encrypted = to.tls or to.ca is not None
    if token and not encrypted and not to.plaintext and not _is_loopback(to.address):
        raise click.UsageError(
            f"the token would go to {to.address} unencrypted: add --tls or --ca, or --plaintext if"
            " the network is your own"
        )
    with _channel(to, encrypted=encrypted) as channel:
        stub = AppointmentServiceStub(channel)
        if not _connects(channel):
            raise CommandError(
                f"no service answers at {to.address}: {_reason(stub)}", SERVICE_FAILED
            )
        yield Service(stub, to.organization, token, stop)


def _channel(to: Address, *, encrypted: bool) -> grpc.Channel:
    if (to.certificate is None) != (to.key is None):
        raise click.UsageError("--certificate and --key belong together")
    if not encrypted:
        if to.certificate is not None:
            raise click.UsageError("--certificate needs --tls or --ca")
        return grpc.insecure_channel(to.address, options=_CHANNEL)
    ca, key, certificate = (
        Path(name).read_bytes() if name else None for name in (to.ca, to.key, to.certificate)
    )
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.secure_channel(to.address, credentials, options=_CHANNEL)


def _connects(channel: grpc.Channel) -> bool:
    """Return whether the first attempt to connect succeeds."""
    settled = Event()
    seen: list[grpc.ChannelConnectivity] = []

    def look(state: grpc.ChannelConnectivity) -> None:
        seen.append(state)
        if state in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
            settled.set()

    channel.subscribe(look, try_to_connect=True)
    settled.wait(CONNECT_TIMEOUT)
    channel.unsubscribe(look)
    return grpc.ChannelConnectivity.READY in seen


def _reason(stub: AppointmentServiceStub) -> str:
    """Return why the channel is not ready, which only a call says."""
    try:
        stub.ListAppointments(ListAppointmentsRequest(page_size=1), timeout=1)
    except grpc.RpcError as error:
        return fault_of(error).detail
    return "it was not ready in time"


def _token(to: Address) -> str | None:
    token = os.environ.get("APPOINTMENTS_TOKEN")
    if to.token_file is not None:
        token = Path(to.token_file).read_text(encoding="utf-8", errors="replace")
    token = (token or "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise click.UsageError("the token must be one word of ASCII characters")
    return token or None


def _is_loopback(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.removeprefix("dns:///").rpartition(":")[0].strip("[]") or address
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
