# The README's commands. Each makes .venv first, with the versions that this commit was tested with.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.made
PYTEST := $(VENV)/bin/python -m pytest

.PHONY: train test test-all check extras coverage docs clean

train: $(STAMP)
	$(VENV)/bin/python scripts/train.py

# Every feature once, in about six minutes on two cores.
test: $(STAMP)
	$(PYTEST) -m "not slow or smoke"

# Everything, the fast tests among it.
test-all: $(STAMP)
	$(PYTEST)

check: $(STAMP)
	$(VENV)/bin/pre-commit run --all-files

# All extras at once, and nothing installed: exact pins that fit them together fit each of them.
EXTRAS = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]

extras: $(STAMP)
	$(VENV)/bin/python -m pip install --dry-run -qq -c constraints.txt \
		".[$$($(VENV)/bin/python -c 'import tomllib; print(",".join($(EXTRAS)))')]"

# Of all tests; the report of single lines is htmlcov/index.html.
coverage: $(STAMP)
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=html

# The site, in site/: built without network, and refused if a link leads nowhere.
docs: $(STAMP)
	$(VENV)/bin/sphinx-build -W --keep-going -q docs site

# Remade whenever the pins or the package's own requirements change.
$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) site htmlcov .coverage* docs/reference
