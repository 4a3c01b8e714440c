"""The stubs are all that a caller needs, and contain nothing of the service."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from local.programs import ROOT, Program
from local.stack import base_environment
from tests.packages import NOT_THERE, environment_with

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "protos" / "pyproject.toml").read_text())["project"]
# The oldest and the first excluded version of each requirement of the stubs.
RANGES = {
    name: (oldest, end)
    for name, oldest, end in re.findall(
        r"(grpcio|protobuf)>=([\d.]+),<(\d+)", " ".join(PROJECT["dependencies"])
    )
}


@pytest.fixture(scope="module", params=["oldest", "protobuf before 7", "newest"])
def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which only the stubs were installed.

    What they need is the oldest that they allow, what a caller has who is kept from the
    newest protobuf, or the newest.
    """
    wanted: list[str] = []
    if request.param == "oldest":
        wanted = [f"protobuf=={RANGES['protobuf'][0]}"]
        if sys.version_info < (3, 14):  # there is none as old for later ones
            wanted.append(f"grpcio=={RANGES['grpcio'][0]}")
    elif request.param == "protobuf before 7":
        wanted = ["protobuf<7"]
    python = environment_with(tmp_path_factory.mktemp("caller"), ROOT / "protos", *wanted)
    if request.param == "newest":
        code = "import google.protobuf, grpc; print(google.protobuf.__version__, grpc.__version__)"
        versions = subprocess.check_output([python, "-c", code], text=True).split()
        majors = [int(version.partition(".")[0]) + 1 for version in versions]
        assert majors == [int(RANGES[name][1]) for name in ("protobuf", "grpcio")]
    return python


def test_the_stubs_require_what_generated_them() -> None:
    texts = [path.read_text() for path in (ROOT / "protos").rglob("*_pb2.py")]
    checks = [re.search(r"ValidateProtobufRuntimeVersion\(([^)]*)\)", text) for text in texts]
    protobuf = {
        ".".join(re.findall(r"^\s+(\d+),$", check[1], re.MULTILINE)) for check in checks if check
    }
    grpcio = {
        version
        for path in (ROOT / "protos").rglob("*_pb2_grpc.py")
        for version in re.findall(
            r"^GRPC_GENERATED_VERSION = '(.*)'$", path.read_text(), re.MULTILINE
        )
    }
    minimums = {name: {oldest} for name, (oldest, _) in RANGES.items()}
    assert minimums == {"protobuf": protobuf, "grpcio": grpcio}


def run(python: Path, directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        cwd=directory,
        env=base_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(600)
def test_the_stubs_bring_nothing_of_the_service(caller: Path, tmp_path: Path) -> None:
    code = f"""
import importlib.util
import warnings
warnings.simplefilter("error")
import appointments.v1.appointment_service_pb2_grpc
print([name for name in {NOT_THERE!r} if importlib.util.find_spec(name) is not None])
"""
    done = run(caller, tmp_path, "-c", code)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.timeout(600)
def test_the_stubs_are_typed(caller: Path, tmp_path: Path) -> None:
    code = "import appointments, pathlib; print(pathlib.Path(appointments.__file__).parent)"
    package = Path(run(caller, tmp_path, "-c", code).stdout.strip())
    assert (package / "py.typed").is_file()
    assert (package / "v1" / "appointment_pb2.pyi").is_file()
    assert (package / "v1" / "appointment_service.proto").is_file()


@pytest.mark.timeout(600)
def test_the_example_runs_with_the_stubs_alone(
    caller: Path, tmp_path: Path, service: Program
) -> None:
    done = run(caller, tmp_path, ROOT / "examples" / "booking.py", service.address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "CREATED meeting 10:00-10:30 version 1",
        "UNCHANGED meeting 10:00-10:30 version 1 because it is stored already: retries are safe",
        "refused, ALREADY_EXISTS, TIME_RANGE_CONFLICT, by meeting 10:00-10:30",
        "refused, INVALID_ARGUMENT, INVALID_FIELD, appointment.end: must be after start",
        "UPDATED meeting 10:00-10:15 version 2",
        "refused, ABORTED, ETAG_MISMATCH because the etag is no longer the stored one",
        "CREATED other 10:15-10:45 version 1",
        "revision 1: CREATED meeting 10:00-10:30 version 1",
        "revision 2: UPDATED meeting 10:00-10:15 version 2",
    ]
