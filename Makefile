# The same words on a laptop and in CI.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: help setup swagger demo demo-image demo-speech demo-private test test-fast test-pythons test-image \
  coverage torture check audit bench lock proto clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.done  ## make .venv and install everything; Swagger UI for /docs, too, where npm is
	@$(MAKE) --no-print-directory swagger 2> /dev/null || echo "/docs has no Swagger UI: run make swagger, which needs npm"

.venv/.done: requirements.lock requirements.torch pyproject.toml
	@echo "installing into .venv: about 1.5 GB, a few minutes the first time"
	$(PYTHON) -m venv .venv
	$(PIP) install --require-hashes --no-deps -r requirements.lock
	$(PIP) install -r requirements.torch
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(PIP) check
	@touch $@

SWAGGER := src/marship/engines/page/docs/swagger/swagger-ui-bundle.js

swagger: $(SWAGGER)  ## fetch Swagger UI for /docs by npm, its version and hash as in tools/swagger.py

$(SWAGGER): tools/swagger.py
	$(PYTHON) $<

demo: setup  ## train a recommender, serve it, predict, scale it, stop
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash demos/recommend.sh

test: setup  ## the whole test suite, on one process more than there are cores
	$(BIN)/pytest tests/server tests/training tests/handlers tests/unit $(SIDE_BY_SIDE) --durations=25

test-fast: setup  ## tests/unit without servers, and without what trains, exports, packages or starts commands
	$(BIN)/pytest -q tests/unit -m "not slow" $(SIDE_BY_SIDE) --durations=10

# A file's tests share what they build. Tests wait for servers and timeouts part of their time, so
# one process more than cores; files with servers come first, small ones fill up the end.
# pytest-xdist starts a crashed file again and again, then waits for ever: a process that crashes, or
# a test that takes 10 minutes, ends the run with its name and the stacks instead.
SIDE_BY_SIDE := --numprocesses=auto --dist=loadfile --no-loadscope-reorder --max-worker-restart=0 \
  -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true
# Hundreds of processes, each of which would compile marship or its tests anew.
unexport PYTHONDONTWRITEBYTECODE

coverage: setup  ## lines and branches that unit tests and tests of handlers reach, into .coverage-html
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q tests/unit tests/handlers $(SIDE_BY_SIDE)
	$(BIN)/coverage combine -q
	$(BIN)/coverage html -q -d .coverage-html
	$(BIN)/coverage report --sort=cover

test-pythons: setup  ## the code inside archives, on each installed Python that is supported
	$(BIN)/python tools/pythons.py

test-image: setup  ## build an image with buildah from MARSHIP_BASE, and run it; as root
	$(BIN)/pytest -q tests/containers

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

demo-private: setup  ## ask for digits that servers cannot read: encrypted, and by three parties
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash demos/private.sh

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

proto: setup  ## write the descriptors of open_inference.proto
	cd src/marship/engines/gateway && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc -I. \
	  --descriptor_set_out=open_inference.binpb open_inference.proto

clean:  ## remove what was made; the model store, runs and downloads stay
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* src/*.egg-info
