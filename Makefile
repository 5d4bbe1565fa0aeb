# Each target first sets up .venv when it is missing, was interrupted, or its pins have changed.
# Python and place can be chosen: make test PYTHON=/usr/bin/python3.12 VENV=/tmp/venv

PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	command -v "$$python" && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.installed

.PHONY: demo test check evidence format setup

demo: $(STAMP)  ## the whole path on this machine, from two corpora to a launched run and its report
	$(VENV)/bin/cptplan demo

test: $(STAMP)  ## all tests that need neither an accelerator nor many minutes
	OMP_NUM_THREADS=1 $(RUN) pytest -n auto --dist loadfile -m "not slow and not gpu"

check: $(STAMP)  ## format, lint, types, and the tests that take seconds
	$(RUN) ruff format --check
	$(RUN) ruff check
	$(RUN) mypy
	$(RUN) pytest -q -m "not slow and not gpu and not browser" --ignore=tests/integration

evidence: $(STAMP)  ## all analyses of experiments/ again from their kept data, and reports/evidence.md from them
	$(VENV)/bin/python experiments/evidence.py

format: $(STAMP)  ## put the code into shape
	$(RUN) ruff format
	$(RUN) ruff check --fix

setup: $(STAMP)  ## only the virtual environment

# The stamp is removed first and written last: without it the environment is unfinished and is made anew, because
# pip takes a half-unpacked package for an installed one. torch goes first: it is the large download.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python >= 3.11 with venv must be on PATH; got none." \
		"hint: install python3 and python3-venv, or run make PYTHON=/path/to/python3" >&2; exit 2; }
	@test -e $@ || "$(PYTHON)" -m venv --clear $(VENV)
	@rm -f $@
	$(RUN) pip install -c constraints.txt torch
	$(RUN) pip install -c constraints.txt -e '.[train,data,dev]'
	@touch $@
