"""Spans, sent by OTLP over HTTP. Imported only if traces are on: see runtime/tracing.py.

What the environment says of OpenTelemetry's SDK and exporter holds (`OTEL_*`).

Spans wait in a bounded queue, and a thread sends them. While the collector is away or slow, the
oldest are dropped; no call waits for it.
"""

import asyncio
import logging
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Token
from time import monotonic
from typing import Literal, Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import (
    Link,
    SpanKind,
    StatusCode,
    set_span_in_context,
)
from opentelemetry.trace import Span as OpenTelemetrySpan
from opentelemetry.trace import Tracer as OpenTelemetryTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runtime.tracing import TRACEPARENT, TRACESTATE, current_span

# Seconds for which spans are sent when a program stops.
CLOSE_SECONDS = 5.0
# Between two lines about a collector that is away.
LOG_SECONDS = 60.0
# Spans that one span is linked with. The exporter has a limit of its own, for what it sends.
MAX_LINKS = 128

Kind = Literal["server", "client", "internal", "producer", "consumer"]
Attribute = str | int

_KINDS: dict[Kind, SpanKind] = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "internal": SpanKind.INTERNAL,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_NO_PARENT = Context()
# As the W3C writes it; other versions and flags are left to the library.
_NOT_SAMPLED = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-00")
_PROPAGATOR = TraceContextTextMapPropagator()


class Span:
    """A span that is sampled. As a context manager it is the current one, and ends with the block.

    Attributes have ids and numbers, never titles, attributes, actors or texts of errors.
    """

    __slots__ = ("_context", "_span", "_token", "_tracer")

    def __init__(self, tracer: OpenTelemetryTracer, span: OpenTelemetrySpan) -> None:
        self._tracer = tracer
        self._span = span
        self._context = span.get_span_context()
        self._token: Token[Span | None] | None = None

    def __enter__(self) -> Self:
        self._token = current_span.set(self)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._token is not None:
            current_span.reset(self._token)
        self.end(error=type(error).__name__ if error is not None else None)

    @property
    def exemplar(self) -> dict[str, str]:
        """Its ids, as Prometheus shows them next to a bucket."""
        return {"trace_id": self.trace_id, "span_id": f"{self._context.span_id:016x}"}

    @property
    def trace_id(self) -> str:
        return f"{self._context.trace_id:032x}"

    @property
    def traceparent(self) -> str:
        """The header for what it calls (W3C Trace Context, section 3.2)."""
        flags = int(self._context.trace_flags)
        return f"00-{self._context.trace_id:032x}-{self._context.span_id:016x}-{flags:02x}"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers for what it calls."""
        headers: tuple[tuple[str, str], ...] = ((TRACEPARENT, self.traceparent),)
        if self._context.trace_state:
            headers += ((TRACESTATE, self._context.trace_state.to_header()),)
        return headers

    def child(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        links: "Sequence[Span]" = (),
        began: int | None = None,
        **attributes: Attribute,
    ) -> "Span":
        """Begin a child, now or at `began` (nanoseconds since 1970)."""
        span = self._tracer.start_span(
            name,
            set_span_in_context(self._span, _NO_PARENT),
            _KINDS[kind],
            _named(attributes),
            [Link(span._context) for span in links[:MAX_LINKS]],  # noqa: SLF001  of this class
            began,
        )
        return Span(self._tracer, span)

    def link(self, other: "Span") -> None:
        self._span.add_link(other._context)  # noqa: SLF001  of this class

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, **attributes: Attribute | None) -> None:
        """Add attributes, except those that are None."""
        for name, value in _named(attributes).items():
            self._span.set_attribute(name, value)

    def end(self, *, error: str | None = None, **attributes: Attribute | None) -> None:
        """End it. `error` is the kind of its failure."""
        self.set(**attributes)
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _Seldom(logging.Filter):
    """Passes a line each LOG_SECONDS: a collector that is away stays so for a while."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, _: logging.LogRecord) -> bool:
        now = monotonic()
        if now < self._next:
            return False
        self._next = now + LOG_SECONDS
        return True


class Tracer:
    """Begins spans that have no parent in this process, and sends all of them."""

    def __init__(self, service_name: str) -> None:
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_Seldom())
        given = OTELResourceDetector().detect().attributes
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: service_name, **given}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("appointments")
        self._follows_callers = isinstance(self._provider.sampler, ParentBased)

    def begin(
        self,
        name: str,
        traceparent: str | None,
        tracestate: str | None = None,
        *,
        kind: Kind = "server",
        began: int | None = None,
        **attributes: Attribute,
    ) -> Span | None:
        """Begin a span that continues a trace, or a new one without a valid `traceparent`.

        Returns None if it is not sampled, which costs little.
        """
        context = _NO_PARENT
        if traceparent is not None:
            if self._follows_callers and _NOT_SAMPLED.fullmatch(traceparent):
                return None
            carrier = {TRACEPARENT: traceparent, TRACESTATE: tracestate or ""}
            context = _PROPAGATOR.extract(carrier, _NO_PARENT)
        span = self._tracer.start_span(
            name, context, _KINDS[kind], _named(attributes), start_time=began
        )
        return Span(self._tracer, span) if span.is_recording() else None

    def record_shared(self, name: str, shared: str, contexts: Sequence[str], *, began: int) -> None:
        """Record what was done for several traces at once, from `began` until now.

        Each trace gets a span with this name, and the first one the span of the shared work.
        """
        begun = [self.begin(name, each, kind="consumer", began=began) for each in contexts]
        spans = [span for span in begun if span is not None]
        if not spans:
            return
        together = spans[0].child(shared, kind="client", links=spans, began=began)
        together.end()
        for span in spans:
            span.link(together)
            span.end()

    async def close(self) -> None:
        """Send what waits, for CLOSE_SECONDS at most."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done.set)

        # A daemon, so that the program ends whatever the collector does.
        threading.Thread(target=shut_down, daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await done.wait()


def _named(attributes: dict[str, Attribute] | dict[str, Attribute | None]) -> dict[str, Attribute]:
    """Return attributes by their full names: `db_query_text` is `db.query.text`."""
    return {
        _NAMES.get(name, f"appointments.{name}"): value
        for name, value in attributes.items()
        if value is not None
    }


# The names of OpenTelemetry's conventions.
_NAMES = {
    "http_method": "http.request.method",
    "http_status": "http.response.status_code",
    "grpc_code": "rpc.response.status_code",
    "database": "db.system.name",
    "statement": "db.query.text",
    "messaging": "messaging.system",
}
