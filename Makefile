# Every target sets up what it needs: a virtual environment in .venv, with pinned dependencies.
#
#   PYTHON            the Python to build .venv with (3.11 or newer; else the first that is found)
#   TORCH_INDEX_URL   where pip takes torch from, for example a CPU-only build without CUDA:
#                     make demo TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
#   ARGS              more arguments for pytest (test, test-slow), for the benchmarks (bench), or for
#                     python -m tests.chaos (chaos)

SHELL := /bin/sh
.DEFAULT_GOAL := help
export PYTHON TORCH_INDEX_URL

# Paths are relative on purpose: the folder's own name may have spaces.
BIN := .venv/bin
RUN := $(BIN)/python -m

.PHONY: help venv demo test test-slow chaos check bench gpu-check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "make %-10s %s\n", $$1, $$2 }'

venv: ## set up .venv (the other targets do so by themselves)
	@sh ./setup-venv.sh

demo: venv ## fine-tune a tiny model here and now, and see it learn
	@$(BIN)/celora demo

# Four modules at a time: most tests wait for processes, and two cores would idle half of the time.
# What failed is tried once more, alone, and named: see docs/decisions/0029.
test: venv ## run the tests, against a real RabbitMQ and a real Postgres
	@$(RUN) pytest -m "not slow" -n 4 --dist loadfile --durations 15 $(ARGS) || { \
		code=$$?; [ $$code -eq 1 ] || exit $$code; \
		echo "Once more, alone, what failed above:"; \
		$(RUN) pytest -m "not slow" --last-failed --last-failed-no-failures none -rA $(ARGS); }

test-slow: venv ## run the tests that take minutes
	@$(RUN) pytest -m slow $(ARGS)

chaos: venv ## kill and freeze everything at random while jobs run, and account for each of them
	@$(RUN) tests.chaos $(ARGS)

check: venv ## formatting, lint, types, import rules, and that migrations agree with the models
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(RUN) mypy .
	$(BIN)/lint-imports
	$(RUN) pytest -q tests/migration -k agree

bench: venv ## measure latency, jobs per second, placement, preparation, tokens per second …
	@$(RUN) benchmarks $(ARGS)

gpu-check: venv ## on a machine with a CUDA device: check and measure what only shows there
	@$(RUN) benchmarks.gpu_check

clean: ## remove everything that make has made
	rm -rf .venv .demo build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
