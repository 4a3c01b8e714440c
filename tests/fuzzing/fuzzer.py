"""Fuzzes one target: `python -m tests.fuzzing.fuzzer TARGET [OPTION...]`, as libFuzzer has them."""

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway", "service", "public_json"]):
    from tests.fuzzing.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    name = sys.argv.pop(1)
    target = TARGETS[name]

    def kept(data: bytes) -> None:
        """Store what shows a fault."""
        try:
            target(data)
        except BaseException:
            (CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
            raise

    atheris.Setup(sys.argv, kept)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
