# Everything starts here: `make demo` trains, `make test` tests; both make the environment first, once.
# One thing at a time, whatever -j says: what is measured is measured alone.
.NOTPARALLEL:
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
OUT ?= benchmarks/gpu
KILLS ?= 50
KILLS_SEED ?= 0
KILLS_OUT ?= benchmarks/kills.json
# Tests run in so many processes, each file in one of them.
TEST_PROCESSES ?= 2
# Which tests `make test-slow` runs.
SLOW ?= (slow or multinode) and not gpu
# The image's name; its tag is the package's version if no other one is given.
IMAGE ?= hires-gan
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TAG ?= $(VERSION)
# Hexadecimal, with -dirty where tracked files differ from it; empty outside of a checkout.
COMMIT = $(shell git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null)
DOCKER ?= docker
# More for the build, such as --pull, or --build-arg TORCH_CUDA_ARCH_LIST="8.9 9.0+PTX".
BUILD_ARGS ?=
BIN = $(VENV)/bin
EXTRAS = s3,gcs,dali,deepspeed,metrics,export,demo,postgres,dev

.PHONY: help setup ops demo ui test test-slow kills lint image image-check k8s-check clean

help:
	@echo "make setup      the environment, in $(VENV), and the compiled ops"
	@echo "make ops        build the compiled ops anew, as after an installed toolkit or with HIRES_GAN_BUILD=..."
	@echo "make demo       train a small Progressive GAN on photographs (minutes, no GPU needed)"
	@echo "make ui         look at all runs in MLflow"
	@echo "make test       linter, type checker and the fast tests"
	@echo "make test-slow  the tests marked slow, and those of several machines"
	@echo "make kills      fifty random kills of a run of three processes; KILLS=N for another number, record in $(KILLS_OUT)"
	@echo "make image      the container image $(IMAGE):TAG, with $(DOCKER); IMAGE=registry/name TAG=... for others"
	@echo "make image-check  hadolint, and what the image's stages do, without a container engine (minutes, 12 GB in /var/tmp)"
	@echo "make k8s-check  the Kubernetes manifests: schemas, policy, commands (part of make test)"
	@echo "make gpu-check  all parts of it, with the Python that has torch, results in $(OUT): gpu-ops (build, ops), gpu-tests,"
	@echo "                gpu-compile-tests, gpu-sanitize, gpu-input, gpu-train, gpu-levers, gpu-compile, gpu-munit, gpu-evaluate,"
	@echo "                gpu-dials; each by itself, too. Some tests: GPU_TESTS=PATHS GPU_K=EXPRESSION. Real images: GPU_SHARDS,"
	@echo "                GPU_SHARDS_B, GPU_IMAGES; another program's images/s: REFERENCE_JSON_4, REFERENCE_JSON_8. What of a part,"
	@echo "                and how long: benchmarks/README.md"
	@echo "make wheels     packages for gpu-check on a machine without a network, in .wheels; WHEELS_ALL=yes: all of them, where"
	@echo "                it has torch alone"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt setup.py $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 12); \
	sys.exit(0 if ok else "hires_gan needs Python 3.11 or 3.12, and $(PYTHON) is " + sys.version.split()[0] \
	+ ": name another one, as in `make setup PYTHON=python3.12`")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel ninja py-cpuinfo torch torchvision
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@$(BIN)/python -m hires_gan.ops
	@touch $@

ops: setup
	$(BIN)/python setup.py --quiet build_ext --inplace
	@$(BIN)/python -m hires_gan.ops

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
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile

test-slow: setup
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile -m '$(SLOW)'

# About twenty seconds for each kill on two cores. The record is written at the end, if nothing was different.
kills: setup
	KILLS=$(KILLS) KILLS_SEED=$(KILLS_SEED) KILLS_OUT=$(KILLS_OUT) $(BIN)/pytest -s -m slow tests/training/test_random_kills.py

image:
	@command -v $(firstword $(DOCKER)) >/dev/null || { echo "$(firstword $(DOCKER)) is not on the PATH:" \
	"install Docker with BuildKit, or name another program, as in \`make image DOCKER=podman\`" >&2; exit 1; }
	$(DOCKER) build --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --tag $(IMAGE):$(TAG) \
	$(BUILD_ARGS) .

image-check: setup
	$(BIN)/pytest -m '' tests/image

k8s-check: setup
	$(BIN)/pytest tests/k8s

clean:
	rm -f hires_gan/ops/native_*.so hires_gan/ops/build.json
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

include gpu.mk
