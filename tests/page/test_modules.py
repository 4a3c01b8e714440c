"""The modules of the page: their types, and the libraries, as their authors published them."""

import json
import re
from pathlib import Path

import pytest

from local.programs import ROOT
from local.sbom import LOCK, VENDORED
from tests.clients.conftest import ENVIRONMENT, Run

pytestmark = pytest.mark.timeout(600)

PAGE = ROOT / "gateway" / "static" / "page"
CHECKED = {
    "allowJs": True,
    "checkJs": True,
    "strict": True,
    "noEmit": True,
    "noUnusedLocals": True,
    "target": "es2023",
    "module": "es2022",
    "lib": ["es2023", "dom", "dom.iterable", "dom.asynciterable"],
    "types": [],
}


def test_the_types_of_the_modules_are_right(tools: Run, tmp_path: Path) -> None:
    configuration = {"compilerOptions": CHECKED, "include": [f"{PAGE}/*.js"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(configuration))
    tools("tsc", "--project", "tsconfig.json", cwd=tmp_path)


@pytest.mark.parametrize(("folder", "package"), VENDORED.items())
def test_a_library_is_unchanged(tools: Run, folder: str, package: str) -> None:
    for path in (PAGE.parent / folder).iterdir():
        published = ENVIRONMENT / "node_modules" / package / path.name
        assert path.read_bytes() == published.read_bytes(), path.name


def test_the_version_of_the_timeline_is_told() -> None:
    package = VENDORED["daypilot"]
    entry = json.loads(LOCK.read_text())["packages"][f"node_modules/{package}"]
    told = (ROOT / "docs/page.md").read_text("utf-8")
    assert f"`{package}` {entry['version']}" in told
    assert f"`{entry['integrity']}`" in told


@pytest.mark.parametrize("path", sorted(PAGE.iterdir()), ids=lambda path: path.name)
def test_a_file_is_small_and_has_nothing_inline(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", text)
    assert not re.search(r"(src|href)=\"(https?:)?//|import .*\"https?:", text), "another host"
