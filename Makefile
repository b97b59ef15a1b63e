# The two commands: `make demo` and `make test`. Each creates the environment first, if it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= shapes
UV_VERSION := 0.13.8
STAMP := $(VENV)/.installed

# Real data sets, where they are at hand (README.md, "Your own data").
export MECA_DATA ?= $(wildcard $(abspath ../shared/data))
# A waiting thread spins for a moment only: 1.2 times as fast as not at all on two idle cores, and harmless on shared ones.
export GOMP_SPINCOUNT ?= 10000
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

CHECKS := check-types check-test-types check-form check-imports check-written

.PHONY: help install demo test test-fast integration services services-stop services-status crash-test check $(CHECKS) format lock closure architecture results bench bench-quality bench-gpu clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(STAMP) ## the environment, from the lock with hashes

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "meca needs Python 3.11 or newer; say which with make PYTHON=python3.12"; exit 4; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --python $(BIN)/python --quiet --require-hashes --compile-bytecode -r requirements.lock
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: install ## poison a data set, clean it, report, register the model; DATA=cifar10 for photographs
	@$(BIN)/meca demo --data $(DATA)

test: install check ## every check and every test
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

test-fast: install ## the tests that take less than half a second each, for the inner loop
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not platform"

integration: install ## the tests against real servers (PostgreSQL, S3, MLflow, Prefect), which they start and stop themselves
	MECA_SERVICES_TESTS=1 $(BIN)/python -m pytest -q tests/services

services: install ## PostgreSQL, S3, MLflow and Prefect as processes of this machine; says how to use them
	@$(BIN)/python -m infra.local start

services-stop: install ## end them; data and secrets stay in .meca/services
	@$(BIN)/python -m infra.local stop

services-status: install ## whether each of them answers
	@$(BIN)/python -m infra.local status

crash-test: install ## kills, full disks, secrets: every campaign of docs/faults.md (hours; needs Linux and strace)
	$(BIN)/python -m benchmarks.reliability.crash_points --all
	$(BIN)/python -m benchmarks.reliability.faults
	$(BIN)/python -m benchmarks.reliability.kills
	$(BIN)/python -m benchmarks.reliability.kills --signals 5
	$(BIN)/python -m benchmarks.reliability.canary
	$(BIN)/python -m benchmarks.render


check: install ## formatting, lint, types, imports, computed files
	@$(MAKE) --no-print-directory --jobs 2 --output-sync $(CHECKS)

check-form:
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .

check-types:
	$(BIN)/pyright

check-test-types:
	$(BIN)/pyright --project tests

check-imports:
	$(BIN)/lint-imports

check-written:
	$(BIN)/python -m tasks.dvc.closure --check
	$(BIN)/python -m benchmarks.render --check
	$(BIN)/python -m benchmarks.architecture --check

format: install ## write what `check` asks for
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --fix --quiet .

lock: install ## resolve the versions anew
	$(BIN)/uv pip compile --universal --upgrade --generate-hashes --python-version 3.11 --no-emit-index-url --no-annotate --no-header --quiet \
	  --extra dev --extra services pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --universal --upgrade --generate-hashes --python-version 3.11 --no-emit-index-url --no-annotate --no-header --quiet \
	  infra/local/swift.in --output-file infra/local/swift.lock
	$(BIN)/uv pip compile --universal --upgrade --generate-hashes --python-version 3.11 --no-emit-index-url --no-annotate --no-header --quiet \
	  --constraint requirements.lock infra/servers.in --output-file infra/servers.lock

closure: install ## the code each stage depends on, written into dvc.yaml
	$(BIN)/python -m tasks.dvc.closure

architecture: install ## docs/architecture.svg and the table of docs/architecture.md, from the imports
	$(BIN)/python -m benchmarks.architecture

results: install ## docs/results.md, docs/performance.md and the README's table from the measured rows
	$(BIN)/python -m benchmarks.render

bench: install ## the rows of speed.jsonl for these cores (ten minutes; nothing else should run), and docs/performance.md
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.render

bench-quality: install ## the rows of quality.jsonl (an hour and a half on two cores)
	$(BIN)/python -m benchmarks.quality

bench-gpu: install ## the rows that need a GPU, speed and quality, in nine minutes
	$(BIN)/python -m benchmarks.speed --gpu

clean: ## everything that was made
	@test ! -d .meca/services || $(BIN)/python -m infra.local stop
	rm -rf $(VENV) .venv-swift .demo .meca data work published report mlflow.db* mlruns mlartifacts
