# The two commands of the README. `make train` trains, `make test` checks and tests; both make .venv first.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.made

.PHONY: train test check clean

train: $(STAMP)
	$(VENV)/bin/python scripts/train.py

test: $(STAMP)
	$(VENV)/bin/python -m pytest

check: $(STAMP)
	$(VENV)/bin/pre-commit run --all-files

# Remade whenever the pins or the package's own requirements change.
$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV)
