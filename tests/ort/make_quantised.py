#!/usr/bin/env python3
"""Makes small Llama-like decoders with quantised products, with inputs and expected outputs.

    make_quantised.py OUT [FORM...]

OUT/decoder-FORM gets model.onnx, input_<i>.npy and output_<i>.npy. The forms:

fp8-static   QuantizeLinear and DequantizeLinear around every product: one scale for the activations, one for each
             column of a weight, which is stored in f8e4m3fn.
fp8-token    a scale for each row of the activations, computed as PyTorch exports it (abs, amax, clamp, div, clamp, cast).
nvfp4        TRT_FP4DynamicQuantize as NVIDIA's exporter writes it, weights in f4e2m1 with f8e4m3fn scales of blocks of 16.

Expected values of the fp8 forms are ONNX Runtime's, without graph optimisations; those of nvfp4 come from ONNX's reference
evaluator, with TRT_FP4DynamicQuantize computed here by its definition. Needs numpy, ml_dtypes, onnx and onnxruntime.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import make_decoder

F8, F4 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn
BLOCK = 16
SIZES = SimpleNamespace(layers=2, hidden=64, heads=4, kv_heads=2, ffn=128, vocab=256, batch=2, seq=7, past=5)
# Activations of this magnitude just fit.
STATIC = 4.0


def fp8(x):
    """Rounded to f8e4m3fn, which saturates."""
    return np.clip(x, -448, 448).astype(F8)


class Quantised(make_decoder.Model):
    def __init__(self, rng):
        super().__init__()
        self.rng = rng

    def tensor(self, name, value, dtype):
        if value.dtype == F4:
            codes = value.view(np.uint8).reshape(-1, 2)
            raw, shape = (codes[:, 0] | codes[:, 1] << 4).astype(np.uint8).tobytes(), value.shape
        else:
            raw, shape = value.tobytes(), value.shape
        self.initializers.append(h.make_tensor(name, dtype, shape, raw, raw=True))
        return name

    def matrix(self, rows, columns):
        return self.rng.standard_normal((rows, columns), np.float32) / np.sqrt(rows, dtype=np.float32)


class Static(Quantised):
    def linear(self, x, name, rows, columns):
        w = self.matrix(rows, columns)
        scale = np.abs(w).max(axis=0) / np.float32(448)
        w = self.tensor(name, fp8(w / scale), T.FLOAT8E4M3FN)
        w = self.op("DequantizeLinear", w, self.const(scale), axis=1)
        step = self.const(np.float32(STATIC / 448))
        zero = self.tensor(f"{name}.zero", np.zeros((), F8), T.FLOAT8E4M3FN)
        q = self.op("QuantizeLinear", x, step, zero)
        return self.op("MatMul", self.op("DequantizeLinear", q, step), w)


class Token(Quantised):
    def linear(self, x, name, rows, columns):
        # As torch.nn.Linear keeps it: a row for each feature.
        w = np.ascontiguousarray(self.matrix(rows, columns).T)
        scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(448)
        w = self.tensor(name, fp8(w / scale), T.FLOAT8E4M3FN)
        w = self.op("Mul", self.op("Cast", w, to=T.FLOAT), self.const(scale))
        most = self.op("ReduceMax", self.op("Abs", x), self.ints(-1), keepdims=1)
        step = self.op("Div", self.op("Clip", most, self.const(1e-12)), self.const(448.0))
        quotient = self.op("Clip", self.op("Div", x, step), self.const(-448.0), self.const(448.0))
        q = self.op("Cast", quotient, to=T.FLOAT8E4M3FN)
        x = self.op("Mul", self.op("Cast", q, to=T.FLOAT), step)
        return self.op("MatMul", x, self.op("Transpose", w, perm=[1, 0]))


class Nvfp4(Quantised):
    def linear(self, x, name, rows, columns):
        w = self.matrix(rows, columns)
        whole = np.float32(np.abs(w).max() / (6 * 448))
        blocks = w.reshape(rows // BLOCK, BLOCK, columns)
        scale = fp8(np.abs(blocks).max(axis=1) / 6 / whole)
        steps = np.maximum(scale.astype(np.float32)[:, None] * whole, np.float32(1e-30))
        codes = np.clip(blocks / steps, -6, 6).astype(F4).reshape(rows, columns)
        w = self.tensor(name, codes, T.FLOAT4E2M1)
        scale = self.tensor(f"{name}.scale", scale, T.FLOAT8E4M3FN)
        steps = self.op("DequantizeLinear", scale, self.const(whole))
        w = self.op("DequantizeLinear", w, steps, axis=0, block_size=BLOCK)
        whole = self.const(np.float32(STATIC / (6 * 448)))
        self.n += 1
        names = [f"{name}.x_f4", f"{name}.x_scale"]
        attributes = dict(axis=-1, block_size=BLOCK, scale_type=T.FLOAT8E4M3FN)
        node = h.make_node("TRT_FP4DynamicQuantize", [x, whole], names, f"node_{self.n}", domain="trt", **attributes)
        self.nodes.append(node)
        steps = self.op("DequantizeLinear", names[1], whole)
        x = self.op("DequantizeLinear", names[0], steps, axis=-1, block_size=BLOCK)
        return self.op("MatMul", x, w)


class TRT_FP4DynamicQuantize(OpRun):  # noqa: N801
    op_domain = "trt"

    def _run(self, x, scale, axis=-1, block_size=BLOCK, scale_type=None):
        assert axis in (-1, x.ndim - 1) and block_size == BLOCK and scale_type == T.FLOAT8E4M3FN
        blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
        steps = fp8(np.abs(blocks).max(axis=-1) / np.float32(6) / scale)
        whole = (steps.astype(np.float32) * scale)[..., None]
        quotient = np.where(whole == 0, np.float32(0), blocks / np.where(whole == 0, np.float32(1), whole))
        return np.clip(quotient, -6, 6).astype(F4).reshape(x.shape), steps


FORMS = {"fp8-static": (Static, 21, 10), "fp8-token": (Token, 21, 10), "nvfp4": (Nvfp4, 23, 11)}


def make(out, form):
    kind, opset, ir_version = FORMS[form]
    rng = np.random.default_rng(1)
    m, inputs, outputs = make_decoder.build(SIZES, kind(rng))
    for name, shape in m.weights:
        value = rng.standard_normal(shape, np.float32)
        value = 1 + np.float32(0.1) * value if len(shape) == 1 else value
        m.initializers.append(onnx.numpy_helper.from_array(value, name))
    graph = h.make_graph(m.nodes, f"decoder-{form}", inputs, outputs, m.initializers)
    imports = [h.make_opsetid("", opset)] + ([h.make_opsetid("trt", 1)] if form == "nvfp4" else [])
    model = h.make_model(graph, opset_imports=imports, ir_version=ir_version)
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out / "model.onnx")

    o = SIZES
    width = o.hidden // o.heads
    mask = np.ones((o.batch, o.past + o.seq), np.int64)
    mask[1, :3] = 0
    feeds = [
        rng.integers(0, o.vocab, (o.batch, o.seq)),
        mask,
        np.broadcast_to(np.arange(o.past, o.past + o.seq), (o.batch, o.seq)),
    ]
    feeds += [rng.standard_normal((o.batch, o.kv_heads, o.past, width), np.float32) for _ in range(2 * o.layers)]
    feeds = [np.ascontiguousarray(x) for x in feeds]
    for i, x in enumerate(feeds):
        np.save(out / f"input_{i}.npy", x)
    named = {i.name: x for i, x in zip(inputs, feeds)}
    if form == "nvfp4":
        results = ReferenceEvaluator(model, new_ops=[TRT_FP4DynamicQuantize]).run(None, named)
    else:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(out / "model.onnx"), options, providers=["CPUExecutionProvider"])
        results = session.run(None, named)
    for i, y in enumerate(results):
        np.save(out / f"output_{i}.npy", np.asarray(y))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("forms", nargs="*", metavar="FORM", help=", ".join(FORMS))
    o = parser.parse_args()
    for form in o.forms or FORMS:
        make(o.out / f"decoder-{form}", form)


if __name__ == "__main__":
    main()
