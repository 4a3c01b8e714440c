"""The modules of the page: their types, and the library, which is as its authors published it."""

import json
import re
from pathlib import Path

import pytest

from local.programs import ROOT
from tests.clients.conftest import ENVIRONMENT, Run

pytestmark = pytest.mark.timeout(600)

PAGE = ROOT / "gateway" / "static" / "page"
LIBRARY = ROOT / "gateway" / "static" / "daypilot"
PACKAGE = "@daypilot/daypilot-lite-javascript"
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


def test_the_library_is_unchanged_and_its_version_is_told(tools: Run) -> None:
    package = ENVIRONMENT / "node_modules" / PACKAGE
    for path in LIBRARY.iterdir():
        assert path.read_bytes() == (package / path.name).read_bytes(), path.name
    locked = json.loads((ROOT / "tests/clients/package-lock.json").read_text())
    entry = locked["packages"][f"node_modules/{PACKAGE}"]
    told = (ROOT / "docs/page.md").read_text("utf-8")
    assert f"`{PACKAGE}` {entry['version']}" in told
    assert f"`{entry['integrity']}`" in told


@pytest.mark.parametrize("path", sorted(PAGE.iterdir()), ids=lambda path: path.name)
def test_a_file_is_small_and_has_nothing_inline(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", text)
    assert not re.search(r"(src|href)=\"(https?:)?//|import .*\"https?:", text), "another host"
