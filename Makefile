# make demo    what farwire does, in a minute
# make test    every check, as CI runs them
#
# Both set themselves up in .venv; nothing else of the machine is touched, except that `make test` installs Debian's
# openssh-server when it is run as root and there is no sshd.

VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --quiet --disable-pip-version-check install
VERSIONS := 3.10 3.11 3.12 3.13

.PHONY: help demo test lint types docs pytest test-all test-xdist test-projects bench fuzz clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      parse the standard library on every Python found here"
	@echo "make test      lint, types, documentation, tests"
	@echo "make test-all  the tests on each of Python $(VERSIONS) that is found"
	@echo "make lint types docs pytest test-xdist   the parts of make test"
	@echo "make test-projects  the tests of two projects under pytest -n 2, on farwire"
	@echo "make bench     the figures of docs/performance.md"
	@echo "make fuzz      a million inputs for each parser (long)"
	@echo "make clean     remove what these made"

# ---------------------------------------------------------------- set-up; the stamps say for which pyproject.toml

$(BIN)/python:
	@python=$$(sh tools/find_python.sh) && echo "$$python -m venv $(VENV)" && "$$python" -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	@echo "installing farwire[demo] into $(VENV)"
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	@echo "installing farwire[dev] into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/demo.stamp

.PHONY: tools
tools:
	@sh tools/install_test_tools.sh

# ---------------------------------------------------------------- what people ask for

demo: $(VENV)/demo.stamp
	@$(BIN)/python examples/parse_stdlib.py $(ARGS)

# One after the other, so that pytest's closing line is the last.
test: $(VENV)/dev.stamp tools
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory test-xdist
	@$(MAKE) --no-print-directory pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .

types: $(VENV)/dev.stamp
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/dev.stamp
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

pytest: $(VENV)/dev.stamp tools
	$(BIN)/python -m pytest $(ARGS)

# Other projects' tests on farwire in the place of execnet; see tools/drop_in.py.
test-xdist: $(VENV)/dev.stamp
	$(BIN)/python tools/drop_in.py xdist

test-projects: $(VENV)/dev.stamp
	$(BIN)/python tools/drop_in.py projects

.PHONY: $(VERSIONS:%=test-%)
test-all: $(VERSIONS:%=test-%)

$(VERSIONS:%=test-%): test-%: tools
	@if python=$$(sh tools/find_python.sh $*); then \
	    echo "== $$python" && \
	    { [ -x .venvs/$*/bin/python ] || "$$python" -m venv .venvs/$*; } && \
	    { [ .venvs/$*/test.stamp -nt pyproject.toml ] || \
	      { .venvs/$*/bin/python -m pip --quiet --disable-pip-version-check install -e '.[test]' && touch .venvs/$*/test.stamp; }; } && \
	    .venvs/$*/bin/python -m pytest $(ARGS); \
	else \
	    echo "== Python $*: not found, skipped"; \
	fi

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/run.py $(ARGS)

fuzz: $(VENV)/dev.stamp
	$(BIN)/python tests/fuzz/run.py --count 1000000 $(ARGS)

clean:
	rm -rf $(VENV) .venvs docs/_build build dist .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
