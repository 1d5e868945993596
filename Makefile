# Every target sets up what it needs; nothing is installed again until its inputs change.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help run demo dev lint docs check test clean

PYTHON ?= python3
BIN := .venv/bin

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

run: ## Start everything, deploy a small model, chat with it, and stay up
	@$(PYTHON) scripts/setup_venv.py
	@exec $(BIN)/firstlight demo --stay

demo: ## The same, then stop everything and exit
	@$(PYTHON) scripts/setup_venv.py
	@exec $(BIN)/firstlight demo

dev: ## Set up .venv for development
	@$(PYTHON) scripts/setup_venv.py --dev

lint: dev ## Formatting, types, import rules, generated stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m firstlight.rpc.generate --check

docs: dev ## The documentation as a site in build/site; a broken link or anchor is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint docs ## lint, docs, and the tests that need no I/O
	@exec $(BIN)/python -m pytest -q tests/unit

# A file at a time in each of a few processes: most tests wait for servers and for processes of their own. In their
# order, so that the many short ones of tests/unit come last: left to itself xdist begins the longest files last.
TEST_PROCESSES ?= 2
# One that fails is run once more, and named as such at the end: on a machine shared with others, real servers and
# processes miss a deadline now and then. What is named there twice in a row is a defect of ours, or of the test.
test: lint docs ## lint, docs, and every test
	@exec $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --reruns 1 -r fEsR --durations 40

clean: ## Remove .venv, build products and local state
	rm -rf .venv build .firstlight .mypy_cache .ruff_cache .pytest_cache .hypothesis
