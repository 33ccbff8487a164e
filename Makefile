# Two commands: `make demo` (the whole path, in minutes) and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
EXTRAS ?= all,dev
# Tried, too, but not every machine can build it (evdev: Python and kernel headers); its tests are skipped then.
TRIED  ?= robosuite
VENV   := .venv
BIN    := $(VENV)/bin
# Options of pytest: a worker for each core, a file of tests at a time; a few are enough where there are many cores.
TESTS  ?= --numprocesses logical --maxprocesses 8 --dist loadfile --durations 25
STAMP  := $(VENV)/.installed-$(shell (cat pyproject.toml; echo '$(EXTRAS) $(TRIED)') | cksum | cut -d' ' -f1)

.PHONY: demo test check docs install format clean

demo: $(STAMP)
	$(BIN)/flowleap demo

test: check
	$(BIN)/python -m pytest $(TESTS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --allow-untyped-defs examples
	$(BIN)/mypy --strict --follow-imports=silent -p flowleap.policy.core -p flowleap.policy.flow

docs: $(STAMP)
	@$(BIN)/python -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'flowleap needs CPython 3.11 or newer: make PYTHON=/path/to/python3.11 ...'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'setuptools>=77'
	$(BIN)/python -m pip install --editable '.[$(EXTRAS)]'
	@for extra in $(TRIED); do \
		$(BIN)/python -m pip install --editable ".[$(EXTRAS),$$extra]" || echo "without $$extra: it does not install here"; \
	done
	@$(BIN)/python -m pip install --quiet --no-deps robomimic==0.3.0 || echo 'without robomimic: its tests are skipped'
	@rm -f $(VENV)/.installed-*
	@touch $@

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site *.egg-info
