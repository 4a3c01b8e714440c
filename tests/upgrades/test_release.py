"""`make release` on a copy of this tree: what it refuses, and what it builds."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from local.programs import ROOT
from local.release import NotReleasable, build, check
from local.stack import base_environment
from tests.api import Organization
from tests.conftest import CreateDatabase
from tests.packages import pip
from tests.upgrades.released import Release
from tests.upgrades.test_protos import BUF, RELEASED

# Each builds or installs packages in processes of their own.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

VERSION = "7.8.9"
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")


def git(root: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=root, check=True, capture_output=True)


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the files of this one, ready to be released."""
    root = tmp_path_factory.mktemp("tree")
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    replace(root / "protos/appointments/__init__.py", '"0.1.0"', f'"{VERSION}"')
    replace(root / "Dockerfile", "VERSION=0.1.0", f"VERSION={VERSION}")
    replace(root / "deploy/helm/Chart.yaml", "version: 0.1.0", f"version: {VERSION}")
    replace(root / "deploy/helm/Chart.yaml", "appVersion: 0.1.0", f"appVersion: {VERSION}")
    replace(root / "CHANGELOG.md", "## 0.1.0, unreleased", f"## {VERSION}, 2030-01-07")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "released")
    return root


def test_what_does_not_hold_is_named(tree: Path) -> None:
    check(tree, VERSION)
    with pytest.raises(NotReleasable, match=r"not 7.8.10; CHANGELOG") as refusal:
        check(tree, "7.8.10")
    for stated in (
        f'protos/appointments/__init__.py says __version__ = "{VERSION}", not 7.8.10',
        f"Dockerfile says ARG VERSION={VERSION}, not 7.8.10",
        f"deploy/helm/Chart.yaml says version: {VERSION}, not 7.8.10",
        f"deploy/helm/Chart.yaml says appVersion: {VERSION}, not 7.8.10",
    ):
        assert stated in str(refusal.value)
    with pytest.raises(NotReleasable, match="not of the form"):
        check(tree, "next")
    unknown = tree / "unknown"
    unknown.touch()
    with pytest.raises(NotReleasable, match="1 changes that are not committed"):
        check(tree, VERSION)
    unknown.unlink()
    git(tree, "tag", f"v{VERSION}")
    with pytest.raises(NotReleasable, match=f"the tag v{VERSION} exists"):
        check(tree, VERSION)
    git(tree, "tag", "--delete", f"v{VERSION}")


@pytest.fixture(scope="module")
def files(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    return build(tree, VERSION, tmp_path_factory.mktemp("dist"))


def test_the_files_of_a_release_depend_on_the_commit_only(
    tree: Path, files: Sequence[Path], tmp_path: Path
) -> None:
    assert [file.name for file in files] == [
        f"appointments-{VERSION}-py3-none-any.whl",
        f"appointments-{VERSION}.tar.gz",
        f"appointments_client-{VERSION}-py3-none-any.whl",
        f"appointments_v1-{VERSION}-py3-none-any.whl",
        f"appointments_v1-{VERSION}.tar.gz",
        f"programs-{VERSION}.tar.xz",
        f"protos-{VERSION}.binpb",
    ]
    again = build(tree, VERSION, tmp_path / "again")
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]
    with pytest.raises(NotReleasable, match="is not empty"):
        build(tree, VERSION, tmp_path / "again")


def test_the_wheels_and_programs_of_a_release_run(
    files: Sequence[Path], tmp_path: Path, create_database: CreateDatabase
) -> None:
    # The wheels have all of the project's code, next to the packages that they need.
    wheels = [file for file in files if file.suffix == ".whl"]
    installed = tmp_path / "installed"
    pip("install", "--quiet", "--no-deps", "--no-index", "--target", installed, *wheels)
    for module in ("service", "gateway", "client", "appointments"):
        found = subprocess.check_output(
            [sys.executable, "-c", f"import {module}; print({module}.__file__)"],
            cwd=tmp_path,
            env={**base_environment(), "PYTHONPATH": str(installed)},
            text=True,
        )
        assert Path(found).is_relative_to(installed)

    # What the lint and the tests of the next release need.
    config = ROOT / "protos" / "buf.yaml"
    for one, other in ((files[-1], RELEASED), (files[-1], files[-1])):
        subprocess.run([BUF, "breaking", one, "--against", other, "--config", config], check=True)
    before = {file.name for file in FileDescriptorSet.FromString(files[-1].read_bytes()).file}
    assert "appointments/v1/appointment_service.proto" in before
    assert "google/longrunning/operations.proto" in before
    release = Release(tmp_path / "programs", archive=files[-2])
    url = create_database()
    release.migrate(url)
    service = release.program("service", {"DATABASE_URL": url})
    try:
        with grpc.insecure_channel(service.wait_until_listening().address) as channel:
            Organization(AppointmentServiceStub(channel), "o").upsert("a", 0, 1)
    finally:
        assert service.stop() == 0
