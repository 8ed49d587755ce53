# make test                      in .venv, made and filled on first use
# make test PYTHON=python        in an environment that you have prepared
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BASE_PYTHON ?= python3.11
CONSTRAINTS ?= constraints.txt
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

.PHONY: help environment check format test test-browser test-all lowest-versions lowest-pins beam-flags \
  model model-results paper-tables-mini pictures clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

environment: $(ENVIRONMENT) ## make .venv and install the project, its extras and its tools

# torch first and alone, so that a CPU build that pip was pointed at is taken and then kept.
$(VENV)/.installed: setup.py $(CONSTRAINTS)
	$(BASE_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet "$$(grep '^torch==' $(CONSTRAINTS))"
	$(VENV)/bin/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[s3,dask,test]'
	touch $@

check: $(ENVIRONMENT) ## lint, formatting, types, import contracts
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck .ci/run bench/*.sh findings/*.sh
	$(BIN)/hadolint Dockerfile

format: $(ENVIRONMENT) ## format, and fix what the linter can
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

test: $(ENVIRONMENT) ## the tests of every change: minutes, no network, no GPU, no downloads
	$(PYTEST) -m 'not slow and not gpu and not weights'

test-browser: $(ENVIRONMENT) ## the report's page and picture in Chromium, which has to be installed, with its driver
	$(PYTHON) -m pytest -m browser tests/pipeline/test_report.py tests/packaging/test_pictures.py

test-all: $(ENVIRONMENT) ## the slow tests too
	$(PYTEST) -m 'not gpu and not weights'

# Whether the lower bounds of setup.py are true: the oldest versions that it admits, in an environment of
# their own, run the unit tests and the demo.
LOWEST ?= .venv-lowest

lowest-versions: ## the unit tests and the demo with the oldest versions that setup.py admits, in LOWEST
	$(MAKE) environment VENV=$(LOWEST) CONSTRAINTS=constraints-lowest.txt
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile \
	  -m 'not slow and not gpu and not weights' tests/unit
	$(LOWEST)/bin/python -m pipelines.separate --manifest manifests/examples/demo.csv \
	  --output $(LOWEST)/demo --overwrite

# torch names the exact versions of its own CUDA packages, and CPU builds have none.
lowest-pins: ## write constraints-lowest.txt anew, after a lower bound in setup.py has changed
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(BASE_PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install --quiet setuptools uv; \
	"$$folder/venv/bin/python" setup.py --quiet egg_info --egg-base "$$folder"; \
	sed -nE 's/^([A-Za-z0-9_.-]+).*>=([0-9.]+).*/\1==\2/p' \
	  "$$folder/clapsep_beam.egg-info/requires.txt" > "$$folder/lowest.txt"; \
	"$$folder/venv/bin/uv" pip compile --quiet --no-header --no-annotate --all-extras --python-version 3.11 \
	  --constraint "$$folder/lowest.txt" --output-file "$$folder/all.txt" setup.py; \
	{ grep '^#' constraints-lowest.txt; grep -Ev '^(nvidia-|triton=)' "$$folder/all.txt"; } > "$$folder/new.txt"; \
	cp "$$folder/new.txt" constraints-lowest.txt

# Words of a command line are told apart before Beam is imported; a test compares with Beam itself.
beam-flags: $(ENVIRONMENT) ## write pipelines/beam_flags.json anew, after constraints.txt has another Beam
	text=$$($(PYTHON) -c "from pipelines import launch, separate_graph, runners; print(runners.record_beam_flags())") \
	  && printf '%s\n' "$$text" > pipelines/beam_flags.json

# The bundled model. CORPUS is one or several folders of labelled clips, TEACHER what a tagger says about
# every clip of them (docs/training.md); model/weights/README.md says which ones.
CORPUS ?= corpus
TEACHER ?= teacher.npz
RUNS ?= runs

# The recipe of the shipped weights: model/weights/README.md. It writes to RUNS, never over them.
model: $(ENVIRONMENT) ## train a model of clapsep-mini's size from CORPUS and TEACHER, into RUNS
	mkdir -p $(RUNS)
	$(PYTHON) -m model.training prepare --corpus $(CORPUS) --teacher $(TEACHER) \
	  --output $(RUNS)/plan.npz
	$(PYTHON) -m model.training fit --corpus $(CORPUS) --plan $(RUNS)/plan.npz --output $(RUNS)/model
	$(PYTHON) -m model.training presence --corpus $(CORPUS) --plan $(RUNS)/plan.npz \
	  --model $$(ls $(RUNS)/model/weights/model-1-of-*.safetensors) \
	  --output $(RUNS)/model/weights/model-presence.safetensors

model-results: $(ENVIRONMENT) ## recompute the bundled model's test results from CORPUS and compare
	$(PYTHON) -m pipelines.evaluate --corpus $(CORPUS) --output $(RUNS)/model-results --overwrite \
	  --expect model/weights/results.json

paper-tables-mini: $(ENVIRONMENT) ## Tables II, IV, V and VI with clapsep-mini on CORPUS, into docs/results
	PYTHON=$(abspath $(PYTHON)) bench/paper_tables.sh $(CORPUS) $(RUNS)/paper-tables
	mkdir -p docs/results/paper-tables-mini
	cp $(RUNS)/paper-tables/report/tables.md $(RUNS)/paper-tables/report/tables.csv docs/results/paper-tables-mini

pictures: $(ENVIRONMENT) ## make the README's pictures again; needs Chromium
	$(PYTHON) docs/pictures/make.py

clean: ## remove what tools and builds left; environments and outputs stay
	rm -rf build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
