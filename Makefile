# `make demo` and `make test` need only make and Python >= 3.11; they create .venv when it is missing.

DEMO_ENV     = dmc/cartpole-swingup
DEMO_MINUTES = 8

VENV = .venv
# 3.11 and 3.12 first: every dependency has a wheel there.
PYTHON ?= $(shell for python in python3.12 python3.11 python3.13 python3; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.PHONY: help install demo test lint types pytest clean

help:
	@echo "make demo   train on $(DEMO_ENV) for $(DEMO_MINUTES) minutes, then show where the report is"
	@echo "make test   style, types and every test"
	@echo "make clean  remove $(VENV) and caches; runs stay"

demo: install
	$(VENV)/bin/mbrl train $(DEMO_ENV) --minutes $(DEMO_MINUTES) --runs-dir runs/demo

test: lint types pytest

lint: install
	$(VENV)/bin/ruff check .

types: install
	$(VENV)/bin/mypy

pytest: install
	$(VENV)/bin/pytest

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer was not found (looked for python3.12, python3.11, python3.13, python3)." >&2; \
		echo "Install one, with its venv module, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; fi
	@echo "setting up $(VENV) with $(PYTHON); torch is large, the first time takes some minutes"
	@[ -x $(VENV)/bin/pip ] || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@# dm-control without labmaze, which has no wheel for 3.13 and which nothing here uses
	@$(VENV)/bin/python -c 'import dm_control' 2>/dev/null || \
		$(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt --no-deps dm-control
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
