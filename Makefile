# smpguest.  Two commands are all a newcomer needs, and each does the whole set-up itself:
#   make demo     an SMP guest on two virtual CPUs
#   make test     the checks and the tests
# Both are quick the second time: every step knows by its inputs whether it is up to date.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
GUESTS  = $(sort $(basename $(notdir $(wildcard guests/*.c))))
SOURCES = $(wildcard runtime vcpu switcher perf launcher.py)

.NOTPARALLEL:
.PHONY: help demo test soak hunks perf lint setup engine native guests clean always

help:
	@echo "make demo    set everything up and run an SMP guest on two virtual CPUs"
	@echo "make test    set everything up, then lint, type-check and test"
	@echo "make soak    the long tests with their full counts"
	@echo "make hunks   leave out each hunk of the engine in turn: a guest must notice"
	@echo "make perf    the benchmarks"
	@echo "make lint    ruff and mypy only"
	@echo "make setup   what the others do first: environment, engine, guests"
	@echo "make guests  the guests alone (how to write one: guests/lib/README.md)"
	@echo "make clean   remove what was built (the environment in $(VENV) stays)"
	@echo "PYTHON=...   which Python 3.11 or later to use (now: $(PYTHON))"
	@echo
	@echo "guests (README.md says what each shows): $(GUESTS)"
	@echo "run one: ./launcher.py run --vcpus 2 build/guests/atomics.elf; echo \$$?    1 is a pass"

# The guest leaves through the debug-exit port with 0, which the Launcher reports as status 1
# (QEMU's rule: (value << 1) | 1).  For make that is success.
demo: setup
	@./launcher.py run --vcpus 2 build/guests/demo.elf; status=$$?; \
	if [ $$status -eq 1 ]; then exit 0; fi; \
	echo "demo: expected exit status 1 (the guest says: pass), got $$status" >&2; exit 1

test: setup lint
	$(PY) -m pytest -m "not slow and not soak" $(PYTEST_ARGS)

soak: setup
	SMPGUEST_SOAK=1 $(PY) -m pytest -m "slow or soak" $(PYTEST_ARGS)

# Rebuilds the engine without each hunk in turn (about a minute each): a guest must notice.
hunks: setup
	$(PY) -m pytest -s tests/slow/test_hunks.py $(PYTEST_ARGS)

perf: setup
	$(PY) -m perf

lint: $(READY)
	$(PY) -m ruff check $(SOURCES) tests
	$(PY) -m mypy $(SOURCES)

# Python's own compiling, also where it was told to write no bytecode: else each start does it again.
setup: native engine guests
	@$(PY) -m compileall -q $(SOURCES)

native: $(READY)
	@$(PY) -m switcher.native.build >/dev/null

engine: $(READY)
	@$(PY) -m switcher.engine.build >/dev/null

guests: $(READY)
	@if [ -f guests/Makefile ]; then $(MAKE) --no-print-directory -C guests OUT=../build/guests; fi

# An environment whose Python went away (upgraded or removed) is made anew.
ifneq ($(shell $(PY) -c 'print("works")' 2>/dev/null),works)
$(READY): always
endif

$(READY): pyproject.toml
	@sh switcher/engine/preflight.sh "$(PYTHON)" "$(CC)"
	@echo "== Python environment in $(VENV) (pip fetches about 80 MB)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
