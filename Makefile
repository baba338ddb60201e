# agentpool: `make help` lists everything. Needs Python 3.11 or later and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# `make run` and `make test` never follow what the caller's shell says about Redis or agentpool.
CLEAN := env -u USE_MULTIPROCESSING $$(env | sed -n 's/^\(\(REDIS\|AGENTPOOL\)_[A-Za-z0-9_]*\)=.*/-u \1/p')
DATA_DIR ?= .agentpool
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install run test check lint types layers format coverage check-deploy bench-control bench-pool bench-tasks durability chaos test-long soak clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "agentpool needs Python 3.11 or later: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(VENV)/.installed ## Make .venv with everything in it

# What benchmarks compare with.
$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

run: install ## Run the demo pools on an embedded Redis server, until Ctrl-C
	@$(CLEAN) $(BIN)/agentpool-master run --embedded --banner --data-dir $(DATA_DIR) \
		--config scripts/demo/agentpool.toml --app-dir scripts/demo

# Most tests wait for processes, so there may be more at once than there are cores.
TESTS_AT_ONCE ?= 3

test: install ## Run the tests on real servers that they start themselves
	@$(CLEAN) $(PYTEST) -q -n $(TESTS_AT_ONCE) --dist worksteal

check: lint types layers test ## Everything that CI runs

lint: install ## Style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## Static types
	$(BIN)/mypy

layers: install ## Imports point down
	$(BIN)/lint-imports

format: install ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

coverage: install ## The tests, with the coverage of both packages, subprocesses counted
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory test PYTEST="$(BIN)/coverage run -m pytest"
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

check-deploy: install ## systemd and supervisord: needs their tools, fails where they are absent
	@$(CLEAN) $(BIN)/python -m pytest -q -m deploy

bench-control: install ## Figures of the control plane, against floors in the same run
	@$(CLEAN) $(BIN)/python scripts/bench_control.py

bench-pool: $(VENV)/.peers ## Figures of the in-process pool, against a queue and a peer
	@$(CLEAN) $(BIN)/python scripts/bench_pool.py

bench-tasks: $(VENV)/.peers ## Figures of the task path, against its peers in the same run
	@$(CLEAN) $(BIN)/python scripts/bench_tasks.py

durability: install ## What a server loses of what it acknowledged, killed in each mode
	@$(CLEAN) $(BIN)/python scripts/durability.py

MINUTES ?= 10
SEED ?=

chaos: install ## Kill, freeze and cut off everything by a seed: MINUTES=10 SEED=...
	@$(CLEAN) PYTHONPATH=tests $(BIN)/python -m chaos.run --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

test-long: install ## The longer variants of tests
	@$(CLEAN) $(BIN)/python -m pytest -q -m chaos

soak: install ## Long runs that watch for growth
	@$(CLEAN) $(BIN)/python -m pytest -q -m soak

clean: ## Remove the environment and the demo's data
	rm -rf $(VENV) .venv-bench $(DATA_DIR) build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
