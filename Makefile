# Every target makes its own .venv when there is none; python3.10 to 3.13 will do.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What a development environment holds; `make EXTRAS=all ...` adds what the speed comparison needs.
EXTRAS ?= dev
comma := ,
STAMP := $(VENV)/.installed-$(EXTRAS)
# What the demo holds: the development environment where it is there already, else much less.
DEMO_STAMP := $(firstword $(wildcard $(VENV)/.installed-*) $(VENV)/.installed-demo$(comma)fast)
# One process per core; torch's own threads would only fight over them.
TEST_WORKERS ?= 2
# Of `make mutants`, such as "--only sparse --seed 1".
MUTANTS ?=

.PHONY: demo test test-slow test-matrix mutants docs lint format typecheck clean install

install: $(STAMP)

# A file per set of extras: the demo's set is small, and a later `make test` adds the rest.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	touch $@

demo: $(DEMO_STAMP)
	$(BIN)/sae-lens-bipolar demo --output runs/demo

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Under the oldest and newest hosts, each in its own environment; `ROWS="oldest"` runs that one alone.
test-matrix:
	$(PYTHON) tests/matrix/run_matrix.py --workers $(TEST_WORKERS) $(ROWS)

mutants: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants $(MUTANTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP)
	$(BIN)/pyright

clean:
	rm -rf $(VENV) .matrix build dist *.egg-info site .pytest_cache .ruff_cache .hypothesis
