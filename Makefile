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
# A shard set of 1024x1024, on which gpu-check measures training on real images; and another one, for translation.
GPU_SHARDS ?=
GPU_SHARDS_B ?=
# How that is decoded: dali-cpu or torchvision where DALI cannot be had.
GPU_DECODER ?= dali
# What another program reached on this GPU at micro-batch 4 and 8, as benchmarks/train.md describes the files.
REFERENCE_JSON_4 ?=
REFERENCE_JSON_8 ?=
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
	prometheus-client matplotlib contourpy cycler fonttools kiwisolver packaging pyparsing python-dateutil six \
	flask flask-cors blinker itsdangerous werkzeug torch-fidelity tqdm
# The tests that compute-sanitizer runs: it slows a kernel down a hundred times. Without torch's cache of memory, so
# that it sees where each tensor ends.
SANITIZED ?= sanitizer
SANITIZER ?= $(firstword $(shell command -v compute-sanitizer) $(wildcard /usr/local/cuda*/bin/compute-sanitizer))

.PHONY: help setup ops demo ui test test-slow kills lint image image-check k8s-check wheels clean \
	gpu-check gpu-ops gpu-tests gpu-compile-tests gpu-sanitize gpu-input gpu-train gpu-levers gpu-compile gpu-munit \
	gpu-evaluate gpu-dials

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
	@echo "                GPU_SHARDS_B, GPU_IMAGES; another program's images/s: REFERENCE_JSON_4, REFERENCE_JSON_8"
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

# On a machine of its own, without a network: whatever Python has torch will do. Every step of a part runs, whatever
# became of those before it, and every part; the exit code tells whether all went well. Where a GPU is lent for minutes,
# each part is run by itself, and leaves what it has when it is cut off: benchmarks/README.md says how to divide them.
# Behind gpu-ops everything is built.
GPU_PARTS = gpu-ops gpu-tests gpu-compile-tests gpu-sanitize gpu-input gpu-train gpu-levers gpu-compile gpu-munit \
	gpu-evaluate gpu-dials

gpu-check:
	@failed=; for part in $(GPU_PARTS); do $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; done; \
	test -z "$$failed" || { echo "== failed:$$failed"; exit 1; }

# What every part begins with, and ends with: `step` runs a command and goes on, and $(GPU_END) tells whether one failed.
define GPU_BEGIN
mkdir -p $(OUT); failed=; \
step() { echo "== $$*"; "$$@" || { echo "== failed, with exit code $$?: $$*"; failed=yes; }; }; \
[ -n "$(COMMIT)$$HIRES_GAN_COMMIT" ] || \
	echo "== records will not say which commit was measured: there is no checkout, and HIRES_GAN_COMMIT names none"; \
if [ -d .wheels ] && [ "$(GPU_PYTHON)" != "$(BIN)/python" ]; then \
	export PIP_BREAK_SYSTEM_PACKAGES=1; \
	step sh -c "$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps .wheels/*.whl"; fi; \
step env HIRES_GAN_BUILD=cuda $(GPU_PYTHON) setup.py --quiet build_ext --inplace; \
step $(GPU_PYTHON) -m hires_gan.ops
endef
GPU_END = test -z "$$failed"
GPU_BENCH = $(GPU_PYTHON) -m hires_gan bench
# What another program reached with $size images at once.
GPU_THEIRS = theirs=; case $$size in 4) theirs="$(REFERENCE_JSON_4)";; 8) theirs="$(REFERENCE_JSON_8)";; esac

# Without torch.compile first, which takes most of the time.
gpu-ops:
	@$(GPU_BEGIN); \
	step $(GPU_BENCH) ops --no-compile --out $(OUT)/ops.json; \
	step $(GPU_BENCH) ops --out $(OUT)/ops-compiled.json; \
	$(GPU_END)

# Which tests: paths or names, all by default, and an expression as pytest's -k has it. Those that compile have a part of
# their own, which takes far longer.
GPU_TESTS ?=
GPU_K ?=
GPU_COMPILING = compile or inductor
gpu_k = $(if $(GPU_K),($(GPU_K)) and )

# `tested NAME WHAT...` runs tests. Each is in NAME.log as soon as it has ended, behind those of earlier calls; NAME.xml
# is written at the end.
define GPU_TESTED
tested() { name=$$1; shift; \
	set -- "$$@" -v --durations=30 --junitxml=$(OUT)/$$name.xml $(GPU_TESTS); \
	echo "== $$(date -u +%FT%TZ), commit $(or $(COMMIT),$${HIRES_GAN_COMMIT:-unknown}): $$*" >> $(OUT)/$$name.log; \
	bash -o pipefail -c 'log=$$1; shift; "$$@" 2>&1 | tee -a "$$log"' tested $(OUT)/$$name.log "$$@"; }
endef
GPU_PYTEST = $(GPU_PYTHON) -m pytest -m gpu

gpu-tests:
	@$(GPU_BEGIN); $(GPU_TESTED); \
	step tested gpu-tests $(GPU_PYTEST) -k "$(gpu_k)not ($(GPU_COMPILING))"; \
	$(GPU_END)

gpu-compile-tests:
	@$(GPU_BEGIN); $(GPU_TESTED); \
	step tested gpu-compile-tests $(GPU_PYTEST) -k "$(gpu_k)($(GPU_COMPILING))"; \
	$(GPU_END)

SANITIZER_TOOLS ?= memcheck racecheck initcheck

gpu-sanitize:
	@$(GPU_BEGIN); $(GPU_TESTED); \
	if [ -n "$(SANITIZER)" ]; then \
		for tool in $(SANITIZER_TOOLS); do \
			step tested $$tool-tests env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
			$(SANITIZER) --tool $$tool --error-exitcode 1 $(GPU_PYTEST) -k "$(gpu_k)($(SANITIZED))"; done; \
	else echo "== compute-sanitizer is not on the PATH"; fi; \
	$(GPU_END)

# What real images cost, and how much faster than a straightforward program the whole then is.
gpu-input:
	@$(GPU_BEGIN); \
	case "$(GPU_DECODER)" in dali*) step $(GPU_PYTHON) -c "import nvidia.dali";; esac; \
	step $(GPU_BENCH) input --resolution 1024 --out $(OUT)/input.json; \
	real() { name=$$1; shift; step $(GPU_BENCH) train --data real --out $(OUT)/train-real-$$name.json "$$@" \
		data.decoder=$(GPU_DECODER); }; \
	over_plain() { name=$$1; shift; step $(GPU_BENCH) levers --data real --lever reference --lever graphs \
		--seconds $(LEVER_SECONDS) --out $(OUT)/levers-real-$$name.json "$$@" data.decoder=$(GPU_DECODER); }; \
	if [ -n "$(GPU_SHARDS)" ]; then \
		for size in 4 8; do \
			$(GPU_THEIRS); \
			real stylegan2-$$size --config configs/stylegan2_ffhq1024.yaml --micro $$size batch.size=$$size \
			$${theirs:+--reference-json "$$theirs"} data.shards=$(GPU_SHARDS); \
			real progressive-$$size --config configs/progressive_celebahq1024.yaml --micro $$size batch.size=$$size \
			data.shards=$(GPU_SHARDS); done; \
		over_plain progressive $(LEVERS_progressive) data.shards=$(GPU_SHARDS); \
	else echo "== GPU_SHARDS names no shard set of 1024x1024: training on real images is not measured"; fi; \
	if [ -n "$(GPU_SHARDS)" ] && [ -n "$(GPU_SHARDS_B)" ]; then \
		real munit --config configs/munit_faces1024.yaml --micro 1 --steps 16 batch.size=1 \
		recipe.generator.content_downs=3 data.domains="{neutral: $(GPU_SHARDS), smiling: $(GPU_SHARDS_B)}"; \
		over_plain munit $(LEVERS_munit) data.domains="{neutral: $(GPU_SHARDS), smiling: $(GPU_SHARDS_B)}"; \
	else echo "== GPU_SHARDS and GPU_SHARDS_B name no two shard sets: MUNIT on real images is not measured"; fi; \
	$(GPU_END)

# Tracking is measured beside steps as long as those of the whole batch, with grids ten times as often as configured.
GPU_STEP_MS = $(GPU_PYTHON) -c "import json, sys; print(json.load(open(sys.argv[1]))['results'][0]['average_ms_per_step'])"

gpu-train:
	@$(GPU_BEGIN); \
	for size in 4 8 32; do \
		$(GPU_THEIRS); \
		[ $$size = 32 ] || [ -n "$$theirs" ] || \
			echo "== not compared: REFERENCE_JSON_$$size names no file of what another program reached"; \
		step $(GPU_BENCH) train --config configs/stylegan2_ffhq1024.yaml --checkpoint $${TMPDIR:-/tmp} \
		$${theirs:+--reference-json "$$theirs"} \
		batch.size=$$size --micro $$((size < 8 ? size : 8)) --profile --out $(OUT)/train-$$size.json; done; \
	milliseconds=$$($(GPU_STEP_MS) $(OUT)/train-32.json) && \
		step $(GPU_BENCH) tracking --step-ms $$milliseconds --batch 32 --kimg 6 --samples-every-kimg 4 --side 4096 \
		--store sqlite --store server --out $(OUT)/tracking.json || \
		{ echo "== failed: $(OUT)/train-32.json has no milliseconds of a step to measure tracking beside"; failed=yes; }; \
	for name in stylegan2_ffhq1024 progressive_celebahq1024 munit_faces1024; do \
		step $(GPU_BENCH) memory --config configs/$$name.yaml --out $(OUT)/memory-$$name.json; done; \
	step $(GPU_BENCH) scaling --config configs/stylegan2_ffhq1024.yaml --out $(OUT)/scaling.json; \
	$(GPU_END)

# What each lever of speed is worth, for each family: FAMILIES=munit measures one of them, EAGER="reference half" these
# rows of gpu-levers, COMPILED=compile-main this one of gpu-compile. The same command goes on with the rows that are there.
# A row is cut off behind LEVER_SECONDS, one that compiles is called twice.
LEVER_SECONDS ?= 900
FAMILIES ?= stylegan2 progressive munit
LEVERS_stylegan2 = --config configs/stylegan2_ffhq1024.yaml batch.size=4 --micro 4
LEVERS_progressive = --config configs/progressive_celebahq1024.yaml batch.size=4 --micro 4
LEVERS_munit = --config configs/munit_faces1024.yaml batch.size=1 recipe.generator.content_downs=3 --micro 1 --steps 16
EAGER ?= reference one-pass average tf32 half channels-last native host-draws sample-draws epilogue fused graphs \
	again micro fp16 recompute torch-derivatives read-back
COMPILED ?= reference graphs compile-main compile-all
levers_of = $(foreach family,$(FAMILIES),step $(GPU_BENCH) levers $(LEVERS_$(family)) $(1:%=--lever %) \
	--seconds $(LEVER_SECONDS) --out $(OUT)/levers-$(family).json;)

gpu-levers:
	@$(GPU_BEGIN); $(call levers_of,$(EAGER)) $(GPU_END)

gpu-compile:
	@$(GPU_BEGIN); $(call levers_of,$(COMPILED)) $(GPU_END)

gpu-munit:
	@$(GPU_BEGIN); \
	for downs in 2 3 4; do for dial in reference fast; do \
		step $(GPU_BENCH) train --config configs/munit_faces1024.yaml batch.size=1 --steps 16 \
		recipe.generator.content_downs=$$downs performance=$$dial --out $(OUT)/munit-$$downs-$$dial.json; done; done; \
	for downs in 3 4; do for nimg in 0 350000 800000; do \
		step $(GPU_BENCH) train --steps 16 --stage-nimg $$nimg \
		--config configs/munit_faces1024.yaml batch.size=1 recipe.generator.content_downs=$$downs \
		recipe.schedule="{start_resolution: 256, stable_kimg: 200, fade_kimg: 100}" \
		--out $(OUT)/munit-$$downs-grown-$$nimg.json; done; done; \
	$(GPU_END)

# With as many reals as fakes, which --reals is by default.
gpu-evaluate:
	@$(GPU_BEGIN); \
	for metrics in fid fid,kid,precision,density; do \
		step $(GPU_BENCH) evaluate --resolution 1024 --count 8192 --rounds 2 --metrics $$metrics \
		--out $(OUT)/evaluate-$$metrics.json; done; \
	$(GPU_END)

# Both dials with two seeds or more, on a folder of images that GPU_IMAGES names; the same command goes on with what is
# left, on the same kind of GPU and with the same commit and code. DIALS_RUNS=0 builds and prepares alone, DIALS_RUNS=1
# trains one.
GPU_IMAGES ?=
DIALS_SECONDS ?= 480
DIALS_SEEDS ?= 0,1
DIALS_RUNS ?=

gpu-dials:
	@$(GPU_BEGIN); \
	if [ -n "$(GPU_IMAGES)" ]; then \
		[ -f $(OUT)/dials-images/manifest.json ] || \
		step $(GPU_PYTHON) -m hires_gan prepare $(GPU_IMAGES) --out $(OUT)/dials-images --resolution 128; \
		step $(GPU_BENCH) dials --config configs/stylegan2_demo.yaml --seconds $(DIALS_SECONDS) \
		--seeds $(DIALS_SEEDS) $(DIALS_RUNS:%=--runs %) --out $(OUT)/dials \
		recipe.resolution=128 recipe.loss.path_length=2 batch.size=32 precision=bf16 run.total_kimg=25000 \
		samples.every_kimg=40 evaluation.every_kimg=24 checkpoint.every_kimg=48 data.shards=$(OUT)/dials-images; \
	else echo "== GPU_IMAGES names no folder of images: the dials' curves are not compared"; fi; \
	$(GPU_END)

clean:
	rm -f hires_gan/ops/native_*.so hires_gan/ops/build.json
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
