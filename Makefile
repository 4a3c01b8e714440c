PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/pip install --disable-pip-version-check
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
PROTO_FILES := $(sort $(wildcard protos/appointments/v1/*.proto protos/appointments/relay/v1/*.proto))
SERVICE_FILES := $(sort $(wildcard protos/appointments/v1/*_service.proto)) protos/appointments/relay/v1/relay.proto

.DEFAULT_GOAL := help
.PHONY: help run test test-fast chaos torture image-check compose-check fuzz lint format migrate migration schema demo demo-fosdem bench bench-quick bench-plot pictures protos lock audit sbom wheels release clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment is created once, and again when its requirements change. Running needs only the
# first part; the development tools are ten times as large.
.venv/running: requirements-run.txt pyproject.toml protos/pyproject.toml protos/appointments/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --require-hashes -r requirements-run.txt
	$(PIP) --no-deps --no-build-isolation -e protos -e .
	@touch $@

.venv/installed: .venv/running requirements-dev.txt
	$(PIP) --require-hashes -r requirements-dev.txt
	@touch $@

# Client generators and Node.js for the tests that use them, in a separate environment.
.venv/clients/installed: tests/clients/requirements.txt tests/clients/package-lock.json tests/clients/.npmrc
	$(PYTHON) -m venv --clear .venv/clients
	.venv/clients/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r tests/clients/requirements.txt
	cp tests/clients/package.json tests/clients/package-lock.json tests/clients/.npmrc .venv/clients
	cd .venv/clients && PATH="$$PWD/bin:$$PATH" npm ci --loglevel=error
	@touch $@

# protoc with the gRPC plugin, older than the service's packages: see protos/requirements.in.
.venv/protoc/installed: protos/requirements.txt | .venv/installed
	$(BIN)/uv venv --quiet --clear --python ">=3.11,<3.14" .venv/protoc
	$(BIN)/uv pip install --quiet --python .venv/protoc --require-hashes --only-binary :all: -r protos/requirements.txt
	@touch $@

run: .venv/running ## Run PostgreSQL, service (50051), a worker and gateway (3000) on this machine
	@$(BIN)/python -m local.run

demo: .venv/running ## Send colliding appointments concurrently and check the result (REQUESTS=1000)
	@$(BIN)/python -m demo $(if $(REQUESTS),--requests $(REQUESTS))

demo-fosdem: .venv/running ## Load the programme of FOSDEM 2023 and find its double booking
	@$(BIN)/python -m demo fosdem

bench: .venv/installed ## Run the benchmark and compare with the database alone and with empty servers (twenty minutes; JSON=file)
	@$(BIN)/python -m bench $(if $(JSON),--json $(JSON))

bench-quick: .venv/installed ## Run a short version of the benchmark (two minutes)
	@$(BIN)/python -m bench --quick $(if $(JSON),--json $(JSON))

bench-plot: .venv/installed ## Draw the picture of docs/performance.md (JSON=file)
	@$(BIN)/python -m bench.plot $(JSON) docs/performance.svg

pictures: .venv/installed ## Take the pictures of the calendar in the README (needs chromium)
	@$(BIN)/python -m tests.page.pictures

migrate: .venv/running ## Apply the migrations to the database of DATABASE_URL
	@migrations/migrate

migration: .venv/running ## Write the migration that changes the functions to migrations/functions.sql (NAME=...)
	@$(BIN)/python -m local.schema migration $(NAME)

schema: .venv/running ## Write migrations/schema.sql from the migrations
	@$(BIN)/python -m local.schema dump

test: .venv/installed ## Run the whole test suite (a quarter of an hour)
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

test-fast: .venv/installed ## Run the tests that need no programs of their own (a minute)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --fast

CHAOS_OPERATIONS ?= 10000

chaos: .venv/installed ## Kill every process repeatedly during 10,000 asynchronous writes to each queue
	CHAOS_OPERATIONS=$(CHAOS_OPERATIONS) $(BIN)/python -m pytest -s tests/test_chaos.py

DURATION ?= 60

torture: .venv/installed ## Check calls of every kind for linearizability while faults strike (DURATION=60, FAULTS=, RATE=, SEED=)
	$(BIN)/python -m tests.torture --duration $(DURATION) $(if $(FAULTS),--faults $(FAULTS)) $(if $(RATE),--rate $(RATE)) $(if $(SEED),--seed $(SEED))

image-check: .venv/installed ## Build the image, check it and run it by docker or podman
	$(BIN)/python -m pytest -s tests/image_check.py

compose-check: .venv/installed ## Start docker-compose.yml by a Docker Engine of its own, in a container of docker or podman
	$(BIN)/python -m pytest -s tests/compose_check.py

fuzz: .venv/installed ## Fuzz what reads the input of callers, guided by coverage (DURATION=60)
	$(BIN)/python -m tests.fuzzing --seconds $(DURATION)

lint: .venv/installed .venv/protoc/installed ## Check style, types, imports, dependencies, protos, stubs and migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/deptry .
	cd client && ../$(BIN)/deptry .
	$(BIN)/lint-imports --no-cache --no-logo
	@set -eu; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	echo "buf lint"; \
	$(PROTOC) --include_imports --include_source_info --descriptor_set_out="$$tmp/image.binpb" $(PROTO_FILES); \
	$(BIN)/buf lint "$$tmp/image.binpb" --config protos/buf.yaml; \
	echo "buf breaking: since the last release"; \
	$(BIN)/buf breaking "$$tmp/image.binpb" --against protos/released.binpb --config protos/buf.yaml; \
	echo "stubs: as generated"; \
	$(MAKE) --no-print-directory --silent protos OUT="$$tmp/stubs"; \
	diff -r -x '*.proto' -x __init__.py -x py.typed -x __pycache__ protos/appointments "$$tmp/stubs/appointments" \
		|| { echo "The stubs do not match the .proto files: run make protos" >&2; exit 1; }
	@set -eu; for file in migrations/[0-9]*.sql; do echo "squawk $$file"; \
		sed '/^-- migrate:down/,$$d' "$$file" | $(BIN)/squawk --stdin-filepath "$$file"; done

format: .venv/installed ## Format the code and fix what can be fixed automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One file of googleapis-common-protos has a different name than its import.
LONGRUNNING = google/longrunning/operations.proto=$(SITE)/google/longrunning/operations_proto.proto
PROTOC = .venv/protoc/bin/python -m grpc_tools.protoc -I protos -I $(SITE) -I $(LONGRUNNING)
OUT := protos

protos: .venv/installed .venv/protoc/installed ## Generate the stubs from the .proto files
	@mkdir -p $(OUT)/appointments/v1
	$(PROTOC) --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --python_out=$(OUT) --mypy_out=quiet:$(OUT) \
		--include_source_info --descriptor_set_out=$(OUT)/appointments/v1/descriptors.binpb $(PROTO_FILES)
	$(PROTOC) --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --grpc_python_out=$(OUT) \
		--mypy_grpc_out=quiet:$(OUT) $(SERVICE_FILES)

COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-emit-package appointments-v1

lock: .venv/installed .venv/clients/installed ## Update the pinned dependencies
	$(COMPILE) pyproject.toml -o requirements.txt
	$(COMPILE) --extra run -c requirements.txt pyproject.toml -o requirements-run.txt
	$(COMPILE) --extra run --extra dev -c requirements-run.txt pyproject.toml -o requirements-dev.txt
	$(COMPILE) tests/clients/requirements.in -o tests/clients/requirements.txt
	$(COMPILE) protos/requirements.in -o protos/requirements.txt
	cd tests/clients && PATH="../../.venv/clients/bin:$$PATH" npm install --package-lock-only

LOCKED = requirements-dev.txt tests/clients/requirements.txt protos/requirements.txt

audit: .venv/installed ## Check the pinned dependencies for known vulnerabilities (needs network access)
	@for file in $(LOCKED); do echo "audit $$file"; \
		$(BIN)/pip-audit --progress-spinner off --require-hashes --disable-pip -r $$file || exit 1; done

# The newest CPython for which they have.
WHEELS_PYTHON := 3.14

wheels: .venv/installed ## Check that the image's packages have wheels for x86_64 and aarch64 (WHEELS_PYTHON=3.15)
	@set -eu; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; for machine in x86_64 aarch64; do \
	$(PIP) --quiet --dry-run --ignore-installed --target "$$tmp" --require-hashes --only-binary :all: \
		--python-version $(WHEELS_PYTHON) $$(for glibc in 2_17 2_28 2_34; do echo --platform manylinux_$${glibc}_$$machine; done) \
		--platform manylinux2014_$$machine -r requirements.txt; \
	echo "all packages have wheels for CPython $(WHEELS_PYTHON) on $$machine"; done

DIST := dist

release: lint ## Check what must hold for a release and build its files (VERSION=1.2.3, DIST=dist)
	@$(BIN)/python -m local.release "$(VERSION)" $(DIST)

SBOM := sbom.json

sbom: .venv/installed ## List what the image contains as a CycloneDX file (SBOM=sbom.json)
	@$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible -o $(SBOM) requirements.txt
	@$(BIN)/python -m local.sbom $(SBOM)

clean: ## Remove the environment and the caches; keep the data in .data/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
