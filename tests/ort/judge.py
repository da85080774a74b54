"""What the fuzzer holds against sinter: one model at several extents, executed in every way and by ONNX Runtime."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import mutate
import oracle


class Find:
    """A fault: its kind, the way in which it showed, what was said, and at which of the feeds."""

    def __init__(self, kind, way, text, output=None, feed=0):
        self.kind, self.way, self.text, self.output, self.feed = kind, way, text, output, feed

    def same(self, other):
        if other is None or (self.kind, self.way) != (other.kind, other.way):
            return False
        return self.kind in ("differs", "changes") or oracle.template(self.text) == oracle.template(other.text)

    def __str__(self):
        return f"{self.kind}: {self.way}: {self.text}"


class Judge:
    """Executes models; `counts` takes what was skipped or refused, and why."""

    def __init__(self, sinter, ort, work, counts):
        self.sinter, self.ort, self.work, self.counts = sinter, ort, Path(work), counts

    def count(self, what):
        self.counts[what] += 1

    def examine(self, case, feeds, mapping=(1, 1), dialect="standard", ways=("run", "plan", "emit")):
        """The first fault, or None. `feeds` are inputs of different extents."""
        data = case.bytes()
        status, got = self.ort.run(data, feeds)
        model = self.work / "model.onnx"
        model.write_bytes(data)
        good = [i for i, g in enumerate(got) if g[0] == "ok"] if status == "ok" else []
        good = [i for i in good if all(oracle.is_number(a) for a in got[i][1])]
        if not good:
            self.count("skipped: ONNX Runtime refuses")
            # Nothing may crash all the same.
            done = self.sinter.call("optimize", model)
            return Find("crash", "optimize", done.text) if done.kind == "crash" else None
        self.count("judged")
        self.case, self.feeds = case, feeds
        self.expected = {i: got[i][1] for i in good}
        self.names = [o.name for o in case.graph.output]
        self.elements = [oracle.small_float(o) for o in case.graph.output]
        order = [i.name for i in case.graph.input]
        # Values by number: a default that is not given leaves a gap.
        for i, f in enumerate(feeds):
            oracle.write_inputs(self.work / f"in{i}", [f.get(n) for n in order])
        # By number of the feed: None where `run MODEL` ran, else its refusal.
        self.ran = {}
        steps = {
            "run": lambda: self.run_model(model, good),
            "plan": lambda: self.plan(model, good, mapping),
            "emit": lambda: self.emit(model, good, dialect),
        }
        return next((f for f in (steps[w]() for w in ways) if f), None)

    def refused(self, way, done):
        self.count(f"refused: {way}: {oracle.template(done.text)}")

    def run_model(self, model, good):
        for i in good[:1]:
            done, actual = self.sinter.run(model, self.work / f"in{i}", self.work / "out", self.names)
            if done.kind == "crash":
                return Find("crash", "run MODEL", done.text, feed=i)
            if done.kind == "refused":
                self.ran[i] = done.text
                self.refused("run MODEL", done)
                continue
            self.ran[i] = None
            find = self.compare("run MODEL", actual, i)
            if find:
                return find
        return None

    def plan(self, model, good, mapping):
        plan = self.work / "plan"
        shutil.rmtree(plan, ignore_errors=True)
        way = f"plan {mapping[0]}x{mapping[1]}"
        done = self.sinter.call("optimize", model, "--tp", mapping[0], "--pp", mapping[1], "-o", plan)
        if done.kind == "crash":
            return Find("crash", way, done.text)
        if done.kind == "refused" and mapping != (1, 1):
            return self.plan(model, good, (1, 1))
        if done.kind == "refused":
            if None in self.ran.values():
                return Find("plan refused", way, done.text)
            self.refused("optimize", done)
            return None
        for i in range(len(self.feeds)):
            done, actual = self.sinter.run(plan, self.work / f"in{i}", self.work / "out", self.names)
            if done.kind == "crash":
                return Find("crash", way, done.text, feed=i)
            if i not in good:
                continue
            if done.kind == "refused":
                if i in self.ran and self.ran[i] is None:
                    return Find("plan refused", way, done.text, feed=i)
                self.refused(f"run {way}", done)
                continue
            if self.ran.get(i):
                return Find("run MODEL refused", way, self.ran[i], feed=i)
            find = self.compare(way, actual, i)
            if find:
                return find
        return None

    def emit(self, model, good, dialect):
        file, way = self.work / "emitted.onnx", f"emit {dialect}"
        done = self.sinter.call("optimize", model, "--emit", "onnx", "--dialect", dialect, "-o", file)
        if done.kind == "crash":
            return Find("crash", way, done.text)
        if done.kind != "ok":
            self.refused(way, done)
            return None
        problem = oracle.invalid(file, dialect)
        if problem and oracle.invalid(model, dialect):
            self.count("skipped: onnx.checker refuses the model itself")
            return None
        if problem:
            return Find("invalid", way, problem)
        status, got = self.ort.run(file, self.feeds)
        if status != "ok" and "NOT_IMPLEMENTED" in str(got):
            # The file is valid, and ONNX's own evaluator judges it: where ONNX Runtime has no kernel for a type, it takes the
            # definition of an operator as a function, which ONNX has for some versions only.
            self.count("emitted files that ONNX's reference evaluator judged")
            status, got = oracle.reference(file, self.feeds)
            if status != "ok" or any(kind != "ok" for kind, _ in got):
                self.count("skipped: neither ONNX Runtime nor the reference evaluator runs the emitted file")
                return None
        if status != "ok":
            return Find("unloadable", way, oracle.first_line(got))
        for i in good:
            kind, value = got[i]
            if kind != "ok":
                return Find("emitted file fails", way, oracle.first_line(value), feed=i)
            find = self.compare(way, value, i)
            if find:
                return find
        return None

    def compare(self, way, actual, feed):
        expected = self.expected[feed]
        bad = [oracle.compare(a, e, element=t) for a, e, t in zip(actual, expected, self.elements)]
        if not any(bad):
            return None
        noise = self.noise(feed)
        for n, a, e, x, t in zip(self.names, actual, expected, noise, self.elements):
            problem = oracle.compare(a, e, x, element=t)
            if problem is None:
                continue
            why = self.undefined(feed)
            if why:
                self.count(f"skipped: {why}")
                return None
            if self.reference_agrees(feed, n, a):
                self.count("skipped: ONNX's reference agrees with sinter and not with ONNX Runtime")
                return None
            return Find("differs", way, f"`{n}` {problem}", n, feed)
        self.count("skipped: rounding decides")
        return None

    def noise(self, feed):
        """What rounding of the inputs changes in the outputs, by output; None where nothing does."""
        expected, found = self.expected[feed], [None] * len(self.names)
        for k in range(3):
            rng = np.random.default_rng(k)
            names = list(self.feeds[feed])
            other = dict(zip(names, oracle.perturbed([self.feeds[feed][n] for n in names], rng, k == 2)))
            status, got = self.ort.run(self.case.bytes(), [other])
            if status != "ok" or got[0][0] != "ok":
                continue
            new = oracle.noise_of(expected, got[0][1])
            found = [b if a is None else a if b is None else np.maximum(a, b) for a, b in zip(found, new)]
        return found

    def undefined(self, feed):
        """Why ONNX leaves open what this model computes, or None."""
        graph = self.case.graph
        values = mutate.all_values(self.case.model, self.feeds[feed], self.ort)
        if values is None:
            return None
        constants = {t.name: t for t in graph.initializer}

        def value(name):
            if name in values:
                return values[name]
            return numpy_helper.to_array(constants[name]) if name in constants else None

        for node in graph.node:
            ins = [value(n) if n else None for n in node.input]
            first = ins[0] if ins and isinstance(ins[0], np.ndarray) else None
            if first is None:
                continue
            floats = first.dtype.kind == "f"
            if node.op_type in ("ReduceLogSum", "ReduceLogSumExp") and not floats:
                return "logarithms of integers"
            if first.size == 0:
                continue
            out = value(node.output[0]) if node.output and node.output[0] else None
            if node.op_type == "Cast" and floats and out is not None and out.dtype.kind in "iu":
                limits = np.iinfo(out.dtype)
                f = first.astype(np.float64)
                if not np.isfinite(f).all() or f.min() < limits.min or f.max() > limits.max:
                    return "a float outside of the range of an integer type"
            if node.op_type == "Pow" and not floats and len(ins) > 1 and ins[1] is not None:
                return "powers of integers that overflow or have a negative exponent" if wide(first, ins[1]) else None
            if node.op_type in ("TopK", "ArgMax", "ArgMin", "MaxPool", "ReduceMax", "ReduceMin", "Max", "Min", "Clip", "Relu", "Hardmax", "Unique", "Sign", "ThresholdedRelu"):
                if nan(ins):
                    return "an order of NaN"
            if "QuantizeLinear" in node.op_type and nan(ins):
                return "an integer for NaN"
            if node.op_type in ("Resize", "Upsample", "GridSample", "RoiAlign", "AffineGrid") and (nan(ins) or not np.isfinite(first).all()):
                return "an infinite value with the weight 0"
            if node.op_type == "TopK" and ties(first, node):
                return "ties"
            if node.op_type in ("ScatterElements", "ScatterND", "Scatter") and len(ins) > 1 and repeated(node, ins[1]):
                return "indices that occur twice"
            if node.op_type in ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"):
                return "random numbers"
            if str(first.dtype) == "float16" and out is not None and out.dtype.kind == "f" and not np.isfinite(out).all():
                return "overflow of f16"
        return None

    def reference_agrees(self, feed, output, actual):
        """Whether ONNX's reference computes what sinter does."""
        try:
            from onnx.reference import ReferenceEvaluator

            # Only what leads to this output: the reference does not know every operator.
            model = onnx.ModelProto()
            model.CopyFrom(self.case.model)
            keep = [onnx.ValueInfoProto.FromString(o.SerializeToString()) for o in model.graph.output if o.name == output]
            del model.graph.output[:]
            model.graph.output.extend(keep)
            (inputs,) = mutate.prune(model, [self.feeds[feed]])
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = ReferenceEvaluator(model).run([output], inputs)
            return oracle.compare(actual, np.asarray(got[0])) is None
        except Exception:
            return False


def nan(arrays):
    return any(isinstance(a, np.ndarray) and a.dtype.kind == "f" and np.isnan(a).any() for a in arrays)


def wide(base, exponent):
    with np.errstate(all="ignore"):
        e = np.asarray(exponent, np.float64)
        return bool((e < 0).any() or (np.abs(base.astype(np.float64)).max(initial=0) ** e.max(initial=0) > np.iinfo(base.dtype).max))


def ties(a, node):
    axis = next((x.i for x in node.attribute if x.name == "axis"), -1)
    s = np.sort(a, axis=axis)
    return bool((np.diff(s.astype(np.float64), axis=axis) == 0).any())


def repeated(node, indices):
    if any(a.name == "reduction" and a.s not in (b"none", b"") for a in node.attribute):
        return False
    flat = indices.reshape(-1, indices.shape[-1]) if node.op_type == "ScatterND" and indices.ndim else None
    if flat is not None:
        return len(np.unique(flat, axis=0)) < len(flat)
    axis = next((x.i for x in node.attribute if x.name == "axis"), 0)
    s = np.sort(indices, axis=axis)
    return bool((np.diff(s, axis=axis) == 0).any())
