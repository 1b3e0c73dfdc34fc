# What CI calls is what people call. Needs Python 3.11 to 3.14, make and git; nothing else.
# `make help` lists the targets. PYTHON=… chooses the interpreter, PYTEST=… adds arguments.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST ?=
BENCH ?= $(filter-out bench/_%,$(sort $(wildcard bench/*.py)))

# In this order, so that what fails fast fails first; chaos has few and long files, and at the end the
# other workers would wait for one.
TESTS := $(wildcard tests/unit) $(wildcard tests/conformance) $(wildcard tests/model) \
         $(wildcard tests/fuzz) $(wildcard tests/chaos) $(wildcard tests/integration)

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1	/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name what; \
	  do printf '  make %-10s %s\n' "$$name" "$$what"; done

.PHONY: install
install: $(STAMP) ## the virtual environment in .venv, with all that is pinned

.PHONY: demo
demo: $(STAMP) ## the whole path on this machine, with kills, and the proof that nothing is missing
	$(BIN)/headrace demo

# Tests wait for servers for a part of the time, so on two cores three files run at once (with two, a
# quarter of both cores was idle), each worker on a stack of its own; PYTEST="-n 0" is one after the other.
.PHONY: test
test: $(STAMP) ## all tests but the slow ones, unit tests first
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder $(TESTS) $(PYTEST)

.PHONY: test-slow
test-slow: $(STAMP) ## the slow tests: long runs, many kills
	$(BIN)/python -m pytest -m slow $(TESTS) $(PYTEST)

.PHONY: fuzz
fuzz: $(STAMP) ## the long run of the fuzzer: INPUTS=… WIRES=… SEED=…
	cd tests && ../$(BIN)/python -m fuzz.run --inputs $(INPUTS) --wires $(WIRES) --seed $(SEED)
	$(BIN)/python -m pytest -m slow tests/integration/test_openapi.py $(PYTEST)

INPUTS ?= 1000000
WIRES ?= 50000
SEED ?= $(shell date +%s)

# How often the collector and Kafka are killed; how long Kafka then stays away; 0 leaves it out.
KILLS       ?= 50
KAFKA_KILLS ?= 10
MINUTES     ?= 10

.PHONY: edge-chaos
edge-chaos: $(STAMP) ## kill a collector and its Kafka under load; KILLS=… KAFKA_KILLS=… MINUTES=… SEED=…
	$(BIN)/python tests/chaos/edge.py --kills $(KILLS) --kafka-kills $(KAFKA_KILLS) \
	  --minutes $(MINUTES) --seed $(SEED)

# Random schedules of faults over the whole path. FAULTS in each; CHAOS=--only=0,3 for some of them.
SCHEDULES ?= 200
FAULTS    ?= 14
CHAOS     ?=

.PHONY: chaos
chaos: $(STAMP) ## kill, cut and break everything, and count what arrives; SCHEDULES=… SEED=… FAULTS=…
	cd tests && ../$(BIN)/python -m chaos.run --schedules $(SCHEDULES) --seed $(SEED) \
	  --faults $(FAULTS) --logs ../build/chaos $(CHAOS)

.PHONY: mutants
mutants: $(STAMP) ## break the product on purpose: which test notices what; MUTANTS="NAME …" for some
	cd tests && ../$(BIN)/python -m mutants.run $(MUTANTS)

# How long the vendor is away, and events a second; MINUTES is shared with edge-chaos.
RATE ?= 1000

.PHONY: outage
outage: $(STAMP) ## a vendor is away under load: what it and the others get, and when; MINUTES=… RATE=…
	cd tests && ../$(BIN)/python -m chaos.outage --minutes $(MINUTES) --rate $(RATE)

.PHONY: lint
lint: $(STAMP) ## ruff, mypy (strict), import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: bench
bench: $(STAMP) ## the benchmarks, one after the other; BENCH=bench/publisher.py for one
	for bench in $(BENCH); do echo "== $$bench"; $(BIN)/python "$$bench"; done

.PHONY: bench-edge
bench-edge: BENCH = bench/edge.py
bench-edge: bench ## what an acknowledgement costs, beside an empty server and bare commits

.PHONY: bench-vendors
bench-vendors: BENCH = bench/vendors.py bench/scan.py bench/trace.py
bench-vendors: bench ## what forwarding, a replay's reading and trace cost

.PHONY: proto
proto: $(STAMP) ## generate ingest/gen anew from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=ingest/gen --pyi_out=ingest/gen \
	  $$(cd proto && find headrace -name '*.proto' | sort)

.PHONY: js
js: sdk/js/node_modules/.installed ## build sparrow.js anew from sdk/js; needs Node 20 or later and npm
	cd sdk/js && npm run --silent check && npm run --silent build -- \
	  --outfile=../../ingest/collector/static/sparrow.js && node --test test/*.test.mjs

sdk/js/node_modules/.installed: sdk/js/package.json sdk/js/package-lock.json
	cd sdk/js && npm ci --silent --ignore-scripts
	@touch $@

.PHONY: lock
lock: $(STAMP) ## write requirements*.txt anew, with the newest versions that fit
	$(BIN)/uv pip compile pyproject.toml --all-extras --upgrade $(LOCKED) -o requirements.txt
	$(BIN)/uv pip compile pyproject.toml --extra clickhouse --extra collect --extra vendors \
	  --extra sentry -c requirements.txt $(LOCKED) -o requirements-run.txt

# Plain versions and hashes: no address of an index and no path of a machine in the files.
LOCKED := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
          --no-annotate --no-header

.PHONY: clean
clean: ## remove .venv and caches; the local stack's data stays (headrace down --delete)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Done once, and again when the lock or the project's metadata changes. pip's own settings (index,
# proxy, find-links) are those of the environment.
$(STAMP): requirements.txt pyproject.toml
	@python="$(PYTHON)"; \
	for candidate in $${python:-python3.14 python3.13 python3.12 python3.11 python3 python}; do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	    >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "make: no Python 3.11 to 3.14 with venv was found; install one (on Debian also" \
	    "python3-venv), or name it: make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "$$found -m venv $(VENV)"; "$$found" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)
