#!/usr/bin/env python3
"""Checks `sinter optimize --emit onnx` in ONNX Runtime.

For every model folder (model.onnx with input_<i>.npy and output_<i>.npy, or with folders `inputs` and `expected`) both dialects are
written, checked with onnx.checker, and run on the inputs of the folder, and the results are compared with its outputs. With --ranks
the files of all ranks are run together, with sums and joins in place of collectives. Times are compared with the original model under ONNX Runtime's own
optimiser (ORT_ENABLE_ALL) on the same number of threads: the sessions run in turns, and the medians are divided.

    check_emit.py --sinter target/release/sinter [--table docs/emit.md] [--threads 1] [--limit 1.1] [--ranks 2x1 1x2] FOLDER...

A folder that sinter cannot import is listed and skipped. Exit code 1: a result differs, a file is not valid or does not load, or (with
--limit) a model that runs for at least a millisecond is slower than the limit allows.
Needs numpy, onnx and onnxruntime; installs nothing.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

import ranks

DIALECTS = ("standard", "ort")
# |a - b| <= absolute + relative * |b|, as `sinter run` has it; f16 also for what ONNX Runtime computes in f32.
# Models of which the expected outputs are less precise, with the reason.
LOOSE = {"llama-genai-int4-cpu": (5e-2, 5e-2)}  # ONNX Runtime rounds activations to 8 bits (accuracy_level 4)
TOLERANCE = {"float32": (1e-4, 1e-4), "float64": (1e-9, 1e-9), "float16": (2e-2, 2e-2)}
# Below this, the time is that of starting a session's run, and ratios mean nothing.
SHORTEST_MS = 1.0


def session(path, threads, plain=False):
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if plain else level.ORT_ENABLE_ALL
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


def tensors(folder, model):
    """Inputs by name, and outputs by name: numbered files, or the folders `inputs` and `expected`."""
    defaults = {i.name for i in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in defaults]
    if (folder / "inputs").is_dir():
        feeds = {f.stem: np.load(f) for f in sorted((folder / "inputs").glob("*.npy"))}
        outputs = numbered(folder / "expected", "output")
    else:
        feeds, outputs = dict(zip(names, numbered(folder, "input"))), numbered(folder, "output")
    return feeds, dict(zip([o.name for o in model.graph.output], outputs))


def valid(path, original):
    """What onnx.checker says against a file, where it says nothing of the kind against the original."""
    try:
        onnx.checker.check_model(str(path))
    except Exception as e:
        try:
            onnx.checker.check_model(str(original))
        except Exception:
            return None
        return str(e).splitlines()[0]
    return None


def emit(sinter, model, dialect, out, *more):
    """The first line of the error, or nothing."""
    command = [sinter, "optimize", model, "--emit", "onnx", "--dialect", dialect, "-o", out, *more]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    return (done.stderr.strip() or "?").splitlines()[0] if done.returncode else None


def compare(session, feeds, expected, name):
    """The largest difference, and what is wrong."""
    found = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    worst, wrong = 0.0, []
    for o, a in zip(session.get_outputs(), found):
        if isinstance(a, list) or o.name not in expected:
            continue
        d, ok = difference(a, expected[o.name], name)
        worst = max(worst, d)
        if not ok:
            wrong.append(f"`{o.name}` differs by {d:.3e}")
    return worst, wrong


def check(folder, o, work):
    """Rows of the table for a model, and what is wrong; None where sinter does not import it, or nothing can be told."""
    name, path = folder.name, folder / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    feeds, expected = tensors(folder, model)
    rows, wrong, loaded = [], [], {}
    try:
        original, reason = session(path, o.threads), None
    except Exception as e:
        original, reason = None, str(e).splitlines()[0]
    if original is not None:
        # What the original gives here: outputs that others published may be those of another processor, where integer sums do not saturate.
        plain = session(path, o.threads, plain=True)
        found = plain.run(None, {i.name: feeds[i.name] for i in plain.get_inputs() if i.name in feeds})
        expected = {y.name: a for y, a in zip(plain.get_outputs(), found) if not isinstance(a, list)}
    for dialect in DIALECTS:
        file = work / f"{name}.{dialect}.onnx"
        if refused := emit(o.sinter, path, dialect, file):
            return None, refused
        if problem := valid(file, path):
            wrong.append(f"{name} {dialect}: {problem}")
        try:
            loaded[dialect] = session(file, o.threads)
            # What ONNX Runtime fuses may round otherwise: numbers are those of the nodes as they are.
            worst, problems = compare(session(file, o.threads, plain=True), feeds, expected, name)
        except Exception as e:
            # ONNX Runtime has no CPU kernels for some element types; then neither file can run there.
            if original is None:
                return None, f"ONNX Runtime does not run the original either: {reason}"
            wrong.append(f"{name} {dialect}: {str(e).splitlines()[0]}")
            continue
        wrong += [f"{name} {dialect}: {p}" for p in problems]
        nodes = len(onnx.load(str(file), load_external_data=False).graph.node)
        rows.append([name, dialect, nodes, worst, not problems, float("nan"), float("nan")])
    if o.seconds > 0 and loaded:
        order = list(loaded)
        read = {i.name: feeds[i.name] for i in loaded[order[0]].get_inputs()}
        times = medians(([original] if original else []) + [loaded[d] for d in order], read, o.seconds)
        base = times.pop(0) if original else None
        for row, ms in zip(rows, times):
            row[5:] = [ms, ms / base if base else float("nan")]
    for tp, pp in o.ranks:
        for dialect in DIALECTS:
            out = work / f"{name}.{dialect}.{tp}x{pp}"
            if refused := emit(o.sinter, path, dialect, out, "--tp", tp, "--pp", pp):
                print(f"{name} {dialect} tp {tp} pp {pp}: skipped: {refused}", flush=True)
                break
            files = [out / f"rank{r}.onnx" for r in range(tp * pp)]
            problems = [p for f in files if (p := valid(f, path))]
            try:
                joined = work / f"{name}.joined.onnx"
                onnx.save(ranks.joined(files, tp, onnx.load(str(path), load_external_data=False)), str(joined))
                worst, more = compare(session(joined, o.threads, plain=True), feeds, expected, name)
                problems += more
                print(f"{name} {dialect} tp {tp} pp {pp}: {worst:.2e} {'DIFFERS' if more else 'ok'}", flush=True)
            except Exception as e:
                if original is not None:
                    problems.append(str(e).splitlines()[0])
            wrong += [f"{name} {dialect} tp {tp} pp {pp}: {p}" for p in problems]
    return rows, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sinter", required=True)
    parser.add_argument("--table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each model; 0: times are not measured")
    parser.add_argument("--ranks", nargs="*", default=[], help="mappings such as 2x1 (tp x pp), of which all ranks are run together")
    parser.add_argument("--limit", type=float, help="largest ratio of times that is accepted")
    parser.add_argument("folders", nargs="+", type=Path)
    o = parser.parse_args()
    o.ranks = [tuple(map(int, r.split("x"))) for r in o.ranks]
    rows, wrong, skipped = [], [], []
    with tempfile.TemporaryDirectory() as work:
        for folder in o.folders:
            if not (folder / "model.onnx").exists():
                continue
            if not (folder / "input_0.npy").exists() and not (folder / "inputs").is_dir():
                continue
            found, notes = check(folder, o, Path(work))
            if found is None:
                skipped.append((folder.name, notes))
                print(f"{folder.name}: skipped: {notes}", flush=True)
                continue
            rows += found
            wrong += notes
            for name, dialect, nodes, worst, fine, ms, ratio in found:
                verdict = "ok" if fine else "DIFFERS"
                print(f"{name} {dialect}: {nodes} nodes, {worst:.2e} {verdict}, {ms:.3f} ms, x{ratio:.2f}", flush=True)
                if o.limit and o.seconds > 0 and ms >= SHORTEST_MS and ratio > o.limit:
                    wrong.append(f"{name} {dialect}: takes {ratio:.2f} times as long as the original")
            for file in Path(work).iterdir():
                shutil.rmtree(file) if file.is_dir() else file.unlink()
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
