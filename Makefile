# The single entry point for people and for CI.

CARGO ?= cargo
PLAN ?= target/demo-plan
# A folder of exported models, where there is one.
TESTBED ?= $(wildcard ../shared/testbed)
# Python with numpy, onnx and onnxruntime, for what compares with ONNX Runtime.
VENV := target/venv
MODEL := fixtures/models/llama-dynamo-op18-past

.PHONY: all setup demo test bless nits bench bench-ops emit-check fuzz fuzz-ort cases clean testbed onnx-conformance kernels kernels-bless gpu-check gpu-pack emit-conformance schemas

all: test nits

# Installs what a fresh machine may lack: the C linker, and the C++ compiler that builds the emulated CUDA driver of the
# tests. cargo fetches the rest.
setup:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust 1.88 or newer (rustup)" >&2; exit 2; }
	@command -v cc >/dev/null && command -v c++ >/dev/null || { apt-get update -qq && apt-get install -y -qq gcc g++ libc6-dev; }

# Builds, compiles the bundled Llama export for 2 x 2 ranks, runs it on 4 CPU ranks and compares with
# ONNX Runtime's outputs.
demo: setup
	$(CARGO) build --quiet --locked
	target/debug/sinter optimize $(MODEL)/model.onnx --tp 2 --pp 2 -o $(PLAN)
	target/debug/sinter run $(PLAN) --inputs $(MODEL) --expect $(MODEL) --verify

test: setup
	$(CARGO) test --locked --workspace

# Accepts the current output of every snapshot test; review the diff.
bless:
	INSTA_UPDATE=always $(CARGO) test --locked --workspace

nits: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

# Compiles and runs every exported model of a folder at four mappings; writes docs/testbed.md.
testbed: setup
	@test -n "$(TESTBED)" || { echo "no testbed: say make testbed TESTBED=DIR" >&2; exit 2; }
	$(CARGO) build --quiet --locked --release
	python3 tests/testbed/run.py --sinter target/release/sinter --models $(TESTBED) --report docs/testbed.md

# Runs ONNX's own node tests, which the 1.22.0 wheel is the last to ship; writes docs/conformance.md.
ONNX := target/onnx-1.22.0
onnx-conformance: setup $(ONNX)/done
	$(CARGO) build --quiet --locked
	python3 tests/conformance/run.py --sinter target/debug/sinter --cases $(ONNX) --report docs/conformance.md --at-least 1741

# The wheel is an archive; only its test data is needed.
$(ONNX)/done:
	mkdir -p $(ONNX)
	python3 -m pip download --quiet --no-deps --only-binary :all: --python-version 3.12 --dest $(ONNX) onnx==1.22.0
	python3 -m zipfile -e $(ONNX)/onnx-1.22.0-*.whl $(ONNX)
	touch $@

# Compiles every CUDA kernel with NVRTC, which needs no GPU, for three architectures. Warnings, spilled registers, and
# registers or memory above those of kernels/TABLE.md are failures; kernels-bless writes the table.
NVRTC := target/cuda
COMPILE := SINTER_NVRTC=$(NVRTC)/nvidia/cu13/lib target/debug/sinter kernels compile
kernels: setup $(NVRTC)/done
	$(CARGO) build --quiet --locked
	$(COMPILE) --check kernels/TABLE.md

kernels-bless: setup $(NVRTC)/done
	$(CARGO) build --quiet --locked
	$(COMPILE) --table kernels/TABLE.md

# The wheel is an archive; no Python package is installed.
$(NVRTC)/done:
	mkdir -p $(NVRTC)
	python3 -m pip download --quiet --no-deps --only-binary :all: --dest $(NVRTC) nvidia-cuda-nvrtc==13.0.88
	python3 -m zipfile -e $(NVRTC)/nvidia_cuda_nvrtc-13.0.88-*.whl $(NVRTC)
	touch $@

# On a machine with an NVIDIA GPU: all cases, compute-sanitizer where it is installed, measurements, and the same operators in
# PyTorch where it is installed. Writes benches/results/.
gpu-check:
	CARGO=$(CARGO) benches/gpu/check.sh

# Makes .gpu/, with which benches/gpu/short.sh runs on a machine with a GPU that has neither Rust nor a network.
gpu-pack: setup $(NVRTC)/done
	CARGO=$(CARGO) benches/gpu/pack.sh

# Random models for a minute: nothing may panic, hang, or take memory without limit.
fuzz: setup
	SINTER_FUZZ_SECONDS=60 $(CARGO) test --locked --test it fuzz_models

# Random models against ONNX Runtime for a minute: changed and generated ones, in every way that sinter offers. SEED chooses
# others, FUZZ_SECONDS another time, MOST a number of cases; `tests/ort/fuzz.py --help` tells how to run one case of a seed again.
SEED ?= 1
FUZZ_SECONDS ?= 60
fuzz-ort: setup $(VENV)/done
	$(CARGO) build --quiet --locked
	$(VENV)/bin/python tests/ort/fuzz.py --sinter target/debug/sinter --seconds $(FUZZ_SECONDS) --seed $(SEED) --jobs 2 \
	  $(if $(MOST),--most $(MOST)) --out target/fuzz-ort fixtures $(CASES)

# Runs the bundled small models and, where there are any, those beside the repository in every way that sinter offers, and compares
# with the expected outputs; writes docs/cases.md.
CASES ?= $(wildcard ../shared/cases ../shared/models)
ATTACKS ?= $(wildcard ../shared/attacks)
cases: setup $(VENV)/done
	$(CARGO) build --quiet --locked
	$(VENV)/bin/python tests/ort/check_cases.py --sinter target/debug/sinter --report docs/cases.md \
	  fixtures/finds fixtures/contrib $(CASES) $(TESTBED) $(if $(ATTACKS),--attacks $(ATTACKS))

bench: setup
	$(CARGO) bench --locked --bench compile

# Runs emitted ONNX files in ONNX Runtime, compares outputs and times, and writes docs/emit.md. Needs Python 3 with venv,
# and the network for numpy, onnx and onnxruntime. TESTBED is a folder of exported models; without it the bundled ones
# are checked. Then small models of older opsets, and the files of all ranks, run together.
SHARED_MODELS := $(wildcard ../shared/models/* ../shared/cases/*/*)
emit-check: setup $(VENV)/done
	$(CARGO) build --quiet --locked
	for m in "prefill-1024 --seq 128" "decode-1024 --seq 1 --past 512 --batch 4" \
	  "prefill-512 --hidden 512 --heads 8 --kv-heads 8 --ffn 1408 --vocab 4096 --layers 4 --seq 256"; do \
	  $(VENV)/bin/python tests/ort/make_decoder.py target/decoders/$$m || exit 1; done
	$(VENV)/bin/python tests/ort/check_emit.py --sinter target/debug/sinter --seconds 1 --table docs/emit.md --limit 1.15 \
	  target/decoders/* $(if $(TESTBED),$(TESTBED)/*,fixtures/models/*)
	$(VENV)/bin/python tests/ort/check_versions.py --sinter target/debug/sinter
	$(VENV)/bin/python tests/ort/check_emit.py --sinter target/debug/sinter --seconds 0 --ranks 2x1 1x2 2x2 -- \
	  fixtures/models/* fixtures/emit/* $(SHARED_MODELS)

# Emits all of ONNX's node tests, and runs the files in ONNX Runtime.
emit-conformance: setup $(ONNX)/done $(VENV)/done
	$(CARGO) build --quiet --locked
	$(VENV)/bin/python tests/ort/check_nodes.py --sinter target/debug/sinter --cases $(ONNX) --at-least 3480

# Writes the table of ONNX's operator versions again, from the schemas of the onnx package; a test compares it. What a new version
# changes must be said in src/emit/convert.rs.
schemas: $(VENV)/done
	$(VENV)/bin/python tests/ort/make_schemas.py src/emit/schemas.txt

$(VENV)/done:
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check numpy onnx==1.23.2 onnxruntime
	touch $@

# Times single operators in sinter and in ONNX Runtime, in turns, and writes docs/operators-speed.md. ONLY is a regular
# expression for the names of cases; then no table is written.
bench-ops: setup $(VENV)/done
	$(CARGO) build --quiet --locked --release
	$(VENV)/bin/python tests/ort/bench_ops.py --sinter target/release/sinter \
	  $(if $(ONLY),--only '$(ONLY)',--table docs/operators-speed.md)

clean:
	$(CARGO) clean
