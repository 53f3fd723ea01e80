# On a fresh machine with python3 and make nothing else is needed: every target makes the environment it runs in.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-long test-engines test-gpu lint bench docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-plots ## Identify, check and follow the lynx-hare system (figures in examples/output)
	$(BIN)/python examples/lynx_hare.py

test: $(VENV)/.installed-dev ## Run the tests, but for the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.installed-dev ## Run the slow tests
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not long" --ignore tests/engines

test-long: $(VENV)/.installed-dev ## Run the slow tests that take longest
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and long"

test-engines: $(VENV)/.installed-dev $(VENV)/.installed-engines ## Drive Kafka's protocol and Spark (where there is Java) on this machine
	$(BIN)/python -m pytest -m slow -rs tests/engines

test-gpu: $(VENV)/.installed-dev ## Compare a GPU with the CPU, where JAX sees one (pip install 'jax[cuda13]')
	$(BIN)/python -m pytest -m gpu -rs tests/gpu

lint: $(VENV)/.installed-dev ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.installed-bench ## Run every benchmark that has a main
	@for script in $$(grep -ls '^if __name__ == "__main__"' benchmarks/*.py); do \
		echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

docs: $(VENV)/.installed-docs ## Build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Delete what was built or cached, all but $(VENV)
	rm -rf build dist site examples/output .mypy_cache .pytest_cache .ruff_cache
	find . -path './$(VENV)' -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# One stamp per extra: repeated when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing filterdyn[$*] into $(VENV) (minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("filterdyn needs Python 3.11 or newer, \
	and $(PYTHON) is " + sys.version.split()[0] + ": name another one, as in `make PYTHON=python3.12 test`")'
	$(PYTHON) -m venv $(VENV)
