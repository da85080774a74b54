#!/usr/bin/env bash
# Checks and times the CUDA kernels on this machine's GPU. `make gpu-check` runs it from the root of the repository.
#
# DEVICE: number of the device, 0 where not given. SINTER_NVRTC: folder of NVRTC, where the system has none.
set -euo pipefail
cd "$(dirname "$0")/../.."
device=${DEVICE:-0}
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
  echo "gpu-check: this machine has no NVIDIA GPU (nvidia-smi sees none)" >&2
  exit 2
fi
# Ranks on one device have a stream each, and must not wait for each other in the driver's queues.
export CUDA_DEVICE_MAX_CONNECTIONS=32
# What `make kernels` unpacks.
if [ -z "${SINTER_NVRTC:-}" ] && [ -d target/cuda/nvidia/cu13/lib ]; then
  export SINTER_NVRTC=$PWD/target/cuda/nvidia/cu13/lib
fi
out=target/gpu-check
mkdir -p "$out"
${CARGO:-cargo} build --quiet --locked --release
sinter=target/release/sinter

"$sinter" kernels check --device "$device" --report "$out/cases.json"

# Every access is slow under the sanitizer, so it gets the small cases only.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    echo "compute-sanitizer --tool $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 3 --log-file "$out/$tool.log" \
      "$sinter" kernels check --device "$device" --small --report "$out/$tool.json" >/dev/null ||
      { tail -n 40 "$out/$tool.log" >&2; echo "gpu-check: compute-sanitizer --tool $tool found errors" >&2; exit 1; }
  done
else
  echo "compute-sanitizer is not installed: memory accesses and races were not checked"
fi

if python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  python3 benches/gpu/torch_compare.py --sinter "$sinter" --device "$device" --out benches/results
else
  echo "PyTorch with CUDA is not installed: the kernels are timed, not compared"
  name=$(nvidia-smi -i "$device" --query-gpu=name --format=csv,noheader | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9\n' '-' | sed 's,^nvidia-,,;s,-$,,')
  file=benches/results/$name-$(date +%F)
  "$sinter" kernels check --device "$device" --bench --no-cases --report "$file.json" --table "$file.md"
  echo "wrote $file.json and $file.md"
fi
