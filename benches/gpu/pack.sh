#!/usr/bin/env bash
# Builds .gpu/: all that benches/gpu/short.sh needs on a machine with a GPU that has neither Rust nor a network. `make gpu-pack` runs it from the
# root of the repository, where target/cuda/ holds NVRTC.
#
# .gpu/sinter is the stripped release program, .gpu/cache the modules of the small cases and of the measurements for compute capability 9.0, compiled
# by the real NVRTC while the emulated driver lets every launch do nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
most_kib=$((40 * 1024))
${CARGO:-cargo} build --quiet --locked --release
rm -rf .gpu
mkdir -p .gpu/cache target/null
cp target/release/sinter .gpu/sinter
strip .gpu/sinter
c++ -std=c++17 -O2 -fPIC -shared -pthread -Wl,-soname,libcuda.so runtime/tests/cuda/emulator/driver.cpp -o target/null/libcuda.so
for part in "--small" "--bench --no-cases"; do
  # The exit code says that results differ, for no kernel ran.
  EMULATED_NULL=1 LD_LIBRARY_PATH=$PWD/target/null SINTER_NVRTC=$PWD/target/cuda/nvidia/cu13/lib SINTER_KERNEL_CACHE=$PWD/.gpu/cache \
    .gpu/sinter kernels check $part --report target/null/report.json >target/null/log.txt 2>&1 || [ $? -eq 1 ] || { tail -n 20 target/null/log.txt >&2; exit 2; }
done
kib=$(du -sk .gpu | cut -f1)
echo ".gpu: $((kib / 1024)) MiB, $(find .gpu/cache -name '*.bin' | wc -l) modules"
if [ "$kib" -gt "$most_kib" ]; then
  echo "gpu-pack: .gpu has $kib KiB, more than the $most_kib KiB that may travel" >&2
  exit 1
fi
