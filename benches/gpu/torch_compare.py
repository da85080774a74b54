#!/usr/bin/env python3
"""Times sinter's CUDA kernels and the same operators in PyTorch, in the same run on the same GPU.

    torch_compare.py --sinter target/release/sinter [--device 0] [--passes 3] [--only TEXT] --out benches/results

Peers are PyTorch eager, torch.compile (max-autotune) and hand-written Triton kernels with the best of several numbers of
warps. All are timed as `sinter kernels check --bench` times: the device is held busy while the host enqueues, then a
number of launches on rotating buffers runs between two events; the median of the rounds counts. Sinter and the peers take
turns for some passes; a row has the median over the passes and the whole range.

Writes <gpu>-<date>.json and .md into the folder --out: sinter's report with `peers` and `targets`, and the tables for people.
Exit code 0 also where a target is not met: it is a measurement, not a test. Nothing is installed.
"""

import argparse
import datetime
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EPS = 1e-5
ROUNDS = 61
ROUND_US = 1000.0
MAX_QUEUED = 256
MAX_HOLD_US = 50_000.0
# Bytes that the buffers of one measurement have together, at least: well above any L2 cache.
ROTATING_BYTES = 1 << 29
PEERS = ("eager", "compile", "triton")
NORMS = re.compile(r"(add_)?(rms|layer)_norm(_quant_fp8(_token)?)?")


# ---- pure functions ----


def shape_of(label):
    """(rows, columns) of a label such as `bf16[4096, 8192]` or `bf16 4096x14336`; None for other labels."""
    found = re.fullmatch(r"bf16 ?\[?(\d+)(?:, |x)(\d+)\]?", label)
    return (int(found[1]), int(found[2])) if found else None


def comparable(kernel, label):
    """Whether there are peers for a measurement."""
    return shape_of(label) is not None and bool(NORMS.fullmatch(kernel) or kernel in ("silu_mul", "softmax"))


def percentile(sorted_values, share):
    return sorted_values[round(share * (len(sorted_values) - 1))]


def over_passes(values):
    """What a row says of the times of all passes."""
    return {"us": statistics.median(values), "least": min(values), "most": max(values)}


def merge(reports, peers):
    """The first of sinter's reports, with the times of all passes and those of the peers.

    `peers` maps (kernel, label) to {peer: [microseconds of each pass]}.
    """
    out = dict(reports[0])
    copies = [r["copy_bytes_per_s"] for r in reports]
    out["copy_bytes_per_s"] = statistics.median(copies)
    rows = []
    for row in reports[0]["benchmarks"]:
        key = (row["kernel"], row["label"])
        same = [b for r in reports for b in r["benchmarks"] if (b["kernel"], b["label"]) == key]
        row = {**row, **over_passes([b["us"] for b in same])}
        row["bytes_per_s"] = row["bytes"] / (row["us"] * 1e-6)
        row["of_copy"] = row["bytes_per_s"] / out["copy_bytes_per_s"]
        row["peers"] = {name: over_passes(times) for name, times in peers.get(key, {}).items()}
        rows.append(row)
    out["benchmarks"] = rows
    out["targets"] = targets(out)
    return out


def best(row, names=PEERS):
    """(name, microseconds) of the fastest peer, or None."""
    found = [(row["peers"][n]["us"], n) for n in names if n in row["peers"]]
    return min(found)[::-1] if found else None


def verdict(name, holds, said):
    return {"target": name, "result": "met" if holds else "not met", "measured": said}


def targets(report):
    """What was aimed at, and whether it is reached. What was not measured is said to be so."""
    rows = {(b["kernel"], shape_of(b["label"]) or b["label"]): b for b in report["benchmarks"]}
    out = []

    def each(name, keys, judge):
        for key in keys:
            row = rows.get(key)
            result = judge(row, key) if row else None
            where = "x".join(map(str, key[1])) if isinstance(key[1], tuple) else key[1]
            title = f"{key[0]} {where}: {name}"
            out.append(verdict(title, *result) if result else {"target": title, "result": "not measured", "measured": ""})

    def copy_share(row, _):
        return row["of_copy"] >= 0.95, f"{100 * row['of_copy']:.1f} %"

    def against_best(names):
        def judge(row, _):
            peer = best(row, names)
            return peer and (row["us"] <= peer[1], f"{row['us']:.2f} us, {peer[0]} {peer[1]:.2f} us, {peer[1] / row['us']:.2f}x")

        return judge

    def against(separate, least):
        def judge(row, key):
            other = rows.get((separate, key[1]))
            if not other:
                return None
            less = 1.0 - row["us"] / other["us"]
            return less >= least, f"{row['us']:.2f} us, separate {other['us']:.2f} us, {100 * less:.0f} % less"

        return judge

    def floor(row, _):
        least = row["bytes"] / report["copy_bytes_per_s"] * 1e6
        return row["us"] <= 1.1 * least, f"{row['us']:.2f} us, {row['us'] / least:.2f} times {least:.2f} us"

    large = [("add_rms_norm", (4096, 8192)), ("add_rms_norm", (16384, 8192))]
    each("at least 95 % of the copy's bandwidth", large, copy_share)
    each("not slower than the best of torch.compile and Triton", large, against_best(("compile", "triton")))
    few = [k for k in rows if k[0] in ("rms_norm", "add_rms_norm") and isinstance(k[1], tuple) and k[1][0] <= 64]
    each("few tokens, not slower than the best peer", sorted(few) or [("add_rms_norm", (1, 8192))], against_best(PEERS))
    each("at least 24 % less time than sum and norm apart", large, against("add_then_rms_norm", 0.24))
    quantised = [k for k in rows if "_quant_" in k[0] and isinstance(k[1], tuple) and k[1][0] >= 4096]
    each("within 10 % of the time that the bytes take in a copy",
         sorted(quantised) or [("add_rms_norm_quant_fp8", (4096, 8192))], floor)
    ranks = [k for k in rows if k[0] == "ar_residual_rms_norm"]
    each("less time than all-reduce, sum and norm apart", sorted(ranks, key=str) or [("ar_residual_rms_norm", "of 2, 4 and 8 ranks")],
         against("all_reduce_then_add_then_rms_norm", 1e-9))
    return out


def time_range(t):
    return f"{t['us']:.2f} ({t['least']:.2f} to {t['most']:.2f})"


def markdown(report):
    lines = [
        f"# {report['device']}, {report['date']}", "",
        f"sm_{report['capability']}, driver for CUDA {report['driver']}, NVRTC {report['nvrtc']}, PyTorch {report['torch']}, "
        f"Triton {report['triton']}. A copy on the device reads and writes {report['copy_bytes_per_s'] * 1e-9:.0f} GB/s. Times are "
        f"in microseconds: the median over {report['passes']} passes, with the least and the most. The ratio is the time of the fastest "
        "peer divided by ours.", "",
        "| kernel | shape | ours | of copy | eager | compile | triton | ratio |", "|---|---|---|---|---|---|---|---|"]
    for row in report["benchmarks"]:
        cells = [time_range(row["peers"][n]) if n in row["peers"] else "" for n in PEERS]
        peer = best(row)
        ratio = f"{peer[1] / row['us']:.2f} ({peer[0]})" if peer else ""
        lines.append(f"| `{row['kernel']}` | {row['label']} | {time_range(row)} | {100 * row['of_copy']:.1f} % | "
                     + " | ".join(cells) + f" | {ratio} |")
    lines += ["", "| target | measured | result |", "|---|---|---|"]
    lines += [f"| {t['target']} | {t['measured']} | {t['result']} |" for t in report["targets"]]
    for failed in report.get("failed_peers", []):
        lines += ["", f"Not timed: {failed}"]
    return "\n".join(lines) + "\n"


def file_name(device, date):
    return re.sub(r"[^a-z0-9]+", "-", device.lower().replace("nvidia", "")).strip("-") + "-" + date


# ---- measurements ----


def microseconds(torch, call, sets):
    """Median time of a call on the operands of each set in turn."""
    results = [None] * len(sets)

    def enqueue(first, count):
        for i in range(first, first + count):
            # The results of a set stay until its next turn, so that memory for results rotates as well.
            results[i % len(sets)] = call(*sets[i % len(sets)])

    def one_round(first, count, hold_us):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Cycles at no less than any clock.
        torch.cuda._sleep(int(hold_us * 2000))
        began = time.perf_counter()
        start.record()
        enqueue(first, count)
        end.record()
        host_us = (time.perf_counter() - began) * 1e6
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / count, host_us

    enqueue(0, len(sets))
    torch.cuda.synchronize()
    hold_us, first = 1000.0, 0
    estimate, _ = one_round(first, 8, hold_us)
    count = max(1, min(MAX_QUEUED, -(-int(ROUND_US) // max(1, int(estimate)))))
    times = []
    while len(times) < ROUNDS:
        us, host_us = one_round(first, count, hold_us)
        first += count
        if host_us > 0.8 * hold_us and hold_us < MAX_HOLD_US:
            hold_us = min(MAX_HOLD_US, 2 * max(host_us, hold_us))
            continue
        times.append(us)
    return percentile(sorted(times), 0.5)


def operands(torch, kernel, rows, columns):
    """Sets of operands, enough of them that no cache holds them all."""
    make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    n_tensors = 2 if kernel.startswith("add_") or kernel == "silu_mul" else 1
    size = 2 * rows * columns * 2 * n_tensors
    w, b = make(columns), make(columns)
    scale = torch.tensor([0.02], device="cuda")
    sets = []
    for _ in range(max(2, min(64, -(-ROTATING_BYTES // size)))):
        tensors = [make(rows, columns) for _ in range(n_tensors)]
        if kernel in ("silu_mul", "softmax"):
            sets.append(tuple(tensors))
            continue
        sets.append((tensors[0], tensors[1] if n_tensors == 2 else None, w, b, scale))
    return sets


def eager(torch, kernel):
    """The operator as PyTorch code, which torch.compile takes as well. Results are in the order of triton_kernels.py."""
    import torch.nn.functional as F

    if kernel == "silu_mul":
        return lambda gate, up: (F.silu(gate) * up,)
    if kernel == "softmax":
        return lambda x: (torch.softmax(x, -1),)
    add, which, quant, token = NORMS.fullmatch(kernel).groups()

    def norm(x, r, w, b, scale):
        s = x + r if add else x
        n = (x.shape[-1],)
        y = F.rms_norm(s, n, w, EPS) if which == "rms" else F.layer_norm(s, n, w, b, EPS)
        out = (y,)
        if quant:
            v = y.float()
            by = v.abs().amax(-1, keepdim=True) / 448.0 if token else scale
            codes = (v / (torch.where(by == 0, 1.0, by) if token else by)).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
            out = (codes, by[:, 0]) if token else (codes,)
        return out + ((s,) if add else ())

    return norm


def triton_call(kernels, kernel, warps):
    if kernel == "silu_mul":
        return lambda gate, up: kernels.silu_mul(gate, up, warps)
    if kernel == "softmax":
        return lambda x: kernels.softmax(x, warps)
    add, which, quant, token = NORMS.fullmatch(kernel).groups()
    mode = 2 if token else 1 if quant else 0

    def norm(x, r, w, b, scale):
        return kernels.norm(EPS, x, w, r, b if which == "layer" else None, scale, mode, warps)

    return norm


def agree(torch, kernel, got, want):
    for g, w in zip(got, want, strict=True):
        g, w = g.float(), w.float()
        # A code of e4m3 may fall to the other side of a tie.
        limit = 0.13 if "_quant_" in kernel else 0.02
        if not torch.allclose(g, w, rtol=limit, atol=limit):
            raise RuntimeError(f"differs from eager by {(g - w).abs().max().item():.3g}")


class Peer:
    """One operator on one shape; compiled once, timed in every pass."""

    def __init__(self, torch, kernels, kernel, shape):
        self.torch, self.kernel, self.shape = torch, kernel, shape
        self.failed = {}
        plain = eager(torch, kernel)
        self.calls = {"eager": plain}
        sets = operands(torch, kernel, *shape)
        want = plain(*sets[0])
        try:
            compiled = torch.compile(plain, dynamic=False, mode="max-autotune-no-cudagraphs")
            agree(torch, kernel, compiled(*sets[0]), want)
            self.calls["compile"] = compiled
        except Exception as e:
            self.failed["compile"] = e
        try:
            candidates = [triton_call(kernels, kernel, warps) for warps in (4, 8, 16, 32)]
            for c in candidates:
                agree(torch, kernel, c(*sets[0]), want)
            self.calls["triton"] = min(candidates, key=lambda c: microseconds(torch, c, sets))
        except Exception as e:
            self.failed["triton"] = e

    def time(self):
        sets = operands(self.torch, self.kernel, *self.shape)
        out = {name: microseconds(self.torch, call, sets) for name, call in self.calls.items()}
        del sets
        self.torch.cuda.empty_cache()
        return out


def sinter_report(args):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        command = [args.sinter, "kernels", "check", "--device", str(args.device), "--bench", "--no-cases", "--report", str(path)]
        command += ["--filter", args.only] if args.only else []
        ended = subprocess.run(command, stdout=subprocess.DEVNULL)
        if not path.exists():
            sys.exit(f"torch_compare: {' '.join(command)} failed with {ended.returncode}")
        return json.loads(path.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sinter", required=True)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--only", help="only measurements whose operator and label contain this text")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        import torch
        import triton
    except ImportError as e:
        sys.exit(f"torch_compare: {e}; PyTorch with CUDA and Triton are needed")
    if not torch.cuda.is_available():
        sys.exit("torch_compare: PyTorch sees no CUDA device")
    import triton_kernels

    torch.cuda.set_device(args.device)
    torch.manual_seed(1)
    # Every shape is compiled on its own.
    for limit in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, 256)
    reports = [sinter_report(args)]
    keys = [(b["kernel"], b["label"]) for b in reports[0]["benchmarks"] if comparable(b["kernel"], b["label"])]
    peers, failed = {}, []
    for kernel, label in keys:
        print(f"preparing {kernel} {label}", file=sys.stderr)
        peers[kernel, label] = Peer(torch, triton_kernels, kernel, shape_of(label))
        failed += [f"{kernel} {label} by {name}: {e}" for name, e in peers[kernel, label].failed.items()]
    times = {key: {} for key in keys}
    for number in range(args.passes):
        if number > 0:
            reports.append(sinter_report(args))
        for key, peer in peers.items():
            print(f"pass {number + 1} of {args.passes}: {' '.join(key)}", file=sys.stderr)
            for name, us in peer.time().items():
                times[key].setdefault(name, []).append(us)
    report = merge(reports, times)
    date = datetime.date.today().isoformat()
    report |= {"date": date, "passes": args.passes, "torch": torch.__version__, "triton": triton.__version__}
    report["failed_peers"] = failed
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / file_name(report["device"], date)
    path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    path.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))
    print(f"wrote {path}.json and {path}.md")


if __name__ == "__main__":
    main()
