#!/usr/bin/env python3
"""Emits every node test of ONNX and judges the files: valid for onnx.checker, loaded by ONNX Runtime where it has the operators,
and with the expected outputs.

    check_nodes.py --sinter target/debug/sinter --cases target/onnx-1.22.0 [--only PATTERN] [--at-least N]

What ONNX Runtime does not run, ONNX's reference implementation does. A file with other outputs than expected passes where ONNX Runtime
computes the same of the original. Exit code 1: a file is not valid, or is wrong where the original is not. Needs numpy, onnx and
onnxruntime.
"""

import argparse
import collections
import concurrent.futures
import fnmatch
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

ort.set_default_logger_severity(4)
DIALECTS = ("standard", "ort")
# Random numbers are compared by nobody; what changes the scores of FlexAttention, no runtime here runs.
UNJUDGED = ("test_bernoulli*", "test_flexattention_*")


def value(path, kind):
    data = path.read_bytes()
    if kind.WhichOneof("value") == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.WhichOneof("value") == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return onnx.TensorProto.FromString(data)


def array(v):
    return numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v


def runtime(path, names, values):
    """The outputs of ONNX Runtime."""
    o = ort.SessionOptions()
    o.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    o.intra_op_num_threads = 1
    o.log_severity_level = 4
    session = ort.InferenceSession(str(path), o, providers=["CPUExecutionProvider"])
    native = lambda v: not isinstance(v, onnx.TensorProto) or array(v).dtype.isbuiltin == 1
    if all(map(native, values)):
        return session.run(None, {n: array(v) for n, v in zip(names, values)})
    of = ort.OrtValue
    typed = {n: of.ortvalue_from_numpy_with_onnx_type(array(v), v.data_type) for n, v in zip(names, values)}
    return session.run_with_ort_values(None, typed)


def reference(path, names, values):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return ReferenceEvaluator(str(path)).run(None, {n: array(v) for n, v in zip(names, values)})


def close(a, e):
    e = array(e)
    if e is None or a is None:
        return a is e
    if isinstance(e, list):
        return isinstance(a, list) and len(a) == len(e) and all(map(close, a, e))
    a, e = np.asarray(a.numpy() if hasattr(a, "numpy") else a), np.asarray(e)
    if a.shape != e.shape:
        return False
    if e.dtype.kind in "OSUT":
        return all(str(x) == str(y) for x, y in zip(a.ravel(), e.ravel()))
    if a.dtype != e.dtype:
        if a.dtype.itemsize != e.dtype.itemsize:
            return False
        a = a.view(e.dtype)
    return np.allclose(a.astype(np.float64), e.astype(np.float64), rtol=1e-3, atol=1e-5, equal_nan=True)


def first_line(e):
    return f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"


def judge(emitted, original, names, values, expected):
    """(outcome, reason) of a file."""

    def matches(run, path, wanted):
        try:
            found = run(path, names, values)
            # Values of some element types have no form in NumPy.
            return all(map(close, found, wanted)), "it has other outputs", found
        except Exception as e:
            return None, first_line(e), None

    right, why, found = matches(runtime, emitted, expected)
    if right:
        return "passed", "ONNX Runtime"
    right, _, of_original = matches(runtime, original, expected)
    if right:
        return "FAILED", f"ONNX Runtime runs the original: {why}"
    if found is not None and of_original is not None and all(map(close, found, of_original)):
        return "passed", "ONNX Runtime, with the outputs that it gives for the original"
    right, reason, _ = matches(reference, emitted, expected)
    if right:
        return "passed", "the reference implementation"
    if matches(reference, original, expected)[0]:
        return "FAILED", f"the reference implementation runs the original: {reason}"
    return "unjudged", why


def check(o, name, dialect):
    case = Path(o.cases) / "onnx/backend/test/data/node" / name
    original = case / "model.onnx"
    with tempfile.TemporaryDirectory() as work:
        emitted = Path(work) / "out.onnx"
        command = [o.sinter, "optimize", original, "--emit", "onnx", "--dialect", dialect, "-o", emitted]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode != 0:
            return ("refused" if done.returncode == 2 else "FAILED"), (done.stderr.strip() or "?").splitlines()[0]
        graph, written = onnx.load(str(original)).graph, onnx.load(str(emitted)).graph
        for a, b in ((graph.input, written.input), (graph.output, written.output)):
            if [v.name for v in a] != [v.name for v in b]:
                return "FAILED", "inputs or outputs have other names"
        try:
            onnx.checker.check_model(str(emitted))
        except Exception as e:
            return "FAILED", f"onnx.checker: {first_line(e)}"
        data = case / "test_data_set_0"
        given = [(v.name, data / f"input_{i}.pb", v.type) for i, v in enumerate(graph.input)]
        given = [(n, value(f, t)) for n, f, t in given if f.exists()]
        expected = [value(data / f"output_{i}.pb", v.type) for i, v in enumerate(graph.output)]
        outcome = judge(emitted, original, [n for n, _ in given], [v for _, v in given], expected)
        if outcome[0] != "passed" and any(fnmatch.fnmatch(name, p) for p in UNJUDGED):
            return "unjudged", outcome[1]
        return outcome


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--sinter", required=True)
    args.add_argument("--cases", required=True)
    args.add_argument("--only", default="*")
    args.add_argument("--at-least", type=int, default=0, help="how many files must pass")
    args.add_argument("--jobs", type=int, default=os.cpu_count())
    o = args.parse_args()
    root = Path(o.cases) / "onnx/backend/test/data/node"
    jobs = [(n, d) for n in sorted(os.listdir(root)) if fnmatch.fnmatch(n, o.only) for d in DIALECTS]
    counts, judges = collections.Counter(), collections.Counter()
    with concurrent.futures.ProcessPoolExecutor(o.jobs) as pool:
        found = pool.map(check, [o] * len(jobs), *zip(*jobs), chunksize=16) if jobs else []
        for (name, dialect), (outcome, why) in zip(jobs, found):
            counts[outcome] += 1
            judges[why] += outcome == "passed"
            if outcome != "passed":
                print(f"{outcome} {name} {dialect}: {why}", flush=True)
    for judge_name, n in judges.most_common():
        if n:
            print(f"{n} judged by {judge_name}")
    print(f"{len(jobs)} files: {counts['passed']} passed, {counts['refused']} refused, {counts['unjudged']} unjudged, {counts['FAILED']} failed")
    return 1 if counts["FAILED"] or counts["passed"] < o.at_least or not jobs else 0


if __name__ == "__main__":
    sys.exit(main())
