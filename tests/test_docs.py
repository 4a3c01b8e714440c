"""The README's commands are run in order; those in sentences of all documents are accounted for."""

import importlib.util
import re
import subprocess
import venv
from pathlib import Path

import pytest

from scripts.programs import ROOT
from scripts.rabbitmq import free_ports
from scripts.stack import base_environment
from tests.reader import Reader, blocks_of, commands_of

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Commands of the documents that no reader of them runs here, and why or what runs them instead.
NOT_RUN = {
    "make test": "it runs this test",
    "make bench": "tests/test_bench.py",
    "make bench-quick": "tests/test_bench.py",
    "make bench JSON=results.json": "tests/test_bench.py",
    "make bench-plot JSON=results.json": "tests/test_bench.py",
    "python -m bench --only eventual": "tests/test_bench.py",
    "make run": "the blocks of README.md",
    "LOG_LEVEL=warning make run": "tests/test_run.py",
    "make migrate": "tests/test_migrations.py",
    "make protos": "make lint, which runs it and compares",
    "make help": "tests/test_docs.py",
    "python -m service": "tests/conftest.py",
    "python -m service worker": "tests/conftest.py",
    "python -m gateway": "tests/conftest.py",
    "apt-get install wrk": ".ci/run",
    "docker compose up --build": "it needs a container engine",
}
COMMAND_WORDS = "make|python|pip|apt|apt-get|docker|curl|buf|grpcurl|npm|npx|psql|wrk"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A directory that has all that is in the project, and takes what the reader saves."""
    for entry in ROOT.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / ".data").unlink(missing_ok=True)
    return tmp_path


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A shell with Python, whose packages are not those of the tests."""
    home = tmp_path_factory.mktemp("home")
    venv.create(home / "venv", with_pip=True, symlinks=True)
    environment = base_environment()
    environment["PATH"] = f"{home}/venv/bin:{environment['PATH']}"
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    return environment


@pytest.mark.timeout(600)
def test_the_commands_of_the_readme_do_what_it_shows(
    desk: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    gateway, service, receiver, *metrics = map(str, free_ports(6))
    names = ("METRICS_PORT", "GATEWAY_METRICS_PORT", "WORKER_METRICS_PORT")
    settings = {
        "GATEWAY_PORT": gateway,
        "GRPC_PORT": service,
        "RUN_DATA_DIR": str(tmp_path_factory.mktemp("data") / "postgres"),
        **dict(zip(names, metrics, strict=True)),
    }
    known = {"3000": gateway, "50051": service, "8080": receiver}
    ran = 0
    with Reader(desk, {**environment, **settings}, known) as reader:
        for block in blocks_of(ROOT / "README.md"):
            if block.file:
                reader.save(block)
            elif block.language == "text":
                reader.read_on(block)
            else:
                for command in commands_of(block):
                    if command.bare not in NOT_RUN or command.runs_on:
                        reader.run(command)
                        ran += 1
    assert ran > 10


def test_every_block_is_one_that_the_reader_knows() -> None:
    for document in DOCUMENTS:
        for block in blocks_of(document):
            known = block.file or block.language in {"sh", "console", "text"}
            assert known, f"{block.place}: ```{block.language}"
            # Only the README is a way to follow; another document has its test when it gets one.
            assert document.name == "README.md", f"{block.place} is run by no test"


def spans() -> dict[str, str]:
    """The commands within sentences, and where the first of each stands."""
    found: dict[str, str] = {}
    for document in DOCUMENTS:
        prose = re.sub(
            r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
        )
        for span in re.findall(r"`([^`\n]+)`", prose):
            if re.match(rf"(?:[A-Z_]+=\S+ )*(?:{COMMAND_WORDS}) \S", span):
                found.setdefault(span, document.name)
    return found


def test_every_command_in_a_sentence_names_what_runs_it() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    found = spans()
    assert set(found) == set(NOT_RUN), "NOT_RUN says what runs each, and nothing else"
    for span, where in NOT_RUN.items():
        first, *words = (word for word in span.split() if "=" not in word)
        if first == "make":
            assert words[0] in targets, f"{found[span]}: {span}"
        if first == "python":
            assert importlib.util.find_spec(words[1]), f"{found[span]}: {span}"
        if "/" in where:
            assert (ROOT / where).exists(), f"{span}: {where}"


def test_the_help_lists_every_target() -> None:
    helped = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    [targets] = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {line.split()[0] for line in helped.stdout.splitlines()} == set(targets.split())
