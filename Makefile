# The two commands of the README. `make train` trains, `make test` checks and tests; both make .venv first.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.made

.PHONY: train test check extras clean

train: $(STAMP)
	$(VENV)/bin/python scripts/train.py

test: $(STAMP)
	$(VENV)/bin/python -m pytest

check: $(STAMP)
	$(VENV)/bin/pre-commit run --all-files

# All extras at once, and nothing installed: exact pins that fit them together fit each of them.
EXTRAS = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]

extras: $(STAMP)
	$(VENV)/bin/python -m pip install --dry-run -qq -c constraints.txt \
		".[$$($(VENV)/bin/python -c 'import tomllib; print(",".join($(EXTRAS)))')]"

# Remade whenever the pins or the package's own requirements change.
$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV)
