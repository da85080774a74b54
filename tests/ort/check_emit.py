#!/usr/bin/env python3
"""Checks `sinter optimize --emit onnx` in ONNX Runtime.

For every model folder (model.onnx, input_<i>.npy, output_<i>.npy) both dialects are written and run on the inputs of the
folder, and the results are compared with its outputs. Times are compared with the original model under ONNX Runtime's own
optimiser (ORT_ENABLE_ALL) on the same number of threads: the sessions run in turns, and the medians are divided.

    check_emit.py --sinter target/release/sinter [--table docs/emit.md] [--threads 1] [--limit 1.1] FOLDER...

A folder that sinter cannot import is listed and skipped. Exit code 1: a result differs, a file does not load, or (with --limit)
a model that runs for at least a millisecond is slower than the limit allows.
Needs numpy and onnxruntime; installs nothing.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

DIALECTS = ("standard", "ort")
# |a - b| <= absolute + relative * |b|, as `sinter run` has it; f16 also for what ONNX Runtime computes in f32.
# Models of which the expected outputs are less precise, with the reason.
LOOSE = {"llama-genai-int4-cpu": (5e-2, 5e-2)}  # ONNX Runtime rounds activations to 8 bits (accuracy_level 4)
TOLERANCE = {"float32": (1e-4, 1e-4), "float64": (1e-9, 1e-9), "float16": (2e-2, 2e-2)}
# Below this, the time is that of starting a session's run, and ratios mean nothing.
SHORTEST_MS = 1.0


def session(path, threads):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The threads of a session that waits for its turn must not take time from the one that runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def numbered(folder, prefix):
    out = []
    while (file := folder / f"{prefix}_{len(out)}.npy").exists():
        out.append(np.load(file))
    return out


def difference(actual, expected, name):
    """The largest absolute difference, and whether all elements are close enough."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf"), False
    if actual.size == 0:
        return 0.0, True
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    same = (a == e) | (np.isnan(a) & np.isnan(e))
    d = np.where(same, 0.0, np.abs(a - e))
    absolute, relative = LOOSE.get(name, TOLERANCE.get(str(expected.dtype), (0.0, 0.0)))
    close = same | (d <= absolute + relative * np.abs(e))
    return float(np.nan_to_num(d, nan=np.inf).max()), bool(close.all())


def medians(sessions, feeds, seconds):
    """Median milliseconds of each session, which run in turns."""
    times = [[] for _ in sessions]
    for s in sessions:
        for _ in range(3):
            s.run(None, feeds)
    end = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < end or rounds < 7:
        # The order changes, so that no session always runs on warm caches.
        order = range(len(sessions)) if rounds % 2 == 0 else reversed(range(len(sessions)))
        for i in order:
            start = time.perf_counter()
            sessions[i].run(None, feeds)
            times[i].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return [statistics.median(t) for t in times]


def check(folder, sinter, work, threads, seconds):
    """Rows of the table for a model, and what is wrong; None where sinter does not import it."""
    model = folder / "model.onnx"
    inputs, outputs = numbered(folder, "input"), numbered(folder, "output")
    files = {}
    for dialect in DIALECTS:
        files[dialect] = work / f"{folder.name}.{dialect}.onnx"
        command = [sinter, "optimize", model, "--emit", "onnx", "--dialect", dialect, "-o", files[dialect]]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode != 0:
            return None, done.stderr.strip().splitlines()[0]
    rows, wrong = [], []
    try:
        original = session(model, threads)
    except Exception as e:
        original = None
        names = None
        reason = str(e).splitlines()[0]
    loaded = {}
    for dialect in DIALECTS:
        try:
            loaded[dialect] = session(files[dialect], threads)
        except Exception as e:
            # ONNX Runtime has no CPU kernels for some element types; then neither file can run there.
            if original is None:
                return None, f"ONNX Runtime does not run the original either: {reason}"
            wrong.append(f"{folder.name} {dialect}: does not load: {e}")
    some = original or next(iter(loaded.values()))
    feeds = {i.name: x for i, x in zip(some.get_inputs(), inputs)}
    run = {d: s.run([o.name for o in some.get_outputs()], feeds) for d, s in loaded.items()}
    order = list(loaded)
    times = medians(([original] if original else []) + [loaded[d] for d in order], feeds, seconds)
    base = times.pop(0) if original else None
    for dialect, ms in zip(order, times):
        worst, fine = 0.0, True
        for name, a, e in zip([o.name for o in some.get_outputs()], run[dialect], outputs):
            d, ok = difference(a, e, folder.name)
            worst = max(worst, d)
            if not ok:
                fine = False
                wrong.append(f"{folder.name} {dialect}: `{name}` differs by {d:.3e}")
        nodes = count_nodes(files[dialect])
        ratio = ms / base if base else float("nan")
        rows.append((folder.name, dialect, nodes, worst, fine, ms, ratio))
    return rows, wrong


def count_nodes(path):
    try:
        import onnx
    except ImportError:
        return "-"
    m = onnx.load(str(path), load_external_data=False)
    return len(m.graph.node)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sinter", required=True)
    parser.add_argument("--table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each model")
    parser.add_argument("--limit", type=float, help="largest ratio of times that is accepted")
    parser.add_argument("folders", nargs="+", type=Path)
    o = parser.parse_args()
    rows, wrong, skipped = [], [], []
    with tempfile.TemporaryDirectory() as work:
        for folder in o.folders:
            if not (folder / "model.onnx").exists() or not (folder / "input_0.npy").exists():
                continue
            found, notes = check(folder, o.sinter, Path(work), o.threads, o.seconds)
            if found is None:
                skipped.append((folder.name, notes))
                print(f"{folder.name}: skipped: {notes}", flush=True)
                continue
            rows += found
            wrong += notes
            for name, dialect, nodes, worst, fine, ms, ratio in found:
                verdict = "ok" if fine else "DIFFERS"
                print(f"{name} {dialect}: {nodes} nodes, {worst:.2e} {verdict}, {ms:.3f} ms, x{ratio:.2f}", flush=True)
                if o.limit and ms >= SHORTEST_MS and ratio > o.limit:
                    wrong.append(f"{name} {dialect}: takes {ratio:.2f} times as long as the original")
            for file in Path(work).iterdir():
                file.unlink()
    if o.table:
        write_table(Path(o.table), rows, skipped, o)
    for w in wrong:
        print(f"WRONG {w}", file=sys.stderr)
    if not rows:
        print("no model was checked", file=sys.stderr)
    return 1 if wrong or not rows else 0


def write_table(path, rows, skipped, o):
    text = [
        "# ONNX out, in ONNX Runtime",
        "",
        f"Written by `tests/ort/check_emit.py` with ONNX Runtime {ort.__version__}, {o.threads} thread{'s' * (o.threads > 1)}, CPU. Time is that of the file that",
        "sinter writes divided by that of the original model under ORT_ENABLE_ALL: medians of sessions that run in turns. Most of",
        "these models have a hidden size of 64 and run in less than a millisecond; the names with a size are those to look at.",
        "",
        "| model | dialect | nodes | largest difference | ms | time ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, dialect, nodes, worst, fine, ms, ratio in rows:
        mark = "" if fine else " (too large)"
        text.append(f"| {name} | {dialect} | {nodes} | {worst:.1e}{mark} | {ms:.2f} | {ratio:.2f} |")
    if skipped:
        text += ["", "Not checked:", ""] + [f"- {name}: {why.removeprefix('error: ')}" for name, why in skipped]
    path.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    sys.exit(main())
