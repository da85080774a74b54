#!/usr/bin/env python3
"""Times single operators in `sinter run` and in ONNX Runtime, in turns, and prints the ratios.

Every case is a model with one node and ordinary extents. In each round `sinter run --repeat` and a session of ONNX Runtime
(all optimisations, as many threads) run one after the other, the order changing from round to round; a round gives the ratio of
their median times, and the table holds the median of the ratios. Results are compared, so that nothing wrong is timed.

    bench_ops.py --sinter target/release/sinter [--only REGEX] [--rounds 5] [--table docs/operators-speed.md] [--limit 3]

Exit code 1: a result differs, or (with --limit) a case is slower than the limit allows and takes at least 0.05 ms in sinter.
Needs numpy, onnx and onnxruntime; installs nothing.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
# Below this, in milliseconds, the time is that of starting a run, and a ratio means nothing.
SHORTEST_MS = 0.05
rng = np.random.default_rng(0)


def f32(*shape, low=-4.0, high=4.0):
    return rng.uniform(low, high, shape).astype(np.float32)


def small(*shape):
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def ints(dtype, low, high, *shape):
    return rng.integers(low, high, shape).astype(dtype)


class Case:
    """A node with its operands: arrays in `feeds` are inputs, those in `weights` are initialisers."""

    def __init__(self, name, op, feeds, weights=(), outputs=1, order=None, opset=OPSET, tolerance=None, shape=None, **attrs):
        self.name, self.op, self.feeds, self.weights = name, op, list(feeds), list(weights)
        self.outputs, self.order, self.attrs, self.opset = outputs, order, attrs, opset
        self.tolerance, self.shape = tolerance, shape

    def write(self, folder):
        folder.mkdir(parents=True)
        operands = [(f"x{i}", a, True) for i, a in enumerate(self.feeds)]
        operands += [(f"w{i}", a, False) for i, a in enumerate(self.weights)]
        names = [name if a is not None else "" for name, a, _ in operands]
        if self.order:
            names = [names[i] for i in self.order]
        results = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, names, results, **self.attrs)
        given = [(n, a) for n, a, fed in operands if fed and a is not None]
        inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given]
        weights = [numpy_helper.from_array(np.asarray(a), n) for n, a, fed in operands if not fed and a is not None]
        # Types of results are left to inference, where it knows the operator.
        result = helper.make_tensor_value_info("y0", TensorProto.FLOAT, self.shape) if self.shape else None
        declared = [result] if result else [onnx.ValueInfoProto(name=r) for r in results]
        graph = helper.make_graph([node], "g", inputs, declared, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
        onnx.save(model, folder / "model.onnx")
        for i, (_, a) in enumerate(given):
            np.save(folder / f"input_{i}.npy", a)
        return dict(given)


def cases():
    x = f32(8, 128, 768)
    half = x.astype(np.float16)
    many = [Case(op, op, [x]) for op in ("Erf", "Tanh", "Sigmoid", "Exp", "Relu", "Neg", "Abs", "Floor", "Gelu", "Softplus", "Cos")]
    positive = f32(8, 128, 768, low=0.1)
    many += [Case(op, op, [positive]) for op in ("Sqrt", "Log", "Reciprocal")]
    many += [
        Case("Gelu tanh", "Gelu", [x], approximate="tanh"),
        Case("LeakyRelu", "LeakyRelu", [x]),
        Case("HardSigmoid", "HardSigmoid", [x]),
        Case("HardSwish", "HardSwish", [x]),
        Case("Elu", "Elu", [x]),
        Case("Round", "Round", [x]),
        Case("Clip", "Clip", [x], [np.float32(-1), np.float32(1)]),
        Case("Sigmoid f16", "Sigmoid", [half]),
    ]
    # Two operands.
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min"):
        many.append(Case(f"{op} same shape", op, [x, f32(8, 128, 768, low=1)]))
    many += [
        Case("Add row", "Add", [x, f32(768)]),
        Case("Mul column", "Mul", [x, f32(8, 128, 1)]),
        Case("Mul scalar", "Mul", [x], [np.float32(0.125)]),
        Case("Add mask", "Add", [f32(8, 12, 128, 128), f32(8, 1, 1, 128)]),
        Case("Add f16", "Add", [half, half[::-1].copy()]),
        Case("Add i64", "Add", [ints(np.int64, -99, 99, 8, 128, 768), ints(np.int64, -9, 9, 768)]),
        Case("Add i32", "Add", [ints(np.int32, -99, 99, 8, 128, 768), ints(np.int32, -9, 9, 768)]),
        Case("Pow 2", "Pow", [x], [np.float32(2)]),
        Case("Pow 0.5", "Pow", [positive], [np.float32(0.5)]),
        Case("Greater", "Greater", [x, f32(768)]),
        Case("Equal i64", "Equal", [ints(np.int64, 0, 9, 8, 128, 768), ints(np.int64, 0, 9, 768)]),
        Case("And", "And", [x > 0, (x > 1)[0]]),
        Case("Not", "Not", [x > 0]),
        Case("Where", "Where", [x > 0, x, f32(8, 128, 768)]),
        Case("Where mask", "Where", [ints(np.int64, 0, 2, 8, 1, 128, 128) > 0, f32(8, 12, 128, 128)], [np.float32(-1e9)]),
    ]
    # Conversions.
    codes = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "i64": TensorProto.INT64, "i32": TensorProto.INT32}
    codes |= {"f64": TensorProto.DOUBLE, "bool": TensorProto.BOOL, "u8": TensorProto.UINT8}
    kinds = {"f32": x, "f16": half, "i64": ints(np.int64, -99, 99, 8, 128, 768), "i32": ints(np.int32, -99, 99, 8, 128, 768)}
    kinds |= {"bool": x > 0, "u8": ints(np.uint8, 0, 255, 8, 128, 768), "f64": x.astype(np.float64)}
    for pair in ("f32 f16", "f16 f32", "f32 i64", "f32 i32", "i64 f32", "i32 i64", "i64 i32", "bool f32", "f32 bool", "u8 f32", "f32 f64", "f64 f32"):
        a, b = pair.split()
        many.append(Case(f"Cast {a} to {b}", "Cast", [kinds[a]], to=codes[b]))
    # Rows.
    scores = f32(8, 12, 128, 128)
    many += [
        Case("Softmax", "Softmax", [scores], axis=-1),
        Case("Softmax axis 1", "Softmax", [f32(8, 128, 768)], axis=1),
        Case("Softmax long", "Softmax", [f32(16, 32000)], axis=-1),
        Case("Softmax f16", "Softmax", [scores.astype(np.float16)], axis=-1),
        Case("LogSoftmax", "LogSoftmax", [scores], axis=-1),
        Case("LayerNormalization", "LayerNormalization", [x], [f32(768), f32(768)]),
        Case("BatchNormalization", "BatchNormalization", [f32(1, 64, 112, 112)], [f32(64), f32(64), f32(64), f32(64, low=0.5)]),
        Case("InstanceNormalization", "InstanceNormalization", [f32(2, 64, 56, 56)], [f32(64), f32(64)]),
        Case("GroupNormalization", "GroupNormalization", [f32(2, 64, 56, 56)], [f32(64), f32(64)], num_groups=32, opset=21, shape=(2, 64, 56, 56)),
        Case("ReduceMean", "ReduceMean", [x], [np.array([-1])]),
        Case("ReduceSum axis 1", "ReduceSum", [x], [np.array([1])]),
        Case("ReduceMax", "ReduceMax", [x], [np.array([-1])]),
        Case("ReduceMin", "ReduceMin", [x], [np.array([-1])]),
        Case("ReduceL2", "ReduceL2", [x], [np.array([-1])]),
        Case("ReduceMean image", "ReduceMean", [f32(1, 512, 49, 49)], [np.array([2, 3])]),
        Case("ReduceSum i64", "ReduceSum", [ints(np.int64, 0, 9, 64, 4096)], [np.array([1])]),
        Case("ArgMax", "ArgMax", [f32(16, 32000)], axis=-1),
        Case("TopK", "TopK", [f32(16, 32000)], [np.array([50])], outputs=2, axis=-1),
        Case("CumSum", "CumSum", [ints(np.int64, 0, 2, 8, 4096)], [np.array(1)]),
    ]
    # Elements that move.
    heads = f32(8, 128, 12, 64)
    many += [
        Case("Transpose heads", "Transpose", [heads], perm=[0, 2, 1, 3]),
        Case("Transpose keys", "Transpose", [heads], perm=[0, 2, 3, 1]),
        Case("Transpose matrix", "Transpose", [f32(1024, 768)], perm=[1, 0]),
        Case("Transpose image", "Transpose", [f32(1, 64, 112, 112)], perm=[0, 2, 3, 1]),
        Case("Concat", "Concat", [x, f32(8, 128, 768)], axis=1),
        Case("Concat last", "Concat", [f32(8, 128, 12, 32), f32(8, 128, 12, 32)], axis=-1),
        Case("Slice", "Slice", [heads], [np.array([0]), np.array([32]), np.array([3])]),
        Case("Split", "Split", [f32(8, 128, 2304)], axis=-1, outputs=3, num_outputs=3),
        Case("Gather rows", "Gather", [ints(np.int64, 0, 32000, 8, 128)], [f32(32000, 256)], order=[1, 0]),
        Case("Gather last axis", "Gather", [x], [np.array([0, 5, 9])], axis=2),
        Case("GatherElements", "GatherElements", [f32(64, 4096), ints(np.int64, 0, 4096, 64, 4096)], axis=1),
        Case("ScatterND", "ScatterND", [f32(1024, 768), np.arange(0, 512).reshape(512, 1), f32(512, 768)]),
        Case("Expand", "Expand", [f32(8, 2, 1, 128, 64)], [np.array([8, 2, 6, 128, 64])]),
        Case("Tile", "Tile", [f32(8, 128, 64)], [np.array([1, 1, 8])]),
        Case("Pad", "Pad", [f32(1, 64, 56, 56)], [np.array([0, 0, 1, 1, 0, 0, 1, 1])]),
        Case("Trilu", "Trilu", [f32(8, 512, 512)], upper=0),
    ]
    # Quantisation.
    scale, zero = np.float32(0.03), np.uint8(128)
    u8 = ints(np.uint8, 0, 256, 8, 128, 768)
    i8 = ints(np.int8, -128, 128, 8, 128, 768)
    image = ints(np.uint8, 0, 256, 1, 64, 28, 28)
    kernel = ints(np.int8, -64, 64, 64, 64, 3, 3)
    many += [
        Case("QuantizeLinear u8", "QuantizeLinear", [x], [scale, zero]),
        Case("QuantizeLinear i8", "QuantizeLinear", [x], [scale, np.int8(0)]),
        Case("QuantizeLinear rows", "QuantizeLinear", [x], [f32(768, low=0.01, high=0.1), np.zeros(768, np.int8)], axis=2),
        Case("DequantizeLinear u8", "DequantizeLinear", [u8], [scale, zero]),
        Case("DequantizeLinear i8", "DequantizeLinear", [i8], [scale, np.int8(3)]),
        Case("DequantizeLinear rows", "DequantizeLinear", [i8], [f32(768, low=0.01, high=0.1), np.zeros(768, np.int8)], axis=2),
        Case("DequantizeLinear i32", "DequantizeLinear", [ints(np.int32, -9999, 9999, 8, 128, 768)], [scale]),
        Case("DequantizeLinear weight", "DequantizeLinear", [], [ints(np.int8, -128, 128, 768, 3072), f32(3072, low=0.01), np.zeros(3072, np.int8)], axis=1),
        Case("DynamicQuantizeLinear", "DynamicQuantizeLinear", [x], outputs=3),
    ]
    for m in (1, 128):
        # Weights of 7 bits: where a processor lacks the instructions for exact sums, those of ONNX Runtime saturate.
        a, b = ints(np.uint8, 0, 256, m, 768), ints(np.int8, -64, 64, 768, 3072)
        many.append(Case(f"MatMulInteger {m} row{'s'[:m > 1]}", "MatMulInteger", [a], [b, zero, np.int8(0)], order=[0, 1, 2, 3]))
        operands = [scale, zero, b, np.float32(0.01), np.int8(0), np.float32(9.0), np.uint8(120)]
        many.append(Case(f"QLinearMatMul {m} row{'s'[:m > 1]}", "QLinearMatMul", [a], operands, tolerance=1))
    many += [
        Case("MatMulInteger columns", "MatMulInteger", [ints(np.uint8, 0, 256, 128, 768)], [ints(np.int8, -64, 64, 768, 768), zero, ints(np.int8, -3, 3, 768)]),
        Case("MatMulInteger activations", "MatMulInteger", [ints(np.uint8, 0, 256, 12, 128, 64), ints(np.uint8, 0, 256, 12, 64, 128)], [zero, zero]),
        Case("ConvInteger", "ConvInteger", [image], [kernel.view(np.uint8), zero, zero], pads=[1, 1, 1, 1]),
        Case("QLinearConv", "QLinearConv", [image], [scale, zero, kernel, f32(64, low=0.001, high=0.01), np.zeros(64, np.int8), np.float32(1.0), zero, ints(np.int32, -99, 99, 64)], pads=[1, 1, 1, 1], tolerance=1),
    ]
    # Recurrent networks.
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for seq, batch, hidden in ((1, 1, 256), (64, 1, 256), (32, 8, 256)):
            w, r, b = small(1, gates * hidden, hidden), small(1, gates * hidden, hidden), small(1, 2 * gates * hidden)
            state = [f32(1, batch, hidden, low=-1, high=1)] * (2 if op == "LSTM" else 1)
            order = [0, 1 + len(state), 2 + len(state), 3 + len(state), 4 + len(state), *range(1, 1 + len(state))]
            many.append(Case(f"{op} {seq} steps, batch {batch}", op, [f32(seq, batch, hidden), *state], [w, r, b, None], outputs=2 + (op == "LSTM"), order=order, hidden_size=hidden))
    # Products and images, of which most time is that of other crates.
    many += [
        Case("MatMul", "MatMul", [f32(128, 768)], [small(768, 3072)]),
        Case("MatMul 1 row", "MatMul", [f32(1, 768)], [small(768, 3072)]),
        Case("MatMul heads", "MatMul", [f32(8, 12, 128, 64), f32(8, 12, 64, 128)]),
        Case("MatMul f16", "MatMul", [f32(128, 768).astype(np.float16)], [small(768, 3072).astype(np.float16)]),
        Case("Gemm", "Gemm", [f32(128, 768)], [small(3072, 768), f32(3072)], transB=1),
        Case("Conv 3x3", "Conv", [f32(1, 64, 56, 56)], [small(64, 64, 3, 3), f32(64)], pads=[1, 1, 1, 1]),
        Case("Conv 1x1", "Conv", [f32(1, 128, 28, 28)], [small(256, 128, 1, 1), f32(256)]),
        Case("Conv depthwise", "Conv", [f32(1, 128, 56, 56)], [small(128, 1, 3, 3), f32(128)], pads=[1, 1, 1, 1], group=128),
        Case("Conv 1d", "Conv", [f32(1, 80, 1000)], [small(256, 80, 3), f32(256)], pads=[1, 1]),
        Case("ConvTranspose", "ConvTranspose", [f32(1, 64, 28, 28)], [small(64, 32, 2, 2), f32(32)], strides=[2, 2]),
        Case("MaxPool", "MaxPool", [f32(1, 64, 112, 112)], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        Case("AveragePool", "AveragePool", [f32(1, 64, 56, 56)], kernel_shape=[2, 2], strides=[2, 2]),
        Case("GlobalAveragePool", "GlobalAveragePool", [f32(1, 512, 28, 28)]),
        Case("Resize nearest", "Resize", [f32(1, 64, 28, 28)], [None, np.array([1, 1, 2, 2], np.float32)], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        Case("Resize linear", "Resize", [f32(1, 64, 28, 28)], [None, np.array([1, 1, 2, 2], np.float32)], mode="linear"),
    ]
    return many


def session(path, threads):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that wait must not take time from the other side's turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def theirs(s, feeds, repeat):
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        s.run(None, feeds)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def ours(sinter, folder, repeat, extra=()):
    command = [sinter, "run", folder / "model.onnx", "--inputs", folder, "--repeat", str(repeat), "--report", "-", *extra]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[0])
    t = json.loads(done.stdout)["time_ms"]
    return t.get("median", t["run"])


def difference(actual, expected, tolerance):
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return f"{actual.dtype}{list(actual.shape)} instead of {expected.dtype}{list(expected.shape)}"
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    float_type = np.issubdtype(expected.dtype, np.floating)
    allowed = tolerance if tolerance is not None else 1e-2 if expected.dtype == np.float16 else 1e-4 if float_type else 0
    bad = ~((np.abs(a - e) <= allowed + (allowed * np.abs(e) if float_type else 0)) | (a == e) | (np.isnan(a) & np.isnan(e)))
    return f"{bad.sum()} elements differ, by up to {np.abs(a - e).max():.3g}" if bad.any() else None


def measure(case, o, base):
    folder = base / re.sub(r"\W+", "-", case.name)
    feeds = case.write(folder)
    s = session(folder / "model.onnx", o.threads)
    expected = s.run(None, feeds)
    once = ours(o.sinter, folder, 1, ["--outputs", folder / "out"])
    wrong = [difference(np.load(folder / "out" / f"y{i}.npy"), e, case.tolerance) for i, e in enumerate(expected)]
    # About 60 ms a turn.
    repeat_ours = int(min(2000, max(5, 60 / max(once, 1e-3))))
    repeat_theirs = int(min(2000, max(5, 60 / max(theirs(s, feeds, 5), 1e-3))))
    rounds = []
    for i in range(o.rounds):
        a = ours(o.sinter, folder, repeat_ours) if i % 2 == 0 else None
        b = theirs(s, feeds, repeat_theirs)
        a = a if a is not None else ours(o.sinter, folder, repeat_ours)
        rounds.append((a, b))
    a, b = (statistics.median(r[i] for r in rounds) for i in (0, 1))
    return a, b, statistics.median(r[0] / r[1] for r in rounds), next((w for w in wrong if w), None)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--sinter", required=True)
    p.add_argument("--only", default="", metavar="REGEX")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--table", metavar="FILE")
    p.add_argument("--limit", type=float)
    o = p.parse_args()
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as base:
        for case in (c for c in cases() if re.search(o.only, c.name)):
            try:
                a, b, ratio, wrong = measure(case, o, Path(base))
            except Exception as e:  # a case that does not run is a row of the table
                failed.append(f"{case.name}: {e}")
                print(f"{case.name:28} {e}", flush=True)
                continue
            slow = o.limit is not None and ratio > o.limit and a >= SHORTEST_MS
            if wrong or slow:
                failed.append(f"{case.name}: {wrong or f'{ratio:.1f} times the time of ONNX Runtime'}")
            rows.append((case.name, a, b, ratio))
            print(f"{case.name:28} {a:9.3f} {b:9.3f} {ratio:8.2f} {wrong or ''}", flush=True)
    if o.table:
        lines = [
            "# Time of single operators",
            "",
            f"`make bench-ops` writes this table: one-node models in `sinter run --repeat` and in ONNX Runtime {ort.__version__}, {o.threads} threads each,",
            f"in turns. Milliseconds are medians; the ratio is the median of {o.rounds} rounds, and below 1 sinter is faster. Compare ratios, not",
            "milliseconds: the machine is shared.",
            "",
            "| operator | sinter ms | ONNX Runtime ms | ratio |",
            "|---|---:|---:|---:|",
        ]
        lines += [f"| {n} | {a:.3f} | {b:.3f} | {r:.2f} |" for n, a, b, r in rows]
        Path(o.table).write_text("\n".join(lines) + "\n")
    for f in failed:
        print(f, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
