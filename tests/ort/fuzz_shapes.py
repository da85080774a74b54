"""Random shape arithmetic, compared with ONNX Runtime.

Each graph computes integers from the extents of its inputs, and uses them as bounds of slices and ranges, as shapes, pads and
sizes of parts. It runs as a model, as plans for one and two ranks, and as the emitted file in ONNX Runtime, each at several
extents. What ONNX Runtime computes from the original decides; where it refuses, anything but a number of its own will do.

    python tests/ort/fuzz_shapes.py target/debug/sinter --count 200 --seed 1 --keep finds/
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

I64, I32 = TensorProto.INT64, TensorProto.INT32
EXTENTS = [0, 1, 2, 3, 7, 8, 12, 17]


class Graph:
    """A random graph over inputs x: [n, m, 4] and b: [k, 4]."""

    def __init__(self, rng):
        self.rng = rng
        self.nodes, self.inits, self.outputs = [], [], []
        self.count = 0
        self.scalars = {I64: [], I32: [], TensorProto.INT8: []}
        self.bools = []
        self.data = [("x", 3), ("b", 2)]

    def fresh(self, base="v"):
        self.count += 1
        return f"{base}{self.count}"

    def node(self, op, inputs, n=1, **attributes):
        out = [self.fresh(op.lower()) for _ in range(n)]
        self.nodes.append(helper.make_node(op, inputs, out, **attributes))
        return out[0] if n == 1 else out

    def const(self, value, dtype=np.int64):
        name = self.fresh("c")
        self.inits.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def scalar(self, dtype=I64):
        """A vector of one number."""
        r = self.rng
        known = self.scalars[dtype]
        np_type = {I64: np.int64, I32: np.int32, TensorProto.INT8: np.int8}[dtype]
        if not known or r.random() < 0.25:
            return self.const([r.choice([-9, -4, -3, -2, -1, 0, 1, 1, 2, 2, 3, 4, 5, 8, 10])], np_type)
        return r.choice(known[-8:])

    def number(self):
        """One more step of arithmetic."""
        r = self.rng
        dtype = I64 if r.random() < 0.75 else I32
        kind = r.choice("extent extent add sub mul div div mod fmod min max neg abs cast where where cast8 prod slice data".split())
        if kind == "extent":
            x, rank = r.choice(self.data)
            shape = self.node("Shape", [x])
            return self.put(I64, self.node("Gather", [shape, self.const([r.randrange(-rank, rank)])], axis=0)) if rank else None
        if kind == "data":
            # A number that only data shows, or an extent.
            x, _ = r.choice(self.data)
            big = self.node("Greater", [x, self.const(r.choice([-5.0, 0.0, 3.0]), np.float32)])
            if r.random() < 0.5:
                return self.put(I64, self.node("Gather", [self.node("Shape", [self.node("NonZero", [big])]), self.const([1])], axis=0))
            flat = self.node("Reshape", [self.node("Cast", [big], to=I64), self.const([-1])])
            return self.put(I64, self.node("ReduceSum", [flat], keepdims=1))
        if kind in ("add", "sub", "mul", "min", "max"):
            return self.put(dtype, self.node(kind.capitalize(), [self.scalar(dtype), self.scalar(dtype)]))
        if kind in ("div", "mod", "fmod"):
            by = r.choice([-5, -3, -2, -1, 1, 2, 3, 4, 5, 7]) if r.random() < 0.9 else None
            by = self.const([by], np.int64 if dtype == I64 else np.int32) if by else self.nonzero(dtype)
            attributes = {"fmod": 1} if kind == "fmod" else {}
            return self.put(dtype, self.node("Div" if kind == "div" else "Mod", [self.scalar(dtype), by], **attributes))
        if kind in ("neg", "abs"):
            return self.put(dtype, self.node(kind.capitalize(), [self.scalar(dtype)]))
        if kind == "cast":
            to = I32 if dtype == I64 else I64
            return self.put(to, self.node("Cast", [self.scalar(dtype)], to=to))
        if kind == "cast8":
            big = self.node("Mul", [self.scalar(), self.const([r.choice([1, 30, 100])])])
            small = self.node("Cast", [big], to=TensorProto.INT8)
            return self.put(I64, self.node("Cast", [small], to=I64))
        if kind == "where":
            op = r.choice(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
            c = self.node(op, [self.scalar(dtype), self.scalar(dtype)])
            if r.random() < 0.3:
                c = self.node("Not", [c])
            if r.random() < 0.2:
                d = self.node("Less", [self.scalar(dtype), self.scalar(dtype)])
                c = self.node(r.choice(["And", "Or", "Xor"]), [c, d])
            return self.put(dtype, self.node("Where", [c, self.scalar(dtype), self.scalar(dtype)]))
        both = self.node("Concat", [self.scalar(), self.scalar(), self.scalar()], axis=0)
        if kind == "prod":
            op = r.choice(["ReduceProd", "ReduceMax", "ReduceMin"])
            axes = [] if r.random() < 0.5 else [self.const([0])]
            return self.put(I64, self.node(op, [both] + axes, keepdims=1))
        at = r.randrange(-3, 3)
        part = self.node("Slice", [both, self.const([at]), self.const([at + 1 if at != -1 else 9]), self.const([0])])
        return self.put(I64, part)

    def nonzero(self, dtype):
        np_type = np.int64 if dtype == I64 else np.int32
        big = self.node("Abs", [self.scalar(dtype)])
        return self.node("Add", [big, self.const([1], np_type)])

    def put(self, dtype, name):
        self.scalars[dtype].append(name)
        return name

    def natural(self):
        return self.node("Max", [self.scalar(), self.const([self.rng.choice([0, 0, 1])])])

    def use(self):
        """A tensor whose extents depend on the numbers."""
        r = self.rng
        x, rank = r.choice(self.data)
        kind = r.choice("slice slice slice range pad split expand bcast reshape reshape zeros concat value sizes tile squeeze".split())
        if kind == "slice":
            axis = self.const([r.randrange(-rank, rank)])
            by = r.choice([1, 1, 2, 3, -1, -2]) if r.random() < 0.4 else 1
            # ONNX Runtime reads the largest end as none at all for negative steps, ONNX does not.
            far = [0, -(2**63)] + ([2**63 - 1, 2**31 - 1] if by > 0 else [])
            bounds = [self.scalar() if r.random() < 0.8 else self.const([r.choice(far)]) for _ in "se"]
            step = [self.const([by])] if by != 1 else []
            y = self.node("Slice", [x, *bounds, axis, *step])
        elif kind == "range":
            ends = [self.node("Squeeze", [self.scalar(), self.const([0])]) for _ in "se"]
            y = self.node("Range", [*ends, self.const(r.choice([1, 1, 2, 3, -1, -2]))])
            self.outputs.append((y, I64))
            return
        elif kind == "pad":
            pads = [self.const([0])] * (2 * rank)
            pads[r.randrange(2 * rank)] = self.scalar()
            y = self.node("Pad", [x, self.node("Concat", pads, axis=0)])
        elif kind == "split":
            axis = r.randrange(rank)
            n = r.choice([2, 3])
            parts = self.node("Split", [x], n=n, axis=axis, num_outputs=n)
            y = r.choice(parts)
        elif kind == "sizes":
            # What is taken and what is left.
            axis = r.randrange(rank)
            extent = self.node("Gather", [self.node("Shape", [x]), self.const([axis])], axis=0)
            first = self.node("Min", [self.natural(), extent])
            sizes = self.node("Concat", [first, self.node("Sub", [extent, first])], axis=0)
            y = r.choice(self.node("Split", [x, sizes], n=2, axis=axis))
        elif kind == "expand":
            shape = [self.const([1])] * rank
            shape[r.randrange(rank)] = self.natural()
            y = self.node("Expand", [x, self.node("Concat", shape, axis=0)])
        elif kind == "bcast":
            z, _ = r.choice(self.data)
            y = self.node(r.choice(["Add", "Mul"]), [x, z])
            rank = max(rank, dict(self.data)[z])
        elif kind == "reshape":
            flat = self.node("Reshape", [x, self.const([-1])])
            if r.random() < 0.5:
                x, rank = flat, 1
            shape = [r.choice([self.const([-1]), self.scalar(), self.natural()]) for _ in range(r.choice([1, 2, 3]))]
            if r.random() < 0.6:
                # One that often fits: the extents in another order, or two of them as one.
                dims = [self.node("Gather", [self.node("Shape", [x]), self.const([i])], axis=0) for i in range(rank)]
                r.shuffle(dims)
                if len(dims) > 1 and r.random() < 0.5:
                    dims = [self.node("Mul", dims[:2])] + dims[2:]
                if r.random() < 0.5:
                    dims[r.randrange(len(dims))] = self.const([-1])
                shape = dims
            y = self.node("Reshape", [x, self.node("Concat", shape, axis=0)], allowzero=int(r.random() < 0.3))
            rank = len(shape)
        elif kind == "zeros":
            shape = [self.natural() for _ in range(r.choice([1, 2]))]
            y = self.node("ConstantOfShape", [self.node("Concat", shape, axis=0)])
            rank = len(shape)
        elif kind == "concat":
            y = self.node("Concat", [x, x], axis=r.randrange(rank))
        elif kind == "tile":
            times = [self.const([1])] * rank
            times[r.randrange(rank)] = self.natural()
            y = self.node("Tile", [x, self.node("Concat", times, axis=0)])
        elif kind == "squeeze":
            y = self.node("Unsqueeze", [x, self.const([r.randrange(rank + 1)])])
            rank += 1
        else:
            self.outputs.append((self.scalar(), I64)) if self.scalars[I64] else None
            return
        if rank <= 4:
            self.data.append((y, rank))
        self.outputs.append((y, TensorProto.FLOAT))

    def model(self):
        for _ in range(self.rng.randrange(2, 14)):
            self.number()
        for _ in range(self.rng.randrange(1, 4)):
            self.use()
            for _ in range(self.rng.randrange(0, 3)):
                self.number()
        made = {o for n in self.nodes for o in n.output}
        wanted, seen = [], set()
        for name, ty in self.outputs:
            if name in made and name not in seen:
                seen.add(name)
                wanted.append((name, ty))
        if not wanted:
            return None
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m", 4]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, ["k", 4]),
        ]
        outputs = [helper.make_tensor_value_info(n, t, None) for n, t in wanted]
        g = helper.make_graph(self.nodes, "shapes", inputs, outputs, self.inits)
        return helper.make_model(g, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def session(path):
    o = ort.SessionOptions()
    o.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    o.log_severity_level = 4
    o.intra_op_num_threads = 1
    return ort.InferenceSession(path, o, providers=["CPUExecutionProvider"])


def same(want, got):
    for w, g in zip(want, got):
        if g is None or w.shape != g.shape or not np.array_equal(w, g):
            return False
    return True


def feeds(model, extents):
    """Inputs for the extents of the named axes: 1, 2, .. for one, -1, -2, .. for the next; integers are 0, 1, 2, 0, .."""
    out = {}
    for i, v in enumerate(model.graph.input):
        t = v.type.tensor_type
        shape = [extents[d.dim_param] if d.dim_param else d.dim_value for d in t.shape.dim]
        a = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(shape)
        if t.elem_type == TensorProto.FLOAT:
            out[v.name] = ((a + 1) * (-1) ** i).astype(np.float32)
        else:
            out[v.name] = (a % 3).astype(helper.tensor_dtype_to_np_dtype(t.elem_type))
    return out


def symbols(model):
    dims = [d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim]
    return list(dict.fromkeys(d for d in dims if d))


def record(model, points, to):
    """Writes a case of tests/it/symbols.rs: the model, and what ONNX Runtime computes at some extents."""
    onnx.save(model, to + ".onnx")
    run = session(to + ".onnx")
    names = [o.name for o in model.graph.output]
    kinds = {"float32": "f32", "int64": "i64", "int32": "i32", "bool": "bool"}
    with open(to + ".txt", "w") as out:
        for e in points:
            try:
                results = run.run(names, feeds(model, e))
            except Exception:  # noqa: BLE001, what it refuses is no case
                continue
            out.write(" ".join(f"{k}={v}" for k, v in e.items()) + "\n")
            for n, r in zip(names, results):
                shape = ",".join(str(d) for d in r.shape)
                values = " ".join(f"{float(v):.9g}" if r.dtype == np.float32 else str(int(v)) for v in r.ravel())
                out.write(f"  {n} {kinds[r.dtype.name]} {shape}: {values}".rstrip() + "\n")


def command(*args, timeout=120):
    r = subprocess.run(args, capture_output=True, text=True, timeout=timeout)
    return r.returncode, r.stdout + r.stderr


def read(folder, names):
    def one(n):
        p = os.path.join(folder, n + ".npy")
        return np.load(p) if os.path.exists(p) else None

    return [one(n) for n in names]


def check(sinter, model, extents, keep, label):
    """The kinds of faults of one graph: (kind, where, text)."""
    found = []
    with tempfile.TemporaryDirectory() as dir:
        path = os.path.join(dir, "model.onnx")
        onnx.save(model, path)
        try:
            original = session(path)
        except Exception as e:  # noqa: BLE001, whatever it refuses is no case
            return [("skip", "", str(e)[:200])]
        names = [o.name for o in model.graph.output]
        runs = []
        for e in extents:
            f = feeds(model, e)
            try:
                runs.append((e, f, original.run(names, f)))
            except Exception:  # noqa: BLE001
                runs.append((e, f, None))
        if all(w is None for *_, w in runs):
            return [("skip", "", "ONNX Runtime refuses all extents")]
        ways = {}
        for tp in (1, 2):
            rc, text = command(sinter, "optimize", path, "--tp", str(tp), "-o", os.path.join(dir, f"p{tp}"))
            if rc:
                found.append(("refused" if rc == 1 or rc == 2 else "crash", f"optimize tp {tp}", text))
            else:
                ways[f"plan tp {tp}"] = os.path.join(dir, f"p{tp}")
        ways["model"] = path
        emitted = os.path.join(dir, "emitted.onnx")
        rc, text = command(sinter, "optimize", path, "--emit", "onnx", "-o", emitted)
        file = None
        if rc:
            found.append(("refused" if rc in (1, 2) else "crash", "emit", text))
        else:
            try:
                file = session(emitted)
            except Exception as e:  # noqa: BLE001
                found.append(("invalid", "emit", str(e)[:400]))
        for i, (e, f, want) in enumerate(runs):
            into = os.path.join(dir, f"in{i}")
            os.mkdir(into)
            for n, v in f.items():
                np.save(os.path.join(into, n + ".npy"), v)
            at = " ".join(f"{k}={v}" for k, v in e.items())
            for way, target in ways.items():
                if way == "plan tp 2" and i % 3:
                    continue
                out = os.path.join(dir, f"out{i}{way}")
                rc, text = command(sinter, "run", target, "--inputs", into, "--outputs", out)
                if rc not in (0, 1, 2) or "panic" in text:
                    found.append(("crash", f"{way} at {at}", text))
                elif want is None:
                    continue
                elif rc:
                    found.append(("refused", f"{way} at {at}", text))
                elif not same(want, read(out, names)):
                    got = read(out, names)
                    say = "; ".join(f"{n}: {w.shape} {w.ravel()[:6]} got {None if g is None else (g.shape, g.ravel()[:6])}" for n, w, g in zip(names, want, got) if g is None or not same([w], [g]))
                    found.append(("wrong", f"{way} at {at}", say))
            if file is not None and want is not None:
                try:
                    got = file.run(names, f)
                    if not same(want, got):
                        say = "; ".join(f"{n}: {w.shape} got {g.shape}" for n, w, g in zip(names, want, got) if not same([w], [g]))
                        found.append(("wrong", f"emitted at {at}", say))
                except Exception as x:  # noqa: BLE001
                    found.append(("refused", f"emitted at {at}", str(x)[:300]))
        if keep and any(k != "skip" for k, *_ in found):
            kinds = sorted({k for k, *_ in found})
            to = os.path.join(keep, f"{'-'.join(kinds)}-{label}")
            os.makedirs(to, exist_ok=True)
            shutil.copy(path, to)
            with open(os.path.join(to, "finds.txt"), "w") as out:
                for k, where, text in found:
                    out.write(f"{k}: {where}: {text}\n")
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("sinter")
    p.add_argument("--count", type=int, default=100)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--points", type=int, default=4, help="extents per graph")
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--keep", help="folder for models with faults")
    p.add_argument("--record", metavar="PATH", help="write PATH.onnx and PATH.txt, a case for tests/it/symbols.rs, of --model")
    p.add_argument("--model", help="one model instead of random ones")
    o = p.parse_args()

    def one(seed):
        rng = random.Random(seed)
        if o.model:
            model = onnx.load(o.model)
        else:
            model = Graph(rng).model()
        if model is None:
            return seed, [("skip", "", "no output")]
        names = symbols(model)
        points = [{s: rng.choice(EXTENTS) for s in names} for _ in range(o.points)]
        # The broadcasts among them need equal extents, or 1.
        points[0] = dict(zip(names, [3] + [2] * len(names)))
        if o.points > 1 and len(names) > 1:
            points[1][names[1]] = 1
        if o.record:
            record(model, points, o.record)
            return seed, []
        try:
            return seed, check(o.sinter, model, points, o.keep, str(seed))
        except subprocess.TimeoutExpired as e:
            return seed, [("crash", "timeout", str(e)[:200])]

    totals = {}
    with ThreadPoolExecutor(o.jobs) as pool:
        for seed, found in pool.map(one, range(o.seed, o.seed + (1 if o.model else o.count))):
            kinds = {k for k, *_ in found} or {"ok"}
            for k in kinds:
                totals[k] = totals.get(k, 0) + 1
            for k, where, text in found:
                if k != "skip":
                    print(f"{seed} {k}: {where}: {text.strip().splitlines()[0] if text.strip() else ''}", flush=True)
    print(", ".join(f"{k} {n}" for k, n in sorted(totals.items())))
    return 1 if {"wrong", "crash", "invalid"} & totals.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
