# A target that needs .venv makes it. PYTHON= chooses the interpreter, WORKERS= the number of test processes; ARGS= is
# passed on to the command.

PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
QUIET := -qq --disable-pip-version-check

# What the environment was made with, and where: its scripts hold absolute paths.
# base_prefix, not executable: the same answer inside the activated .venv.
# Empty when there is no such interpreter or it is older than the constraints allow.
IDENTITY := $(shell $(PYTHON) -c 'import os, sys; sys.version_info >= (3, 11) and \
              print(sys.version.split()[0], sys.base_prefix, os.getcwd())' 2>/dev/null)
ifneq ($(IDENTITY),$(shell cat $(STAMP) 2>/dev/null))
.PHONY: $(STAMP)
endif

# One thread for each worker. Offline: a test that reaches for the Hub fails at once.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help demo results test test-all test-faults lint format clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "make %-10s %s\n", $$1, $$2 }'

demo: $(STAMP)  ## Run the demonstration
	@$(BIN)/python scripts/demo.py $(ARGS)

results: $(STAMP)  ## Measure what the recipes reach; goes on where it stopped
	@$(BIN)/python benchmarks/recipes.py $(ARGS)

test: $(STAMP)  ## Run the fast tests
	@$(TEST_ENV) $(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-all: $(STAMP)  ## Run all tests, the slow ones too
	@$(TEST_ENV) $(BIN)/pytest -n $(WORKERS) --dist loadfile -m "" $(ARGS)

test-faults: $(STAMP)  ## Run the matrix of faults; goes on where it stopped
	@$(TEST_ENV) $(BIN)/python tests/faults/run.py $(ARGS)

lint: $(STAMP)  ## Check style and format
	@$(BIN)/ruff check $(ARGS)
	@$(BIN)/ruff format --check $(ARGS)

format: $(STAMP)  ## Format the code and apply safe fixes
	@$(BIN)/ruff check --fix-only --quiet $(ARGS)
	@$(BIN)/ruff format $(ARGS)

clean:  ## Remove the environment, build output and caches
	@rm -rf $(VENV) build dist triune.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is removed first and written last: an install that was cut short starts again from an empty environment.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(if $(IDENTITY),,$(error $(PYTHON) is not Python 3.11 or later; name one with PYTHON=))
	@test "$$(cat $@ 2>/dev/null)" = "$(IDENTITY)" || \
		{ echo "Making $(VENV), a minute or more"; $(PYTHON) -m venv --clear $(VENV); }
	@rm -f $@
	@$(BIN)/pip install $(QUIET) -c constraints.txt -e ".[test,dev]"
	@echo "$(IDENTITY)" > $@
