# make sample   install, then sample 1,000 digits with the bundled network
# make test     install, then lint and test

PYTHON ?= python3
BIN := .venv/bin

.PHONY: sample test lint clean

sample: .venv/installed
	$(BIN)/python main.py --runner sample --method F-PNDM --sample_speed 50

test: lint
	$(BIN)/python -m pytest

lint: .venv/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt -c constraints.txt
	@touch $@

.venv/installed-tests: .venv/installed tests/requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r tests/requirements.txt -c constraints.txt
	@touch $@

clean:
	rm -rf .venv temp
