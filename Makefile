# make quickstart | test | lint | bench | clean.   PYTHON chooses the interpreter, VENV the environment that is made.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist loadfile

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Folders are listed as well, so that a deleted file counts as a change.
SOURCES := pyproject.toml README.md LICENSE $(shell find simkit datasets potentials -not -name '__pycache__' -not -name '*.pyc')

.PHONY: quickstart test lint bench clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.package
	$(BIN)/simkit quickstart --out quickstart

# `pytest`, never `python -m pytest`: the latter puts this folder on sys.path, in front of the package that was installed.
test: $(VENV)/.package $(VENV)/.extras
	$(BIN)/pytest $(PYTEST_ARGS)

# mypy runs inside the environment: from here it would find the tree, where datasets and potentials lie outside simkit.
lint: $(VENV)/.package $(VENV)/.extras
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && bin/mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" -p simkit

bench: $(VENV)/.package
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) build simkit.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# What simkit needs to run.
$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("simkit needs Python 3.11 or newer, found " + sys.version.split()[0] + "; choose another one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt setuptools .
	@touch $@

# What testing and checking needs besides.
$(VENV)/.extras: $(VENV)/.base
	$(PIP) install --constraint constraints.txt '.[all,test]'
	@touch $@

# The package itself, again whenever a source has changed. setuptools would install deleted files from an old build folder.
$(VENV)/.package: $(VENV)/.base $(SOURCES)
	rm -rf build
	$(PIP) install --quiet --no-deps --no-build-isolation --force-reinstall .
	@touch $@
