# `make run` and `make test` need only Python >= 3.11 and make; the rest they install themselves.
#
#   PYTHON=...   the interpreter to make the environment with (default: the best one found)
#   VENV=...     where the environment is (default: .venv)
#   ARGS=...     further arguments: make run ARGS="--preset paper --seed 1"
#   WORKERS=...  pytest processes (default: 2)

VENV ?= .venv
WORKERS ?= 2
ARGS ?=
export PYTHON

PY := $(VENV)/bin/python
RUN = -m experiments.nbody --preset quick

.PHONY: help setup run test test-wheel test-versions test-all lint format pytest docs wheel lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make the environment, or bring it up to date
	@sh tools/setup_venv.sh $(VENV)

run: setup  ## the first experiment, small: at most 5 minutes on 2 cores
	$(PY) $(RUN) $(ARGS)

test: lint pytest docs  ## style, tests and documentation

lint: setup  ## style alone
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup  ## let ruff mend the style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

pytest: setup  ## tests alone: make pytest ARGS="tests/ops -k spectral"
	$(PY) -m pytest -n $(WORKERS) $(ARGS)

docs: setup  ## the documentation, in docs/_build/html; any warning is an error
	$(PY) -m sphinx -E -W --keep-going -q -b html docs docs/_build/html

wheel: setup  ## wheel and sdist, in dist/
	rm -rf dist build
	$(PY) -m build --outdir dist .

test-wheel: wheel  ## install the wheel in a clean environment, core dependencies alone
	sh tools/test_wheel.sh dist

test-versions: setup  ## core tests on the oldest and the newest dependencies
	sh tools/test_versions.sh $(WORKERS)

test-all: test test-wheel test-versions  ## everything that CI runs

lock:  ## rewrite constraints.txt (needs Python 3.11, 3.12 and 3.13)
	"$$(sh tools/find_python.sh)" tools/lock.py "$$(sh tools/find_python.sh 3.11)" \
	    "$$(sh tools/find_python.sh 3.12)" "$$(sh tools/find_python.sh 3.13)"

clean:  ## remove environments and build outputs; runs and data stay
	rm -rf $(VENV) .venvs build dist *.egg-info docs/_build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
