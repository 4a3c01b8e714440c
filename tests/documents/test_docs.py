"""The commands of the documents run in order; links and tables match the code."""

import importlib.util
import re
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from appointments.v1 import rules_pb2
from appointments.v1.appointment_pb2 import Appointment
from pydantic_settings import BaseSettings

import gateway.metrics
import gateway.settings
import service.metrics
import service.settings
from local.programs import ROOT
from local.rabbitmq import free_ports
from local.stack import base_environment
from tests.documents.reader import Reader, blocks_of, commands_of

pytestmark = pytest.mark.slow

# In the order in which a newcomer reads them. Each continues what those before it have started.
FIRST = [ROOT / "README.md", ROOT / "docs/api.md", ROOT / "docs/events.md"]
DOCUMENTS = [*FIRST, *sorted({*(ROOT / "docs").rglob("*.md")} - {*FIRST})]
MAX_README_LINES = 160

# Commands of the documents that are not run here, and what runs them instead, or why nothing does.
NOT_RUN = {
    "make test": "it runs this test",
    "make test-fast": "make test, which runs its tests too",
    "make demo": "docs/development.md",
    "make demo-fosdem": "docs/development.md",
    "make pictures": "whoever changes how the calendar looks",
    "make chaos": ".ci/run",
    "make torture": ".ci/run",
    "make fuzz": ".ci/run",
    "make audit": ".ci/run",
    "make sbom": "tests/documents/test_supply.py",
    "make torture DURATION=1200 FAULTS=50 SEED=1": "tests/torture/test_run.py",
    "make torture DURATION=1080 FAULTS=50 RATE=1000 SEED=3031": "a measurement of 20 minutes",
    "python -m tests.torture --check torture.jsonl": "tests/torture/test_run.py",
    "make bench": "tests/test_bench.py",
    "make bench-quick": "tests/test_bench.py",
    "make bench JSON=results.json": "tests/test_bench.py",
    "make bench-plot JSON=results.json": "tests/test_bench.py",
    "python -m bench --only eventual": "tests/test_bench.py",
    "python -m bench --only availability": "tests/test_bench.py",
    "python -m bench --only holds": "tests/test_bench.py",
    "python -m bench --only reads": "tests/test_bench.py",
    "python -m bench.abuse": "tests/test_bench.py",
    "python -m bench.idle": "tests/test_bench.py",
    "python -m bench.logs --to json": "tests/test_bench.py",
    "python -m bench.credentials": "tests/test_bench.py",
    "python -m bench.tracing": "tests/test_bench.py",
    "python -m bench.dispatch": "tests/test_bench.py",
    "python -m bench.conditional": "tests/test_bench.py",
    "python -m bench.history": "tests/test_bench.py",
    "python -m bench.tls": "tests/test_bench.py",
    "python -m bench.verify": "tests/test_bench.py",
    "python -m bench.imports": "tests/test_bench.py",
    "python -m bench.pooler": "tests/test_bench.py",
    "python -m bench.pooler --rounds 3 --seconds 1": "tests/test_bench.py",
    "python -m service verify": "tests/verify/test_command.py",
    "make run": "the blocks of README.md",
    "LOG_LEVEL=warning make run": "tests/local/test_run.py",
    "make migrate": "tests/postgres/test_migrations.py",
    "make migration NAME=what_changes": "tests/postgres/test_schema.py",
    "make schema": "tests/postgres/test_schema.py",
    "python -m bench.forms": "tests/test_bench.py",
    "python -m bench.floor": "a measurement that takes minutes",
    "python -m bench.instances": "a measurement that takes minutes",
    "make release VERSION=1.2.3": "tests/upgrades/test_release.py",
    "python -m service new-epoch": "tests/restores/test_restores.py",
    "python -m service rotate-secrets": "tests/webhooks/test_encryption.py",
    "make protos": "make lint, which runs it and compares",
    "make lint": ".ci/run",
    "make image-check": ".ci/run",
    "make compose-check": ".ci/run",
    "make wheels": ".ci/run",
    "make help": "tests/documents/test_docs.py",
    "python -m service": "tests/conftest.py",
    "python -m service worker": "tests/conftest.py",
    "python -m gateway": "tests/conftest.py",
    "python -m client": "tests/client/command.py",
    "python -m service purge": "tests/erasure/test_purge.py",
    "python -m service purge ORGANIZATION": "tests/erasure/test_purge.py",
    "python -m service keys": "tests/access/test_keys_command.py",
    "python -m service keys create --subject booking --organization clinic --scope"
    " appointments.read --scope appointments.write": "tests/access/test_keys_command.py",
    "python -m service keys list": "tests/access/test_keys_command.py",
    "python -m service keys rotate ID --overlap 24h": "tests/access/test_keys_command.py",
    "python -m service keys revoke ID": "tests/access/test_keys_command.py",
    "python -m service keys revoke -": "tests/access/test_keys_command.py",
    "apt-get install wrk": ".ci/run",
    "docker compose up --build": "make compose-check, with an image that is built already",
    "DATABASE_HOST=citus docker compose --profile citus up --build": "it needs an image of Citus",
    "helm upgrade --install appointments deploy/helm --values values.yaml": "it needs a cluster",
}
COMMAND_WORDS = "make|python|pip|apt|apt-get|docker|curl|buf|grpcurl|npm|npx|psql|wrk|helm"


@pytest.fixture
def tmp_path(reachable_path: Path) -> Path:
    return reachable_path


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A copy of the project, to which the reader may write."""
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
def test_the_commands_of_the_documents_do_what_they_show(
    desk: Path, environment: dict[str, str]
) -> None:
    gateway, service, receiver, *metrics = map(str, free_ports(6))
    names = ("METRICS_PORT", "GATEWAY_METRICS_PORT", "WORKER_METRICS_PORT")
    settings = {
        "GATEWAY_PORT": gateway,
        "GRPC_PORT": service,
        "RUN_DATA_DIR": str(desk / "run-data" / "postgres"),
        **dict(zip(names, metrics, strict=True)),
    }
    known = {"3000": gateway, "50051": service, "8080": receiver}
    ran = 0
    with Reader(desk, {**environment, **settings}, known) as reader:
        for block in (block for document in DOCUMENTS for block in blocks_of(document)):
            if block.file:
                reader.save(block)
            elif block.language == "text":
                reader.read_on(block)
            elif block.language in {"sh", "console"}:
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


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MAX_README_LINES


def anchors_of(document: Path) -> set[str]:
    """Return the anchors that GitHub creates for a document's headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    for document in [*DOCUMENTS, ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)]+)\)", document.read_text("utf-8")):
            path, _, anchor = target.partition("#")
            if ":" in path:
                continue
            linked = (document.parent / path).resolve() if path else document
            assert linked.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors_of(linked), f"{document.name}: {target}"


def test_every_path_in_a_document_exists() -> None:
    folders = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")}
    for document in DOCUMENTS:
        for path in re.findall(r"`([\w.-]+/[\w./-]*)`", document.read_text("utf-8")):
            if path.partition("/")[0] in folders:
                assert (ROOT / path).exists(), f"{document.name}: {path}"


def test_every_name_after_a_path_is_in_the_file() -> None:
    """As in: `service/rpc/handler.py` (`_admit`)."""
    found = [
        (path, names)
        for document in DOCUMENTS
        for path, names in re.findall(
            r"`([\w./]+\.(?:py|sql|proto))` \((`\w+`[^)]*)\)", document.read_text("utf-8")
        )
    ]
    assert len(found) > 10
    for path, names in found:
        defined = (ROOT / path).read_text("utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", defined), f"{path}: {name}"


def test_the_limits_of_the_api_guide_are_those_of_the_protos() -> None:
    guide = (ROOT / "docs/api.md").read_text("utf-8")
    for field, sentence in [
        ("id", "Ids {:,} characters"),
        ("organization_id", "organization {:,}"),
        ("title", "title {:,}"),
    ]:
        options = Appointment.DESCRIPTOR.fields_by_name[field].GetOptions()
        assert sentence.format(options.Extensions[rules_pb2.rules].max_length) in guide


def test_the_table_of_metrics_lists_all_of_them() -> None:
    text = (ROOT / "docs/operations.md").read_text("utf-8").partition("\n## Metrics\n")[2]
    of_gateway = gateway.metrics.Metrics(in_flight=lambda: 0, streams=lambda: 0)
    registries = (service.metrics.Metrics().registry, of_gateway.registry)
    registered = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for registry in registries
        for family in registry.collect()
        if family.name.startswith(("appointments_", "gateway_"))
    }
    assert set(re.findall(r"`((?:appointments|gateway)_\w+)`", text)) == registered


def configuration() -> Iterator[tuple[str, str, str]]:
    """Each row of the tables of settings: its section, the variable, the default."""
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    for section, rows in re.findall(r"^## (.*)\n((?:(?!## ).*\n?)*)", text, re.MULTILINE):
        for name, default in re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", rows, re.MULTILINE):
            yield section, name, default


def defaults(model: type[BaseSettings]) -> dict[str, str]:
    """A program's settings and their defaults, as the document writes them."""

    def written(value: Any) -> str:
        if value is None or value == ():
            return "none"
        if isinstance(value, tuple):
            return f"`{','.join(value)}`"
        return f"`{int(value) if isinstance(value, float) and value.is_integer() else value}`"

    return {
        name.upper(): "required" if field.is_required() else written(field.get_default())
        for name, field in model.model_fields.items()
    }


def test_the_tables_of_settings_are_those_of_the_programs() -> None:
    of_service = defaults(service.settings.Settings)
    of_gateway = defaults(gateway.settings.Settings)
    shared = of_service.keys() & of_gateway.keys()
    rows = list(configuration())
    assert len({name for _, name, _ in rows}) == len(rows), "a setting has two rows"
    assert {name: default for _, name, default in rows} == of_service | of_gateway
    assert all(of_service[name] == of_gateway[name] for name in shared)
    assert {name for section, name, _ in rows if section == "Several programs"} == shared
    assert {name for section, name, _ in rows if section == "Gateway"} == of_gateway.keys() - shared


def spans() -> dict[str, str]:
    """Return the commands within sentences, with the position of their first occurrence."""
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
