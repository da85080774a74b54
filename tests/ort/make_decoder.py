#!/usr/bin/env python3
"""Makes a Llama-like decoder of any size as an exporter writes it: decomposed norms, rotary embedding and attention.

    make_decoder.py OUT [--layers 2 --hidden 1024 --heads 16 --kv-heads 4 --ffn 2816 --vocab 8192] [--batch 1 --seq 128 --past 0]
                    [--sparse | --absent]

OUT is a folder: model.onnx, model.onnx.data, input_<i>.npy, and output_<i>.npy where ONNX Runtime is there to compute them.
--sparse leaves the data file without contents (zeros that take no space on disk), --absent leaves it away; then there
are no outputs. Needs numpy and onnx.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h

FLOAT = T.FLOAT


class Model:
    def __init__(self):
        self.nodes, self.initializers, self.weights, self.n = [], [], [], 0

    def op(self, kind, *inputs, outputs=1, **attrs):
        self.n += 1
        names = [f"{kind.lower()}_{self.n}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(h.make_node(kind, list(inputs), names, name=f"node_{self.n}", **attrs))
        return names[0] if outputs == 1 else names

    def const(self, value, dtype=np.float32):
        value = np.asarray(value, dtype=dtype)
        name = f"c_{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(value, name))
        return name

    def ints(self, *values):
        return self.const(values, np.int64)

    def weight(self, name, *shape):
        self.weights.append((name, shape))
        return name

    def linear(self, x, name, rows, columns):
        """x times a matrix."""
        return self.op("MatMul", x, self.weight(name, rows, columns))


def norm(m, x, name, hidden):
    squares = m.op("Pow", x, m.const(2.0))
    mean = m.op("ReduceMean", squares, m.ints(-1), keepdims=1)
    root = m.op("Sqrt", m.op("Add", mean, m.const(1e-6)))
    scaled = m.op("Mul", x, m.op("Reciprocal", root))
    return m.op("Mul", m.weight(name, hidden), scaled)


def rotary(m, x, cos, sin):
    first, second = m.op("Split", x, outputs=2, axis=-1, num_outputs=2)
    turned = m.op("Concat", m.op("Neg", second), first, axis=-1)
    return m.op("Add", m.op("Mul", x, cos), m.op("Mul", turned, sin))


def build(o, m=None):
    m, width = m or Model(), o.hidden // o.heads
    cache = [d for d in ["batch", o.kv_heads, "past", width]]
    inputs = [
        h.make_tensor_value_info("input_ids", T.INT64, ["batch", "seq"]),
        h.make_tensor_value_info("attention_mask", T.INT64, ["batch", "past + seq"]),
        h.make_tensor_value_info("position_ids", T.INT64, ["batch", "seq"]),
    ]
    for i in range(o.layers):
        for kind in ("key", "value"):
            inputs.append(h.make_tensor_value_info(f"past.{i}.{kind}", FLOAT, cache))
    outputs = [h.make_tensor_value_info("logits", FLOAT, ["batch", "seq", o.vocab])]

    x = m.op("Gather", m.weight("embed", o.vocab, o.hidden), "input_ids")
    positions = m.op("Cast", m.op("Unsqueeze", "position_ids", m.ints(-1)), to=FLOAT)
    frequency = 1.0 / 10000.0 ** (np.arange(0, width, 2, dtype=np.float32) / width)
    angles = m.op("Mul", positions, m.const(frequency))
    angles = m.op("Unsqueeze", m.op("Concat", angles, angles, axis=-1), m.ints(1))
    cos, sin = m.op("Cos", angles), m.op("Sin", angles)

    batch, seq = m.op("Shape", "input_ids", start=0, end=1), m.op("Shape", "input_ids", start=1, end=2)
    past = m.op("Shape", "past.0.key", start=2, end=3)
    total = m.op("Add", past, seq)
    scalar = lambda v: m.op("Squeeze", v)  # noqa: E731
    keys = m.op("Range", m.const(0, np.int64), scalar(total), m.const(1, np.int64))
    queries = m.op("Add", m.op("Range", m.const(0, np.int64), scalar(seq), m.const(1, np.int64)), past)
    causal = m.op("LessOrEqual", keys, m.op("Unsqueeze", queries, m.ints(1)))
    padding = m.op("Unsqueeze", m.op("Cast", "attention_mask", to=T.BOOL), m.ints(1, 2))
    keep = m.op("And", causal, padding)
    mask = m.op("Where", keep, m.const(0.0), m.const(np.finfo(np.float32).min))

    for i in range(o.layers):
        y = norm(m, x, f"l{i}.norm1", o.hidden)

        def heads(name, n, y=y):
            t = m.linear(y, name, o.hidden, n * width)
            shape = m.op("Concat", batch, seq, m.ints(n, width), axis=0)
            return m.op("Transpose", m.op("Reshape", t, shape), perm=[0, 2, 1, 3])

        q, k, v = heads(f"l{i}.q", o.heads), heads(f"l{i}.k", o.kv_heads), heads(f"l{i}.v", o.kv_heads)
        q, k = rotary(m, q, cos, sin), rotary(m, k, cos, sin)
        k, v = m.op("Concat", f"past.{i}.key", k, axis=2), m.op("Concat", f"past.{i}.value", v, axis=2)
        for kind, t in (("key", k), ("value", v)):
            m.nodes.append(h.make_node("Identity", [t], [f"present.{i}.{kind}"]))
            outputs.append(
                h.make_tensor_value_info(f"present.{i}.{kind}", FLOAT, ["batch", o.kv_heads, "past + seq", width])
            )
        if o.heads != o.kv_heads:
            wide = m.op("Concat", batch, m.ints(o.kv_heads, o.heads // o.kv_heads), total, m.ints(width), axis=0)
            flat = m.op("Concat", batch, m.ints(o.heads), total, m.ints(width), axis=0)
            k, v = (m.op("Reshape", m.op("Expand", m.op("Unsqueeze", t, m.ints(2)), wide), flat) for t in (k, v))
        root = m.const(width**-0.25)
        scores = m.op("MatMul", m.op("Mul", q, root), m.op("Mul", m.op("Transpose", k, perm=[0, 1, 3, 2]), root))
        weights = m.op("Softmax", m.op("Add", scores, mask), axis=-1)
        z = m.op("Transpose", m.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        z = m.op("Reshape", z, m.op("Concat", batch, seq, m.ints(o.heads * width), axis=0))
        x = m.op("Add", x, m.linear(z, f"l{i}.o", o.heads * width, o.hidden))
        y = norm(m, x, f"l{i}.norm2", o.hidden)
        gate = m.linear(y, f"l{i}.gate", o.hidden, o.ffn)
        up = m.linear(y, f"l{i}.up", o.hidden, o.ffn)
        act = m.op("Mul", m.op("Mul", gate, m.op("Sigmoid", gate)), up)
        x = m.op("Add", x, m.linear(act, f"l{i}.down", o.ffn, o.hidden))
    y = norm(m, x, "norm", o.hidden)
    m.nodes.append(h.make_node("Identity", [m.linear(y, "head", o.hidden, o.vocab)], ["logits"]))
    return m, inputs, outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in [
        ("layers", 2), ("hidden", 1024), ("heads", 16), ("kv-heads", 4), ("ffn", 2816), ("vocab", 8192),
        ("batch", 1), ("seq", 128), ("past", 0),
    ]:  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--absent", action="store_true")
    o = parser.parse_args()
    m, inputs, outputs = build(o)
    o.out.mkdir(parents=True, exist_ok=True)
    data = o.out / "model.onnx.data"
    rng = np.random.default_rng(0)
    offset = 0
    with open(data, "wb") as f:
        for name, shape in m.weights:
            t = onnx.TensorProto(name=name, dims=shape, data_type=FLOAT, data_location=T.EXTERNAL)
            offset = -(-offset // 4096) * 4096
            length = 4 * int(np.prod(shape))
            for key, value in (("location", data.name), ("offset", offset), ("length", length)):
                t.external_data.add(key=key, value=str(value))
            m.initializers.append(t)
            if not (o.sparse or o.absent):
                if len(shape) == 1:
                    value = 1 + 0.1 * rng.standard_normal(shape, np.float32)
                else:
                    value = rng.standard_normal(shape, np.float32) / np.sqrt(shape[0], dtype=np.float32)
                f.seek(offset)
                f.write(value.tobytes())
            offset += length
        f.truncate(offset)
    if o.absent:
        data.unlink()
    graph = h.make_graph(m.nodes, "decoder", inputs, outputs, m.initializers)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, o.out / "model.onnx")

    width = o.hidden // o.heads
    feeds = [
        rng.integers(0, o.vocab, (o.batch, o.seq)),
        np.ones((o.batch, o.past + o.seq), np.int64),
        np.broadcast_to(np.arange(o.past, o.past + o.seq), (o.batch, o.seq)),
    ]
    feeds += [rng.standard_normal((o.batch, o.kv_heads, o.past, width), np.float32) for _ in range(2 * o.layers)]
    for i, x in enumerate(feeds):
        np.save(o.out / f"input_{i}.npy", np.ascontiguousarray(x))
    if o.sparse or o.absent:
        return
    try:
        import onnxruntime as ort
    except ImportError:
        return
    session = ort.InferenceSession(str(o.out / "model.onnx"), providers=["CPUExecutionProvider"])
    results = session.run(None, {i.name: x for i, x in zip(session.get_inputs(), feeds)})
    for i, y in enumerate(results):
        np.save(o.out / f"output_{i}.npy", y)


if __name__ == "__main__":
    main()
