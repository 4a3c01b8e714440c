"""A collector of spans: a real HTTP server that takes OTLP with protobuf."""

import gzip
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2 as pb

from tests.observing import until

# Programs send their spans soon.
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "20"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A span as it was received. Ids are hexadecimal, `parent` is empty without a parent."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    links: frozenset[tuple[str, str]]
    attributes: Mapping[str, Any]
    failed: bool

    @property
    def place(self) -> tuple[str, str]:
        return self.trace, self.id


class Collector:
    """Receives spans. Use it as a context manager."""

    def __init__(self) -> None:
        self.spans: list[Recorded] = []
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                collector.add(body, dict(self.headers))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def settings(self) -> dict[str, str]:
        """The variables of a program that sends its spans here."""
        url = f"http://127.0.0.1:{self._server.server_port}"
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, **SOON}

    def add(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.bodies.append(body)
        self.headers.append(headers)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_recorded(about["service.name"], span) for span in scope.spans]

    def of(self, trace: str, count: int) -> list[Recorded]:
        """Return the spans of a trace as soon as there are so many. Fails if there are more."""
        until(lambda: len([span for span in self.spans if span.trace == trace]) >= count)
        found = [span for span in self.spans if span.trace == trace]
        assert len(found) == count, [(span.service, span.name) for span in found]
        return found

    def one(self, trace: str, name: str) -> Recorded:
        """Return the span of a trace with a name, as soon as it is there."""
        until(lambda: any(span.trace == trace and span.name == name for span in self.spans))
        [found] = [span for span in self.spans if span.trace == trace and span.name == name]
        return found


def _values(attributes: Any) -> dict[str, Any]:
    def value(each: KeyValue) -> Any:
        return getattr(each.value, each.value.WhichOneof("value") or "string_value")

    return {each.key: value(each) for each in attributes}


def _recorded(service: str, span: pb.Span) -> Recorded:
    return Recorded(
        service=service,
        name=span.name,
        kind=pb.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=frozenset((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        attributes=_values(span.attributes),
        failed=span.status.code == pb.Status.STATUS_CODE_ERROR,
    )
