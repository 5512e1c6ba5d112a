# Everything a newcomer needs is two of these: `make demo` and `make test`.
# Both make their own environment; nothing is installed outside this folder.

PYTHON ?= python3
DEMO_ENV := .venv-base
TEST_ENV := .venv
# Environments of the engines that run in processes of their own.
ENGINES := .engines
LOCKS := src/lamella/isolation/locks
TOOLS := .tools
# An installed uv is used as it is; otherwise one is put into a small environment of its own.
UV := $(or $(shell command -v uv 2>/dev/null),$(TOOLS)/bin/uv)
# No index is named and no Python is downloaded: what the machine is set up for is what counts.
UVFLAGS := --quiet --no-python-downloads
BIN := $(TEST_ENV)/bin
# Tests run in several processes at once, each with its share of the cores: two that both compute
# on every core wait for each other. `make test WORKERS=1` runs them one after the other.
WORKERS = $(shell $(BIN)/python -c 'import os; print(min(4, os.cpu_count() or 1))')
THREADS = $(shell $(BIN)/python -c 'import os; print(max(1, (os.cpu_count() or 1) // $(WORKERS)))')

.PHONY: demo test check bench docs lock format clean

demo: $(DEMO_ENV)/.ready  ## install the base (no torch) and run the main job on a built-in volume
	$(DEMO_ENV)/bin/lamella demo --output lamella-demo

test: $(ENGINES)/.ready  ## install everything and run every test
	LAMELLA_TEST_ENVIRONMENTS=$(CURDIR)/$(ENGINES) OMP_NUM_THREADS=$(THREADS) \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(TEST_ENV)/.ready  ## formatting, lint, types, import directions; under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(TEST_ENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(TEST_ENV)/.ready  ## speed and memory against the peers; results under benchmarks/results
	$(BIN)/python benchmarks/run.py

docs: $(TEST_ENV)/.ready  ## build the documentation, strictly, into site/
	$(BIN)/mkdocs build --strict

lock:  ## resolve the locks anew
	$(UV) pip compile $(UVFLAGS) --upgrade --universal --generate-hashes --python-version 3.11 \
		pyproject.toml -o requirements/base.txt
	$(UV) pip compile $(UVFLAGS) --upgrade --universal --generate-hashes --python-version 3.11 \
		pyproject.toml --extra torch --extra train --extra export --extra server --extra postgres --extra cluster --extra s3 --extra nnunet --extra monai --extra restore --extra dicom-seg \
		--group test --group lint --group docs -o requirements/all.txt

	@# Engines with environments of their own take this project's torch, so that files are shared on disk.
	grep -E '^[A-Za-z0-9]' requirements/all.txt | sed 's/ *\\$$//' > $(LOCKS)/.all
	grep -E '^(torch|torchvision|triton|nvidia|cuda|numba|llvmlite)' $(LOCKS)/.all > $(LOCKS)/.torch
	for name in cellpose3:.torch cellpose4:.all totalsegmentator:.all; do \
		$(UV) pip compile $(UVFLAGS) --upgrade --universal --generate-hashes --python-version 3.11 --no-header \
			--no-annotate -c $(LOCKS)/$${name#*:} $(LOCKS)/$${name%:*}.in -o $(LOCKS)/$${name%:*}.txt || exit 1; \
	done
	rm $(LOCKS)/.all $(LOCKS)/.torch

$(TOOLS)/bin/uv:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet uv

$(DEMO_ENV)/.ready: requirements/base.txt pyproject.toml | $(filter $(TOOLS)/bin/uv,$(UV))
	$(UV) venv $(UVFLAGS) --allow-existing --python $(PYTHON) $(DEMO_ENV)
	$(UV) pip sync $(UVFLAGS) --python $(DEMO_ENV)/bin/python --require-hashes requirements/base.txt
	$(UV) pip install $(UVFLAGS) --python $(DEMO_ENV)/bin/python --no-deps --editable .
	touch $@

$(TEST_ENV)/.ready: requirements/all.txt pyproject.toml | $(filter $(TOOLS)/bin/uv,$(UV))
	$(UV) venv $(UVFLAGS) --allow-existing --python $(PYTHON) $(TEST_ENV)
	$(UV) pip sync $(UVFLAGS) --python $(BIN)/python --require-hashes requirements/all.txt
	$(UV) pip install $(UVFLAGS) --python $(BIN)/python --no-deps --editable .
	touch $@

$(ENGINES)/.ready: $(TEST_ENV)/.ready $(wildcard src/lamella/isolation/locks/*.txt)
	LAMELLA_ENVIRONMENTS=$(CURDIR)/$(ENGINES) $(BIN)/lamella engines install --all-isolated --quiet
	touch $@

clean:
	rm -rf $(DEMO_ENV) $(TEST_ENV) $(ENGINES) $(TOOLS) site lamella-demo
