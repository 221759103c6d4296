# Each target makes .venv by itself when it is missing or older than the pins.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# Tests start hundreds of processes: none compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE
PROTOC = $(BIN)/python -m grpc_tools.protoc -I proto proto/kvtier/v1/*.proto

.DEFAULT_GOAL := help
.PHONY: help demo test test-faults test-crash test-cluster test-demo test-cuda test-model test-traces test-vllm soak check proto docs bench fmt

help:
	@echo 'make demo          two agents and four workers on this machine, with a small model'
	@echo 'make test          all tests'
	@echo 'make test-faults   workers and agents killed and stopped, many times (QUICK=1: a tenth)'
	@echo 'make test-crash    DISK killed, torn, flipped, failing, full (QUICK=1: a tenth)'
	@echo 'make test-cluster  agents share Redis, which is killed, stopped, full (QUICK=1: a tenth)'
	@echo 'make test-demo     the demo in all its forms, interrupted, its server gone (QUICK=1: less)'
	@echo 'make test-cuda     the GPU tier on the accelerator of this machine'
	@echo 'make test-vllm     the connector on real engines, in its own environment (QUICK=1: less)'
	@echo 'make test-traces   hit rates on the traces in KVTIER_TRACES, all of them'
	@echo 'make test-model    the state machine of HOST, long'
	@echo 'make soak          all of it at random for hours: HOURS=0.5 SEED=1'
	@echo 'make check         formatting, lints, types, import rules, generated code and pages, links'
	@echo 'make bench         speed of the data path and of the metadata'
	@echo 'make proto         generate kvtier/v1 from proto/'
	@echo 'make docs          generate docs/cli.md, docs/api.md and the tables of docs/metrics.md'
	@echo 'make fmt           format, and fix what can be fixed'

demo: $(STAMP)
	$(BIN)/kvtier demo --nodes 2

# Suites that repeat take their quick form here; the targets below run them in full. What measures
# has the machine to itself.
test: $(STAMP)
	QUICK=1 $(BIN)/pytest -q -n auto --maxprocesses=4 --dist worksteal -m 'not alone'
	QUICK=1 $(BIN)/pytest -q -m alone

test-faults: $(STAMP)
	$(BIN)/pytest -q -m faults

test-crash: $(STAMP)
	$(BIN)/pytest -q -m crash

test-cluster: $(STAMP)
	$(BIN)/pytest -q -m cluster

test-demo: $(STAMP)
	$(BIN)/pytest -q tests/e2e/test_demo.py tests/e2e/test_demo_nodes.py

test-cuda: $(STAMP)
	$(BIN)/pytest -q -rs -m cuda tests/gpu

test-model: $(STAMP)
	KVTIER_EXAMPLES=1000 KVTIER_OPERATIONS=10000000 $(BIN)/pytest -q tests/model

test-traces: $(STAMP)
	$(BIN)/pytest -q tests/unit/sim/test_traces.py

test-vllm:
	@PYTHON=$(PYTHON) PIP_ARGS='$(PIP_ARGS)' tests/vllm/make_environment.sh
	.venv-vllm/bin/python -m pytest -q -W default tests/vllm

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	$(PROTOC) --python_out="$$fresh" --pyi_out="$$fresh" && \
	diff -r -x __pycache__ -x __init__.py "$$fresh/kvtier/v1" kvtier/v1 \
	|| { echo 'kvtier/v1 is not what proto/ generates: run make proto'; exit 1; }
	$(BIN)/python -m tests.docs --check

proto: $(STAMP)
	$(PROTOC) --python_out=. --pyi_out=.

docs: $(STAMP)
	$(BIN)/python -m tests.docs

soak: $(STAMP)
	$(BIN)/python -m tests.soak.run --hours $(or $(HOURS),0.5) --seed $(or $(SEED),1)

bench: $(STAMP)
	$(BIN)/kvtier bench host
	$(BIN)/kvtier bench metadata
	$(BIN)/kvtier bench disk --path .
	$(BIN)/kvtier bench cluster

fmt: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo 'kvtier needs Python 3.11 or newer: make PYTHON=python3.11 ...'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	|| { echo 'This Python makes no environments: apt-get install python3-venv'; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo 'Installing into $(VENV) (some minutes the first time)'
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[dev,transformers]'
	@# Only to test against its classes: all that it requires would be several gigabytes.
	@$(BIN)/python -m pip install -q $(PIP_ARGS) --no-deps -c constraints.txt sglang
	@touch $@
