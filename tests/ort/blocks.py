"""Parts of transformers with random deviations: what sharding, fusion and recognition of attention are made for."""

import numpy as np

from generate import CODES, Graph


class Blocks:
    """Layers on hidden states of [batch, seq, width], or of [seq, width]."""

    def __init__(self, g, rng):
        self.g, self.rng = g, rng
        self.width = rng.choice([4, 8, 8, 8, 16])
        self.lead = rng.choice([["batch", "seq"], ["batch", "seq"], ["batch", 3], ["seq"], [1, "seq"], [2, 3]])
        self.kind = rng.choice(["float32"] * 6 + ["float16", "float64"])
        self.fresh = 0

    def w(self, *shape, scale=0.4):
        n = np.random.default_rng(self.rng.getrandbits(32))
        return self.g.constant((n.standard_normal(shape) * scale).astype(self.kind))

    def one(self, op, inputs, **more):
        """The only result of a node; an exception where ONNX Runtime refuses it."""
        found = self.g.add(op, inputs, **more)
        if not found:
            raise Refused(op)
        return found[0]

    def c(self, value):
        return self.g.constant(np.array(value).astype(self.kind))

    def ints(self, *v):
        return self.g.constant(np.array(v, np.int64))

    def chance(self, p):
        return self.rng.random() < p

    # ---- pieces --------------------------------------------------------------------------------------------------------

    def reduce_mean(self, x, axis=-1):
        if self.g.opset >= 18:
            return self.one("ReduceMean", [x, self.ints(axis)], keepdims=1)
        return self.one("ReduceMean", [x], axes=[axis], keepdims=1)

    def linear(self, x, n, out, bias=None):
        """x W + b in one of the forms of exporters."""
        t = self.rng.random()
        if t < 0.6:
            y = self.one("MatMul", [x, self.w(n, out)])
        elif t < 0.75:
            y = self.one("MatMul", [x, self.one("Transpose", [self.w(out, n)], perm=[1, 0])])
        elif t < 0.85 and self.g.values[x].ndim == 2:
            return self.one("Gemm", [x, self.w(out, n), self.w(out)], transB=1)
        else:
            # Two halves of a weight.
            half = out // 2
            y = self.one("MatMul", [x, self.one("Concat", [self.w(n, half), self.w(n, out - half)], axis=1)])
        if self.chance(0.4) if bias is None else bias:
            pair = [y, self.w(out)]
            y = self.one("Add", pair if self.chance(0.5) else pair[::-1])
        return y

    def norm(self, x):
        t = self.rng.random()
        n = self.g.values[x].shape[-1]
        if t < 0.15 and self.g.opset >= 17:
            return self.one("LayerNormalization", [x, self.w(n), self.w(n)] if self.chance(0.6) else [x, self.w(n)], axis=-1)
        if t < 0.3 and self.g.opset >= 23:
            return self.one("RMSNormalization", [x, self.w(n)])
        centred = x
        if t < 0.55:
            centred = self.one("Sub", [x, self.reduce_mean(x)])
        square = self.one("Mul", [centred, centred]) if self.chance(0.4) else self.one("Pow", [centred, self.c(2.0)])
        mean = self.reduce_mean(square, -1 if self.chance(0.95) else 0)
        root = self.one("Sqrt", [self.one("Add", [mean, self.c(1e-3)])])
        y = self.one("Div", [centred, root]) if self.chance(0.5) else self.one("Mul", [centred, self.one("Reciprocal", [root])])
        if self.chance(0.9):
            scale = self.w(n, scale=1.0)
            if self.chance(0.2):
                scale = self.one("Add", [scale, self.c(1.0)])
            y = self.one("Mul", [y, scale] if self.chance(0.5) else [scale, y])
        return self.one("Add", [y, self.w(n)]) if t < 0.5 else y

    def activation(self, x):
        t = self.rng.choice(["silu", "gelu", "tanh", "Relu", "Sigmoid", "quick", "Softplus", "relu2", "none"])
        if t == "silu":
            return self.one("Mul", [x, self.one("Sigmoid", [x])])
        if t == "quick":
            return self.one("Mul", [x, self.one("Sigmoid", [self.one("Mul", [x, self.c(1.702)])])])
        if t == "gelu":
            e = self.one("Add", [self.one("Erf", [self.one("Div", [x, self.c(1.4142135)])]), self.c(1.0)])
            return self.one("Mul", [self.one("Mul", [x, e]), self.c(0.5)]) if self.chance(0.5) else self.one("Mul", [self.one("Mul", [x, self.c(0.5)]), e])
        if t == "tanh":
            cube = self.one("Mul", [self.one("Pow", [x, self.c(3.0)]), self.c(0.044715)])
            inner = self.one("Mul", [self.one("Add", [x, cube]), self.c(0.79788456)])
            return self.one("Mul", [self.one("Mul", [x, self.c(0.5)]), self.one("Add", [self.one("Tanh", [inner]), self.c(1.0)])])
        if t == "relu2":
            r = self.one("Relu", [x])
            return self.one("Mul", [r, r])
        return x if t == "none" else self.one(t, [x])

    def mlp(self, x):
        n, wide = self.width, self.rng.choice([8, 12, 16, 16, 6])
        t = self.rng.random()
        if t < 0.35:
            h = self.activation(self.linear(x, n, wide))
        elif t < 0.7:
            pair = [self.activation(self.linear(x, n, wide)), self.linear(x, n, wide)]
            h = self.one("Mul", pair if self.chance(0.5) else pair[::-1])
        else:
            # One product for gate and up.
            both = self.linear(x, n, 2 * wide)
            if self.chance(0.5):
                found = self.g.add("Split", [both, self.ints(wide, wide)], outputs=2, axis=-1)
            else:
                a = self.one("Slice", [both, self.ints(0), self.ints(wide), self.ints(-1)])
                b = self.one("Slice", [both, self.ints(wide), self.ints(2**63 - 1), self.ints(-1)])
                found = [a, b]
            if not found:
                raise Refused("Split")
            a, b = found if self.chance(0.7) else found[::-1]
            h = self.one("Mul", [self.activation(a), b])
        if self.chance(0.15):
            h = self.norm(h)
        return self.linear(h, wide, n)

    def attention(self, x):
        rng, n = self.rng, self.width
        heads = rng.choice([1, 2, 2, 4, 4])
        kv = rng.choice([heads, heads, 1, max(1, heads // 2)])
        d = rng.choice([2, 4, 4, 6])
        rank = self.g.values[x].ndim
        if rank == 2:
            x = self.one("Unsqueeze", [x, self.ints(0)])
        if self.chance(0.25):
            both = self.linear(x, n, (heads + 2 * kv) * d)
            parts = self.g.add("Split", [both, self.ints(heads * d, kv * d, kv * d)], outputs=3, axis=-1)
            if not parts:
                raise Refused("Split")
            q, k, v = parts
        else:
            q, k, v = self.linear(x, n, heads * d), self.linear(x, n, kv * d), self.linear(x, n, kv * d)
        shape = lambda h: self.ints(0, 0, h, d) if self.chance(0.5) else self.dynamic(x, h, d)
        q, k, v = (self.one("Reshape", [t, shape(h)]) for t, h in ((q, heads), (k, kv), (v, kv)))
        if self.chance(0.2):
            q, k = self.norm(q), self.norm(k)
        q, k, v = (self.one("Transpose", [t], perm=[0, 2, 1, 3]) for t in (q, k, v))
        if self.chance(0.4) and d % 2 == 0:
            q, k = self.rotary(q, k, d)
        if self.chance(0.35):
            k, v = self.cache(k, kv, d), self.cache(v, kv, d)
        if kv != heads:
            k, v = self.repeat(k, heads // kv, heads), self.repeat(v, heads // kv, heads)
        scale = self.c(round(rng.choice([d**-0.5, 0.3, 1.0]), 4))
        if self.chance(0.3):
            q = self.one("Mul", [q, scale])
            scale = None
        scores = self.one("MatMul", [q, self.one("Transpose", [k], perm=[0, 1, 3, 2])])
        if scale:
            scores = self.one("Mul", [scores, scale]) if self.chance(0.6) else self.one("Div", [scores, self.c(2.0)])
        if self.chance(0.2):
            scores = self.one("Mul", [self.one("Tanh", [self.one("Div", [scores, self.c(5.0)])]), self.c(5.0)])
        if self.chance(0.4):
            scores = self.mask(scores)
        soft = self.one("Softmax", [scores], axis=-1 if self.chance(0.95) else 1)
        y = self.one("MatMul", [soft, v])
        y = self.one("Transpose", [y], perm=[0, 2, 1, 3])
        y = self.one("Reshape", [y, self.ints(0, 0, heads * d) if self.chance(0.6) else self.ints(0, 0, -1)])
        if self.chance(0.15):
            y = self.one("Mul", [y, self.one("Sigmoid", [self.linear(x, n, heads * d)])])
        y = self.linear(y, heads * d, n)
        return self.one("Squeeze", [y, self.ints(0)]) if rank == 2 else y

    def dynamic(self, x, h, d):
        """[batch, seq, h, d] from the shape of x."""
        shape = self.one("Shape", [x])
        a, b = (self.one("Gather", [shape, self.ints(i)]) for i in (0, 1))
        return self.one("Concat", [a, b if self.chance(0.6) else self.ints(-1), self.ints(h), self.ints(d)], axis=0)

    def rotary(self, q, k, d):
        seq = self.one("Gather", [self.one("Shape", [q]), self.ints(2)])
        rope = min(d, self.rng.choice([d, d, 2]))
        table = lambda: self.w(16, rope, scale=1.0)
        cut = lambda t: self.one("Slice", [t, self.ints(0), seq, self.ints(0)])
        cos, sin = cut(table()), cut(table())

        def turn(t):
            part, rest = t, None
            if rope < d:
                part = self.one("Slice", [t, self.ints(0), self.ints(rope), self.ints(3)])
                rest = self.one("Slice", [t, self.ints(rope), self.ints(2**63 - 1), self.ints(3)])
            half = rope // 2
            a = self.one("Slice", [part, self.ints(0), self.ints(half), self.ints(3)])
            b = self.one("Slice", [part, self.ints(half), self.ints(2**63 - 1), self.ints(3)])
            turned = self.one("Concat", [self.one("Neg", [b]), a], axis=-1)
            y = self.one("Add", [self.one("Mul", [part, cos]), self.one("Mul", [turned, sin])])
            return self.one("Concat", [y, rest], axis=-1) if rest else y

        return turn(q), turn(k)

    def cache(self, t, kv, d):
        batch = self.lead[0] if len(self.lead) == 2 else 1
        name = {"float32": "f32", "float16": "f16", "float64": "f64"}[self.kind]
        past = self.g.input(name, [batch, kv, "past", d])
        return self.one("Concat", [past, t], axis=2)

    def repeat(self, t, times, heads):
        wide = self.one("Unsqueeze", [t, self.ints(2)])
        a = self.g.values[wide].shape
        shape = self.one("Shape", [wide])
        parts = [self.one("Gather", [shape, self.ints(i)]) for i in (0, 1)]
        rest = [self.one("Gather", [shape, self.ints(i)]) for i in (3, 4)]
        to = self.one("Concat", [*parts, self.ints(times), *rest], axis=0)
        wide = self.one("Expand", [wide, to])
        flat = self.one("Concat", [parts[0], self.ints(heads), *rest], axis=0) if self.chance(0.5) else self.ints(0, heads, -1, a[4])
        return self.one("Reshape", [wide, flat])

    def mask(self, scores):
        shape = self.one("Shape", [scores])
        rows, columns = (self.one("Gather", [shape, self.ints(i)]) for i in (2, 3))
        size = self.one("Concat", [rows, columns], axis=0)
        t = self.rng.random()
        low = self.c(self.rng.choice([-1e4, -1e4, -np.inf]))
        if t < 0.6:
            # Triangle of ones: positions at or before the row's own.
            ones = self.one("Expand", [self.g.constant(np.array(1, np.int64)), size])
            lower = self.one("Trilu", [ones], upper=0) if self.g.opset >= 14 else ones
            allowed = self.one("Cast", [lower], to=CODES["bool"])
        else:
            x = self.g.input("bool", [self.g.values[scores].shape[3] if isinstance(self.lead[-1], int) else 1])
            allowed = self.one("Expand", [x, size])
        if self.chance(0.5):
            return self.one("Where", [allowed, scores, low])
        return self.one("Add", [scores, self.one("Where", [allowed, self.c(0.0), self.c(-1e4)])])

    def residual(self, x, f):
        """x + f(norm(x)) and its relatives."""
        t = self.rng.random()
        if t < 0.6:
            y = f(self.norm(x))
        elif t < 0.75:
            y = self.norm(f(x))
        else:
            y = f(x)
        if self.chance(0.2):
            y = self.one("Mul", [y, self.c(0.5) if self.chance(0.5) else self.w(self.width)])
        pair = [x, y] if self.chance(0.5) else [y, x]
        return self.one("Add", pair) if self.chance(0.95) else self.one("Sub", pair)


class Refused(Exception):
    """A node that ONNX Runtime refuses ends the block."""


def grow(rng, ort):
    """A random model of one to three blocks, and its inputs."""
    opset = rng.choice([13, 14, 16, 17, 18, 18, 18, 20, 21, 22, 23])
    g = Graph(rng, ort, opset)
    b = Blocks(g, rng)
    x = None
    try:
        if rng.random() < 0.3:
            ids = g.input("i64", b.lead)
            vocabulary = rng.choice([7, 8, 16])
            g.feeds[ids] = g.values[ids] = np.abs(g.values[ids]) % vocabulary
            x = b.one("Gather", [b.w(vocabulary, b.width), ids])
        else:
            name = {"float32": "f32", "float16": "f16", "float64": "f64"}[b.kind]
            x = g.input(name, [*b.lead, b.width])
        for _ in range(rng.choice([1, 1, 2, 2, 3])):
            part = rng.choice([b.mlp, b.mlp, b.attention, b.attention])
            t = rng.random()
            if t < 0.1:
                # Both read the same norm.
                h = b.norm(x)
                x = b.one("Add", [b.one("Add", [x, b.mlp(h)]), b.attention(h)])
            else:
                x = b.residual(x, part)
        if rng.random() < 0.5:
            x = b.norm(x)
        if rng.random() < 0.4:
            x = b.linear(x, b.width, rng.choice([8, 10, 16]), bias=False)
    except Refused:
        pass
    return g.model() if g.nodes else None
