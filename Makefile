# Two commands do everything on a fresh machine with Python 3.11 or 3.12 and a C++ compiler:
#   make demo    EarlyBERT against dense and stock training, on a built-in task
#   make test    the tests
PYTHON ?= python3
PYTHON312 ?= python3.12
CONSTRAINTS := constraints.txt
CUDA_ARCHS ?= 90a
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_FOR_TESTS := $(VENV)/.installed-for-tests
SOURCES := pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/*/*)
# Not all of the packages' modules are compiled to byte code, most of a minute's work: those that are imported are, once.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c $(CONSTRAINTS) -e

.PHONY: help install install-for-tests demo test tests test-oldest test-peer lint sanitize clean

help:
	@sed -n '2,3s/^#//p' Makefile

install: $(INSTALLED)

install-for-tests: $(INSTALLED_FOR_TESTS)

$(INSTALLED): $(SOURCES)
	@echo "== Creating $(VENV) and installing earlybert-kernels with its dependencies (2 minutes on 2 cores)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[demo]'
	@echo "== What this installation has:"
	$(BIN)/python -m earlybert_kernels.env
	@touch $@

# What no GPU is needed to test as well: the CUDA kernels for the processor, and what nvcc, if it is here, makes of them:
# for one architecture, which takes minutes less than all of them, CUDA_ARCHS=common.
$(INSTALLED_FOR_TESTS): $(SOURCES)
	@echo "== Creating $(VENV) and installing what the tests need (minutes, the first time)"
	$(PYTHON) -m venv $(VENV)
	EARLYBERT_BUILD_CUDA_EMULATED=1 EARLYBERT_CUDA_ARCHS='$(CUDA_ARCHS)' \
	  $(INSTALL) '.[demo,dev,bench]'
	@echo "== What this installation has:"
	$(BIN)/python -m earlybert_kernels.env
	@touch $@ $(INSTALLED)

demo: install
	@echo "== Running the demo: dense stock, dense with our kernels, EarlyBERT (about 3 minutes on 2 cores)"
	$(BIN)/earlybert demo --output-dir runs/demo --overwrite-output-dir

lint: install-for-tests
	@echo "== Checking style, that imports run one way, and types (a minute, the first time)"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*/*)
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

# Side by side: for most of a minute the type checker keeps one core busy and no more.
test: install-for-tests
	$(MAKE) --jobs=2 lint tests

# A worker a core; threads that spin while they wait would take the cores from the others' tests.
tests: install-for-tests
	@echo "== Running the tests (without a GPU, those that need one are skipped and say so)"
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -rs -n logical --maxprocesses 8 --dist worksteal

# The same with the oldest versions that pyproject.toml accepts, on Python 3.12. PyPI's torch brings CUDA's libraries
# (about 5 GB).
test-oldest:
	$(MAKE) test VENV=.venv-oldest PYTHON=$(PYTHON312) CONSTRAINTS=constraints-oldest.txt

# Downloads transformers' source distribution for its common model tests.
test-peer: install-for-tests
	@echo "== Running transformers' own model tests on stock, converted, gated, masked and compact models"
	$(BIN)/python tests/peer/run.py

sanitize: install-for-tests
	@echo "== Running the tests of the CPU and the emulated CUDA ops under AddressSanitizer and UndefinedBehaviorSanitizer"
	$(BIN)/python tests/sanitize.py

clean:
	rm -rf .venv .venv-oldest build runs *.egg-info earlybert_kernels/*.so earlybert_kernels/_build.*.json
