# A machine with a GPU: `make gpu-check` and its parts, and the packages to take along where it has no network.
# Whatever Python has torch will do. What each part measures, and how to divide it: benchmarks/README.md.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
# A shard set of 1024x1024, on which training on real images is measured; and another one, for translation.
GPU_SHARDS ?=
GPU_SHARDS_B ?=
# How that is decoded: dali, dali-cpu or torchvision. By default dali, and torchvision where DALI cannot be imported.
GPU_DECODER ?=
# What another program reached on this GPU at micro-batch 4 and 8, as benchmarks/train.md describes the files.
REFERENCE_JSON_4 ?=
REFERENCE_JSON_8 ?=
# The ops are built if they are not there, of these sources and for this torch; always: in any case, as for another
# TORCH_CUDA_ARCH_LIST, or on another kind of card than that for which they were built.
GPU_BUILD ?=
# Where .wheels is unpacked: into a folder of ours, so that the machine's own packages stay as they are.
GPU_WHEELS ?= $(CURDIR)/build/wheels

# Small packages that a machine with torch and what is often beside it lacks, WHEELS, and what it may have already,
# WHEELS_MORE: `make wheels` fetches the first, `make wheels WHEELS_ALL=yes` both.
WHEELS_PYTHON ?= 3.12
WHEELS_ALL ?= no
WHEELS = pydantic pydantic-core annotated-types typing-inspection webdataset braceexpand mlflow mlflow-skinny \
	mlflow-tracing sqlalchemy alembic mako sqlparse cachetools databricks-sdk google-auth pyasn1 pyasn1-modules \
	cryptography cffi pycparser fastapi starlette uvicorn gitpython gitdb smmap importlib-metadata opentelemetry-api \
	opentelemetry-sdk opentelemetry-proto opentelemetry-semantic-conventions python-dotenv flask flask-cors blinker \
	itsdangerous torch-fidelity
WHEELS_MORE = accelerate annotated-doc anyio cloudpickle contourpy cycler fonttools fsspec h11 hypothesis kiwisolver \
	matplotlib nvidia-ml-py packaging pillow prometheus-client protobuf psutil pyparsing pytest pytest-timeout \
	python-dateutil pyyaml rich safetensors six sortedcontainers tqdm typer typing-extensions werkzeug zipp

.PHONY: wheels gpu-check gpu-ops gpu-tests gpu-compile-tests gpu-sanitize gpu-input gpu-train gpu-levers gpu-compile \
	gpu-munit gpu-evaluate gpu-dials

wheels:
	rm -rf .wheels
	$(or $(wildcard $(BIN)/pip),$(PYTHON) -m pip) download --quiet --no-deps --only-binary=:all: \
	--python-version $(WHEELS_PYTHON) -c constraints.txt -d .wheels $(WHEELS) $(if $(filter yes,$(WHEELS_ALL)),$(WHEELS_MORE))
	@wheels=$$(cat .wheels/* | wc -c); \
	tree=$$(git ls-files --cached --others --exclude-standard -z 2>/dev/null | xargs -0 -r cat 2>/dev/null | wc -c); \
	echo "$$wheels $$tree" | \
	awk '{printf "%.1f MiB in .wheels; with the files of the checkout %.1f MiB\n", $$1 / 2^20, ($$1 + $$2) / 2^20}'

# Every step of a part runs, whatever became of those before it, and every part; the exit code tells whether all went
# well. Behind gpu-ops everything is built.
GPU_PARTS = gpu-ops gpu-tests gpu-compile-tests gpu-sanitize gpu-input gpu-train gpu-levers gpu-compile gpu-munit \
	gpu-evaluate gpu-dials

gpu-check:
	@failed=; for part in $(GPU_PARTS); do $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; done; \
	test -z "$$failed" || { echo "== failed:$$failed"; exit 1; }

# Whether both libraries are there and load, of these sources and for this very torch.
GPU_BUILT = $(GPU_PYTHON) -c "import sys, torch; from hires_gan.ops import native; built = native.record(); \
sys.exit(built is None or built.torch != str(torch.__version__) or native.sources_changed() \
or not (native.available('cpu') and native.available('cuda')))" 2>/dev/null

# What every part begins with, and ends with: `step` runs a command and goes on, and $(GPU_END) tells whether one failed.
define GPU_BEGIN
mkdir -p $(OUT); failed=; \
step() { echo "== $$*"; "$$@" || { echo "== failed, with exit code $$?: $$*"; failed=yes; }; }; \
[ -n "$(COMMIT)$$HIRES_GAN_COMMIT" ] || \
	echo "== records will not say which commit was measured: there is no checkout, and HIRES_GAN_COMMIT names none"; \
export PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}"; \
if [ -d .wheels ] && [ "$(GPU_PYTHON)" != "$(BIN)/python" ]; then \
	[ "$(GPU_WHEELS)/.unpacked" -nt .wheels ] || step sh -c "$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps \
	--no-compile --upgrade --target '$(GPU_WHEELS)' .wheels/*.whl && touch '$(GPU_WHEELS)/.unpacked'"; \
	PYTHONPATH="$(GPU_WHEELS):$$PYTHONPATH"; fi; \
if [ "$(GPU_BUILD)" != always ] && $(GPU_BUILT); then \
	echo "== the ops are built already, of these sources and for this torch; GPU_BUILD=always builds them anew"; \
else step env HIRES_GAN_BUILD=cuda $(GPU_PYTHON) setup.py --quiet build_ext --inplace; fi; \
step $(GPU_PYTHON) -m hires_gan.ops
endef
GPU_END = test -z "$$failed"
GPU_BENCH = $(GPU_PYTHON) -m hires_gan bench
# $(call only,NAME,ALLOWED): nothing, and an error where the variable has another word.
only = $(foreach word,$(filter-out $2,$($1)),$(error $1 has $(word); allowed are $2))

# The families, at 1024x1024: MUNIT with three halvings of the content.
FAMILY_stylegan2 = --config configs/stylegan2_ffhq1024.yaml
FAMILY_progressive = --config configs/progressive_celebahq1024.yaml
FAMILY_munit = --config configs/munit_faces1024.yaml recipe.generator.content_downs=3 --steps 16
sized = $(FAMILY_$1) batch.size=$2 --micro $2
# What another program reached with so many images at once.
theirs = $(if $(REFERENCE_JSON_$1),--reference-json "$(REFERENCE_JSON_$1)")

# Without torch.compile first, which takes most of the time.
gpu-ops:
	@$(GPU_BEGIN); \
	step $(GPU_BENCH) ops --no-compile --out $(OUT)/ops.json; \
	step $(GPU_BENCH) ops --out $(OUT)/ops-compiled.json; \
	$(GPU_END)

# Which tests: paths or names, all by default, and an expression as pytest's -k has it. Those that compile have a part of
# their own, which takes far longer. The seconds are those after which a test counts as failed: GPU_TIMEOUT, and
# GPU_TIMEOUT_SLOW where it compiles or runs under compute-sanitizer.
GPU_TESTS ?=
GPU_K ?=
GPU_TIMEOUT ?= 180
GPU_TIMEOUT_SLOW ?= 600
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
	step tested gpu-tests $(GPU_PYTEST) --timeout=$(GPU_TIMEOUT) -k "$(gpu_k)not ($(GPU_COMPILING))"; \
	$(GPU_END)

gpu-compile-tests:
	@$(GPU_BEGIN); $(GPU_TESTED); \
	step tested gpu-compile-tests $(GPU_PYTEST) --timeout=$(GPU_TIMEOUT_SLOW) -k "$(gpu_k)($(GPU_COMPILING))"; \
	$(GPU_END)

# The tests that compute-sanitizer runs: it slows a kernel down a hundred times. Without torch's cache of memory, so
# that it sees where each tensor ends. SANITIZER=none leaves them out.
SANITIZED ?= sanitizer
SANITIZER ?= $(firstword $(shell command -v compute-sanitizer) $(wildcard /usr/local/cuda*/bin/compute-sanitizer))
SANITIZER_TOOLS ?= memcheck racecheck initcheck

gpu-sanitize:
	@$(GPU_BEGIN); $(GPU_TESTED); \
	case "$(SANITIZER)" in \
	none) echo "== left out: SANITIZER is none";; \
	"") failed=yes; echo "== failed: compute-sanitizer is neither on the PATH nor in /usr/local/cuda*/bin:" \
		"name it with SANITIZER=FILE, or leave its tests out with SANITIZER=none";; \
	*) for tool in $(SANITIZER_TOOLS); do \
		step tested $$tool-tests env PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $$tool --error-exitcode 1 \
		$(GPU_PYTEST) --timeout=$(GPU_TIMEOUT_SLOW) -k "$(gpu_k)($(SANITIZED))"; done;; esac; \
	$(GPU_END)

# What real images cost (train, the rows of REAL), how much faster than a straightforward program the whole then is
# (gains, the rows of GAINS: a family and the images at once, which of MUNIT are those of each domain), and decoding by
# itself, which is the CPU's work and takes about INPUT_SECONDS for each of a dozen contestants.
GPU_INPUT ?= train gains decoders
REAL ?= stylegan2-4 stylegan2-8 progressive-4 progressive-8 munit-1
GAINS ?= progressive-4 progressive-8 munit-1 munit-4
INPUT_SECONDS ?= 8
DOMAINS = data.domains="{neutral: $(GPU_SHARDS), smiling: $(GPU_SHARDS_B)}"
DATA_stylegan2 = $(if $(GPU_SHARDS),data.shards=$(GPU_SHARDS))
DATA_progressive = $(DATA_stylegan2)
DATA_munit = $(if $(and $(GPU_SHARDS),$(GPU_SHARDS_B)),$(DOMAINS))
SHARDS_munit = and GPU_SHARDS_B name no two shard sets
family_of = $(firstword $(subst -, ,$1))
size_of = $(lastword $(subst -, ,$1))
# $(call real,BENCH...,NAME OF THE FILE,ROW): a bench on real images, or why not.
real = $(if $(DATA_$(call family_of,$3)),$(call real_step,$1,$2,$3),$(call no_real,$2,$3))
real_step = step $(GPU_BENCH) $1 --data real --out $(OUT)/$2.json $(call sized,$(call family_of,$3),$(call size_of,$3)) \
	$(DATA_$(call family_of,$3)) data.decoder=$$decoder;
no_real = echo "== $1 is not measured: GPU_SHARDS $(or $(SHARDS_$(call family_of,$2)),names no shard set) of 1024x1024";
input_train = $(foreach row,$(REAL),$(call real,train $(if $(filter stylegan2-%,$(row)),$(call \
	theirs,$(call size_of,$(row)))),train-real-$(row),$(row)))
input_gains = $(foreach row,$(GAINS),$(call real,levers --lever reference --lever graphs --seconds \
	$(LEVER_SECONDS),levers-real-$(row),$(row)))
input_decoders = step $(GPU_BENCH) input --resolution 1024 --seconds $(INPUT_SECONDS) --out $(OUT)/input.json;

define GPU_DECODING
decoder=$(GPU_DECODER); dali() { $(GPU_PYTHON) -c "import nvidia.dali"; }; \
case "$$decoder" in \
dali*) step dali;; \
"") if dali 2>/dev/null; then decoder=dali; else decoder=torchvision; \
	echo "== DALI cannot be imported: torchvision decodes real images, on the CPU"; fi;; esac
endef

gpu-input:
	$(call only,GPU_INPUT,train gains decoders)$(call only,REAL,stylegan2-% progressive-% munit-%)
	$(call only,GAINS,stylegan2-% progressive-% munit-%)
	@$(GPU_BEGIN); $(if $(filter train gains,$(GPU_INPUT)),$(GPU_DECODING);) \
	$(foreach part,$(GPU_INPUT),$(input_$(part))) $(GPU_END)

# StyleGAN2's steps with TRAIN_SIZES images each, eight at once at most; the memory of all families; the model of many
# GPUs; and tracking, beside steps as long as those of the whole batch, with grids ten times as often as configured.
TRAIN_PARTS ?= train memory scaling tracking
TRAIN_SIZES ?= 4 8 32
GPU_STEP_MS = $(GPU_PYTHON) -c "import json, sys; print(json.load(open(sys.argv[1]))['results'][0]['average_ms_per_step'])"
train_train = $(foreach size,$(TRAIN_SIZES),$(call train_step,$(size)))
train_step = $(if $(filter 4 8,$1),$(if $(REFERENCE_JSON_$1),,echo "== not compared: REFERENCE_JSON_$1 names no file of what \
	another program reached";)) step $(GPU_BENCH) train $(FAMILY_stylegan2) --checkpoint $${TMPDIR:-/tmp} $(call theirs,$1) \
	batch.size=$1 --micro $$(($1 < 8 ? $1 : 8)) --profile --out $(OUT)/train-$1.json;
train_memory = for name in stylegan2_ffhq1024 progressive_celebahq1024 munit_faces1024; do \
	step $(GPU_BENCH) memory --config configs/$$name.yaml --out $(OUT)/memory-$$name.json; done;
train_scaling = step $(GPU_BENCH) scaling $(FAMILY_stylegan2) --out $(OUT)/scaling.json;
define train_tracking
if milliseconds=$$($(GPU_STEP_MS) $(OUT)/train-32.json 2>/dev/null); then \
	step $(GPU_BENCH) tracking --step-ms $$milliseconds --batch 32 --kimg 6 --samples-every-kimg 4 --side 4096 \
	--store sqlite --store server --out $(OUT)/tracking.json; \
else failed=yes; echo "== failed: tracking is measured beside steps as long as those in $(OUT)/train-32.json, which is" \
	"not there or has no milliseconds of a step: TRAIN_PARTS=train TRAIN_SIZES=32 makes it"; fi;
endef

gpu-train:
	$(call only,TRAIN_PARTS,train memory scaling tracking)
	@$(GPU_BEGIN); $(foreach part,$(TRAIN_PARTS),$(train_$(part))) $(GPU_END)

# What each lever of speed is worth, for each family: FAMILIES=munit measures one of them, EAGER="reference half" these
# rows of gpu-levers, COMPILED=compile-main this one of gpu-compile. EAGER= and COMPILED=, empty, mean all rows there are,
# those that compile as well. The same command goes on with the rows that are there. A row is cut off behind
# LEVER_SECONDS, one that compiles is called twice.
LEVER_SECONDS ?= 900
FAMILIES ?= stylegan2 progressive munit
LEVERS_stylegan2 = $(call sized,stylegan2,4)
LEVERS_progressive = $(call sized,progressive,4)
LEVERS_munit = $(call sized,munit,1)
EAGER ?= reference one-pass average tf32 half channels-last native host-draws sample-draws epilogue fused graphs \
	again micro fp16 recompute torch-derivatives read-back
COMPILED ?= reference graphs compile-main compile-all
levers_of = $(call only,FAMILIES,stylegan2 progressive munit)$(foreach family,$(FAMILIES),step $(GPU_BENCH) levers \
	$(LEVERS_$(family)) $(1:%=--lever %) --seconds $(LEVER_SECONDS) --out $(OUT)/levers-$(family).json;)

gpu-levers:
	@$(GPU_BEGIN); $(call levers_of,$(EAGER)) $(GPU_END)

gpu-compile:
	@$(GPU_BEGIN); $(call levers_of,$(COMPILED)) $(GPU_END)

# MUNIT with so many halvings of the content, with each dial; and grown coarse to fine, as far as it is after MUNIT_NIMG
# images, of which none leaves that out. Two halvings have no room for two levels.
MUNIT_DOWNS ?= 3 4 2
MUNIT_DIALS ?= reference fast
MUNIT_NIMG ?= 0 350000 800000

gpu-munit:
	@$(GPU_BEGIN); \
	for downs in $(MUNIT_DOWNS); do for dial in $(MUNIT_DIALS); do \
		step $(GPU_BENCH) train --config configs/munit_faces1024.yaml batch.size=1 --steps 16 \
		recipe.generator.content_downs=$$downs performance=$$dial --out $(OUT)/munit-$$downs-$$dial.json; done; done; \
	for downs in $(filter-out 2,$(MUNIT_DOWNS)); do for nimg in $(MUNIT_NIMG); do \
		step $(GPU_BENCH) train --steps 16 --stage-nimg $$nimg \
		--config configs/munit_faces1024.yaml batch.size=1 recipe.generator.content_downs=$$downs \
		recipe.schedule="{start_resolution: 256, stable_kimg: 200, fade_kimg: 100}" \
		--out $(OUT)/munit-$$downs-grown-$$nimg.json; done; done; \
	$(GPU_END)

# With as many reals as fakes, which --reals is by default. Each word of EVALUATE_METRICS is an evaluation.
EVALUATE_COUNT ?= 8192
EVALUATE_METRICS ?= fid fid,kid,precision,density

gpu-evaluate:
	@$(GPU_BEGIN); \
	for metrics in $(EVALUATE_METRICS); do \
		step $(GPU_BENCH) evaluate --resolution 1024 --count $(EVALUATE_COUNT) --rounds 2 --metrics $$metrics \
		--out $(OUT)/evaluate-$$(echo $$metrics | tr , -).json; done; \
	$(GPU_END)

# Both dials with two seeds or more, on a folder of images that GPU_IMAGES names; the same command goes on with what is
# left, on the same kind of GPU and with the same commit and code. DIALS_RUNS=0 builds and prepares alone, DIALS_RUNS=1
# trains one. Images and runs lie in DIALS; what is compared is copied to OUT, and the runs' logs.
GPU_IMAGES ?=
DIALS ?= $(RUNS)/dials
DIALS_SECONDS ?= 480
DIALS_SEEDS ?= 0,1
DIALS_RUNS ?=
# The demo's networks are small; these are as wide as the paper's at 128x128.
DIALS_SETTINGS = recipe.resolution=128 recipe.generator.latent_size=512 recipe.generator.w_size=512 \
	recipe.generator.fmap_base=16384 recipe.generator.fmap_max=512 recipe.discriminator.fmap_base=16384 \
	recipe.discriminator.fmap_max=512 recipe.loss.path_length=2 batch.size=32 precision=bf16 run.total_kimg=25000 \
	samples.every_kimg=40 evaluation.every_kimg=24 checkpoint.every_kimg=48

gpu-dials:
	@$(GPU_BEGIN); \
	if [ -n "$(GPU_IMAGES)" ]; then \
		mkdir -p $(DIALS); [ -f $(DIALS)/images/manifest.json ] || \
		step $(GPU_PYTHON) -m hires_gan prepare $(GPU_IMAGES) --out $(DIALS)/images --resolution 128; \
		step $(GPU_BENCH) dials --config configs/stylegan2_demo.yaml --seconds $(DIALS_SECONDS) \
		--seeds $(DIALS_SEEDS) $(DIALS_RUNS:%=--runs %) --out $(DIALS) $(DIALS_SETTINGS) data.shards=$(DIALS)/images; \
		for file in $(DIALS)/dials.json $(DIALS)/comparison.html $(DIALS)/comparison.png $(DIALS)/*.log; do \
			[ ! -f $$file ] || cp $$file $(OUT)/; done; \
	else echo "== GPU_IMAGES names no folder of images: the dials' curves are not compared"; fi; \
	$(GPU_END)
