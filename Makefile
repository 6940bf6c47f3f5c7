# The README's commands. Each first creates .venv with the pinned versions.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.made
PYTEST := $(VENV)/bin/python -m pytest

.PHONY: train test test-all check extras coverage docs clean

train: $(STAMP)
	$(VENV)/bin/python scripts/train.py

# Every feature once, in less than four minutes on two cores.
test: $(STAMP)
	$(PYTEST) -m "not slow or smoke"

# All tests.
test-all: $(STAMP)
	$(PYTEST)

check: $(STAMP)
	$(VENV)/bin/pre-commit run --all-files

# Resolves all extras at once without installing them: pins that fit all of them fit each of them.
EXTRAS = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]

extras: $(STAMP)
	$(VENV)/bin/python -m pip install --dry-run -qq -c constraints.txt \
		".[$$($(VENV)/bin/python -c 'import tomllib; print(",".join($(EXTRAS)))')]"

# Coverage of all tests; htmlcov/index.html reports single lines.
coverage: $(STAMP)
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=html

# Builds the site in site/, without network; a broken link is an error.
docs: $(STAMP)
	$(VENV)/bin/sphinx-build -W --keep-going -q docs site

# Recreated whenever the pins or the package's requirements change.
$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) site htmlcov .coverage* docs/reference
