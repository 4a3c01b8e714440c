"""`make release VERSION=1.2.3`: checks what must hold for a release, and builds its files.

Nothing is uploaded, tagged or changed in the repository. The files depend only on the commit, not
on when and where they are built.
"""

import argparse
import lzma
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module, resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from local.programs import ROOT

# Where the version is stated. The chart names the image by its appVersion.
VERSIONS = (
    ("protos/appointments/__init__.py", r'__version__ = "(.*)"'),
    ("Dockerfile", r"ARG VERSION=(.*)"),
    ("deploy/helm/Chart.yaml", r"version: (.*)"),
    ("deploy/helm/Chart.yaml", r"appVersion: (.*)"),
)
# What each project is released as. The version of the client's sources is outside of them.
PROJECTS = {".": ("wheel", "sdist"), "protos": ("wheel", "sdist"), "client": ("wheel",)}
# For the tests of the next release; see tests/upgrades/released.py.
PROGRAMS = (
    *("service", "gateway", "runtime", "public_json", "protos/appointments", "migrations"),
    *(":!*.pyi", ":!gateway/static/swagger-ui", ":!gateway/static/daypilot"),
)


class NotReleasable(Exception):
    """Something does not hold for a release, or a step failed. The message says what."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.release", description=__doc__)
    parser.add_argument("version")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        check(ROOT, arguments.version)
        files = build(ROOT, arguments.version, arguments.out.resolve())
    except NotReleasable as error:
        sys.exit(f"error: {error}")
    for file in files:
        print(f"{file.stat().st_size:>12,} {file.name}")


def check(root: Path, version: str) -> None:
    """Raise NotReleasable, naming everything that does not hold."""
    faults = []
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        faults.append(f"the version {version!r} is not of the form 1.2.3")
    for file, line in VERSIONS:
        stated = re.search(f"^{line}$", (root / file).read_text(), re.MULTILINE)
        if stated is None or stated[1] != version:
            faults.append(f"{file} says {stated[0] if stated else 'nothing'}, not {version}")
    title = re.search(r"^## (.*)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    if title is None or not re.fullmatch(rf"{re.escape(version)}, \d{{4}}-\d\d-\d\d", title[1]):
        faults.append(
            f"CHANGELOG.md begins with '{title[1] if title else ''}', not with '{version}, ' and"
            " the date"
        )
    if changed := _git(root, "status", "--porcelain").splitlines():
        faults.append(f"the tree has {len(changed)} changes that are not committed")
    if _git(root, "tag", "--list", f"v{version}"):
        faults.append(f"the tag v{version} exists")
    if faults:
        raise NotReleasable("; ".join(faults))


def build(root: Path, version: str, out: Path) -> Sequence[Path]:
    """Build wheels, source distributions, protos and programs of a commit. Returns the files."""
    if out.exists() and any(out.iterdir()):
        raise NotReleasable(f"{out} is not empty")
    out.mkdir(parents=True, exist_ok=True)
    time = _git(root, "log", "-1", "--format=%ct").strip()
    for project, targets in PROJECTS.items():
        command = [sys.executable, "-m", "hatchling", "build", "--directory", str(out)]
        for target in targets:
            command += ["--target", target]
        done = subprocess.run(
            command,
            cwd=root / project,
            env={**os.environ, "SOURCE_DATE_EPOCH": time},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise NotReleasable(f"{project}: {done.stderr.strip()}")
    (out / f"protos-{version}.binpb").write_bytes(image())
    archive = subprocess.run(
        ["git", "archive", "--format=tar", "HEAD", "--", *PROGRAMS],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout
    (out / f"programs-{version}.tar.xz").write_bytes(lzma.compress(archive, preset=9))
    return sorted(out.iterdir())


def image() -> bytes:
    """Return the descriptors of the protos and of what they import, without comments."""
    compiled = (resources.files("appointments.v1") / "descriptors.binpb").read_bytes()
    ours = FileDescriptorSet.FromString(compiled).file
    found: dict[str, FileDescriptorProto] = {}

    def add(file: FileDescriptorProto) -> None:
        if file.name in found:
            return
        for name in file.dependency:
            if not name.startswith("appointments/"):
                module = name.removesuffix(".proto").replace("/", ".") + "_pb2"
                imported = FileDescriptorProto()
                import_module(module).DESCRIPTOR.CopyToProto(imported)
                add(imported)
        file.ClearField("source_code_info")
        found[file.name] = file

    for file in ours:
        add(file)
    return FileDescriptorSet(file=found.values()).SerializeToString(deterministic=True)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise NotReleasable(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
