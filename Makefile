# `make demo` and `make test` build .venv by themselves, once. After that nothing here uses the network.

PYTHON ?= python3
INSTALL := -m pip install -qq --disable-pip-version-check
OLDEST := $(shell sed -n 's/.*"transformers>=\([^,"]*\).*/\1/p' pyproject.toml)
PYTEST := .venv/bin/pytest

export HF_HUB_OFFLINE = 1
export TRANSFORMERS_OFFLINE = 1
export HF_DATASETS_OFFLINE = 1

.PHONY: demo demo-vision explore test test-all test-isa test-oldest test-neurobench lint format

demo: .venv/ready
	@.venv/bin/fas demo

demo-vision: .venv/ready
	@.venv/bin/fas demo --vision

test: lint
	@echo "Tests"
	@$(PYTEST)

test-all: test test-isa test-oldest test-neurobench explore
	@echo "Slow tests"
	@$(PYTEST) -m slow
	@echo "Support matrix (docs/support.md)"
	@.venv/bin/python tests/support.py

explore: .venv/ready
	@echo "Properties, on examples that no run has drawn before"
	@$(PYTEST) --hypothesis-profile=explore $$(grep -l "from hypothesis import" tests/test_*.py)

test-isa: .venv/ready
	@.venv/bin/python scripts/instruction_sets.py

test-oldest: .venv-oldest/ready
	@echo "Contract tests with transformers $(OLDEST)"
	@$(PYTEST:.venv/%=.venv-oldest/%) tests/test_contract.py tests/test_neurons.py tests/test_events.py

test-neurobench: .venv-neurobench/ready
	@echo "Metrics against the package neurobench"
	@.venv-neurobench/bin/pytest tests/test_neurobench.py

lint: .venv/ready
	@echo "Style, types and layers"
	@.venv/bin/ruff check -q
	@.venv/bin/ruff format -q --check
	@.venv/bin/pyrefly check --python-interpreter-path .venv/bin/python
	@.venv/bin/lint-imports --no-logo

format: .venv/ready
	@.venv/bin/ruff check -q --fix
	@.venv/bin/ruff format

.venv/ready: pyproject.toml constraints.txt
	@echo "Installing the tested versions into .venv (once; torch alone takes minutes)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python $(INSTALL) -c constraints.txt torch
	@.venv/bin/python $(INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

# the same versions but for transformers and the two packages whose versions it narrows
.venv-oldest/ready: pyproject.toml constraints.txt
	@echo "Installing transformers $(OLDEST), the oldest supported, into .venv-oldest"
	@$(PYTHON) -m venv .venv-oldest
	@sed -E '/^(transformers|tokenizers|huggingface-hub)==/d' constraints.txt > .venv-oldest/constraints.txt
	@.venv-oldest/bin/python $(INSTALL) -c .venv-oldest/constraints.txt torch
	@.venv-oldest/bin/python $(INSTALL) -c .venv-oldest/constraints.txt -e '.[dev]' 'transformers==$(OLDEST)'
	@touch $@

# neurobench brings dependencies that must not meet the project's
.venv-neurobench/ready: pyproject.toml constraints.txt
	@echo "Installing neurobench into .venv-neurobench"
	@$(PYTHON) -m venv .venv-neurobench
	@.venv-neurobench/bin/python $(INSTALL) -c constraints.txt torch
	@.venv-neurobench/bin/python $(INSTALL) -e '.[dev]' 'neurobench==2.3.0'
	@.venv-neurobench/bin/pip uninstall -q -y torchaudio # built for another torch, and only transformers would load it
	@touch $@
