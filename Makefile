# make test                      in .venv, made and filled on first use
# make test PYTHON=python        in an environment that you have prepared
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BASE_PYTHON ?= python3.11
ifeq ($(origin PYTHON), undefined)
PYTHON := $(VENV)/bin/python
ENVIRONMENT := $(VENV)/.installed
else
ENVIRONMENT :=
endif
BIN = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')

# One thread for each test process: on few cores, two OpenMP pools cost more than they give.
export OMP_NUM_THREADS ?= 1
WORKERS ?= auto
PYTEST = $(PYTHON) -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help environment check format test test-all clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

environment: $(ENVIRONMENT) ## make .venv and install the project, its extras and its tools

# torch first and alone, so that a CPU build that pip was pointed at is taken and then kept.
$(VENV)/.installed: setup.py constraints.txt
	$(BASE_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[s3,dask,train,test]'
	touch $@

check: $(ENVIRONMENT) ## lint, formatting, types, import contracts
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck .ci/run
	$(BIN)/hadolint Dockerfile

format: $(ENVIRONMENT) ## format, and fix what the linter can
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

test: $(ENVIRONMENT) ## the tests of every change: minutes, no network, no GPU, no downloads
	$(PYTEST) -m 'not slow and not gpu and not weights'

test-all: $(ENVIRONMENT) ## the slow tests too
	$(PYTEST) -m 'not gpu and not weights'

clean: ## remove what tools and builds left; environments and outputs stay
	rm -rf build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
