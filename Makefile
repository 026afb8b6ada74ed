# Everything starts here: `make demo` trains, `make test` tests; both make the environment first, once.
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
# A shard set of 1024x1024, on which gpu-check measures training on real images.
GPU_SHARDS ?=
BIN = $(VENV)/bin
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
EXTRAS = s3,gcs,dali,deepspeed,metrics,export,demo,postgres,dev

# Small packages that a bare machine with torch, numpy, pytest and accelerate may lack; `make wheels` fetches them.
WHEELS_PYTHON ?= 3.12
WHEELS = pydantic pydantic-core annotated-types typing-extensions typing-inspection webdataset braceexpand \
	pyyaml psutil nvidia-ml-py safetensors fsspec pillow rich typer annotated-doc accelerate pytest \
	pytest-timeout hypothesis sortedcontainers mlflow mlflow-skinny mlflow-tracing sqlalchemy alembic mako \
	sqlparse cachetools cloudpickle databricks-sdk google-auth pyasn1 pyasn1-modules cryptography cffi pycparser \
	fastapi starlette uvicorn anyio h11 gitpython gitdb smmap importlib-metadata zipp opentelemetry-api \
	opentelemetry-sdk opentelemetry-proto opentelemetry-semantic-conventions protobuf python-dotenv \
	prometheus-client
# The tests that compute-sanitizer runs: it slows a kernel down a hundred times. Without torch's cache of memory, so
# that it sees where each tensor ends.
SANITIZED ?= sanitizer
SANITIZER ?= $(firstword $(shell command -v compute-sanitizer) $(wildcard /usr/local/cuda*/bin/compute-sanitizer))

.PHONY: help setup ops demo ui test test-slow kills lint image image-check k8s-check wheels gpu-check clean

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
	@echo "make gpu-check  build the ops, the tests marked gpu, the ops' and a step's speed, with the Python that has torch; results in $(OUT)"
	@echo "make wheels     packages for gpu-check on a machine without a network, in .wheels"

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

wheels:
	rm -rf .wheels
	$(or $(wildcard $(BIN)/pip),$(PYTHON) -m pip) download --quiet --no-deps --only-binary=:all: \
	--python-version $(WHEELS_PYTHON) -c constraints.txt -d .wheels $(WHEELS)
	@du -sh .wheels

# On a machine of its own, without a network: whatever Python has torch will do. Every step runs, whatever became of
# those before it; the exit code tells whether all went well.
gpu-check:
	@mkdir -p $(OUT); failed=; \
	step() { echo "== $$*"; "$$@" || { echo "== failed, with exit code $$?: $$*"; failed=yes; }; }; \
	if [ -d .wheels ] && [ "$(GPU_PYTHON)" != "$(BIN)/python" ]; then \
		export PIP_BREAK_SYSTEM_PACKAGES=1; \
		step sh -c "$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps .wheels/*.whl"; fi; \
	step env HIRES_GAN_BUILD=cuda $(GPU_PYTHON) setup.py --quiet build_ext --inplace; \
	step $(GPU_PYTHON) -m hires_gan.ops; \
	if [ -n "$(SANITIZER)" ]; then \
		for tool in memcheck racecheck initcheck; do \
			step env PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $$tool --error-exitcode 1 \
			$(GPU_PYTHON) -m pytest -m gpu -k "$(SANITIZED)" --junitxml=$(OUT)/$$tool-tests.xml; done; \
	else echo "== compute-sanitizer is not on the PATH"; fi; \
	step $(GPU_PYTHON) -m pytest -m gpu --junitxml=$(OUT)/gpu-tests.xml; \
	step $(GPU_PYTHON) -m hires_gan bench ops --out $(OUT)/ops.json; \
	step $(GPU_PYTHON) -c "import nvidia.dali"; \
	step $(GPU_PYTHON) -m hires_gan bench input --resolution 1024 --out $(OUT)/input.json; \
	if [ -n "$(GPU_SHARDS)" ]; then step $(GPU_PYTHON) -m hires_gan bench train --data real --micro 8 \
		--config configs/stylegan2_ffhq1024.yaml batch.size=8 data.shards=$(GPU_SHARDS) data.decoder=dali \
		--out $(OUT)/train-real.json; \
	else echo "== GPU_SHARDS names no shard set of 1024x1024: training on real images is not measured"; fi; \
	step $(GPU_PYTHON) -m hires_gan bench scaling --config configs/stylegan2_ffhq1024.yaml --out $(OUT)/scaling.json; \
	for size in 4 8 32; do step $(GPU_PYTHON) -m hires_gan bench train --config configs/stylegan2_ffhq1024.yaml \
		--checkpoint $${TMPDIR:-/tmp} \
		batch.size=$$size --micro $$((size < 8 ? size : 8)) --profile --out $(OUT)/train-$$size.json; done; \
	for downs in 2 3 4; do for dial in reference fast; do \
		step $(GPU_PYTHON) -m hires_gan bench train --config configs/munit_faces1024.yaml batch.size=1 --steps 16 \
		recipe.generator.content_downs=$$downs performance=$$dial --out $(OUT)/munit-$$downs-$$dial.json; done; done; \
	for downs in 3 4; do for nimg in 0 350000 800000; do \
		step $(GPU_PYTHON) -m hires_gan bench train --steps 16 --stage-nimg $$nimg \
		--config configs/munit_faces1024.yaml batch.size=1 recipe.generator.content_downs=$$downs \
		recipe.schedule="{start_resolution: 256, stable_kimg: 200, fade_kimg: 100}" \
		--out $(OUT)/munit-$$downs-grown-$$nimg.json; done; done; \
	test -z "$$failed"

clean:
	rm -f hires_gan/ops/native_*.so hires_gan/ops/build.json
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
