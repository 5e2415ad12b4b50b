# `make` alone lists the targets. PYTHON chooses the interpreter that .venv is made with (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off
SOURCES := protos contract ingest gateway consumers registry loadgen millstream tests
# Two at a time, each with servers of its own; what kills and counts has the machine to itself. The gateway is tested on
# both of its engines.
BOTH := --numprocesses 2 --dist loadfile
UV := uv==0.13.9
COMPILE = .tools/lock/bin/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate --no-strip-extras --group build pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo test unit soak bench check fmt proto lock clean
.DELETE_ON_ERROR:

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/runtime.stamp  ## Start everything on this machine and show a prediction from end to end
	$(BIN)/millstream demo

test: .venv/dev.stamp  ## Run all tests; those whose servers are missing are skipped, in CI they fail
	$(BIN)/python -m pytest tests/unit tests/properties tests/integration $(BOTH)
	TEST_ENGINE=native $(BIN)/python -m pytest tests/integration/test_gateway_*.py tests/integration/test_predict_stream.py $(BOTH)
	$(BIN)/python -m pytest tests/e2e tests/faults

# What `make check` runs is left out.
unit: .venv/dev.stamp  ## Run the tests that need no server, in under a minute
	$(BIN)/python -m pytest tests/unit tests/properties -m "not slow and not integration" --ignore tests/unit/test_docs.py \
		--numprocesses 2 --dist worksteal

soak: .venv/dev.stamp  ## Kill everything again and again under load for MINUTES=10, count, and write docs/soak.md
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10)

bench: .venv/runtime.stamp  ## Measure Millstream beside other servers, into docs/benchmarks; ARGS=--help tells more
	$(BIN)/python -m loadgen.bench $(ARGS)

check: .venv/dev.stamp  ## Lint, formatting, types, import rules, generated code, docs against code
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/test_generated_code.py tests/unit/test_docs.py

fmt: .venv/dev.stamp  ## Fix what ruff can fix and format the code
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

proto: .venv/dev.stamp  ## Generate protos/*_pb2* from protos/*.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/*.proto

lock:  ## Write the lock files anew, with the newest versions that pyproject.toml admits
	$(PYTHON) -m venv .tools/lock
	.tools/lock/bin/python -m pip install --disable-pip-version-check --quiet $(UV)
	$(COMPILE) --upgrade --extra xgboost --extra fast --extra reports --extra dev --output-file requirements-dev.lock
	$(COMPILE) --upgrade --constraint requirements-dev.lock --extra xgboost --extra compile --extra fast --extra reports --output-file requirements.lock

clean:  ## Remove the virtual environment and every cache
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Millstream needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# The dev lock holds everything of the runtime lock, in the same versions, so it serves both.
.venv/runtime.stamp: requirements.lock pyproject.toml | .venv/python.stamp
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/dev.stamp: requirements-dev.lock pyproject.toml | .venv/python.stamp
	$(PIP) --require-hashes -r requirements-dev.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@ .venv/runtime.stamp
