# Everything a checkout needs: `make help` says what there is.
#
# torch is installed first, at exactly the version in constraints.txt: a range would take the newest default build,
# which for many platforms is gigabytes of CUDA. To take a CPU build, name the CPU index that pytorch.org's install
# page gives for your platform:  make demo TORCH_INDEX=<url>

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
# How many test processes; each runs torch on one thread.
WORKERS ?= 2
# Anything more for the command behind a target: make test ARGS='-k process'
ARGS ?=
# make test COV=1 measures coverage.
COV ?=

BIN := $(VENV)/bin
# pip's own environment variable, so that it binds build environments too.
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip --disable-pip-version-check install -qq

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo test lint format build bench-solvers clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(VENV)/.made:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "fokker needs Python 3.11 or later with its venv module; given PYTHON=$(PYTHON)."; \
		echo "Install it (on Debian and Ubuntu: python3-venv) or name another: make PYTHON=/path/to/python3 ..."; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: constraints.txt $(VENV)/.made
	@echo "Installing $$(cat constraints.txt) into $(VENV) (some 200 MB; once)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

# What fokker itself needs.
$(VENV)/.core: pyproject.toml $(VENV)/.torch
	@echo "Installing fokker into $(VENV)"
	@$(PIP) -e .
	@touch $@

# What testing, checking and building need besides.
$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	@echo "Installing fokker and what its tests need into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.core

# The peers of the benchmarks. Those that demand torchvision, which they do not use here, come without dependencies;
# one that cannot be had is left out, and the report says so.
$(VENV)/.bench: pyproject.toml $(VENV)/.torch
	@echo "Installing fokker and its peers into $(VENV)"
	@$(PIP) -e '.[bench]'
	@for peer in k-diffusion azula flow-matching; do \
		$(PIP) --no-deps $$peer || echo "$$peer could not be installed and is left out"; done
	@touch $@ $(VENV)/.core

env: $(VENV)/.dev ## make the development environment in VENV (.venv)

demo: $(VENV)/.core ## train a small model, sample and evaluate it; the picture lands in runs/demo
	$(BIN)/fokker demo $(ARGS)

test: $(VENV)/.dev ## run the tests (ARGS='-k name', COV=1 for coverage)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --durations=15 $(if $(COV),--cov) $(ARGS)

lint: $(VENV)/.dev ## check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## put the code into the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/.dev ## build the sdist and the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

bench-solvers: $(VENV)/.bench ## solvers beside their peers: errors and time per step (ARGS=--quick for a look)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.solvers -o benchmarks/solvers.md $(ARGS)

clean: ## remove the environment, what was built and the caches; runs/ stays
	rm -rf $(VENV) dist build .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +
