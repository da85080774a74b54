"""The models that the fuzzer starts from, parts of them, and what it changes."""

import random
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import oracle

LARGEST = 6 << 20


class Case:
    """A model, inputs by name, and the symbols of its inputs: (input, axis) -> symbol."""

    def __init__(self, model, feeds, origin, extents=None):
        self.model, self.feeds, self.origin = model, feeds, origin
        self.extents = extents if extents is not None else declared_symbols(model, feeds)
        self.changes = []

    @property
    def graph(self):
        return self.model.graph

    def bytes(self):
        return self.model.SerializeToString()


def declared_symbols(model, feeds):
    """The extent that each named dimension of an input has in the feeds."""
    out = {}
    for i in model.graph.input:
        if i.name in feeds and i.type.HasField("tensor_type"):
            for d, n in zip(i.type.tensor_type.shape.dim, np.shape(feeds[i.name])):
                if d.dim_param:
                    out.setdefault(d.dim_param, n)
    return out


# ---- the corpus -------------------------------------------------------------------------------------------------------------


def corpus(roots):
    """Folders with model.onnx and inputs, sorted, by name."""
    found = []
    for root in roots:
        for path in sorted(Path(root).rglob("model.onnx")):
            if sum(f.stat().st_size for f in path.parent.iterdir() if f.is_file()) <= LARGEST:
                found.append(path)
    return found


def load(path):
    """A Case, or None where the inputs are not tensors."""
    folder = path.parent
    try:
        model = onnx.load(str(path))
    except Exception:
        return None
    given = {t.name for t in model.graph.initializer}
    names = [i.name for i in model.graph.input]
    required = [n for n in names if n not in given]
    feeds = {}
    for place in (folder / "inputs", folder / "in", folder, folder / "test_data_set_0"):
        if not place.is_dir():
            continue
        for order in (names, required):
            for name, array in zip(order, oracle.numbered(place, "input", order)):
                if array is not None:
                    feeds.setdefault(name, array)
        for i, name in enumerate(required):
            file = place / f"input_{i}.pb"
            if name not in feeds and file.is_file():
                t = TensorProto()
                try:
                    t.ParseFromString(file.read_bytes())
                    feeds[name] = numpy_helper.to_array(t)
                except Exception:
                    return None
    if any(n not in feeds for n in required) or any(not oracle.is_number(a) for a in feeds.values()):
        return None
    del model.metadata_props[:]
    return Case(model, feeds, path.parent.name)


# ---- parts ------------------------------------------------------------------------------------------------------------------


class Source:
    """A model of the corpus with the values of all its tensors, so that parts can be cut out."""

    def __init__(self, case, ort):
        self.case, self.values = case, None
        if len(case.graph.node) > 1:
            self.values = all_values(case.model, case.feeds, ort)

    def part(self, rng):
        """A few connected nodes with what they read as inputs, or the whole model where it is small."""
        nodes = self.case.graph.node
        if self.values is None or len(nodes) <= 1 or (len(nodes) <= 12 and rng.random() < 0.6):
            return copy(self.case)
        return self.cut(rng)

    def cut(self, rng):
        graph = self.case.graph
        made = {o: i for i, n in enumerate(graph.node) for o in n.output if o}
        weights = {t.name: t for t in graph.initializer}
        last = rng.randrange(len(graph.node))
        chosen, limit = {last}, rng.choice([2, 4, 6, 10, 16, 30])
        edge = [last]
        while edge and len(chosen) < limit:
            at = edge.pop(rng.randrange(len(edge)) if rng.random() < 0.3 else 0)
            for name in reads(graph.node[at]):
                if name in made and made[name] not in chosen and len(chosen) < limit:
                    chosen.add(made[name])
                    edge.append(made[name])
        order = sorted(chosen)
        inside = {o for i in order for o in graph.node[i].output if o}
        needed = dict.fromkeys(n for i in order for n in reads(graph.node[i]))
        inputs = [n for n in needed if n not in inside and n not in weights]
        if any(n not in self.values for n in inputs):
            return None
        read = set(needed)
        outputs = [o for i in order for o in graph.node[i].output if o and (o not in read or rng.random() < 0.15)]
        shapes = {v.name: v for v in [*graph.value_info, *graph.input]}
        infos, feeds = [], {}
        for n in inputs:
            array = self.values[n]
            feeds[n] = array
            dims = list(array.shape)
            known = shapes.get(n)
            if known is not None and known.type.HasField("tensor_type") and len(known.type.tensor_type.shape.dim) == array.ndim:
                declared = known.type.tensor_type.shape.dim
                dims = [d.dim_param if d.dim_param.isidentifier() else int(e) for d, e in zip(declared, array.shape)]
            infos.append(helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(array.dtype), dims))
        types = [helper.np_dtype_to_tensor_dtype(self.values[o].dtype) if o in self.values else 0 for o in outputs]
        results = [onnx.ValueInfoProto(name=o) for o in outputs]
        for r, t, o in zip(results, types, outputs):
            if t:
                r.CopyFrom(helper.make_tensor_value_info(o, t, [None] * self.values[o].ndim))
        part = helper.make_graph(
            [graph.node[i] for i in order], "part", infos, results, [weights[n] for n in needed if n in weights and n not in inside]
        )
        model = onnx.ModelProto()
        model.CopyFrom(self.case.model)
        model.graph.CopyFrom(part)
        return Case(model, feeds, f"{self.case.origin} (part)")


def reads(node):
    """Names that a node reads, those of its bodies included."""
    names = [n for n in node.input if n]
    for a in node.attribute:
        for g in [a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs:
            inner = {i.name for i in g.input} | {t.name for t in g.initializer} | {o for n in g.node for o in n.output}
            names += [n for node in g.node for n in reads(node) if n not in inner]
            names += [o.name for o in g.output if o.name not in inner]
    return list(dict.fromkeys(names))


def prune(model, feeds):
    """Leaves out nodes, constants and inputs that no output needs."""
    graph = model.graph
    needed, keep = {o.name for o in graph.output}, []
    for node in reversed(graph.node):
        if any(o in needed for o in node.output):
            keep.append(onnx.NodeProto.FromString(node.SerializeToString()))
            needed |= set(reads(node))
    del graph.node[:]
    graph.node.extend(reversed(keep))
    for field in (graph.initializer, graph.input):
        rest = [type(x).FromString(x.SerializeToString()) for x in field if x.name in needed]
        del field[:]
        field.extend(rest)
    del graph.value_info[:]
    names = {i.name for i in graph.input}
    return [{n: a for n, a in f.items() if n in names} for f in feeds]


def all_values(model, feeds, ort):
    """Every tensor of a model by name, or None where ONNX Runtime does not run it."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    names = [o for n in model.graph.node for o in n.output if o]
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    if wide.ByteSize() > LARGEST:
        return None
    status, got = ort.run(wide.SerializeToString(), [feeds], names)
    if status != "ok" or got[0][0] != "ok":
        return None
    values = {n: a for n, a in zip(names, got[0][1]) if oracle.is_number(a) and a.size <= 1 << 20}
    return {**values, **feeds}


def copy(case):
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    return Case(model, dict(case.feeds), case.origin)


# ---- changes ----------------------------------------------------------------------------------------------------------------

NUMBERS = [-3, -2, -1, 0, 1, 2, 3, 4, 5, 8]
WORDS = {
    "auto_pad": ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"],
    "mode": ["constant", "reflect", "edge", "wrap", "nearest", "linear", "cubic", "bilinear", "bicubic", "DCR", "CRD", "avg", "max"],
    "coordinate_transformation_mode": ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric", "output_half_pixel", "tf_crop_and_resize"],
    "nearest_mode": ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple"],
    "direction": ["forward", "reverse", "bidirectional", "LEFT", "RIGHT"],
    "reduction": ["none", "add", "mul", "min", "max", "mean", "sum"],
    "padding_mode": ["zeros", "border", "reflection"],
    "approximate": ["none", "tanh"],
    "keep_aspect_ratio_policy": ["stretch", "not_larger", "not_smaller"],
    "equation": ["ij,jk->ik", "bij,bjk->bik", "ij->ji", "...ij->...ji", "bij,bkj->bki"],
}


# Attributes of which ONNX defines two values.
FLAGS = set(
    "keepdims allowzero exclusive reverse transA transB ceil_mode count_include_pad select_last_index sorted largest noop_with_empty_axes fmod "
    "align_corners antialias linear_before_reset input_forget saturate center_point_box is_causal interleaved training_mode upper detect_negative "
    "detect_positive do_rotary causal unidirectional onesided inverse storage_order stop_at_eof".split()
)


def schema(node, model):
    opset = {i.domain: i.version for i in model.opset_import}
    try:
        return onnx.defs.get_schema(node.op_type, opset.get(node.domain, 1), node.domain)
    except Exception:
        return None


def change_attribute(case, rng):
    node = rng.choice(case.graph.node)
    kinds = onnx.AttributeProto
    if node.attribute and rng.random() < 0.75:
        a = rng.choice(node.attribute)
        if a.type == kinds.INT:
            if a.name in FLAGS:
                a.i = 1 - a.i
            else:
                a.i = rng.choice([rng.choice(NUMBERS), a.i + 1, a.i - 1, -a.i, a.i * 2]) if a.name != "to" else rng.choice([1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13])
        elif a.type == kinds.INTS and a.ints:
            i = rng.randrange(len(a.ints))
            t = rng.random()
            if t < 0.6:
                a.ints[i] = rng.choice([rng.choice(NUMBERS), a.ints[i] + 1, a.ints[i] - 1])
            elif t < 0.8:
                j = rng.randrange(len(a.ints))
                a.ints[i], a.ints[j] = a.ints[j], a.ints[i]
            else:
                del a.ints[i]
        elif a.type == kinds.FLOAT:
            a.f = rng.choice([0.0, 1.0, -1.0, 0.5, a.f * 2, -a.f, 1e-5, 3.0])
        elif a.type == kinds.STRING:
            a.s = rng.choice(WORDS.get(a.name, [a.s.decode(errors="replace")])).encode()
        elif a.type == kinds.FLOATS and a.floats:
            a.floats[rng.randrange(len(a.floats))] = rng.choice([0.0, 1.0, 0.5, -1.0, 2.0])
        else:
            return False
        case.changes.append(f"{node.op_type}.{a.name} = {helper.get_attribute_value(a) if a.type != kinds.TENSOR else '..'}")
        return True
    if node.attribute and rng.random() < 0.4:
        i = rng.randrange(len(node.attribute))
        case.changes.append(f"{node.op_type}: no {node.attribute[i].name}")
        del node.attribute[i]
        return True
    s = schema(node, case.model)
    absent = [a for n, a in s.attributes.items() if all(x.name != n for x in node.attribute)] if s else []
    if not absent:
        return False
    a = rng.choice(absent)
    t = onnx.defs.OpSchema.AttrType
    value = None
    if a.type == t.INT:
        value = rng.choice([0, 1]) if a.name in FLAGS else rng.choice(NUMBERS[2:])
    elif a.type == t.INTS:
        value = [rng.choice(NUMBERS[1:7]) for _ in range(rng.choice([1, 2, 2, 4]))]
    elif a.type == t.FLOAT:
        value = rng.choice([0.0, 0.5, 1.0, 2.0, -1.0])
    elif a.type == t.STRING and a.name in WORDS:
        value = rng.choice(WORDS[a.name])
    if value is None:
        return False
    node.attribute.append(helper.make_attribute(a.name, value))
    case.changes.append(f"{node.op_type}.{a.name} = {value}")
    return True


def change_constant(case, rng):
    """One element of a small constant of integers, or all elements of floats."""
    tensors = [t for t in case.graph.initializer]
    tensors += [a.t for n in case.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    tensors = [t for t in tensors if np.prod(t.dims) <= 64 and t.data_type in (1, 6, 7, 9, 10, 11)]
    if not tensors:
        return False
    t = rng.choice(tensors)
    try:
        a = np.array(numpy_helper.to_array(t))
    except Exception:
        return False
    if a.size == 0:
        return False
    i = np.unravel_index(rng.randrange(a.size), a.shape)
    if a.dtype.kind == "i":
        a[i] = rng.choice([rng.choice(NUMBERS), rng.choice(NUMBERS), int(a[i]) + 1, int(a[i]) - 1, 2**31 - 1 if a.dtype == np.int32 else 2**63 - 1])
    elif a.dtype.kind == "b":
        a[i] = not a[i]
    else:
        a[i] = rng.choice([0, 1, -1, 0.5, 2, 1e-5, 100])
    t.CopyFrom(numpy_helper.from_array(a, t.name))
    case.changes.append(f"constant {t.name} = {a.reshape(-1)[:8].tolist()}")
    return True


TYPES = {"float32": 1, "float16": 10, "float64": 11, "int32": 6, "int64": 7, "bfloat16": 16, "uint8": 2, "int8": 3}


def change_type(case, rng):
    """One element type becomes another in the whole model."""
    old, new = rng.choice([(1, 10), (1, 11), (1, 10), (1, 11), (7, 6), (6, 7), (10, 1), (2, 3), (3, 2), (11, 1), (1, 6), (1, 7)])
    return retype(case, old, new)


def retype(case, old, new):
    to = helper.tensor_dtype_to_np_dtype(new)
    found = False

    def convert(t):
        nonlocal found
        if t.data_type == old:
            found = True
            with np.errstate(all="ignore"):
                t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(to), t.name))

    def info(v):
        nonlocal found
        if v.type.HasField("tensor_type") and v.type.tensor_type.elem_type == old:
            found = True
            v.type.tensor_type.elem_type = new

    for v in [*case.graph.input, *case.graph.output]:
        info(v)
    del case.graph.value_info[:]
    for t in case.graph.initializer:
        convert(t)
    for n in case.graph.node:
        for a in n.attribute:
            if a.type == onnx.AttributeProto.TENSOR:
                convert(a.t)
            elif a.name in ("to", "dtype") and a.i == old:
                a.i = new
    source = helper.tensor_dtype_to_np_dtype(old)
    with np.errstate(all="ignore"):
        case.feeds = {n: a.astype(to) if a.dtype == source else a for n, a in case.feeds.items()}
    case.changes.append(f"type {old} becomes {new}")
    return found


def names_before(graph, index):
    return [i.name for i in graph.input] + [t.name for t in graph.initializer] + [o for n in graph.node[:index] for o in n.output if o]


def change_edge(case, rng):
    graph = case.graph
    index = rng.randrange(len(graph.node))
    node = graph.node[index]
    if not node.input:
        return False
    i = rng.randrange(len(node.input))
    t = rng.random()
    if t < 0.15:
        case.changes.append(f"{node.op_type}: input {i} left out")
        node.input[i] = ""
    elif t < 0.6:
        name = rng.choice(names_before(graph, index))
        case.changes.append(f"{node.op_type}: input {i} is {name}")
        node.input[i] = name
    elif t < 0.75 and len(node.input) >= 2:
        j = rng.randrange(len(node.input))
        case.changes.append(f"{node.op_type}: inputs {i} and {j} change places")
        node.input[i], node.input[j] = node.input[j], node.input[i]
    elif node.input[i]:
        op = rng.choice("Abs Neg Relu Sigmoid Identity Tanh Floor Transpose Flatten Cast Cast Unsqueeze Shape Not Softmax Exp Squeeze Size Sqrt".split())
        new = f"{node.input[i]}_{len(graph.node)}_{rng.randrange(1000)}"
        more = {"to": rng.choice([1, 6, 7, 9, 10, 11])} if op == "Cast" else {}
        inserted = helper.make_node(op, [node.input[i]], [new], **more)
        case.changes.append(f"{op} before input {i} of {node.op_type}")
        node.input[i] = new
        nodes = list(graph.node)
        nodes.insert(index, inserted)
        rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(rest)
    return True


def change_operator(case, rng):
    """Another operator of the same kind."""
    groups = [
        "Add Sub Mul Div Max Min Pow Mod",
        "Relu Sigmoid Tanh Abs Neg Exp Floor Ceil Round Sqrt Erf Softplus Sign Reciprocal Elu Selu",
        "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp",
        "Softmax LogSoftmax Hardmax LpNormalization",
        "Equal Less Greater LessOrEqual GreaterOrEqual",
        "ArgMax ArgMin",
        "And Or Xor",
        "Expand Reshape Tile",
        "MaxPool AveragePool LpPool",
        "Squeeze Unsqueeze",
    ]
    node = rng.choice(case.graph.node)
    same = next((g.split() for g in groups if node.op_type in g.split()), None)
    if same is None or node.domain:
        return False
    node.op_type, old = rng.choice(same), node.op_type
    case.changes.append(f"{old} becomes {node.op_type}")
    return True


def change_opset(case, rng):
    for i in case.model.opset_import:
        if not i.domain:
            i.version = rng.choice([7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24])
            case.changes.append(f"opset {i.version}")
            if i.version > 20 and case.model.ir_version < 10:
                case.model.ir_version = 10
            return True
    return False


def change_interface(case, rng):
    """Initialisers that are inputs, inputs that are constants, further outputs."""
    graph = case.graph
    t = rng.random()
    if t < 0.35 and graph.initializer:
        w = rng.choice(graph.initializer)
        if any(i.name == w.name for i in graph.input):
            return False
        graph.input.append(helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)))
        if case.model.ir_version < 4:
            return False
        array = numpy_helper.to_array(w)
        if rng.random() < 0.5 and array.dtype.kind == "f":
            case.feeds[w.name] = (array * array.dtype.type(0.5)).astype(array.dtype)
        case.changes.append(f"{w.name} is an input with a default")
    elif t < 0.65 and graph.input:
        index = rng.randrange(len(graph.input))
        name = graph.input[index].name
        if name not in case.feeds or any(w.name == name for w in graph.initializer) or not graph.input[index].type.HasField("tensor_type"):
            return False
        graph.initializer.append(numpy_helper.from_array(case.feeds.pop(name), name))
        del graph.input[index]
        case.changes.append(f"{name} is a constant")
    else:
        inner = [o for n in graph.node for o in n.output if o and all(o != x.name for x in graph.output)]
        if not inner:
            return False
        name = rng.choice(inner)
        graph.output.append(onnx.ValueInfoProto(name=name))
        case.changes.append(f"{name} is an output")
    return True


def change_data(case, rng):
    names = [n for n, a in case.feeds.items() if a.dtype.kind == "f" and a.size]
    if not names:
        return False
    name = rng.choice(names)
    a = np.array(case.feeds[name])
    what = rng.choice(["zero", "negative", "large", "nan", "inf", "whole", "equal"])
    if what in ("nan", "inf"):
        a.reshape(-1)[rng.randrange(a.size)] = {"nan": np.nan, "inf": rng.choice([np.inf, -np.inf])}[what]
    else:
        with np.errstate(all="ignore"):
            a = {"zero": a * 0, "negative": -np.abs(a), "large": a * 50, "whole": np.round(a * 3), "equal": np.full_like(a, a.flat[0])}[what]
    case.feeds[name] = a.astype(case.feeds[name].dtype)
    case.changes.append(f"{name} is {what}")
    return True


def change_extent(case, rng):
    """An extent of the inputs, wherever it occurs or in one place; outputs are declared without shapes."""
    places = [(n, i) for n, a in case.feeds.items() for i in range(a.ndim)]
    if not places:
        return False
    name, axis = rng.choice(places)
    old, new = case.feeds[name].shape[axis], rng.choice([0, 1, 1, 2, 3, 5, 8])
    everywhere = rng.random() < 0.7
    targets = [(n, i) for n, i in places if case.feeds[n].shape[i] == old] if everywhere else [(name, axis)]
    for n, i in targets:
        shape = list(case.feeds[n].shape)
        shape[i] = new
        case.feeds[n] = resized(case.feeds[n], shape)
    for v in case.graph.input:
        if v.name in case.feeds and v.type.HasField("tensor_type") and v.type.tensor_type.HasField("shape"):
            for d, e in zip(v.type.tensor_type.shape.dim, case.feeds[v.name].shape):
                if not d.dim_param:
                    d.dim_value = e
    forget_outputs(case)
    case.extents = declared_symbols(case.model, case.feeds)
    case.changes.append(f"extent {old} becomes {new}")
    return True


def change_symbols(case, rng):
    """Extents of the inputs get names; equal extents may share one."""
    values = {}
    changed = False
    for v in case.graph.input:
        if v.name not in case.feeds or not v.type.HasField("tensor_type"):
            continue
        shape = case.feeds[v.name].shape
        if len(v.type.tensor_type.shape.dim) != len(shape):
            continue
        for d, e in zip(v.type.tensor_type.shape.dim, shape):
            if not d.dim_param and rng.random() < 0.5:
                fresh = f"s{len(values)}"
                name = rng.choice([n for n, x in values.items() if x == e] or [fresh]) if rng.random() < 0.8 else fresh
                values[name] = e
                d.dim_param = name
                changed = True
    if changed:
        forget_outputs(case)
        case.extents = declared_symbols(case.model, case.feeds)
        case.changes.append("extents are symbols")
    return changed


def forget_outputs(case):
    """Declares outputs by type alone, and drops the shapes of all other values."""
    del case.graph.value_info[:]
    for o in case.graph.output:
        if o.type.HasField("tensor_type"):
            o.type.tensor_type.ClearField("shape")


def resized(array, shape):
    """Other extents with the same kind of values."""
    size = int(np.prod(shape))
    if array.size == 0:
        return np.zeros(shape, array.dtype)
    return np.resize(array.reshape(-1), size).reshape(shape).astype(array.dtype)


EXTENTS = [0, 1, 1, 2, 2, 3, 5, 6, 7, 9, 12, 17, 33]


def other_extents(case, rng):
    """Feeds in which the symbols have other extents; None where there are no symbols."""
    if not case.extents:
        return None
    names = sorted(case.extents)
    new = dict(case.extents)
    for n in names if rng.random() < 0.5 else [rng.choice(names)]:
        new[n] = rng.choice(EXTENTS)
    feeds = dict(case.feeds)
    for v in case.graph.input:
        if v.name in feeds and v.type.HasField("tensor_type"):
            dims = v.type.tensor_type.shape.dim
            if len(dims) == feeds[v.name].ndim:
                shape = [new.get(d.dim_param, e) for d, e in zip(dims, feeds[v.name].shape)]
                if int(np.prod(shape)) > 200_000:
                    return None
                if shape != list(feeds[v.name].shape):
                    feeds[v.name] = resized(feeds[v.name], shape)
    return feeds


def change_body(case, rng):
    """A node becomes an `If`, a `Loop` or a `Scan` around itself."""
    graph = case.graph
    index = rng.randrange(len(graph.node))
    node = graph.node[index]
    if len(node.output) != 1 or any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        return False
    tag, out = f"b{index}_{rng.randrange(100)}", node.output[0]
    inner = lambda op, ins, outs, **more: helper.make_node(op, ins, outs, **more)
    value = lambda name: onnx.ValueInfoProto(name=name)
    kind = rng.choice(["If", "If", "Loop", "Scan"])
    if kind == "If":
        cond = f"{tag}_cond"
        once, twice = onnx.NodeProto(), onnx.NodeProto()
        once.CopyFrom(node)
        twice.CopyFrom(node)
        once.output[0], twice.output[0] = f"{tag}_then", f"{tag}_inner"
        last = inner(rng.choice(["Identity", "Identity", "Neg", "Abs"]), [f"{tag}_inner"], [f"{tag}_else"])
        then = helper.make_graph([once], "then", [], [value(f"{tag}_then")])
        other = helper.make_graph([twice, last], "else", [], [value(f"{tag}_else")])
        new = inner("If", [cond], [out], then_branch=then, else_branch=other)
        flag = np.array(rng.random() < 0.5)
        if rng.random() < 0.3:
            graph.initializer.append(numpy_helper.from_array(flag, cond))
        else:
            graph.input.append(helper.make_tensor_value_info(cond, TensorProto.BOOL, []))
            case.feeds[cond] = flag
    else:
        read = [n for n in node.input if n]
        if len(read) != 1:
            return False
        body_node = onnx.NodeProto()
        body_node.CopyFrom(node)
        body_node.input[list(node.input).index(read[0])] = f"{tag}_in"
        body_node.output[0] = f"{tag}_out"
        typed = next((i for i in graph.input if i.name == read[0]), None)
        element = typed.type.tensor_type.elem_type if typed is not None else 1
        state = helper.make_tensor_value_info(f"{tag}_in", element, None)
        if kind == "Loop":
            count = f"{tag}_count"
            graph.initializer.append(numpy_helper.from_array(np.array(rng.choice([0, 1, 2, 3])), count))
            step = [helper.make_tensor_value_info(f"{tag}_i", 7, []), helper.make_tensor_value_info(f"{tag}_go", 9, []), state]
            keep = inner("Identity", [f"{tag}_go"], [f"{tag}_on"])
            go = helper.make_tensor_value_info(f"{tag}_on", 9, [])
            body = helper.make_graph([keep, body_node], "body", step, [go, helper.make_tensor_value_info(f"{tag}_out", element, None)])
            new = inner("Loop", [count, "", read[0]], [out], body=body)
        else:
            body = helper.make_graph([body_node], "body", [state], [helper.make_tensor_value_info(f"{tag}_out", element, None)])
            new = inner("Scan", [read[0]], [out], body=body, num_scan_inputs=1)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    nodes[index] = new
    del graph.node[:]
    graph.node.extend(nodes)
    case.changes.append(f"{kind} around {node.op_type}")
    return True


CHANGES = [
    (change_body, 1),
    (change_attribute, 5),
    (change_constant, 4),
    (change_type, 2),
    (change_edge, 4),
    (change_operator, 3),
    (change_opset, 1),
    (change_interface, 2),
    (change_data, 2),
    (change_extent, 3),
    (change_symbols, 3),
]


def mutate(case, rng):
    """A few changes; those that do not apply are skipped."""
    functions, weights = zip(*CHANGES)
    for f in rng.choices(functions, weights, k=rng.choice([0, 1, 1, 1, 2, 2, 3])):
        f(case, rng)
    if not case.extents and rng.random() < 0.5:
        change_symbols(case, rng)
    normalise(case)
    return case


def normalise(case):
    """Plain names for outputs, feeds for what the graph reads, and no name twice."""
    graph = case.graph
    names = {i.name for i in graph.input}
    case.feeds = {n: a for n, a in case.feeds.items() if n in names}
    # A symbol has one extent. ONNX Runtime does not check that, and a change of one place breaks it.
    extents = {}
    for v in graph.input:
        if v.name in case.feeds and v.type.HasField("tensor_type"):
            for d, e in zip(v.type.tensor_type.shape.dim, case.feeds[v.name].shape):
                if d.dim_param and extents.setdefault(d.dim_param, e) != e:
                    d.dim_param = f"{d.dim_param}_{e}"
                    extents[d.dim_param] = e
    case.extents = declared_symbols(case.model, case.feeds)
    seen = set()
    keep = []
    for o in graph.output:
        if o.name not in seen:
            seen.add(o.name)
            keep.append(onnx.ValueInfoProto.FromString(o.SerializeToString()))
    del graph.output[:]
    graph.output.extend(keep)
    return case


def seed_of(*parts):
    return random.Random("/".join(map(str, parts)))
