# The commands of the project; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
UV_VERSION := 0.13.8
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
# unit tests run in parallel processes: more threads inside each only slow them down
UNIT := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2
# a machine that is lent for a check has its own torch and no .venv
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
MODEL_DIR ?= examples/demo-model
PORT ?= 8000

.DEFAULT_GOAL := help
.PHONY: help setup lock format check test test-all serve demo demo-down demo-server bench bench-serving cache-clean
.PHONY: aot-check gpu-check docs install-yaml golden train-demo-model bench-router bench-autoscaling bench-operator
.PHONY: cluster-up cluster-down e2e

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(STAMP)  ## create .venv with the locked dependencies

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "setup: $(PYTHON) is older than 3.11; set PYTHON=…"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "setup: $(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable . uv==$(UV_VERSION)
	touch $(STAMP)

COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-index-url --no-annotate \
  --custom-compile-command 'make lock'

lock:  ## recompile requirements*.lock from pyproject.toml: everything, and what each image needs
	$(COMPILE) --all-extras --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra operator --constraints requirements.lock --output-file requirements-operator.lock pyproject.toml
	$(COMPILE) --extra server --constraints requirements.lock --output-file requirements-server.lock pyproject.toml

format: setup  ## format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix-only .

check: setup  ## format, lint, types, layers, unit tests: minutes, no cluster
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(UNIT) -m "not slow and not whole and not e2e and not gpu"

test: check  ## everything that CI runs: `check`, the tests with real processes, and those on the cluster (root)
	$(BIN)/python tests/cluster/cli.py prepare
	$(BIN)/python -m pytest -q -m "slow and not whole and not e2e and not gpu" --fault-table
	$(BIN)/python -m pytest -q -m "e2e and not whole" tests/e2e

test-all: test  ## `test` and the whole matrices
	$(BIN)/python -m pytest -q -m "whole and not gpu"

aot-check: setup  ## compile every GPU kernel for sm_80 and sm_90, no GPU needed (ONLY=rms_norm, JSON=FILE)
	PYTHONPATH=tests/support $(BIN)/python -m ahead_of_time $(if $(ONLY),--only "$(ONLY)") $(if $(JSON),--json $(JSON))

serve: setup  ## run the server on the demo model (MODEL_DIR=…, PORT=…)
	$(BIN)/lightllm-server --model-dir $(MODEL_DIR) --port $(PORT)

demo:  ## a real cluster, the operator, a question, load that scales it out and back in (root; or KUBECONFIG=… IMAGE=…)
	$(PYTHON) scripts/demo/cluster.py $(if $(CSV),--csv $(CSV))

demo-down:  ## take back what `demo` made
	$(PYTHON) scripts/demo/cluster.py --down

cache-clean:  ## remove ~/.cache/lightllm-kubernetes, some 20 GB: the next `demo` builds all of it again (root)
	$(PYTHON) tests/cluster/cli.py clean-cache

demo-server: setup  ## the server alone on the demo model: ask it three questions
	$(BIN)/python scripts/demo/server.py --model-dir $(MODEL_DIR)

gpu-check:  ## on a GPU: STAGE=kernels, engine or bench (all), results in OUT or docs/benchmarks; DRY_RUN=1: on the CPU
	@status=0; for stage in $(or $(STAGE),kernels engine bench); do \
	  $(GPU_PYTHON) scripts/gpu_check $$stage $(if $(DRY_RUN),--dry-run) || status=1; done; exit $$status

bench-router: setup  ## admission policies beside each other, simulated with the real scheduler (JSON=FILE, PLOT=FILE to keep)
	$(BIN)/python benchmarks/router_sim/run.py $(if $(JSON),--json $(JSON)) $(if $(PLOT),--plot $(PLOT))

bench: bench-serving  ## the CPU benchmarks beside their peers

bench-serving: setup  ## output tokens/s beside transformers and CTranslate2 (JSON=FILE to keep)
	$(BIN)/python benchmarks/serving/run.py $(if $(JSON),--json $(JSON))

docs: setup  ## docs/crd.md and the chart's copy of the CRD, from crds/
	$(BIN)/python scripts/crd_reference.py

install-yaml: docs  ## deploy/install.yaml, from the chart (needs helm, or Go to build it)
	$(BIN)/python scripts/install_yaml.py

golden: setup  ## tests/operator/golden, the manifests that the operator makes (see scripts/golden_manifests.py)
	$(BIN)/python scripts/golden_manifests.py

bench-autoscaling: setup  ## the scaling formula beside HPA's and others', simulated (JSON=FILE, PLOT=FILE to keep)
	$(BIN)/python benchmarks/operator/simulate.py $(if $(JSON),--json $(JSON)) $(if $(PLOT),--plot $(PLOT))

bench-operator: setup  ## the operator with RESOURCES (1000) on a real API server (JSON=FILE to keep)
	$(BIN)/python benchmarks/operator/scale.py $(if $(RESOURCES),--resources $(RESOURCES)) $(if $(JSON),--json $(JSON))

train-demo-model: setup  ## train examples/demo-model again (about 5 minutes)
	$(BIN)/python scripts/demo_model/train.py

cluster-up:  ## a real Kubernetes on this machine (root), for tests and demos: KUBECONFIG=.cluster/kubeconfig
	$(PYTHON) tests/cluster/cli.py up

e2e: setup  ## the tests on that cluster: brings it up, installs the operator, ends with the cluster (root)
	$(BIN)/python -m pytest -q -m e2e tests/e2e

cluster-down:  ## end it and leave nothing behind
	$(PYTHON) tests/cluster/cli.py down
