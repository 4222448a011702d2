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

.PHONY: demo test test-gpu gpu-check test-slow test-matrix mutants docs lint format typecheck clean install

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

# The kernels on an NVIDIA GPU, each against its dense equivalent.
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu tests/sparse/triton

# All that a GPU can say of this package, in 8 minutes at most. A machine without network brings
# its own torch and triton; the folder .whl then holds the wheels that it lacks.
gpu-check: $(if $(wildcard .whl),.site,$(STAMP))
	PYTHONPATH=.site:. $(if $(wildcard .whl),$(PYTHON),$(BIN)/python) -m recipes.speed.gpu_check --output runs/gpu_check

.site: $(wildcard .whl/*.whl)
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --target $@ $^
	touch $@

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
	rm -rf $(VENV) .matrix .site build dist *.egg-info site .pytest_cache .ruff_cache .hypothesis
