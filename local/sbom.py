"""`make sbom`: adds to the bill of materials the JavaScript that the gateway serves.

The libraries are in `gateway/static`, as their authors published them: tests compare them with the
packages of the npm lock file, which has their versions and digests. What a library has bundled is
part of it, and is not listed.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

from local.programs import ROOT

LOCK = ROOT / "tests" / "clients" / "package-lock.json"
VENDORED = {"daypilot": "@daypilot/daypilot-lite-javascript", "swagger-ui": "swagger-ui-dist"}
"""npm packages by the folder of `gateway/static` that contains files of them."""


def component(name: str) -> dict[str, Any]:
    """Return a package of the lock file as a CycloneDX component."""
    locked = json.loads(LOCK.read_text())["packages"][f"node_modules/{name}"]
    algorithm, _, digest = locked["integrity"].partition("-")
    scope, _, short = name.rpartition("/")
    url = f"pkg:npm/{name.replace('@', '%40')}@{locked['version']}"
    return {
        "type": "library",
        "bom-ref": url,
        **({"group": scope} if scope else {}),
        "name": short,
        "version": locked["version"],
        "licenses": [{"license": {"id": locked["license"]}}],
        "purl": url,
        "externalReferences": [
            {
                "type": "distribution",
                "url": url,
                "hashes": [
                    {
                        "alg": algorithm.upper().replace("SHA", "SHA-"),
                        "content": base64.b64decode(digest).hex(),
                    }
                ],
            }
        ],
    }


def main(path: Path) -> None:
    document = json.loads(path.read_text())
    found = [component(name) for name in VENDORED.values()]
    document["components"] += found
    document["dependencies"] += [{"ref": each["bom-ref"]} for each in found]
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
