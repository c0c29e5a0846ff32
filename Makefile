# The few commands that matter. Each makes its own virtual environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Tests and demos start hundreds of processes. Where this is set, as many containers do, each would compile every module
# again: two thirds of a node's start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test docker-test seeds lint bench soak clean

demo: $(READY)  ## five nodes evaluate a program together; one is killed in mid-run
	$(BIN)/python -m examples.demo

# Tests of real nodes mostly wait for them: more workers than cores.
WORKERS ?= 4

test: lint  ## everything, on 2 cores in under 5 minutes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not soak and not docker"

docker-test: $(READY)  ## nodes in containers; needs a Docker engine, or: sh .ci/docker make docker-test
	$(BIN)/python -m pytest -m docker tests/docker

# Simulations of which `make test` lives through some seeds and `make seeds` through SEEDS; one line each.
SEEDED := tests/simulation/raft/test_seeds.py
SEEDED += tests/simulation/bft/test_simulation.py
SEEDED += tests/simulation/bft/test_selection.py
SEEDS ?= 2000

seeds: $(READY)  ## the simulations over many more seeds, on 2 cores in a few minutes
	SEEDS=$(SEEDS) $(BIN)/python -m pytest -q -n 2 --dist load $(SEEDED)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## each figure with its anchor beside it in the same run
	$(BIN)/python -m pip install -q -e '.[bench]'
	$(BIN)/python -m benchmarks

soak: $(READY)  ## long, bounded runs: make soak SEEDS=50000
	$(BIN)/python -m pytest -m soak -n 2
	SEEDS=$(if $(filter environment command,$(firstword $(origin SEEDS))),$(SEEDS),10000) \
		$(BIN)/python -m pytest -q -n 2 --dist load $(SEEDED)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

$(READY): pyproject.toml .ci/venv
	sh .ci/venv $(PYTHON) $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,dspy,postgres]'
	touch $@
