# All targets need only Python >= 3.11 and make; they install the rest themselves.
#
#   PYTHON=...   the interpreter of a new environment (default: the best one found)
#   VENV=...     where the environment is (default: .venv)
#   ARGS=...     further arguments: make run ARGS="--preset paper --training.seed 1"
#   WORKERS=...  pytest processes (default: 2)

VENV ?= .venv
WORKERS ?= 2
ARGS ?=
export PYTHON

PY := $(VENV)/bin/python
RUN = -m experiments.nbody --preset vector-orbits-quick

.PHONY: help setup run test fuzz soak slow test-wheel test-versions test-all lint format pytest pages docs wheel lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## create or update the environment
	@sh tools/setup_venv.sh $(VENV)

run: setup  ## a small first experiment: at most 5 minutes on 2 cores
	$(PY) $(RUN) $(ARGS)

test: lint pytest pages  ## style, tests and pages: at most 10 minutes on 2 cores

lint: setup  ## style and structure alone
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(PY) tools/check_structure.py

format: setup  ## let ruff fix the style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

pytest: setup  ## tests alone: make pytest ARGS="tests/ops -k spectral"
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

fuzz: setup  ## fuzz all readers of files, a minute each: make fuzz ARGS="--seconds 600 motion"
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[fuzz]"
	$(PY) -m tests.fuzz_readers $(ARGS)

soak: setup  ## a day of training in tiny steps, killed again and again: about ten minutes
	$(PY) -m tests.soak $(ARGS)

slow: setup  ## the tests that take minutes
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m slow

pages: setup  ## the documentation without running its code; any warning is an error
	$(PY) -m sphinx -E -W --keep-going -q -j $(WORKERS) -D nb_execution_mode=off -b dummy docs docs/_build/dummy

docs: setup  ## the documentation with the results of its code, in docs/_build/html
	$(PY) -m sphinx -E -W --keep-going -q -j $(WORKERS) -b html docs docs/_build/html

wheel: setup  ## wheel and sdist, in dist/
	rm -rf dist build
	$(PY) -m build --outdir dist .

test-wheel: wheel  ## install the wheel in a clean environment, core dependencies alone
	sh tools/test_wheel.sh dist

test-versions: setup  ## core tests on the oldest and the newest dependencies
	sh tools/test_versions.sh $(WORKERS)

test-all: test docs slow test-wheel test-versions  ## everything that CI runs

lock:  ## rewrite constraints.txt (needs Python 3.11 to 3.13; ARGS=--keep: new packages only)
	"$$(sh tools/find_python.sh)" tools/lock.py $(ARGS) "$$(sh tools/find_python.sh 3.11)" \
	    "$$(sh tools/find_python.sh 3.12)" "$$(sh tools/find_python.sh 3.13)"

clean:  ## remove environments and build outputs, not runs and data
	rm -rf $(VENV) .venvs build dist *.egg-info docs/_build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
