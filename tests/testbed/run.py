#!/usr/bin/env python3
"""Compiles and executes every exported model of a folder at four mappings and writes a table.

    run.py --sinter target/release/sinter --models ../shared/testbed [--only PATTERN] [--report docs/testbed.md]

A folder of a model holds model.onnx, meta.json, input_<i>.npy and output_<i>.npy; the outputs are those of ONNX Runtime,
or of PyTorch where it cannot run the graph. The exit code is 1 if a model differs from them, or is refused without being
named in EXPECTED_REFUSALS. Only Python's standard library is needed.
"""

import argparse
import concurrent.futures
import fnmatch
import json
import os
import subprocess
import sys
import tempfile

MAPPINGS = [(1, 1), (2, 1), (1, 2), (2, 2)]

# Models that cannot be judged, with the reason.
EXPECTED_REFUSALS = {}

# Where the expected outputs themselves are further from the truth than sinter's tolerance, with the reason.
TOLERANCE = {
    "llama-genai-int4-cpu": (5e-2, 5e-2, "ONNX Runtime rounds activations to 8 bits (accuracy_level 4)"),
}


def call(command):
    return subprocess.run(command, capture_output=True, text=True)


def check(sinter, folder, tp, pp):
    """Fused counts, attentions, largest difference, or what went wrong."""
    name = os.path.basename(folder)
    with tempfile.TemporaryDirectory() as work:
        plan, report = os.path.join(work, "plan"), os.path.join(work, "report.json")
        model = os.path.join(folder, "model.onnx")
        done = call([sinter, "optimize", model, "--tp", str(tp), "--pp", str(pp), "-o", plan, "--report", report])
        if done.returncode != 0:
            return {"outcome": "refused", "text": done.stderr.strip()}
        with open(report, encoding="utf-8") as f:
            compiled = json.load(f)
        command = [sinter, "run", plan, "--inputs", folder, "--expect", folder, "--report", report]
        if name in TOLERANCE:
            command += ["--atol", str(TOLERANCE[name][0]), "--rtol", str(TOLERANCE[name][1])]
        done = call(command)
        if done.returncode not in (0, 1) or not os.path.isfile(report):
            return {"outcome": "failed", "text": done.stderr.strip()}
        with open(report, encoding="utf-8") as f:
            ran = json.load(f)
    if not ran.get("expect"):
        return {"outcome": "failed", "text": done.stderr.strip()}
    return {
        "outcome": "agrees" if done.returncode == 0 else "differs",
        "fused": {k: v for k, v in compiled["fused"].items() if v},
        "attention": compiled["ops"].get("attention", 0),
        "saturated": compiled["saturate"]["stop"] if "stop" in compiled["saturate"] else "",
        "max_abs": ran["expect"]["max_abs"],
    }


SHORT = {
    "ar_residual_rms_norm": "ar+norm",
    "ar_residual_layer_norm": "ar+norm",
    "add_rms_norm": "add+norm",
    "add_layer_norm": "add+norm",
    "silu_mul": "silu·mul",
    "gelu_mul": "gelu·mul",
}


def cell(r):
    if r["outcome"] in ("refused", "failed"):
        return r["outcome"]
    counts = {}
    for op, n in r["fused"].items():
        counts[SHORT.get(op, op)] = counts.get(SHORT.get(op, op), 0) + n
    if r["attention"]:
        counts["attention"] = r["attention"]
    text = ", ".join(f"{n} {op}" for op, n in sorted(counts.items()))
    sign = "" if r["outcome"] == "agrees" else "**differs** "
    return f"{text}; {sign}{magnitude(r['max_abs'])}"


def magnitude(x):
    """One digit: the last digits differ between machines."""
    return "0" if x == 0 else f"{x:.0e}"


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--sinter", required=True)
    args.add_argument("--models", required=True)
    args.add_argument("--only", default="*", help="a pattern on the names of folders")
    args.add_argument("--report", help="write the table into this file")
    args.add_argument("--jobs", type=int, default=os.cpu_count())
    o = args.parse_args()
    names = sorted(n for n in os.listdir(o.models) if fnmatch.fnmatch(n, o.only))
    names = [n for n in names if os.path.isfile(os.path.join(o.models, n, "model.onnx"))]
    if not names:
        sys.exit(f"{o.models} has no model called {o.only}")
    jobs = [(n, tp, pp) for n in names for tp, pp in MAPPINGS]
    with concurrent.futures.ThreadPoolExecutor(o.jobs) as pool:
        found = pool.map(lambda j: check(o.sinter, os.path.join(o.models, j[0]), j[1], j[2]), jobs)
        results = dict(zip(jobs, found))
    bad = 0
    for (name, tp, pp), r in results.items():
        if r["outcome"] == "agrees" or (r["outcome"] == "refused" and name in EXPECTED_REFUSALS):
            continue
        bad += 1
        print(f"{name} at tp {tp} pp {pp}: {r['outcome']} {r.get('max_abs', '')}\n    " + r.get("text", "")[:1000])
    if o.report:
        write(o.report, o.models, names, results)
    agree = sum(r["outcome"] == "agrees" for r in results.values())
    print(f"{len(names)} models, {len(jobs)} runs: {agree} agree with the expected outputs, {bad} do not")
    sys.exit(1 if bad else 0)


def write(path, models, names, results):
    lines = [
        "# Exported models",
        "",
        "Generated by `make testbed`: every model is compiled for four mappings (tp x pp) and executed on all ranks; its outputs are",
        "compared with those of ONNX Runtime (of PyTorch for bf16). A cell holds the fused operators, summed over the stages, and the",
        "largest absolute difference. `ar+norm` is all-reduce + residual + norm, `add+norm` its form for one rank; norms without a",
        "residual sum are not counted.",
        "",
        "| model | exporter | type | 1 x 1 | 2 x 1 | 1 x 2 | 2 x 2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        meta = {}
        try:
            with open(os.path.join(models, name, "meta.json"), encoding="utf-8") as f:
                meta = json.load(f)
        except FileNotFoundError:
            pass
        exporter = str(meta.get("exporter", "")).split(" builder")[0]
        dtype = meta.get("precision") or meta.get("dtype", "float32")
        cells = [cell(results[(name, tp, pp)]) for tp, pp in MAPPINGS]
        lines.append(f"| {name} | {exporter} | {dtype} | {' | '.join(cells)} |")
    notes = [(n, t) for n, t in TOLERANCE.items() if n in names]
    if notes:
        lines += ["", "Compared with another tolerance than sinter's own:", ""]
        lines += [f"- {n}: {a} absolute, {r} relative: {why}." for n, (a, r, why) in notes]
    if EXPECTED_REFUSALS:
        lines += ["", "Refused:", ""] + [f"- {n}: {why}." for n, why in EXPECTED_REFUSALS.items()]
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


main()
