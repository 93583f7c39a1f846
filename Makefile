# Every target makes .venv on first use. Without a GPU, choose a CPU build of PyTorch:
#   make demo TORCH_INDEX=<the CPU wheel index that pytorch.org's "Get started" page prints>
# Where pip already finds a CPU build, nothing has to be set.

PYTHON ?= python3.11
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ENGINE ?= torch

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The stubs are generated in an environment of their own: the old compiler wants an old protobuf.
PROTO_VENV := .venv-proto
PROTO_STAMP := $(PROTO_VENV)/.installed
PROTO_TOOLS := grpcio-tools==1.71.2
PYTEST_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types proto check-proto clean

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv with everything for one machine.

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## Watch a small model learn to think: about eight minutes on two cores.
	$(BIN)/forethought demo --engine $(ENGINE)

test: $(STAMP)  ## Run all tests.
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: lint types check-proto  ## Lint, types, fresh stubs (the import rule is a test).

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

$(PROTO_STAMP):
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/pip install --quiet '$(PROTO_TOOLS)' setuptools
	@touch $@

proto: $(PROTO_STAMP)  ## Generate the protobuf and gRPC stubs again.
	./proto/generate $(PROTO_VENV)/bin/python .

check-proto: $(PROTO_STAMP)  ## Fail if the stubs differ from the schemas.
	rm -rf build/stubs && mkdir -p build/stubs
	./proto/generate $(PROTO_VENV)/bin/python build/stubs
	diff -r -x __init__.py -x __pycache__ build/stubs/forethought/wire/v1 forethought/wire/v1

clean:  ## Remove environments and caches, not runs.
	rm -rf $(VENV) $(PROTO_VENV) build .pytest_cache .mypy_cache .ruff_cache
