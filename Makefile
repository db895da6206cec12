# Utopia: every target sets up what it needs by itself, and is safe to repeat.
SHELL := /bin/bash
SCENARIO ?= scenarios/demo.yaml
BIN := .venv/bin
export PYTHONUNBUFFERED := 1

.PHONY: help setup demo test check format mininet-up mininet-down bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup: ## install what is missing: system packages (root), virtual environment, Ryu, torch
	@scripts/setup.sh

demo: setup ## run the main job: measure, fine-tune, split, degrade, report (root, under 8 minutes)
	@$(BIN)/utopia demo $(SCENARIO)

test: ## run all tests; those that need root and Mininet are skipped without root
	@scripts/setup.sh --for-tests
	@$(BIN)/pytest

check: ## lint, format, types, import rules
	@scripts/setup.sh --for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: ## rewrite the code in the house format
	@scripts/setup.sh --for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mininet-up: setup ## start network, controller, orchestrator and workers, and leave them running (root)
	@$(BIN)/utopia up $(SCENARIO)

mininet-down: setup ## stop exactly what mininet-up started, also after a crash
	@$(BIN)/utopia down $(SCENARIO)

bench: setup ## run the benchmarks at full size; figures go to results/
	@mkdir -p results
	@$(BIN)/python -m benchmarks.scoring --json results/scoring.json
	@$(BIN)/python -m benchmarks.stragglers --part simulation --part sensitivity --part training \
		--part validation --part emulation --json results/stragglers.json
	@$(BIN)/python -m benchmarks.network_accuracy --json results/network_accuracy.json
	@$(BIN)/python -m benchmarks.round_overhead --json results/round_overhead.json
	@$(BIN)/python -m benchmarks.split_overhead --json results/split_overhead.json

clean: ## remove the virtual environment and caches (results stay)
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
