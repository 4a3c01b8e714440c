"""Pages of other origins: what a browser lets them do with the API (GATEWAY_CORS_ORIGINS)."""

import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from local.programs import Program
from tests.access.credentials import Keys
from tests.conftest import CreateDatabase, StartProgram
from tests.rest_client import Client, Events

PATIENCE = 60
PAGES = {
    "/": Path(__file__).with_name("other_origin.html").read_bytes(),
    "/reader": Path(__file__).with_name("other_origin_reader.html").read_bytes(),
}
Visit = Callable[..., dict[str, Any]]


class PageServer(ThreadingHTTPServer):
    """Serves the pages on two origins, by name and by address, and takes their reports."""

    def __init__(self) -> None:
        self.reports = queue.SimpleQueue[dict[str, Any]]()
        super().__init__(("127.0.0.1", 0), _PageHandler)

    @property
    def allowed(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def other(self) -> str:
        return f"http://localhost:{self.server_port}"


class _PageHandler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGES.get(self.path.partition("?")[0], b""))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.reports.put(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def pages() -> Iterator[PageServer]:
    with PageServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cors_gateway(start_gateway: StartProgram, pages: PageServer) -> Program:
    return start_gateway(GATEWAY_CORS_ORIGINS=pages.allowed)


@pytest.fixture
def visit(organization: str, pages: PageServer, tmp_path: Path) -> Visit:
    """Open a page of an origin in Chromium, and return what it reports of a gateway."""
    chromium = shutil.which("chromium")
    if chromium is None and not os.environ.get("CI"):
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    assert chromium is not None

    def opened(page: str, gateway: Program, **more: str) -> dict[str, Any]:
        query = urlencode({"api": gateway.url, "organization": organization, **more})
        command = [
            chromium,
            "--headless",
            "--no-sandbox",  # root has none
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"{page}?{query}",
        ]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as browser:
            try:
                return pages.reports.get(timeout=PATIENCE)
            finally:
                browser.terminate()

    return opened


def test_a_browser_lets_the_pages_of_a_listed_origin_call(
    visit: Visit, pages: PageServer, cors_gateway: Program
) -> None:
    report = visit(f"{pages.allowed}/", cors_gateway)
    assert report["created"] == {
        "status": 201,
        "ETag": '"1-gzip"',
        "Location": report["created"]["Location"],
        "Appointment-Outcome": "CREATED",
        "Organization-Revision": "1",
        "X-Request-Id": "from-a-page",
        "code": None,
    }
    assert report["created"]["Location"].startswith("/api/appointments/a?organizationId=")
    assert (report["updated"]["status"], report["updated"]["ETag"]) == (200, '"2"')
    assert (report["refused"]["status"], report["refused"]["code"]) == (409, "TIME_RANGE_CONFLICT")
    assert report["unmodified"]["status"] == 304
    assert report["cancelled"]["Appointment-Outcome"] == "CANCELLED"
    assert report["events"] == ["1", "2", "3"]


def test_a_browser_keeps_everything_from_the_pages_of_other_origins(
    visit: Visit,
    pages: PageServer,
    cors_gateway: Program,
    gateway: Program,
    organization: str,
) -> None:
    report = visit(f"{pages.other}/", cors_gateway)
    assert set(report) == {"created", "updated", "refused", "unmodified", "cancelled", "events"}
    assert set(report.values()) == {"TypeError"}
    assert Client(gateway, organization).stored() == [], "no preflight was answered"


def test_a_page_reads_a_stream_with_credentials(
    visit: Visit,
    pages: PageServer,
    create_database: CreateDatabase,
    start_service: StartProgram,
    start_gateway: StartProgram,
    organization: str,
) -> None:
    url = create_database()
    service = start_service(DATABASE_URL=url, ACCESS_CONTROL="on")
    gateway = start_gateway(SERVICE_ADDRESS=service.address, GATEWAY_CORS_ORIGINS=pages.allowed)
    key = Keys(url).key(organizations=[organization])
    client = Client(gateway, organization)
    for number in range(2):
        written = client.upsert(number, resourceId=str(number), Authorization=f"Bearer {key}")
        assert written.status == 201
    report = visit(f"{pages.allowed}/reader", gateway, token=key)
    assert report == {
        "without": {"status": 401, "challenge": 'Bearer realm="appointments"'},
        "with": ["1", "2"],
    }


def test_event_streams_can_be_read_by_listed_origins_and_are_not_compressed(
    cors_gateway: Program, pages: PageServer, organization: str
) -> None:
    Client(cors_gateway, organization).upsert("a", attributes={"notes": "much to say " * 200})
    with Events(
        cors_gateway, organization, 0, Origin=pages.allowed, Accept_Encoding="gzip"
    ) as stream:
        headers = stream.response.headers
        assert headers["Access-Control-Allow-Origin"] == pages.allowed
        assert "ETag" in headers["Access-Control-Expose-Headers"]
        assert headers["Vary"] == "Accept, Origin"
        assert headers["Content-Encoding"] is None
        event = stream.event()
        assert event is not None
        assert json.loads(event["data"])["appointment"]["attributes"]["notes"]
    with Events(cors_gateway, organization, 0, Origin=pages.other) as stream:
        assert stream.response.headers["Access-Control-Allow-Origin"] is None
        assert stream.response.headers["Vary"] == "Accept, Origin"
