# make demo   installs into $(VENV) and runs the whole journey: float, calibration, QAT, 4 and 2 bits, evaluation
# make check  installs the test dependencies too, and runs ruff, mypy and the tests that take seconds
# make test   the same, and then the slow tests
# make fuzz   reads 10,000 damaged files with every reader, for some hours; for less: FUZZ_ARGS="yaml --cases 500"
# make kill   kills a quantization at ten random moments, and again under torchrun, and compares what comes out
# make docs   builds the documentation into build/site, with warnings as errors
# make notebooks   writes the tutorials as notebooks beside their scripts
# make clean  removes the virtual environment, caches and outputs
#
# Settings: PYTHON (3.10 to 3.12), VENV (where to install), DEMO_ARGS, PYTEST_ARGS (of both runs of test), FUZZ_ARGS,
# COVERAGE (what stands in front of -m pytest to measure that of the tests that take seconds; nothing by default).

PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
PYTEST_ARGS ?=
FUZZ_ARGS ?=
COVERAGE ?=

# The CUDA extension of the sam2 package only fills small holes in masks; building it needs a matching CUDA compiler.
export SAM2_BUILD_CUDA ?= 0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo check test fuzz kill lint docs notebooks clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/qsam2 demo $(DEMO_ARGS)

# What the tests of a file share is made once: they stay in one process.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python $(1) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

check: lint
	$(call PYTEST,$(COVERAGE)) -m "not slow" $(PYTEST_ARGS)

# Without coverage: torch does not compile what is instrumented.
test: check
	$(PYTEST) -m slow $(PYTEST_ARGS)

fuzz: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

kill: $(VENV)/.installed-test
	$(BIN)/python -m tests.killing --moments 10
	$(BIN)/python -m tests.killing --moments 10 --ranks 2

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Nothing is imported from the package: its pages are made of its source. With --quiet, warnings would be no errors.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

notebooks: $(VENV)/.installed-docs
	$(BIN)/jupytext --to ipynb --update tutorials/*.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "qsam2_ao needs Python 3.10, 3.11 or 3.12, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch and setuptools come first, because the source archive of the sam2 package would otherwise be built in isolation,
# against a second, newest torch. A torch of the pinned version that is already in $(VENV) is kept.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(PIP) install --upgrade "pip>=23.1" "setuptools>=77" wheel
	$(PIP) install --constraint constraints.txt torch
	@touch $@

# vos-benchmark asks for opencv-python, which needs the system's libGL: where there is none, its headless twin does.
define install
$(PIP) install --no-build-isolation --constraint constraints.txt --editable $(1)
@$(BIN)/python -c "import cv2" 2>/dev/null || { \
  $(PIP) uninstall --yes opencv-python && $(PIP) install --no-deps --force-reinstall opencv-python-headless; }
endef

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(call install,".[all]")
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.torch
	$(call install,".[test]")
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.torch
	$(call install,".[docs]")
	@touch $@

clean:
	rm -rf $(VENV) build dist outputs *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
