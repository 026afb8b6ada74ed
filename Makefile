# Everything starts here: `make demo` trains, `make test` tests; both make the environment first, once.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
OUT ?= benchmarks/gpu
BIN = $(VENV)/bin
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
EXTRAS = dali,deepspeed,metrics,export,demo,dev

.PHONY: help setup demo ui test test-slow lint gpu-check clean

help:
	@echo "make setup      the environment, in $(VENV)"
	@echo "make demo       train a small Progressive GAN on photographs (minutes, no GPU needed)"
	@echo "make ui         look at all runs in MLflow"
	@echo "make test       linter, type checker and the fast tests"
	@echo "make test-slow  the tests marked slow"
	@echo "make gpu-check  the tests marked gpu, with the Python that has torch; results in $(OUT)"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 12); \
	sys.exit(0 if ok else "hires_gan needs Python 3.11 or 3.12, and $(PYTHON) is " + sys.version.split()[0] \
	+ ": name another one, as in `make setup PYTHON=python3.12`")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel ninja py-cpuinfo torch torchvision
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/hires-gan train configs/demo.yaml run.dir=$(RUNS)

ui: setup
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --host 127.0.0.1 --workers 1 \
	--backend-store-uri "$(or $(MLFLOW_TRACKING_URI),sqlite:///$(abspath $(RUNS))/mlflow.db)"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

test-slow: setup
	$(BIN)/pytest -m 'slow and not gpu and not multinode'

# On a machine of its own, without a network: whatever Python has torch will do.
gpu-check:
	mkdir -p $(OUT)
	$(GPU_PYTHON) -m pytest -m gpu --junitxml=$(OUT)/gpu-tests.xml

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
