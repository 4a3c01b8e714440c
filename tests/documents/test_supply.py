"""The pinned dependencies: every one with its hashes, and listed in the bill of materials."""

import base64
import json
import re
import subprocess
from pathlib import Path

import pytest

from local.programs import ROOT
from local.sbom import LOCK, VENDORED

LOCKS = ["requirements.txt", "requirements-run.txt", "requirements-dev.txt"]
OTHER_LOCKS = ["tests/clients/requirements.txt", "protos/requirements.txt"]


def pinned(path: Path) -> dict[str, tuple[str, set[str]]]:
    """Return the version and the SHA-256 hashes of each package of a lock file."""
    packages = {}
    for entry in re.split(r"(?m)^(?=[a-z0-9])", path.read_text()):
        if found := re.match(r"([a-z0-9._-]+)==([^ ;\\]+)", entry):
            packages[found[1]] = found[2], set(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
    return packages


@pytest.mark.parametrize("lock", LOCKS + OTHER_LOCKS)
def test_every_pinned_package_has_hashes(lock: str) -> None:
    packages = pinned(ROOT / lock)
    assert packages
    assert [name for name, (_, hashes) in packages.items() if not hashes] == []
    assert "://" not in (ROOT / lock).read_text()


def test_the_bill_of_materials_lists_what_the_image_contains(tmp_path: Path) -> None:
    written = tmp_path / "sbom.json"
    subprocess.run(
        ["make", "--silent", "sbom", f"SBOM={written}"], cwd=ROOT, check=True, capture_output=True
    )
    document = json.loads(written.read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "appointments"
    listed = {
        component["purl"]: (
            component["name"],
            component["version"],
            {
                each["content"]
                for reference in component["externalReferences"]
                for each in reference["hashes"]
            },
        )
        for component in document["components"]
    }
    expected = {
        f"pkg:pypi/{name}@{version}": (name, version, hashes)
        for name, (version, hashes) in pinned(ROOT / "requirements.txt").items()
    }
    # Nothing is served that is not listed.
    static = ROOT / "gateway" / "static"
    assert {path.name for path in static.iterdir() if path.is_dir()} == {*VENDORED, "page"}
    for package in VENDORED.values():
        locked = json.loads(LOCK.read_text())["packages"][f"node_modules/{package}"]
        digest = base64.b64decode(locked["integrity"].removeprefix("sha512-")).hex()
        url = f"pkg:npm/{package.replace('@', '%40')}@{locked['version']}"
        expected[url] = (package.rpartition("/")[2], locked["version"], {digest})
    assert listed == expected
