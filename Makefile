# Everything below uses one virtual environment, made when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A file's tests stay in one process, with the clusters and runs that they share; the longest files begin.
# Processes of the tests, of which many import this package, read its bytecode instead of compiling it.
test-fast test: export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

.PHONY: demo test-fast test guard lint docs dist bench clean

demo: $(READY)  ## train the digits recipe on a Ray cluster of this machine
	$(BIN)/kdcl demo

test-fast: $(READY)  ## what a change is tried with: every package, in under two minutes
	$(PYTEST) --numprocesses 2 tests/unit

test: $(READY)  ## run all tests, in four processes on two cores: much of their time is waiting
	$(PYTEST) --numprocesses 4

guard: $(READY)  ## see that no ratio of docs/speed.md is far off, in a minute or two
	$(BIN)/python -m pytest -m speed tests/integration/test_speed.py

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(READY)  ## build the site into build/site; a broken link or another warning is an error
	$(BIN)/python -m mkdocs build

bench: $(READY)  ## measure every ratio of docs/speed.md, in under 15 minutes on a quiet machine
	$(BIN)/python -m benchmarks.speed --out docs/results/speed.md

dist: $(READY)  ## build the wheel and the source package into dist/
	$(BIN)/python -m build

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs build dist *.egg-info

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev,docs]"
	touch $@
