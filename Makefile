# Everything a checkout needs. `make serve` and `make test` do all the set-up themselves.
.DELETE_ON_ERROR:
.PHONY: help serve test lint format types bench demo install dev clean

# The first interpreter that really runs and is new enough (a pyenv shim may exist and not run).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$p" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$p"; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
NATIVE := $(wildcard server/kernels/cpu/src/*)
# Passed on: make serve ARGS="--port 8001", make test ARGS="-k config"
ARGS ?=

help:
	@echo "make serve   install if needed, serve the embedded demo on http://127.0.0.1:8000"
	@echo "make test    install if needed, run every test"
	@echo "make lint    ruff: rules and formatting      make format  apply them"
	@echo "make types   pyright"
	@echo "make bench   side-by-side benchmarks (hours)   ARGS=--help lists its parts"
	@echo "make demo    make the embedded base and adapters from scratch (half an hour)"
	@echo "make clean   remove $(VENV) and caches"

# A stamp per set of packages: nothing is installed again until the lists change.
install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE)
	@test -n "$(PYTHON)" || { echo "adapterd needs Python 3.11 or newer with its venv module: \
	install python3.11 and python3.11-venv, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing adapterd into $(VENV) (a few minutes the first time)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what tests and linters need into $(VENV)"
	@$(PIP) --editable '.[dev]'
	@touch $@

serve: install
	@exec $(BIN)/adapterd serve --host 127.0.0.1 $(ARGS)

# A process for each core, but not more than a few: some start servers of their own.
test: dev
	@exec $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(ARGS)

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: dev
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: dev
	$(BIN)/python -m benchmarks $(or $(ARGS),all)

demo: dev
	$(BIN)/python -m demo.make $(ARGS)

clean:
	rm -rf $(VENV) server/kernels/cpu/_native*.so build .pytest_cache .ruff_cache .hypothesis *.egg-info
