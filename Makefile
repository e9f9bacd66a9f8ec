# The same words on a laptop and in CI.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check

# a failing pytest fails the pipe that marks its lines
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: help setup demo demo-image demo-speech test test-fast test-pages test-trials test-servers \
  test-steps test-parts test-pythons coverage torture check audit bench lock clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.done  ## make .venv and install everything

.venv/.done: requirements.lock requirements.torch pyproject.toml
	@echo "installing into .venv: about 1.5 GB, a few minutes the first time"
	$(PYTHON) -m venv .venv
	$(PIP) install --require-hashes --no-deps -r requirements.lock
	$(PIP) install -r requirements.torch
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(PIP) check
	@touch $@

demo: setup  ## train a recommender, serve it, predict, scale it, stop
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash demos/recommend.sh

test: setup  ## the whole test suite in five runs, three side by side: those with real servers first
	@$(MAKE) --no-print-directory --keep-going --jobs=3 \
	  test-servers test-pages test-trials test-steps test-parts

# Runs of about the same length: those with servers wait for them half of their time.
PAGES := tests/server/test_docs.py tests/server/test_readme.py
TRIALS := tests/server/torture tests/server/test_path.py tests/server/test_image_path.py

test-pages: setup
	$(BIN)/pytest $(PAGES) --durations=10 2>&1 | sed -u 's/^/pages   | /'

test-trials: setup
	$(BIN)/pytest $(TRIALS) --durations=10 2>&1 | sed -u 's/^/trials  | /'

test-servers: setup
	$(BIN)/pytest tests/handlers tests/server $(addprefix --ignore=,$(PAGES) $(TRIALS)) \
	  --durations=10 2>&1 | sed -u 's/^/servers | /'

test-fast: setup  ## tests/unit without what is marked as slow: no server, no training
	$(BIN)/pytest -q tests/unit -m "not slow" --durations=10

test-steps: setup
	$(BIN)/pytest tests/unit --ignore=tests/unit/serving --durations=10 2>&1 | sed -u 's/^/steps | /'

test-parts: setup
	$(BIN)/pytest tests/training tests/unit/serving --durations=10 2>&1 | sed -u 's/^/parts | /'

coverage: setup  ## lines and branches that unit tests and tests of handlers reach, into .coverage-html
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q tests/unit tests/handlers
	$(BIN)/coverage combine -q
	$(BIN)/coverage html -q -d .coverage-html
	$(BIN)/coverage report --sort=cover

test-pythons: setup  ## the code inside archives, on each installed Python that is supported
	$(BIN)/python tools/pythons.py

torture: setup  ## faults and attacks in full, figures into docs/reliability.md; a quarter of an hour
	$(BIN)/pytest tests/server/torture --full --report docs/reliability.md

check: setup  ## ruff, mypy, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit/test_imports.py

demo-image: setup  ## tag and moderate photographs with pretrained models
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash demos/image.sh

demo-speech: setup  ## transcribe recordings with Whisper and with a model trained here
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash demos/speech.sh

audit: setup  ## ask PyPI whether a locked package has a known flaw
	$(BIN)/python tools/audit.py requirements.lock requirements.torch

bench: setup  ## measure against the peers, all cases; needs wrk, and hours
	$(BIN)/python benchmarks/run.py

lock: setup  ## write what is installed as the new requirements.lock and requirements.torch
	$(PIP) freeze --all --exclude pip --exclude torch --exclude-editable > .venv/installed.txt
	$(BIN)/uv pip compile --quiet --python $(BIN)/python --no-deps --generate-hashes --no-header \
	  --no-annotate .venv/installed.txt --output-file requirements.lock
	{ grep '^#' requirements.torch; \
	  $(PIP) freeze | sed -nE 's/^(torch==[0-9.]+)(\+.*)?$$/\1/p'; } > .venv/torch.txt
	cp .venv/torch.txt requirements.torch

clean:  ## remove what was made; the model store, runs and downloads stay
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* src/*.egg-info
