# make demo    SimCLR, BYOL, MAE with and without LDReg, naive and fused; one table and the plots (CPU, minutes)
# make test    the test suite                       make lint    ruff, mypy, import-linter
# make build   recompile what changed in csrc/      make bench   time it against other libraries (3 minutes)
# make clean   remove build outputs (not .venv)
# make test-clients   only how LDRegLoss does in Lightning, accelerate and transformers' Trainer
#
# The first call makes $(VENV) and installs into it. A CPU-only Linux machine saves a 2 GB download with
#   make demo TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_OPTIONS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-clients lint build bench clean
.DELETE_ON_ERROR:

demo: build
	$(BIN)/ldreg demo

test: build
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not alone"
	$(BIN)/python -m pytest -m alone

test-clients: build
	$(BIN)/python -m pytest python_tests/clients

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck benchmarks/*.sh

bench: build $(VENV)/.installed-bench
	$(BIN)/ldreg bench --quick

# Not a stamp: ninja knows better than make what is out of date (sources, flags, LDREG_* settings), and takes 0.3 s.
build: $(VENV)/.installed
	$(BIN)/python setup.py -q build_ext --inplace

# torch comes first and alone, and is named again whenever more is installed, so that nothing can move it.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)" $(TORCH_OPTIONS)
	touch $@

# Without isolation, so that the objects compiled here are the ones `make build` continues from.
$(VENV)/.installed: pyproject.toml setup.py $(VENV)/.torch
	$(PIP) install "setuptools>=77" "pybind11>=2.13" "ninja>=1.11"
	$(PIP) install "$(TORCH)" --no-build-isolation --editable ".[triton,train,test,dev]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) install "$(TORCH)" --no-build-isolation --editable ".[bench]"
	touch $@

clean:
	rm -rf build dist *.egg-info ldreg_kernels/*.so $(VENV)/.installed $(VENV)/.installed-bench
