"""Clients in TypeScript, generated from the document, checked strictly, and used."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from local.programs import Program
from tests.clients.conftest import BOOKING, ENVIRONMENT, PROGRAMS, Run

pytestmark = pytest.mark.timeout(600)

GENERATORS: Mapping[str, tuple[str, ...]] = {
    "openapi_fetch": ("openapi-typescript", "openapi.json", "--output", "generated/openapi.ts"),
    "hey_api": (
        *("openapi-ts", "--input", "openapi.json", "--output", "generated/hey_api"),
        *("--client", "@hey-api/client-fetch", "--no-log-file"),
    ),
    "orval": ("orval", "--config", "orval.config.mjs"),
}
CHECKED = {
    "strict": True,
    "skipLibCheck": False,
    "noUnusedLocals": True,
    "target": "es2022",
    "lib": ["es2022", "dom", "dom.iterable"],
    "types": [],
    "module": "commonjs",
    "moduleResolution": "node10",
    "outDir": "compiled",
}


@pytest.mark.parametrize("name", GENERATORS)
def test_the_generated_client_books(
    name: str, tools: Run, document: Path, gateway: Program, organization: str
) -> None:
    place = document.parent
    (place / "node_modules").symlink_to(ENVIRONMENT / "node_modules")
    program = f"{name}.ts"
    (place / program).write_text((PROGRAMS / program).read_text())
    if name == "orval":
        output = {"target": "generated/orval.ts", "client": "fetch", "baseUrl": gateway.url}
        config = {"api": {"input": {"target": "openapi.json"}, "output": output}}
        (place / "orval.config.mjs").write_text(f"export default {json.dumps(config)};\n")
    said = tools(*GENERATORS[name], cwd=place)
    assert not re.search("warn|error|\N{WARNING SIGN}", said, re.IGNORECASE), said
    configuration = {"compilerOptions": CHECKED, "files": [program], "include": ["generated"]}
    (place / "tsconfig.json").write_text(json.dumps(configuration))
    tools("tsc", cwd=place)
    done = tools("node", f"compiled/{name}.js", gateway.url, organization, cwd=place)
    assert done == BOOKING
