# On a fresh machine `make demo` and `make test` do everything, set-up included. Needs Python 3.11 or newer.

PYTHON ?= python3
JOBS ?= auto
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-fast test-long lint format bench bench-storage bench-remotes wheel install clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo       train, kill, resume bit for bit, export: the main job, end to end'
	@echo 'make test       lint and all tests (JOBS=2 workers, ARGS="-k name" for pytest); CAS_TEST_S3=URL and the'
	@echo '                variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY: against an S3 server of your own'
	@echo 'make test-fast  tests without the slow ones'
	@echo 'make test-long  the proofs with ever more seeds, for hours; totals in tests/FAULTS.md (ARGS="--minutes 60")'
	@echo 'make lint       ruff and mypy; make format writes what ruff wants'
	@echo 'make bench      all that is measured, about half an hour (ARGS="--only trained" for a part)'
	@echo 'make bench-storage  what checkpoints take on disk, beside peers, half an hour (ARGS="--only lora --peers restic")'
	@echo 'make bench-remotes  pushes to and loads from the S3 server at CAS_TEST_S3, beside ordinary clients'
	@echo 'make wheel      wheel and source archive in dist/'
	@echo 'make clean      remove all that these made, the environment included'

demo: $(INSTALLED)
	$(BIN)/python -m bench.demo

bench: $(INSTALLED)
	$(BIN)/python -m bench $(ARGS)

# Peers that do not install, and zstd, restic or borg where they are not on PATH, are named as missing in the results.
bench-storage: $(INSTALLED)
	-$(BIN)/python -m pip install --progress-bar off -c constraints.txt --no-build-isolation -e '.[bench]'
	$(BIN)/python -m bench.storage $(ARGS)

bench-remotes: $(INSTALLED)
	$(BIN)/python -m bench.remotes $(ARGS)

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m 'not slow and not long' $(ARGS)

test-long: $(INSTALLED)
	$(BIN)/python tests/long.py $(ARGS)

# mypy must see the installed layout (cas.torch, cas.cli), which the folders do not have: a tree of links does.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/types && mkdir -p build/types/cas
	@ln -s $(addprefix ../../../,$(wildcard cas/*.py cas/py.typed)) build/types/cas/
	@ln -s ../../../torch_adapter build/types/cas/torch
	@ln -s ../../../cli build/types/cas/cli
	@ln -s ../../bench build/types/bench
	cd build/types && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		--cache-dir ../mypy -p cas -p bench

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --no-isolation

install: $(INSTALLED)

# The build backend goes in first, so that it too is the pinned one.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cas needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt setuptools
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt --no-build-isolation -e '.[all,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist demo-out bench/out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
