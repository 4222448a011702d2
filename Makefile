# Every target makes its own .venv when there is none; python3.10 to 3.13 will do.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What a development environment holds; `make EXTRAS=all ...` adds what the speed comparison needs.
EXTRAS ?= dev
# One process a core; torch's own threads would only fight over them.
TEST_WORKERS ?= 2
# Of `make mutants`, such as "--only sparse --seed 1".
MUTANTS ?=

.PHONY: demo test test-slow test-matrix mutants lint format typecheck clean install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/sae-lens-bipolar demo --output runs/demo

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
	rm -rf $(VENV) .matrix build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
