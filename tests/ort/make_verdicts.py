#!/usr/bin/env python3
"""Writes fixtures/verdicts: small models with outputs of ONNX Runtime, some of them changed by hand, and the verdict of each.

    make_verdicts.py fixtures/verdicts

Each folder has model.onnx, input_<i>.npy, output_<i>.npy and verdict.txt: the exit code of `sinter run --expect --verify`, then
lines of its summary that must occur. Needs numpy, onnx and onnxruntime.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(7)


def write(base, name, nodes, inputs, outputs, weights, change, verdict):
    folder = base / name
    folder.mkdir(parents=True, exist_ok=True)
    value = lambda n, a: helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
    graph = helper.make_graph(
        nodes,
        "g",
        [value(n, a) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found = ort.InferenceSession(str(folder / "model.onnx"), options).run(None, inputs)
    for i, a in enumerate(inputs.values()):
        np.save(folder / f"input_{i}.npy", a)
    for i, a in enumerate(change(found)):
        np.save(folder / f"output_{i}.npy", a)
    (folder / "verdict.txt").write_text(verdict.strip() + "\n")


def flip(a, by, n):
    """Changes every so many elements, n in all."""
    a = a.copy()
    flat = a.reshape(-1)
    for i in range(n):
        at = i * (flat.size // n)
        flat[at] = flat[at] - by if flat[at] >= 200 else flat[at] + by
    return a


def main():
    base = Path(sys.argv[1])
    node = helper.make_node
    x = rng.standard_normal((16, 64)).astype(np.float32)
    w = (rng.standard_normal((64, 64)) / 8).astype(np.float32)
    same = lambda found: found
    write(base, "double-of-float", [node("MatMul", ["x", "w"], ["m"]), node("Softmax", ["m"], ["s"]), node("Cast", ["s"], ["y"], to=TensorProto.DOUBLE)],
          {"x": x}, {"y": TensorProto.DOUBLE}, {"w": w}, lambda f: [f[0] * (1 + 3e-6)], "0\nagrees with the expected outputs")
    half = [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("MatMul", ["h", "w"], ["m"]), node("Cast", ["m"], ["y"], to=TensorProto.FLOAT)]
    write(base, "float-of-half", half, {"x": x}, {"y": TensorProto.FLOAT}, {"w": w.astype(np.float16)},
          lambda f: [(f[0] + 1e-3).astype(np.float32)], "0\nagrees with the expected outputs")
    # Half weights that are widened first are computed with in f32.
    wide = [node("Cast", ["w"], ["v"], to=TensorProto.FLOAT), node("MatMul", ["x", "v"], ["y"])]
    write(base, "float-of-half-weights", wide, {"x": x}, {"y": TensorProto.FLOAT}, {"w": w.astype(np.float16)},
          lambda f: [(f[0] + 1e-2).astype(np.float32)], "1\nDIFFERS from the expected outputs\nthe unoptimised program differs from the expected outputs, too")
    quantised = {"w": w, "s": np.float32(0.02), "z": np.uint8(128)}
    steps = [node("MatMul", ["x", "w"], ["m"]), node("QuantizeLinear", ["m", "s", "z"], ["y"])]
    write(base, "one-step", steps, {"x": x}, {"y": TensorProto.UINT8}, quantised, lambda f: [flip(f[0], 1, 3)],
          "0\nagrees with the expected outputs\ny: 3 of 1024 elements differ by one quantisation step")
    write(base, "two-steps", steps, {"x": x}, {"y": TensorProto.UINT8}, quantised, lambda f: [flip(f[0], 2, 3)],
          "1\nDIFFERS from the expected outputs\nconditioning of `y`")
    write(base, "one-step-everywhere", steps, {"x": x}, {"y": TensorProto.UINT8}, quantised, lambda f: [flip(f[0], 1, 1024)],
          "1\nDIFFERS from the expected outputs\none quantisation step apart")
    back = [*steps[:1], node("QuantizeLinear", ["m", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"]), node("Transpose", ["d"], ["y"], perm=[1, 0])]
    write(base, "one-step-of-a-scale", back, {"x": x}, {"y": TensorProto.FLOAT}, quantised, lambda f: [flip(f[0], np.float32(0.02), 3)],
          "0\nagrees with the expected outputs\ny: 3 of 1024 elements differ by one quantisation step")
    # Steps of what is given are the same in every program.
    exact = [node("QuantizeLinear", ["x", "s", "z"], ["y"])]
    write(base, "one-step-of-an-input", exact, {"x": x}, {"y": TensorProto.UINT8}, {k: quantised[k] for k in "sz"},
          lambda f: [flip(f[0], 1, 3)], "1\nDIFFERS from the expected outputs")
    large = np.full((2, 4), 300, np.float16)
    large[1] = [1, 2, 3, 4]
    over = [node("Mul", ["x", "x"], ["p"]), node("Relu", ["p"], ["y"])]
    nan = lambda f: [np.where(np.isinf(f[0]), np.float16(np.nan), f[0])]
    write(base, "overflow-on-both-sides", over, {"x": large}, {"y": TensorProto.FLOAT16}, {}, nan,
          "0\nagrees with the expected outputs\ny: 4 of 8 elements overflow f16 on both sides")
    write(base, "overflow-on-one-side", over, {"x": large}, {"y": TensorProto.FLOAT16}, {},
          lambda f: [np.where(np.isinf(f[0]), np.float16(7), f[0])], "1\n`p` exceeds the range of f16")
    edge = np.array([255.9, 1, 2, 3], np.float16)
    write(base, "edge-of-the-range", over[:1] + [node("Cast", ["p"], ["y"], to=TensorProto.FLOAT)], {"x": edge}, {"y": TensorProto.FLOAT}, {},
          lambda f: [np.where(f[0] > 60000, np.float32(np.inf), f[0])], "0\nagrees with the expected outputs")
    ill = [node("Add", ["x", "big"], ["a"]), node("Sub", ["a", "big"], ["y"])]
    write(base, "ill-conditioned", ill, {"x": x}, {"y": TensorProto.FLOAT}, {"big": np.float32(1e4)},
          lambda f: [(f[0] + 1.0).astype(np.float32)], "1\nconditioning of `y`: a relative change of 1e-6 in the inputs\nrounding in f32 does not explain a difference of this size")
    chaos = [node("Exp", ["x"], ["e"]), node("Mul", ["e", "big"], ["p"]), node("Sin", ["p"], ["y"])]
    write(base, "chaotic", chaos, {"x": x}, {"y": TensorProto.FLOAT}, {"big": np.float32(2e4)},
          lambda f: [np.clip(f[0] + 2e-3, -1, 1).astype(np.float32)], "1\nrounding in f32 may cause a difference of this size at these inputs")


if __name__ == "__main__":
    main()
