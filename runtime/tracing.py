"""Traces, by OpenTelemetry: off unless OTEL_EXPORTER_OTLP_ENDPOINT is set.

While they are off, nothing of OpenTelemetry is imported, no program has a tracer, no call a span.
`runtime/spans.py` is the part that is imported otherwise.
"""

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.spans import Span, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

current_span: ContextVar["Span | None"] = ContextVar("current_span", default=None)
"""The sampled span for which the current task works."""

current_tracer: ContextVar["Tracer | None"] = ContextVar("current_tracer", default=None)
"""For the tasks of a program that begin while its tracer is open. None while traces are off."""


@asynccontextmanager
async def tracing(program: str) -> AsyncIterator["Tracer | None"]:
    """Yield the tracer of a program, None while traces are off.

    At the end spans are sent for a few seconds at most. `OTEL_SERVICE_NAME` and
    `OTEL_RESOURCE_ATTRIBUTES` may give the program another name than `appointments-PROGRAM`.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield None
        return
    from runtime.spans import Tracer  # noqa: PLC0415  not imported while traces are off

    tracer = Tracer(f"appointments-{program}")
    token = current_tracer.set(tracer)
    try:
        yield tracer
    finally:
        current_tracer.reset(token)
        await tracer.close()


def shared_span(
    name: str, spans: Iterable["Span | None"], **attributes: str | int
) -> AbstractContextManager["Span | None"]:
    """Work in a block for several calls at once, of which those with a span are sampled.

    The work has a span of its own if any of them is. It is a child of the first one's, which is
    complete so, and has a link to each; each of them has a link to it.
    """
    sampled = [span for span in spans if span is not None]
    if sampled:
        return _shared(name, list(dict.fromkeys(sampled)), attributes)
    # The task may have been started by one of many calls, which is sampled.
    return _NOTHING if current_span.get() is None else _without_span()


@contextmanager
def _shared(
    name: str, sampled: "list[Span]", attributes: Mapping[str, str | int]
) -> Iterator["Span"]:
    with sampled[0].child(name, links=sampled) as shared:
        shared.set(**attributes)
        for span in sampled:
            span.link(shared)
        yield shared


@contextmanager
def _without_span() -> Iterator[None]:
    token = current_span.set(None)
    try:
        yield
    finally:
        current_span.reset(token)


_NOTHING = nullcontext()
