# make sample      install, then sample 1,000 digits with the bundled network
# make test        install, then everything: lint, types, all tests (JOBS=2 at once)
# make test-quick  the tests without those marked slow
# make lint        style and types
# make docs        the reference of the public names, in build/reference

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
# pip compiles with one core; COMPILE with all of them. Some packages hold files that no Python can compile.
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q --no-compile -c constraints.txt
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib || true
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder
TYPED := build/typed/pndm

.PHONY: sample test tests test-quick lint docs clean

sample: .venv/installed
	$(BIN)/python main.py --runner sample --method F-PNDM --sample_speed 50

test: .venv/installed-tests
	$(MAKE) -j2 lint tests

# The tests start the program a hundred times; without this it would be compiled as often where the variable is set.
tests test-quick: export PYTHONDONTWRITEBYTECODE :=

tests: .venv/installed-tests
	$(PYTEST)

test-quick: .venv/installed-tests
	$(PYTEST) -m "not slow"

lint: .venv/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPED) && mkdir -p $(TYPED)
	ln -s $(abspath $(wildcard pndm/*.py) pndm/py.typed config dataset model runner tools) $(TYPED)
	$(BIN)/mypy $(TYPED)

docs: .venv/installed-tests
	$(BIN)/python tools/reference.py build/reference

# The checkout itself is installed without build isolation, which would download setuptools once more.
.venv/installed: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt setuptools
	$(PIP) --no-deps --no-build-isolation -e .
	@$(COMPILE)
	@touch $@

.venv/installed-tests: .venv/installed tests/requirements.txt
	$(PIP) -r tests/requirements.txt
	@$(COMPILE)
	@touch $@

clean:
	rm -rf .venv build
	find temp -mindepth 1 -not -path temp/README.md -delete
