#!/usr/bin/env bash
# Checks and times the CUDA kernels within a number of seconds, on a machine that has a GPU and nothing else: no Rust, no network.
#
#   bash benches/gpu/short.sh [SECONDS] [PART ...]
#
# Run it from the root of the repository; `make gpu-pack` has made .gpu/. Parts, in this order when none is named: cases, times, ranks, torch, memcheck,
# counters; `large` (all cases) only runs when it is named. Each command has a time limit of its own and none ends the script. Results are
# in $OUT (target/gpu-short where it is not set) as soon as they exist: cases.jsonl and times.jsonl (a line per case or measurement), bench.json and bench.md,
# torch.tgz, counters.txt, log.txt, which begins with the environment, and summary.txt.
set -u
cd "$(dirname "$0")/../.."
start=$SECONDS
limit=${1:-520}
shift || true
parts=${*:-cases times ranks torch memcheck counters}
out=${OUT:-$PWD/target/gpu-short}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
sinter=$PWD/.gpu/sinter
[ -x "$sinter" ] || { echo "short.sh: .gpu/sinter is missing; run make gpu-pack where there is Rust" >&2; exit 2; }

left() { echo $((limit - SECONDS + start)); }
say() { echo "$*" | tee -a "$out/summary.txt"; }
wants() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
# bounded NAME SECONDS COMMAND...: runs the command within its time and what is left of all.
bounded() {
  local name=$1 most=$2 rest began=$SECONDS rc
  shift 2
  rest=$(left)
  if [ "$rest" -lt 10 ]; then say "SKIPPED  $name: $rest s left"; return; fi
  [ "$most" -gt "$rest" ] && most=$rest
  echo "==== $name" >>"$out/log.txt"
  timeout -k 5 "$most" "$@" >>"$out/log.txt" 2>&1
  rc=$?
  say "$(printf 'rc=%-3d %3d s  %s' $rc $((SECONDS - began)) "$name")"
}
check() { "$sinter" kernels check --lines "$out/cases.jsonl" "$@"; }
export -f check
export sinter out

{
  date -u
  nvidia-smi -L
  nvidia-smi --query-gpu=driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,memory.used,compute_mode --format=csv
  ldd --version | head -n 1
  nproc
  ldconfig -p | grep -E 'libcuda|libnvrtc|cublasLt|libnccl'
  timeout 60 python3 -c 'import torch, triton; print("torch", torch.__version__, "CUDA", torch.version.cuda, "NCCL", torch.cuda.nccl.version(), "triton", triton.__version__)'
} >>"$out/log.txt" 2>&1
for folder in /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
  "$(python3 -c 'import nvidia, os; print(os.path.join(list(nvidia.__path__)[0], "cu13/lib"))' 2>/dev/null)"; do
  if [ -z "${SINTER_NVRTC:-}" ] && { [ -e "$folder/libnvrtc.so.13" ] || [ -e "$folder/libnvrtc.so" ]; }; then
    export SINTER_NVRTC=$folder
  fi
done
say "$(date -u +%FT%TZ) $(nvidia-smi -L 2>/dev/null | head -n 1 | sed 's/ (UUID.*//'), NVRTC in ${SINTER_NVRTC:-no known folder}"
export SINTER_KERNEL_CACHE=$PWD/.gpu/cache CUDA_DEVICE_MAX_CONNECTIONS=32 CUDA_MODULE_LOADING=EAGER PYTHONUNBUFFERED=1
modules() { find "$SINTER_KERNEL_CACHE" -name '*.bin' | wc -l; }
had=$(modules)

# A process for each family: a fault takes the context with it. Ranks come later, for a wait in vain takes 20 s.
if wants cases; then
  for family in convert cast elementwise 'silu_mul gelu_mul mul' 'transpose reshape expand slice concat' gather rotary softmax 'quantize fp8_' \
    'norm bf16' 'norm f16' 'norm f32' quant_fp8 quant_nvfp4; do
    filters=(--skip ar_ --skip all_reduce)
    case $family in
      *\ bf16 | *\ f16 | *\ f32) filters+=(--filter "$family" --skip quant) ;;
      *) for word in $family; do filters+=(--filter "$word"); done ;;
    esac
    bounded "cases: $family" 40 bash -c 'check --small "$@"' - "${filters[@]}"
  done
fi
if wants times; then
  bounded times 150 "$sinter" kernels check --bench --no-cases --skip ranks --lines "$out/times.jsonl" --report "$out/bench.json" --table "$out/bench.md"
fi
if wants ranks; then
  for family in 'without rank' 'all_reduce one_shot' 'all_reduce two_shot' ar_residual_rms_norm ar_residual_layer_norm; do
    bounded "ranks: $family" 45 bash -c 'check --small --case-seconds 25 "$@"' - --filter "$family" --skip calls
  done
  bounded "ranks: times" 60 "$sinter" kernels check --bench --no-cases --filter ranks --lines "$out/times.jsonl" --table "$work/ranks.md"
fi
if wants ranks && [ -f "$work/ranks.md" ]; then (echo; cat "$work/ranks.md") >>"$out/bench.md"; fi
if wants torch; then
  for row in 'add_rms_norm bf16[4096, 8192]' 'add_rms_norm bf16[1, 8192]' silu_mul; do
    bounded "torch: $row" 75 python3 benches/gpu/torch_compare.py --sinter "$sinter" --passes 1 --only "$row" --out "$work/torch/$(echo "$row" | tr -c 'a-z0-9_\n' -)"
  done
  tar czf "$out/torch.tgz" -C "$work" torch 2>/dev/null
fi
if wants memcheck; then
  if command -v compute-sanitizer >/dev/null; then
    for family in 'norm_quant_nvfp4 b' 'transpose bf16' 'softmax bf16' 'gather bf16'; do
      bounded "memcheck: $family" 45 compute-sanitizer --tool memcheck --error-exitcode 3 "$sinter" kernels check --small --threads 1 --filter "$family" --skip ar_
    done
  else
    say "compute-sanitizer is not installed: memory accesses were not checked"
  fi
fi
if wants counters; then
  if command -v ncu >/dev/null; then
    for row in 'add_rms_norm bf16[4096, 8192]' silu_mul; do
      bounded "counters: $row" 45 bash -c 'ncu --clock-control none --set basic -k "regex:rms_norm|silu" --launch-skip 3 -c 2 "$sinter" kernels check --bench --no-cases --filter "$1" | grep -vE "^ *(OPT|INF|WRN)" >>"$out/counters.txt"' - "$row"
    done
  else
    say "ncu is not installed: hardware counters were not read"
  fi
fi
if wants large; then
  bounded "large: one rank" 400 bash -c 'check --case-seconds 60 --skip ar_ --skip all_reduce'
  bounded "large: ranks" 200 bash -c 'check --case-seconds 60 --filter ar_ --filter all_reduce'
fi
say "modules: $had carried, $(modules) after the run"
[ -f "$out/cases.jsonl" ] && say "cases: $(grep -c '"pass":true' "$out/cases.jsonl") agree, $(grep -c '"pass":false' "$out/cases.jsonl") do not"
echo
grep -hE '"pass":false' "$out/cases.jsonl" 2>/dev/null | cut -c1-300 | head -n 30
grep -hE 'waited|check failed|ERROR SUMMARY|rror:' "$out/log.txt" | sort | uniq -c | sort -rn | head -n 30
[ -f "$out/bench.md" ] && cat "$out/bench.md"
cat "$out/summary.txt"
