"""Random small graphs, grown node by node: ONNX Runtime executes each new node on its own and so says whether it is valid.

Extents of the inputs are symbols, so that shape arithmetic, slices and reshapes depend on what they are when the graph runs.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CODES = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "f64": TensorProto.DOUBLE,
    "i64": TensorProto.INT64,
    "i32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
    "u8": TensorProto.UINT8,
    "i8": TensorProto.INT8,
}
SYMBOLS = ["batch", "seq", "n", "past", "m"]
SMALL = [0, 1, 2, 3, 5, 7, 8]
UNARY = "Abs Neg Relu Sigmoid Tanh Exp Sqrt Erf Floor Ceil Round Sign Softplus Softsign Elu Selu LeakyRelu HardSigmoid Sin Cos Atan Identity \
Reciprocal Log Gelu Mish HardSwish Celu ThresholdedRelu".split()
BINARY = "Add Sub Mul Div Max Min Pow Mod PRelu".split()
COMPARE = "Equal Less Greater LessOrEqual GreaterOrEqual".split()
REDUCE = "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare ReduceLogSum".split()


class Graph:
    """The graph so far, with the value of each tensor at the first extents."""

    def __init__(self, rng, ort, opset):
        self.rng, self.ort, self.opset = rng, ort, opset
        self.nodes, self.initializers, self.inputs, self.extents = [], [], [], {}
        self.values, self.feeds, self.count = {}, {}, 0
        # Integers of rank 0 or 1 that are sizes or positions.
        self.sizes = []

    def name(self, prefix="v"):
        self.count += 1
        return f"{prefix}{self.count}"

    def constant(self, array):
        name = self.name("c")
        array = np.asarray(array)
        self.initializers.append(numpy_helper.from_array(array, name))
        self.values[name] = array
        return name

    def input(self, dtype, shape):
        """`shape` holds symbols and numbers."""
        name = self.name("x")
        extents = []
        for d in shape:
            if isinstance(d, str):
                self.extents.setdefault(d, self.rng.choice([1, 2, 2, 3, 3, 4, 5, 6, 8]))
                d = self.extents[d]
            extents.append(d)
        self.inputs.append((name, dtype, list(shape)))
        self.feeds[name] = self.values[name] = data(self.rng, dtype, extents)
        return name

    def add(self, op, inputs, outputs=1, domain="", **attributes):
        """Names of the results, or None where ONNX Runtime refuses the node."""
        attributes = {k: v for k, v in attributes.items() if v is not None}
        names = [self.name() for _ in range(outputs)]
        node = helper.make_node(op, inputs, names, domain=domain, **attributes)
        used = [i for i in dict.fromkeys(inputs) if i]
        held = {t.name: t for t in self.initializers}
        declared = [helper.make_tensor_value_info(i, code_of(self.values[i]), self.values[i].shape) for i in used if i not in held]
        one = helper.make_graph(
            [node], "g", declared, [helper.make_empty_tensor_value_info(n) for n in names], [held[i] for i in used if i in held]
        )
        for o, n in zip(one.output, names):
            o.CopyFrom(onnx.ValueInfoProto(name=n))
        model = finish(one, self.opset)
        status, got = self.ort.run(model.SerializeToString(), [{i: self.values[i] for i in used if i not in held}])
        if status != "ok" or got[0][0] != "ok":
            return None
        arrays = got[0][1]
        if any(not isinstance(a, np.ndarray) or a.size > 5000 or a.ndim > 6 for a in arrays):
            return None
        self.nodes.append(node)
        self.values.update(zip(names, arrays))
        return names

    def tensors(self, *types, least=0, most=6, weights=False):
        """Tensors of these types, not constants unless `weights`."""
        held = {t.name for t in self.initializers}
        return [
            n
            for n, a in self.values.items()
            if str(a.dtype) in types and least <= a.ndim <= most and (weights or n not in held)
        ]

    def pick(self, *types, **limits):
        found = self.tensors(*types, **limits)
        # New values first, so that graphs become deep.
        return found[-1 - min(int(self.rng.expovariate(0.5)), len(found) - 1)] if found else None

    def model(self):
        read = {i for n in self.nodes for i in n.input}
        last = [o for n in self.nodes for o in n.output if o not in read]
        inner = [o for n in self.nodes for o in n.output if o in read]
        self.rng.shuffle(inner)
        outputs = last + inner[: self.rng.choice([0, 0, 1, 2])]
        inputs = [helper.make_tensor_value_info(n, CODES[t], s) for n, t, s in self.inputs if n in read]
        keep = [t for t in self.initializers if t.name in read]
        graph = helper.make_graph(self.nodes, "generated", inputs, [onnx.ValueInfoProto(name=o) for o in outputs], keep)
        for o, n in zip(graph.output, outputs):
            o.CopyFrom(helper.make_tensor_value_info(n, code_of(self.values[n]), [None] * self.values[n].ndim))
        return finish(graph, self.opset), {i.name: self.feeds[i.name] for i in inputs}


def finish(graph, opset):
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version = 10 if opset > 20 else 8
    return model


def code_of(array):
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def data(rng, dtype, shape):
    n = np.random.default_rng(rng.getrandbits(32))
    if dtype in ("f32", "f16", "f64"):
        a = n.standard_normal(shape) * rng.choice([0.1, 1, 1, 3])
        if rng.random() < 0.1:
            a = np.where(n.random(shape) < 0.3, 0.0, a)
        return a.astype({"f32": np.float32, "f16": np.float16, "f64": np.float64}[dtype])
    if dtype == "bool":
        return n.random(shape) < 0.5
    low, high = {"u8": (0, 256), "i8": (-128, 128)}.get(dtype, (-3, 6))
    return n.integers(low, high, shape).astype({"i64": np.int64, "i32": np.int32, "u8": np.uint8, "i8": np.int8}[dtype])


FLOATS = ("float32", "float16", "float64")
INTS = ("int64", "int32")


def grow(rng, ort):
    """A random model and its inputs."""
    opset = rng.choice([13, 14, 15, 16, 17, 18, 18, 18, 19, 20, 21, 22, 23])
    g = Graph(rng, ort, opset)
    kind = "f32" if rng.random() < 0.8 else rng.choice(["f16", "f64", "i64", "i32"])
    for i in range(rng.choice([1, 1, 2, 2, 3])):
        rank = rng.choice([1, 2, 2, 3, 3, 4])
        shape = [rng.choice(SYMBOLS[:3]) if rng.random() < 0.5 else rng.choice([1, 2, 3, 4, 6, 8]) for _ in range(rank)]
        g.input(kind if i == 0 or rng.random() < 0.7 else rng.choice(list(CODES)), shape)
    steps = rng.choice([2, 3, 4, 5, 6, 8, 12])
    # A graph has a theme, so that its nodes have something to do with each other.
    themes = rng.choice([[shape_math, sized], [shape_math, sized, pointwise, layout], [pointwise, reduce, layout], EVERYTHING, EVERYTHING])
    tries = 0
    while len(g.nodes) < steps and tries < 6 * steps:
        tries += 1
        rng.choice(themes)(g, rng)
    return g.model() if g.nodes else None


def pointwise(g, rng):
    t = rng.random()
    x = g.pick(*FLOATS, *INTS)
    if x is None:
        return
    kind = str(g.values[x].dtype)
    if t < 0.4:
        op = rng.choice(UNARY)
        g.add(op, [x])
    elif t < 0.75:
        others = g.tensors(kind)
        y = rng.choice(others) if rng.random() < 0.6 else g.constant(weights(rng, kind, rng.choice([[], [1], g.values[x].shape[-1:]])))
        op = rng.choice(BINARY[:7] if kind in FLOATS else BINARY)
        if op == "Pow":
            y = g.constant(np.array(rng.choice([2, 3, 0.5, 1, 2]), np.float32).astype(kind))
        if op in ("Div", "Mod") and kind in INTS:
            y = g.constant(np.array(rng.choice([-7, -3, -2, 2, 3, 5, 16]), kind))
        pair = [x, y] if rng.random() < 0.7 or op in ("Pow", "Div", "Mod") else [y, x]
        g.add(op, pair, fmod=1 if op == "Mod" and rng.random() < 0.4 else None)
    elif t < 0.85:
        y = rng.choice(g.tensors(kind))
        c = g.add(rng.choice(COMPARE), [x, y])
        if c and rng.random() < 0.8:
            g.add("Where", [c[0], *([x, y] if rng.random() < 0.5 else [y, g.constant(np.array(rng.choice([0, 1, -1]), kind))])])
    elif t < 0.95:
        to = rng.choice(["f32", "f32", "f16", "f64", "i64", "i32", "bool"])
        if kind in FLOATS and to in ("i64", "i32") and not small_enough(g.values[x]):
            return
        g.add("Cast", [x], to=CODES[to])
    else:
        low, high = sorted([rng.choice([-2, -1, 0, 0.5]), rng.choice([0, 1, 2, 6])])
        g.add("Clip", [x, g.constant(np.array(low).astype(kind)), g.constant(np.array(high).astype(kind)) if rng.random() < 0.7 else ""])


def small_enough(a):
    return bool(np.isfinite(a).all()) and (a.size == 0 or float(np.abs(a).max()) < 1e6)


def weights(rng, kind, shape):
    n = np.random.default_rng(rng.getrandbits(32))
    return (n.standard_normal(shape) if kind in FLOATS else n.integers(-3, 5, shape)).astype(kind)


def reduce(g, rng):
    x = g.pick(*FLOATS, *INTS, least=1)
    if x is None:
        return
    rank = g.values[x].ndim
    op = rng.choice(REDUCE + ["ArgMax", "ArgMin", "Softmax", "LogSoftmax", "CumSum", "TopK", "LpNormalization", "Hardmax"])
    axis = rng.randrange(-rank, rank)
    if op in ("ArgMax", "ArgMin"):
        g.add(op, [x], axis=axis, keepdims=rng.choice([0, 1]), select_last_index=rng.choice([None, 1]))
    elif op in ("Softmax", "LogSoftmax", "LpNormalization", "Hardmax"):
        g.add(op, [x], axis=axis)
    elif op == "CumSum":
        g.add(op, [x, g.constant(np.array(axis, np.int64))], exclusive=rng.choice([None, 1]), reverse=rng.choice([None, 1]))
    elif op == "TopK":
        k = size(g, rng, [1]) if rng.random() < 0.4 else g.constant(np.array([rng.choice([0, 1, 2, 3])]))
        g.add(op, [x, k], outputs=2, axis=axis, largest=rng.choice([0, 1]))
    else:
        axes = sorted(rng.sample(range(-rank, 0), rng.choice([1, 1, 2]) if rank > 1 else 1))
        keep = rng.choice([None, 0, 1])
        if rng.random() < 0.1:
            g.add(op, [x], keepdims=keep)
        elif g.opset >= 18 or op == "ReduceSum":
            empty = rng.random() < 0.1
            axes = g.constant(np.array([] if empty else axes, np.int64))
            g.add(op, [x, axes], keepdims=keep, noop_with_empty_axes=rng.choice([None, 0, 1]))
        else:
            g.add(op, [x], axes=axes, keepdims=keep)


def layout(g, rng):
    x = g.pick(*FLOATS, *INTS, "bool", "uint8", "int8")
    if x is None:
        return
    a = g.values[x]
    rank = a.ndim
    axis = rng.randrange(-rank, rank) if rank else 0
    op = rng.choice(
        "Transpose Concat Split Slice Gather GatherElements Pad Tile Flatten Squeeze Unsqueeze Reshape Trilu ScatterND ScatterElements GatherND "
        "DepthToSpace SpaceToDepth ReverseSequence Expand Compress NonZero OneHot EyeLike Identity Concat Slice".split()
    )
    ints = lambda *v: g.constant(np.array(v, np.int64))
    if op == "Transpose":
        order = list(range(rank))
        rng.shuffle(order)
        g.add(op, [x], perm=order if rng.random() < 0.9 else None)
    elif op == "Concat":
        same = [n for n in g.tensors(str(a.dtype)) if g.values[n].ndim == rank]
        g.add(op, [x, *(rng.choice(same) for _ in range(rng.choice([0, 1, 1, 2])))], axis=axis)
    elif op == "Split":
        n = rng.choice([1, 2, 2, 3])
        if rank == 0:
            return
        if g.opset >= 18 and rng.random() < 0.5:
            g.add(op, [x], outputs=n, axis=axis, num_outputs=n)
        else:
            extent, parts = a.shape[axis], []
            for _ in range(n - 1):
                parts.append(rng.randint(0, max(0, extent - sum(parts))))
            g.add(op, [x, ints(*parts, extent - sum(parts))], outputs=n, axis=axis)
    elif op == "Slice":
        bound = lambda: rng.choice([0, 1, 2, -1, -2, -3, 4, 2**31, 2**63 - 1, -(2**63), -(2**31), 100, -100])
        step = rng.choice([1, 1, 1, 2, -1, -2, 3])
        start = size(g, rng, [1]) if rng.random() < 0.2 else ints(bound())
        end = size(g, rng, [1]) if rng.random() < 0.2 else ints(bound())
        if start and end:
            g.add(op, [x, start, end, ints(axis), ints(step)])
    elif op == "Gather":
        index = rng.choice([np.array(rng.choice([0, -1, 1]), np.int64), np.array(rng.choice([[0], [-1, 0], [[0, 1]], []]), np.int64)])
        g.add(op, [x, g.constant(index)], axis=axis)
    elif op == "GatherElements":
        y = g.constant(np.zeros([max(1, d - rng.choice([0, 1])) for d in a.shape], np.int64) - rng.choice([0, 1]))
        g.add(op, [x, y], axis=axis)
    elif op == "Pad":
        low = [rng.choice([0, 0, 1, 2, -1]) for _ in range(2 * rank)]
        mode = rng.choice(["constant", "reflect", "edge"] + (["wrap"] if g.opset >= 19 else []))
        value = g.constant(np.array(rng.choice([0, 1, 3])).astype(a.dtype)) if rng.random() < 0.5 and mode == "constant" else ""
        g.add(op, [x, ints(*low), value], mode=mode)
    elif op == "Tile":
        g.add(op, [x, ints(*(rng.choice([1, 1, 2, 3, 0]) for _ in range(rank)))])
    elif op == "Flatten":
        g.add(op, [x], axis=rng.randint(-rank, rank))
    elif op == "Squeeze":
        ones = [i for i, d in enumerate(a.shape) if d == 1]
        g.add(op, [x, ints(rng.choice(ones))] if ones and rng.random() < 0.8 else [x])
    elif op == "Unsqueeze":
        g.add(op, [x, ints(rng.randint(-rank - 1, rank))])
    elif op == "Reshape":
        shape = list(a.shape)
        for _ in range(rng.choice([1, 1, 2])):
            i = rng.randrange(len(shape)) if shape else None
            t = rng.random()
            if i is not None and t < 0.5:
                shape[i] = rng.choice([-1, 0])
            elif i is not None and i + 1 < len(shape):
                shape[i : i + 2] = [shape[i] * shape[i + 1]]
            else:
                shape.insert(rng.randint(0, len(shape)), 1)
        if shape.count(-1) <= 1:
            g.add(op, [x, ints(*shape)], allowzero=rng.choice([None, None, 1]) if g.opset >= 14 else None)
    elif op == "Trilu":
        k = ints(rng.choice([-2, -1, 0, 1, 5])) if False else g.constant(np.array(rng.choice([-2, -1, 0, 1, 5]), np.int64))
        g.add(op, [x, k] if rng.random() < 0.7 else [x], upper=rng.choice([0, 1]))
    elif op == "GatherND":
        depth = rng.randint(1, max(1, rank))
        g.add(op, [x, g.constant(np.zeros([rng.choice([1, 2]), depth], np.int64) - rng.choice([0, 1]))], batch_dims=rng.choice([None, None, 1]))
    elif op == "ScatterND" and rank:
        index = g.constant(np.array([[rng.choice([0, -1])]], np.int64))
        rows = g.add("Gather", [x, ints(0)], axis=0)
        if rows:
            g.add(op, [x, index, rows[0]], reduction=rng.choice([None, None, "add", "mul"]) if g.opset >= 16 else None)
    elif op == "ScatterElements" and rank:
        part = g.add("Gather", [x, ints(0)], axis=axis)
        if part:
            index = g.constant(np.zeros(g.values[part[0]].shape, np.int64) - rng.choice([0, 1]))
            g.add(op, [x, index, part[0]], axis=axis, reduction=rng.choice([None, None, "add"]) if g.opset >= 16 else None)
    elif op in ("DepthToSpace", "SpaceToDepth") and rank == 4:
        g.add(op, [x], blocksize=2, mode=rng.choice([None, "CRD"]) if op == "DepthToSpace" else None)
    elif op == "ReverseSequence" and rank >= 2:
        lengths = g.constant(np.full([a.shape[1]], 1, np.int64))
        g.add(op, [x, lengths], time_axis=0, batch_axis=1)
    elif op == "Expand":
        g.add(op, [x, ints(*(rng.choice([1, 1, 1, 2, d]) for d in a.shape))])
    elif op == "Compress" and rank:
        g.add(op, [x, g.constant(np.array([rng.random() < 0.6 for _ in range(a.shape[axis])], bool))], axis=rng.choice([axis, None]))
    elif op == "OneHot" and a.dtype.kind == "i":
        depth = size(g, rng, []) if rng.random() < 0.3 else g.constant(np.array(rng.choice([1, 3, 5]), np.int64))
        if depth:
            g.add(op, [x, depth, g.constant(np.array([0, 1], np.float32))], axis=rng.choice([None, 0, -1]))
    elif op == "EyeLike" and rank == 2:
        g.add(op, [x], k=rng.choice([None, -1, 1]))
    elif op in ("NonZero", "Identity"):
        g.add(op, [x])


def size(g, rng, shape):
    """A value of shape arithmetic of rank 0 or 1, as a scalar or a vector of one element; made where there is none."""
    if not g.sizes or rng.random() < 0.3:
        shape_math(g, rng)
    if not g.sizes:
        return None
    s = rng.choice(g.sizes[-4:])
    a = g.values[s]
    if str(a.dtype) != "int64":
        found = g.add("Cast", [s], to=TensorProto.INT64)
        s = found[0] if found else s
        a = g.values[s]
    if list(a.shape) == shape:
        return s
    found = g.add("Reshape", [s, g.constant(np.array(shape, np.int64))]) if a.size == 1 else None
    return found[0] if found else None


def shape_math(g, rng):
    """Arithmetic on extents, as exporters write it, and with less usual operators."""
    held = {t.name for t in g.initializers}
    sources = [n for n in g.values if n not in held and g.values[n].ndim and n not in g.sizes]
    if not sources:
        return
    if not g.sizes or rng.random() < 0.3:
        x = rng.choice(sources)
        rank = g.values[x].ndim
        slice_it = g.opset >= 15 and rng.random() < 0.2
        found = g.add("Shape", [x], **({"start": rng.randint(-rank, rank), "end": rng.randint(-rank, rank)} if slice_it else {}))
        if rng.random() < 0.1:
            found = g.add("Size", [x])
        elif found and not slice_it:
            i = rng.randrange(rank)
            if rng.random() < 0.75:
                index = np.array(i, np.int64) if rng.random() < 0.5 else np.array([i], np.int64)
                found = g.add("Gather", [found[0], g.constant(index)])
        if found:
            g.sizes.append(found[0])
        return
    s = rng.choice(g.sizes[-5:])
    kind = g.values[s].dtype
    number = lambda: g.constant(np.array(rng.choice([-9, -7, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 8, 10, 64])).astype(kind))
    same = [t for t in g.sizes if g.values[t].dtype == kind]
    other = rng.choice(same) if rng.random() < 0.4 else number()
    op = rng.choice("Add Sub Sub Mul Div Div Mod Neg Abs Min Max Sign Cast Where Concat Slice Reduce Float Pow Unsqueeze Squeeze Clip Equal".split())
    if op in ("Add", "Sub", "Mul", "Min", "Max"):
        found = g.add(op, [s, other] if rng.random() < 0.7 else [other, s])
    elif op in ("Div", "Mod"):
        by = g.constant(np.array(rng.choice([-7, -4, -3, -2, -1, 2, 2, 3, 4, 5, 8, 64])).astype(kind))
        pair = [s, by] if rng.random() < 0.8 or (g.values[s] == 0).any() else [other, s]
        fmod = 1 if op == "Mod" and (rng.random() < 0.3 or kind.kind == "f") else None
        found = g.add(op, pair, fmod=fmod)
    elif op in ("Neg", "Abs", "Sign"):
        found = g.add(op, [s])
    elif op == "Pow":
        found = g.add(op, [s, g.constant(np.array(rng.choice([1, 2, 3])).astype(kind))])
    elif op == "Cast":
        found = g.add(op, [s], to=CODES[rng.choice(["i32", "i64", "i64", "f32", "f64", "i8", "bool"])])
        if found and g.values[found[0]].dtype == bool:
            found = g.add(op, found, to=CODES["i64"])
    elif op == "Float":
        f = g.add("Cast", [s], to=CODES[rng.choice(["f32", "f64"])])
        f = f and g.add(rng.choice(["Mul", "Div"]), [f[0], g.constant(np.array(rng.choice([0.5, 2, 1.5, 3, 0.3])).astype(g.values[f[0]].dtype))])
        f = f and g.add(rng.choice(["Floor", "Ceil", "Round", "Identity", "Sqrt"]), f)
        found = f and small_enough(g.values[f[0]]) and g.add("Cast", f, to=CODES["i64"])
    elif op in ("Where", "Equal"):
        c = g.add(rng.choice(COMPARE), [s, other])
        if c and op == "Equal":
            found = g.add("Cast", c, to=CODES["i64"])
        else:
            found = c and g.add("Where", [c[0], rng.choice(same), number() if rng.random() < 0.6 else rng.choice(same)])
    elif op == "Concat":
        flat = [g.values[t].ndim == 1 and g.values[t].size < 6 for t in same]
        flat = [t for t, ok in zip(same, flat) if ok]
        parts = [rng.choice(flat) if rng.random() < 0.6 else g.constant(np.array([rng.choice([-1, 0, 1, 2, 3])]).astype(kind)) for _ in range(2)]
        found = flat and g.add(op, [flat[-1], *parts[: rng.choice([1, 1, 2])]], axis=0)
    elif op == "Slice" and g.values[s].ndim == 1:
        ends = lambda: g.constant(np.array([rng.choice([0, 1, -1, 2, -2, 2**63 - 1])]))
        found = g.add(op, [s, ends(), ends(), g.constant(np.array([0]))])
    elif op == "Reduce" and g.values[s].ndim == 1:
        found = g.add(rng.choice(["ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"]), [s], keepdims=rng.choice([0, 1]))
    elif op == "Unsqueeze" and g.values[s].ndim == 0:
        found = g.add(op, [s, g.constant(np.array([0]))])
    elif op == "Squeeze" and g.values[s].shape == (1,):
        found = g.add(op, [s])
    elif op == "Clip":
        found = g.add(op, [s, g.constant(np.array(rng.choice([-2, 0, 1])).astype(kind)), g.constant(np.array(rng.choice([2, 4, 100])).astype(kind))])
    else:
        return
    if found and g.values[found[0]].size <= 8:
        g.sizes.append(found[0])


def sized(g, rng):
    """Operators that read sizes or positions."""
    x = g.pick(*FLOATS, *INTS, "bool")
    if x is None:
        return
    a = g.values[x]
    rank = a.ndim
    axis = rng.randrange(rank) if rank else 0
    ints = lambda *v: g.constant(np.array(v, np.int64))
    op = rng.choice("Reshape Expand Slice Slice Slice Range Pad Tile ConstantOfShape Split Gather TopK Trilu Resize OneHot".split())
    s = size(g, rng, [] if op in ("Range", "Trilu", "OneHot") else [1])
    if s is None:
        return
    if op == "Reshape":
        others = [rng.choice([-1, 0, 1, d]) for d in a.shape[1:]] if rank else []
        shape = [s if rng.random() < 0.6 else ints(-1), *(ints(d) for d in others[: rng.choice([1, 1, 2, 3])])]
        rng.shuffle(shape)
        shape = shape if len(shape) == 1 else g.add("Concat", shape, axis=0)
        if shape:
            g.add(op, [x, shape[0]], allowzero=rng.choice([None, None, 1]) if g.opset >= 14 else None)
    elif op in ("Expand", "Tile"):
        shape = [ints(1) for _ in range(rank)]
        if rank and (op == "Tile" or rng.random() < 0.5):
            shape[rng.randrange(rank)] = s
        else:
            shape.insert(0, s)
        shape = shape if len(shape) == 1 else g.add("Concat", shape, axis=0)
        if shape:
            g.add(op, [x, shape[0]])
    elif op == "Slice" and rank:
        t = size(g, rng, [1])
        start, end = rng.choice([(ints(0), s), (s, ints(2**63 - 1)), (s, t or s), (ints(rng.choice([1, -1, -3])), s), (s, ints(rng.choice([-1, 2, 8])))])
        g.add(op, [x, start, end, ints(axis), ints(rng.choice([1, 1, 1, 2, -1]))])
    elif op == "Range":
        limits = [g.constant(np.array(rng.choice([0, 1, -2]))), s, g.constant(np.array(rng.choice([1, 1, 2, -1, 3])))]
        if rng.random() < 0.3:
            limits[0], limits[1] = limits[1], limits[0]
        g.add(op, limits)
    elif op == "Pad" and rank:
        pads = [ints(0) for _ in range(2 * rank)]
        pads[rng.randrange(2 * rank)] = s
        pads = g.add("Concat", pads, axis=0)
        if pads:
            g.add(op, [x, pads[0]], mode=rng.choice(["constant", "constant", "edge", "reflect"]))
    elif op == "ConstantOfShape":
        value = numpy_helper.from_array(np.array([rng.choice([0, 1, 2])], rng.choice([np.float32, np.int64])))
        g.add(op, [s], value=value)
    elif op == "Split" and rank:
        rest = g.add("Sub", [ints(a.shape[axis]), s])
        if rng.random() < 0.7:
            shape = g.add("Shape", [x])
            extent = shape and g.add("Gather", [shape[0], ints(axis)])
            rest = extent and g.add("Sub", [extent[0], s])
        parts = rest and g.add("Concat", [s, rest[0]] if rng.random() < 0.5 else [rest[0], s], axis=0)
        if parts:
            g.add(op, [x, parts[0]], outputs=2, axis=axis)
    elif op == "Gather" and rank:
        g.add(op, [x, s], axis=axis)
    elif op == "TopK" and rank:
        g.add(op, [x, s], outputs=2, axis=axis)
    elif op == "Trilu":
        g.add(op, [x, s], upper=rng.choice([0, 1]))
    elif op == "Resize" and rank and a.dtype == np.float32:
        sizes = [ints(d) for d in a.shape]
        sizes[axis] = s
        sizes = sizes if rank == 1 else g.add("Concat", sizes, axis=0)
        if sizes:
            g.add(op, [x, "", "", sizes[0]], mode=rng.choice(["nearest", "linear"]), coordinate_transformation_mode=rng.choice(["asymmetric", "half_pixel", "align_corners"]))
    elif op == "OneHot":
        i = g.pick("int64", "int32")
        if i:
            g.add(op, [i, s, g.constant(np.array([0, 1], np.float32))])


def products(g, rng):
    x = g.pick("float32", "float16", "float64", least=1)
    if x is None:
        return
    a = g.values[x]
    kind, width = str(a.dtype), a.shape[-1]
    op = rng.choice(["MatMul", "MatMul", "Gemm", "Einsum", "Attention", "Self"])
    if op == "MatMul":
        w = g.constant(weights(rng, kind, [width, rng.choice([1, 2, 4, 6])] if rng.random() < 0.8 else [width]))
        g.add(op, [x, w] if rng.random() < 0.9 else [w, x])
    elif op == "Gemm":
        turned = rng.random() < 0.5
        n = rng.choice([1, 4])
        w = g.constant(weights(rng, kind, [n, width] if turned else [width, n]))
        bias = [g.constant(weights(rng, kind, rng.choice([[n], [], [1, n]])))] if rng.random() < 0.6 else []
        g.add(op, [x, w, *bias], transB=int(turned), alpha=rng.choice([None, 0.5]), beta=rng.choice([None, 2.0, 0.0]))
    elif op == "Einsum":
        other = rng.choice(g.tensors(kind, least=1))
        form = rng.choice(["ij,ij->ij", "ij,kj->ik", "bij,bkj->bik", "...i,...i->...", "bij->bji", "ij->j", "bij,jk->bik", "i,j->ij", "bii->b", "bhid,bhjd->bhij"])
        g.add(op, [x, other] if "," in form else [x], equation=form)
    elif op == "Self" and a.ndim >= 2:
        order = [*range(a.ndim - 2), a.ndim - 1, a.ndim - 2]
        turned = g.add("Transpose", [x], perm=order)
        scores = turned and g.add("MatMul", [x, turned[0]])
        scaled = scores and g.add("Mul", [scores[0], g.constant(np.array(0.25, kind))])
        soft = scaled and g.add("Softmax", scaled, axis=-1)
        soft and g.add("MatMul", [soft[0], x])


def neural(g, rng):
    x = g.pick("float32", least=2)
    if x is None:
        return
    a = g.values[x]
    rank, channels = a.ndim, a.shape[1]
    op = rng.choice(
        "Conv Conv ConvTranspose MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool BatchNormalization InstanceNormalization "
        "LayerNormalization GroupNormalization LRN Resize Resize RMSNorm Quantize Dynamic LSTM GRU Swish Norm MeanVariance".split()
    )
    f = lambda *s: g.constant(weights(rng, "float32", list(s)))
    spatial = rank - 2
    if op in ("Conv", "ConvTranspose") and spatial >= 1:
        kernel = [rng.choice([1, 2, 3]) for _ in range(spatial)]
        out = rng.choice([1, 2, channels])
        group = rng.choice([1, 1, channels]) if channels else 1
        shape = [out * group, channels // group] if op == "Conv" else [channels, out]
        more = {"auto_pad": rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])} if rng.random() < 0.3 else {"pads": [rng.choice([0, 1]) for _ in range(2 * spatial)]}
        if op == "ConvTranspose" and rng.random() < 0.3:
            more["output_padding"] = [rng.choice([0, 1]) for _ in range(spatial)]
        bias = [f(shape[0] if op == "Conv" else out * group)] if rng.random() < 0.5 else []
        g.add(op, [x, f(*shape, *kernel), *bias], group=group, strides=[rng.choice([1, 2]) for _ in range(spatial)], dilations=[rng.choice([1, 1, 2]) for _ in range(spatial)], **more)
    elif op in ("MaxPool", "AveragePool", "LpPool") and spatial >= 1:
        kernel = [rng.choice([1, 2, 3]) for _ in range(spatial)]
        more = {"auto_pad": rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])} if rng.random() < 0.3 else {"pads": [rng.choice([0, 0, 1]) for _ in range(2 * spatial)]}
        if op != "LpPool" or g.opset >= 18:
            more["ceil_mode"] = rng.choice([0, 1])
        if op == "AveragePool":
            more["count_include_pad"] = rng.choice([0, 1])
        if op == "MaxPool" or g.opset >= 19:
            more["dilations"] = [rng.choice([1, 1, 2]) for _ in range(spatial)]
        g.add(op, [x], kernel_shape=kernel, strides=[rng.choice([1, 2, 3]) for _ in range(spatial)], outputs=rng.choice([1, 1, 2]) if op == "MaxPool" else 1, **more)
    elif op.startswith("Global"):
        g.add(op, [x])
    elif op == "BatchNormalization":
        g.add(op, [x, f(channels), f(channels), f(channels), g.constant(np.abs(weights(rng, "float32", [channels])) + 0.1)])
    elif op == "InstanceNormalization":
        g.add(op, [x, f(channels), f(channels)])
    elif op == "LayerNormalization":
        axis = rng.choice([-1, -1, 1])
        shape = a.shape[axis:]
        g.add(op, [x, f(*shape), *([f(*shape)] if rng.random() < 0.6 else [])], axis=axis, outputs=rng.choice([1, 1, 3]))
    elif op == "GroupNormalization" and channels:
        n = rng.choice([d for d in range(1, channels + 1) if channels % d == 0])
        per = channels if g.opset >= 21 else n
        g.add(op, [x, f(per), f(per)], num_groups=n)
    elif op == "LRN":
        g.add(op, [x], size=rng.choice([1, 3, 5]))
    elif op == "MeanVariance":
        g.add("MeanVarianceNormalization", [x], axes=sorted(rng.sample(range(rank), rng.choice([1, 2]))))
    elif op == "Resize":
        scales = [1.0] * rank
        for i in range(max(0, rank - 2), rank):
            scales[i] = rng.choice([0.5, 1.5, 2.0, 1.0, 0.7, 3.0])
        mode = rng.choice(["nearest", "linear", "cubic"])
        transform = rng.choice(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"] + (["half_pixel_symmetric"] if g.opset >= 19 else []))
        more = {"nearest_mode": rng.choice(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])} if mode == "nearest" else {}
        if g.opset >= 18:
            more["antialias"] = rng.choice([None, None, 1]) if mode != "nearest" else None
        g.add(op, [x, "", g.constant(np.array(scales, np.float32))], mode=mode, coordinate_transformation_mode=transform, **more)
    elif op in ("RMSNorm", "Norm"):
        # As exporters write it.
        eps = g.constant(np.array(1e-5, np.float32))
        centred = x
        if op == "Norm":
            mean = g.add("ReduceMean", [x, g.constant(np.array([-1]))] if g.opset >= 18 else [x], **({} if g.opset >= 18 else {"axes": [-1]}))
            got = mean and g.add("Sub", [x, mean[0]])
            centred = got[0] if got else x
        square = g.add("Mul", [centred, centred]) if rng.random() < 0.5 else g.add("Pow", [centred, g.constant(np.array(2.0, np.float32))])
        axis = rng.choice([-1, -1, -1, 0, 1])
        mean = square and g.add("ReduceMean", [square[0], g.constant(np.array([axis]))] if g.opset >= 18 else square, **({} if g.opset >= 18 else {"axes": [axis]}))
        root = mean and g.add("Sqrt", g.add("Add", [mean[0], eps]) or mean)
        y = root and g.add("Div", [centred, root[0]])
        y and g.add("Mul", [y[0], f(a.shape[-1])] if rng.random() < 0.8 else [f(a.shape[-1]), y[0]])
    elif op == "Swish":
        s = g.add("Sigmoid", [x])
        s and g.add("Mul", [x, s[0]])
    elif op == "Quantize":
        kind = rng.choice([np.uint8, np.int8])
        per_axis = rng.random() < 0.3
        axis = rng.randrange(rank)
        shape = [a.shape[axis]] if per_axis else []
        scale = g.constant(np.full(shape, 0.05, np.float32))
        zero = g.constant(np.full(shape, rng.choice([0, 3]), kind))
        q = g.add("QuantizeLinear", [x, scale, zero], axis=axis)
        q and g.add("DequantizeLinear", [q[0], scale, zero], axis=axis)
    elif op == "Dynamic":
        q = g.add("DynamicQuantizeLinear", [x], outputs=3)
        if q and rank >= 2:
            w = g.constant(np.random.default_rng(rng.getrandbits(32)).integers(-128, 128, [a.shape[-1], 3]).astype(np.int8))
            g.add("MatMulInteger", [q[0], w, q[2]])
    elif op in ("LSTM", "GRU") and rank == 3:
        hidden, gates = rng.choice([2, 3]), 4 if op == "LSTM" else 3
        n = rng.choice([1, 1, 2])
        more = {"linear_before_reset": rng.choice([0, 1])} if op == "GRU" else {}
        g.add(
            op,
            [x, f(n, gates * hidden, a.shape[2]), f(n, gates * hidden, hidden), f(n, 2 * gates * hidden) if rng.random() < 0.6 else ""],
            outputs=2,
            hidden_size=hidden,
            direction="bidirectional" if n == 2 else rng.choice(["forward", "reverse"]),
            **more,
        )


EVERYTHING = [pointwise, pointwise, reduce, layout, layout, shape_math, sized, products, neural]
