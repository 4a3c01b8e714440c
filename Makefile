PYTHON ?= python3
BIN := .venv/bin
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
PROTO_FILES := $(sort $(wildcard protos/appointments/v1/*.proto))
STUBS := protos/appointments/v1

.DEFAULT_GOAL := help
.PHONY: help run test lint format migrate demo demo-fosdem protos lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment: made once, made again when what it is made from changes.
.venv/installed: requirements-dev.txt pyproject.toml protos/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e protos -e .
	@touch $@

PROTOC = $(BIN)/python -m grpc_tools.protoc -I protos -I $(SITE)

protos: .venv/installed ## Generate the stubs from the .proto files
	$(PROTOC) --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --python_out=protos --mypy_out=quiet:protos \
		--include_source_info --descriptor_set_out=$(STUBS)/descriptors.binpb $(PROTO_FILES)
	$(PROTOC) --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --grpc_python_out=protos \
		--mypy_grpc_out=quiet:protos $(STUBS)/appointment_service.proto

lock: .venv/installed ## Pin the dependencies anew (needs uv)
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-emit-package appointments-v1 \
		pyproject.toml -o requirements.txt
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-emit-package appointments-v1 \
		--extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt
