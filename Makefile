# nova_mp. `make` alone lists the targets.

PYTHON ?= python3
JOBS   ?= 2
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
DEBUG  := build/debug

# Tests that need the core alone; the debug build runs them again with bounds checks and assertions.
CORE_TESTS := $(wildcard tests/t0_layout tests/t1_core tests/t2_crash \
  tests/t4_cluster/test_snapshot_consistency.py tests/t4_cluster/test_mmap_consistency.py)
PYTEST_ARGS ?=

export NOVA_MP_JOBS := $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help venv build debug test test-optimised test-debug lint demo bench crash torture soak clean

help: ## list the targets
	@echo "nova_mp: a file system in shared memory, with snapshots, for many processes"
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1   \2/p' Makefile
	@echo
	@echo "A first look: make demo. Then: . $(VENV)/bin/activate && nova-mp"

$(READY): pyproject.toml .ci/requirements.py .ci/prepare
	@PYTHON=$(PYTHON) .ci/prepare
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing Python packages into $(VENV)"
	@$(PY) .ci/requirements.py | $(PY) -m pip install -q --disable-pip-version-check -r /dev/stdin
	@NOVA_MP_CORE=0 $(PY) -m pip install -q --disable-pip-version-check --no-deps \
	  --no-build-isolation -e .
	@touch $@

venv: build ## make the virtual environment in .venv, with the package and its tools

build: $(READY) ## build the native core, optimised, in place
	@$(PY) setup.py -q build_ext --inplace

debug: $(READY) ## build it with bounds checks and assertions into build/debug
	@NOVA_MP_DEBUG=1 $(PY) setup.py -q build --build-lib $(DEBUG) --build-temp build/temp-debug

test: lint test-optimised test-debug ## lint, all tests, and the core's tests on the debug build

test-optimised: build
	$(VENV)/bin/pytest -q -n $(JOBS) --dist loadfile $(PYTEST_ARGS) tests

test-debug: debug
	$(if $(CORE_TESTS),NOVA_MP_DEBUG=1 PYTHONPATH=$(abspath $(DEBUG)) \
	  $(VENV)/bin/pytest -q -n $(JOBS) --dist loadfile $(PYTEST_ARGS) $(CORE_TESTS))

lint: build ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

demo: build ## a tree imported, changed, snapshotted, crashed and verified, in under a minute
	$(PY) -m nova_mp.bench.demo

bench: build ## the microbenchmarks beside tmpfs; results in out/
	@mkdir -p out
	$(VENV)/bin/nova-mp bench run config/micro.toml --json out/micro.json --html out/micro.html

crash: debug ## every crash test, with the power cut at each persist
	NOVA_MP_DEBUG=1 PYTHONPATH=$(abspath $(DEBUG)) NOVA_MP_EXHAUSTIVE=1 \
	  $(VENV)/bin/pytest -q -n $(JOBS) --dist loadfile -o faulthandler_timeout=3600 $(PYTEST_ARGS) \
	  tests/t2_crash

MODELS := tests/t1_core/test_model.py tests/t2_crash/test_snapshot_restart.py \
  tests/t4_cluster/test_mmap_consistency.py

torture: build debug ## 2,000 examples against the model; 1,000 kills and more; crowds; mutated messages
	NOVA_MP_TORTURE=1 $(if $(SEED),NOVA_MP_SEED=$(SEED)) $(VENV)/bin/pytest -q -n $(JOBS) \
	  -o faulthandler_timeout=3600 $(PYTEST_ARGS) $(MODELS)
	NOVA_MP_DEBUG=1 $(PY) tests/torture.py failpoints $(if $(SEED),--seed $(SEED))
	$(PY) tests/torture.py kills $(if $(SEED),--seed $(SEED)) $(if $(COUNT),--count $(COUNT))
	NOVA_MP_FULL=1 $(if $(SEED),NOVA_MP_SEED=$(SEED)) $(VENV)/bin/pytest -q -s \
	  -o faulthandler_timeout=0 tests/t4_cluster/test_crowd.py tests/t4_cluster/test_socket_fuzz.py

soak: build ## the tests again and again with new random seeds, until one fails or MINUTES pass
	$(PY) tests/soak.py --minutes $(or $(MINUTES),10) --jobs $(JOBS)

clean: ## remove what was built, and the virtual environment
	rm -rf build dist out $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find nova_mp workers bench tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null; true
	find nova_mp -name '*.so' -delete
	for link in workers bench presets; do [ ! -L nova_mp/$$link ] || rm nova_mp/$$link; done
