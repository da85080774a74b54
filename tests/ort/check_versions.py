#!/usr/bin/env python3
"""Checks that emitted files mean what nodes of older opsets mean: every version of an operator that means something else by
the same node, as one small model each.

    check_versions.py --sinter target/debug/sinter [--only PATTERN]
    check_versions.py --write fixtures/emit

ONNX Runtime runs the model and the file that `sinter optimize --emit onnx` writes of it, in both dialects, and the results are
compared. A model that sinter refuses must be one of those that are expected to be refused. With --write one model of each kind is
written into a folder with its inputs and ONNX Runtime's outputs. Needs numpy, onnx and onnxruntime.
"""

import argparse
import fnmatch
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

ort.set_default_logger_severity(4)
F, D, I, B = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL
rng = np.random.default_rng(7)


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


X = f32(2, 3, 4)
IMAGE = f32(1, 4, 6, 6)
ROIS = (np.array([[0.4, 0.7, 4.6, 5.1], [1.2, 0.1, 5.9, 3.3]], np.float32), np.array([0, 0], np.int64))


def model(opset, nodes, inputs, outputs, constants=()):
    """A model; inputs are arrays by name, outputs names with their number of results."""
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), dims(n, a)) for n, a in inputs.items()]
    outs = [helper.make_tensor_value_info(n, t, None if r is None else [None] * r) for n, t, r in outputs]
    inits = [numpy_helper.from_array(a, n) for n, a in constants]
    g = helper.make_graph(nodes, "g", infos, outs, inits)
    return helper.make_model(g, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def dims(name, a):
    # Named extents, so that nothing is known about them.
    return [f"{name}{i}" if a.ndim > 1 and i == 0 else d for i, d in enumerate(a.shape)]


def single(op, opset, inputs, rank, kind=F, results=1, constants=(), names=None, **attributes):
    names = names or [*inputs, *(n for n, _ in constants)]
    outs = [f"y{i}" for i in range(results)]
    kinds = kind if isinstance(kind, tuple) else (kind,) * results
    node = helper.make_node(op, names, outs, **attributes)
    return model(opset, [node], inputs, [(o, k, rank) for o, k in zip(outs, kinds)], constants), inputs


def cases():
    """Name, model, inputs, whether it is refused."""
    x = {"x": X}
    for opset in (7, 9, 11, 12, 13):
        for op in ("Softmax", "LogSoftmax", "Hardmax"):
            for axis in (None, 0, 1, 2):
                yield f"{op}-{opset}-{axis}", *single(op, opset, x, 3, **({} if axis is None else {"axis": axis})), False
        yield f"Softmax-empty-{opset}", *single("Softmax", opset, {"x": f32(2, 0, 4)}, 3, axis=1), False
    for opset in (7, 11, 12, 13, 17):
        for op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
            if op == "Sum" and opset >= 13:
                continue
            for axes in (None, [1], [0, 2]):
                for keep in (0, 1):
                    more = {} if axes is None else {"axes": axes}
                    rank = 3 if keep else (0 if axes is None else 3 - len(axes))
                    name = f"Reduce{op}-{opset}-{axes}-{keep}"
                    data = {"x": np.abs(X) + 0.5} if op.startswith("Log") else x
                    yield name, *single(f"Reduce{op}", opset, data, rank, keepdims=keep, **more), False
    for opset in (7, 9):
        yield f"Slice-{opset}", *single("Slice", opset, x, 3, starts=[1, 0], ends=[3, 9], axes=[1, 2]), False
        yield f"Slice-all-{opset}", *single("Slice", opset, x, 3, starts=[0, 1], ends=[1, 3]), False
        yield f"TopK-{opset}", *single("TopK", opset, x, 3, results=2, kind=(F, I), k=2, axis=1), False
    for opset in (7, 9, 10):
        for mode in ("constant", "reflect", "edge"):
            pads = [0, 1, 1, 0, 1, 2]
            yield f"Pad-{opset}-{mode}", *single("Pad", opset, x, 3, mode=mode, pads=pads, value=1.5), False
        yield f"Clip-{opset}", *single("Clip", opset, x, 3, min=-0.5, max=0.25), False
        yield f"Clip-min-{opset}", *single("Clip", opset, x, 3, min=0.1), False
        yield f"Dropout-{opset}", *single("Dropout", opset, x, 3, ratio=0.4), False
        yield f"BatchNormalization-{opset}", *single(
            "BatchNormalization", opset, {"x": IMAGE}, 4,
            constants=[("s", f32(4)), ("b", f32(4)), ("m", f32(4)), ("v", np.abs(f32(4)) + 0.1)], epsilon=1e-3), False  # fmt: skip
    for opset in (7, 11, 12):
        yield f"Squeeze-{opset}", *single("Squeeze", opset, {"x": f32(2, 1, 3, 1)}, 2, axes=[1, 3]), False
        yield f"Unsqueeze-{opset}", *single("Unsqueeze", opset, x, 5, axes=[0, 3]), False
    for opset in (7, 11, 12, 13, 17):
        if opset < 13:
            yield f"Split-{opset}", *single("Split", opset, x, 3, results=2, axis=2, split=[1, 3]), False
        yield f"Split-equal-{opset}", *single("Split", opset, x, 3, results=2, axis=2), False
    for mode in ("nearest", "linear"):
        scales = np.array([1, 1, 2, 1.5], np.float32)
        yield f"Upsample-7-{mode}", *single("Upsample", 7, {"x": IMAGE}, 4, mode=mode, scales=scales.tolist()), False
        yield f"Upsample-9-{mode}", *single("Upsample", 9, {"x": IMAGE}, 4, constants=[("s", scales)], mode=mode), False
        for up, down in ((2.0, 2.0), (0.6, 0.6), (1.7, 0.7), (0.4, 1)):
            s = np.array([1, 1, up, down], np.float32)
            yield f"Resize-10-{mode}-{up}-{down}", *single(
                "Resize", 10, {"x": IMAGE}, 4, constants=[("s", s)], mode=mode), False  # fmt: skip
    for opset in (11, 12):
        for mode, nearest in (("nearest", "round_prefer_floor"), ("nearest", "ceil"), ("linear", "floor"), ("cubic", "floor")):
            for transform in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
                given = {"mode": mode, "nearest_mode": nearest, "coordinate_transformation_mode": transform}
                none = np.zeros(0, np.float32)
                scales = [("r", none), ("s", np.array([1, 1, 1.7, 0.8], np.float32))]
                sizes = [("r", none), ("s", none), ("n", np.array([1, 4, 9, 3], np.int64))]
                name = f"Resize-{opset}-{mode}-{nearest}-{transform}"
                yield name, *single("Resize", opset, {"x": IMAGE}, 4, constants=scales, **given), False
                yield f"{name}-sizes", *single("Resize", opset, {"x": IMAGE}, 4, constants=sizes, **given), False
    yield "Resize-11-tf_half_pixel_for_nn", *single(
        "Resize", 11, {"x": IMAGE}, 4, constants=[("r", np.zeros(0, np.float32)), ("s", np.array([1, 1, 2, 2], np.float32))],
        mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn"), True  # fmt: skip
    for opset in (10, 15, 16, 20):
        for mode in ("avg", "max"):
            at = [("r", ROIS[0]), ("b", ROIS[1])]
            yield f"RoiAlign-{opset}-{mode}", *single(
                "RoiAlign", opset, {"x": IMAGE}, 4, constants=at, mode=mode, output_height=3, output_width=2,
                sampling_ratio=2, spatial_scale=0.9), False  # fmt: skip
    for opset in (16, 19, 20):
        names = ("bilinear", "nearest", "bicubic") if opset < 20 else ("linear", "nearest", "cubic")
        for mode in (None, *names):
            for padding in ("zeros", "border", "reflection"):
                more = {} if mode is None else {"mode": mode}
                grid = {"x": IMAGE, "g": (f32(1, 5, 4, 2) * 0.8).astype(np.float32)}
                name = f"GridSample-{opset}-{mode}-{padding}"
                yield name, *single("GridSample", opset, grid, 4, padding_mode=padding, **more), False
    for opset in (18, 20):
        yield f"GroupNormalization-{opset}", *single(
            "GroupNormalization", opset, {"x": IMAGE}, 4, constants=[("s", f32(2)), ("b", f32(2))], num_groups=2,
            epsilon=1e-3), False  # fmt: skip
    for opset in (17, 19):
        signal = {"x": f32(2, 8, 1)}
        for axis in (None, 1):
            more = {} if axis is None else {"axis": axis}
            yield f"DFT-{opset}-{axis}", *single("DFT", opset, signal, 3, **more), False
            yield f"DFT-{opset}-{axis}-onesided", *single("DFT", opset, signal, 3, onesided=1, **more), False
    for opset in (9, 10):
        scatter = [("i", np.array([[1, 0, 2]])), ("u", f32(1, 3))]
        yield f"Scatter-{opset}", *single("Scatter", opset, {"x": f32(3, 3)}, 2, constants=scatter, axis=0), False
    for opset in (8, 10):
        pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        yield f"MaxPool-{opset}", *single("MaxPool", opset, {"x": IMAGE}, 4, kind=(F, I), results=2, **pool), False
        yield f"AveragePool-{opset}", *single("AveragePool", opset, {"x": IMAGE}, 4, count_include_pad=1, **pool), False
    for opset in (8, 11, 13, 16, 21):
        yield f"If-{opset}", *branch(opset), False
        yield f"Loop-{opset}", *loop(opset), False
        yield f"Scan-{opset}", *scan(opset), False
        yield f"Scan-reverse-{opset}", *scan(opset, reverse=True), False
    for opset in (11, 13, 17):
        yield f"Sequence-{opset}", *sequence(opset), False
    for opset, kind, lowest, highest in ((21, TensorProto.INT4, -8, 7), (21, TensorProto.UINT4, 0, 15), (23, TensorProto.INT4, -8, 7),
                                         (25, TensorProto.INT2, -2, 1), (25, TensorProto.UINT2, 0, 3)):  # fmt: skip
        for shape in ((3, 5), (67, 61)):
            name = f"Packed-{opset}-{TensorProto.DataType.Name(kind)}-{shape[0]}"
            yield name, *packed(opset, kind, rng.integers(lowest, highest + 1, shape)), False


def packed(opset, kind, numbers):
    """Weights of less than a byte, dequantised by column; an odd number of them, in the model or beside it."""
    rows, columns = numbers.shape
    w = helper.make_tensor("w", kind, numbers.shape, numbers.ravel().tolist())
    zero = helper.make_tensor("z", kind, [columns], numbers[0].tolist())
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    inputs = {"x": f32(2, rows)}
    m, _ = model(opset, nodes, inputs, [("y", F, 2)], [("s", np.abs(f32(columns)) + 0.1)]), None
    m.graph.initializer.extend([w, zero])
    return m, inputs


def vi(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def branch(opset):
    """Bodies that read values from around them, one within another."""
    s = "Softmax"
    inner = helper.make_graph([helper.make_node(s, ["x"], ["z"], axis=1)], "inner", [], [vi("z", F, None)])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["w"])], "other", [], [vi("w", F, None)])
    nested = helper.make_node("If", ["d"], ["v"], then_branch=inner, else_branch=other)
    scale = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array(2.0, np.float32)))
    yes = [scale, nested, helper.make_node("Mul", ["v", "k"], ["a"])]
    no = [helper.make_node("ReduceSum" if opset < 13 else "ReduceMax", ["x"], ["b"], axes=[1], keepdims=1)]
    yes = helper.make_graph(yes, "yes", [], [vi("a", F, None)])
    no = helper.make_graph(no, "no", [], [vi("b", F, None)])
    if opset >= 18 or opset < 11:
        no = helper.make_graph([helper.make_node("Abs", ["x"], ["b"])], "no", [], [vi("b", F, None)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=yes, else_branch=no)
    inputs = {"x": X, "c": np.array(True), "d": np.array(True)}
    return model(opset, [node], inputs, [("y", F, 3)]), inputs


def loop(opset):
    """A carried value, one that is collected, a constant, and a value from around."""
    nodes = [
        helper.make_node("Add", ["s", "x"], ["t"]),
        helper.make_node("Softmax", ["t"], ["u"], axis=1),
        helper.make_node("Cast", ["i"], ["j"], to=F),
        helper.make_node("Mul", ["u", "j"], ["o"]),
        helper.make_node("Identity", ["go"], ["on"]),
    ]
    body = helper.make_graph(
        nodes, "body", [vi("i", I, []), vi("go", B, []), vi("s", F, None)], [vi("on", B, []), vi("t", F, None), vi("o", F, None)]
    )
    node = helper.make_node("Loop", ["n", "", "x"], ["y", "all"], body=body)
    inputs = {"x": X, "n": np.array(3)}
    return model(opset, [node], inputs, [("y", F, 3), ("all", F, 4)]), inputs


def scan(opset, reverse=False):
    """A running sum over the rows of a sequence, or of a batch of sequences."""
    nodes = [helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Mul", ["t", "w"], ["o"])]
    body = helper.make_graph(nodes, "body", [vi("s", F, [4]), vi("e", F, [4])], [vi("t", F, [4]), vi("o", F, [4])])
    inputs = {"x": f32(2, 3, 4), "s0": f32(2, 4), "w": f32(4)} if opset == 8 else {"x": f32(3, 4), "s0": f32(4), "w": f32(4)}
    more = {("directions" if opset == 8 else "scan_input_directions"): [1]} if reverse else {}
    names = ["", "s0", "x"] if opset == 8 else ["s0", "x"]
    node = helper.make_node("Scan", names, ["y", "all"], body=body, num_scan_inputs=1, **more)
    ranks = (2, 3) if opset == 8 else (1, 2)
    return model(opset, [node], inputs, [("y", F, ranks[0]), ("all", F, ranks[1])]), inputs


def sequence(opset):
    nodes = [
        helper.make_node("SplitToSequence", ["x", "one"], ["s"], axis=1),
        helper.make_node("SequenceInsert", ["s", "z"], ["t"]),
        helper.make_node("SequenceErase", ["t", "zero"], ["u"]),
        helper.make_node("SequenceAt", ["u", "zero"], ["first"]),
        helper.make_node("SequenceLength", ["u"], ["n"]),
        helper.make_node("ConcatFromSequence", ["u"], ["all"], axis=1),
        helper.make_node("SequenceEmpty", [], ["e"], dtype=F),
        helper.make_node("SequenceInsert", ["e", "first"], ["v"]),
        helper.make_node("ConcatFromSequence", ["v"], ["w"], axis=0, new_axis=1),
    ]
    inputs = {"x": X, "z": f32(2, 1, 4)}
    constants = [("one", np.array(1)), ("zero", np.array(0))]
    return model(opset, nodes, inputs, [("n", I, 0), ("all", F, 3), ("w", F, 4)], constants), inputs


def run(path, feeds):
    o = ort.SessionOptions()
    o.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    o.log_severity_level = 4
    return ort.InferenceSession(str(path), o, providers=["CPUExecutionProvider"]).run(None, feeds)


def check(name, m, feeds, refused, sinter, folder):
    """`None`, or what is wrong."""
    path = folder / f"{name}.onnx"
    onnx.save(m, path)
    try:
        expected = run(path, feeds)
    except Exception as e:
        expected = None
        unjudged = str(e).splitlines()[0]
    for dialect in ("standard", "ort"):
        out = folder / f"{name}.{dialect}.onnx"
        command = [sinter, "optimize", path, "--emit", "onnx", "--dialect", dialect, "-o", out]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode != 0:
            if not refused:
                return done.stderr.strip().splitlines()[0]
            named = m.graph.node[0].op_type in done.stderr and f"opset {m.opset_import[0].version}" in done.stderr
            return None if named else f"the refusal names no operator and opset: {done.stderr.strip()}"
        if refused:
            return "it is not refused"
        onnx.checker.check_model(str(out))
        if expected is None:
            print(f"{name}: ONNX Runtime does not run the model: {unjudged}")
            continue
        for i, (a, e) in enumerate(zip(run(out, feeds), expected)):
            if a.shape != e.shape or a.dtype != e.dtype:
                return f"{dialect}: output {i} is {a.dtype}{a.shape}, not {e.dtype}{e.shape}"
            if not np.allclose(a, e, rtol=1e-4, atol=1e-5, equal_nan=True):
                return f"{dialect}: output {i} differs by {np.abs(a - e).max():.3g}"
    return None


# The models that are part of the repository, small and one of each kind.
FIXTURES = [
    "BatchNormalization-7", "Clip-9", "DFT-17-None-onesided", "Dropout-7", "GridSample-16-bicubic-border", "GroupNormalization-18",
    "If-11", "Loop-13", "Packed-21-INT4-67", "Packed-21-UINT4-3", "Packed-25-INT2-3", "Pad-7-edge", "ReduceMin-13-[0, 2]-0", "ReduceSum-11-[1]-1",
    "Resize-10-nearest-1.7-0.7", "Resize-11-cubic-floor-half_pixel-sizes", "RoiAlign-10-avg", "Scan-8", "Scan-reverse-9",
    "Scatter-9", "Sequence-13", "Slice-7", "Softmax-11-1", "Softmax-empty-7", "Split-11", "Split-equal-13", "TopK-7",
    "Upsample-7-linear", "Upsample-9-nearest",
]  # fmt: skip


def write(folder):
    """Writes the fixtures."""
    for name, m, feeds, _ in cases():
        if name not in FIXTURES:
            continue
        to = folder / name.replace("[", "").replace("]", "").replace(", ", "-")
        to.mkdir(parents=True, exist_ok=True)
        onnx.save(m, to / "model.onnx")
        for i, x in enumerate(feeds.values()):
            np.save(to / f"input_{i}.npy", x)
        for i, y in enumerate(run(to / "model.onnx", feeds)):
            np.save(to / f"output_{i}.npy", y)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--sinter")
    args.add_argument("--only", default="*")
    args.add_argument("--write", type=Path)
    o = args.parse_args()
    if o.write:
        return write(o.write)
    if not o.sinter:
        args.error("--sinter or --write is needed")
    wrong, count = [], 0
    with tempfile.TemporaryDirectory() as work:
        for name, m, feeds, refused in cases():
            if not fnmatch.fnmatch(name, o.only):
                continue
            count += 1
            try:
                problem = check(name.replace("/", "_"), m, feeds, refused, o.sinter, Path(work))
            except Exception as e:
                problem = f"{type(e).__name__}: {str(e).splitlines()[0]}"
            if problem:
                wrong.append(name)
                print(f"WRONG {name}: {problem}", flush=True)
    print(f"{count} models, {len(wrong)} wrong")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main())
