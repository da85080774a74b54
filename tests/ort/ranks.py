"""The files of all ranks as one model: collectives become sums and joins over the ranks.

Ranks are put side by side in one graph. Their nodes run up to the next collective, which reads the operand of every rank. What a
stage sends is an operand of the next one; inputs and outputs of which a rank has a part are cut and joined as the host does.
"""

import re

import onnx
from onnx import helper, inliner

COLLECTIVES = ("AllReduce", "AllGather")


def parts(model, what):
    """`part I of N along axis D` of the metadata, by name of the input or output."""
    key = f"sinter.{what}."
    found = {p.key.removeprefix(key): p.value for p in model.metadata_props if p.key.startswith(key)}
    return {name: [int(n) for n in re.findall(r"\d+", text)] for name, text in found.items()}


def prefixed(node, prefix):
    """The node with other names for all values, in bodies too."""
    n = onnx.NodeProto()
    n.CopyFrom(node)
    name = lambda s: prefix + s if s else s
    n.input[:] = map(name, node.input)
    n.output[:] = map(name, node.output)
    n.name = name(node.name)
    for a in n.attribute:
        for g in [a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs:
            for v in [*g.input, *g.output, *g.value_info, *g.initializer]:
                v.name = prefix + v.name
            inner = [prefixed(x, prefix) for x in g.node]
            del g.node[:]
            g.node.extend(inner)
    return n


def collective(op, axis, operands, result):
    if op == "AllGather":
        return [helper.make_node("Concat", operands, [result], axis=axis)]
    nodes, total = [], operands[0]
    for i, x in enumerate(operands[1:]):
        to = result if i + 2 == len(operands) else f"{result}.{i}"
        nodes.append(helper.make_node("Add", [total, x], [to]))
        total = to
    return nodes


def joined(paths, tp, original):
    """The model of all ranks with the interface of the model that was compiled."""
    ranks = [inliner.inline_local_functions(onnx.load(str(p))) for p in paths]
    interface = original.graph
    defaults = {i.name for i in interface.initializer}
    inputs = {v.name: v for v in interface.input if v.name not in defaults}
    nodes, initializers = [], []
    held = {}
    for stage in range(len(ranks) // tp):
        files = ranks[stage * tp : (stage + 1) * tp]
        prefix = [f"s{stage}r{r}/" for r in range(tp)]
        for r, m in enumerate(files):
            cut = parts(m, "input")
            for v in m.graph.input:
                to = prefix[r] + v.name
                if v.name in cut:
                    index, n, axis = cut[v.name]
                    split = [f"{to}.{i}" for i in range(n)]
                    nodes.append(helper.make_node("Split", [v.name], split, axis=axis, num_outputs=n))
                    nodes.append(helper.make_node("Identity", [split[index]], [to]))
                else:
                    source = v.name if v.name in inputs else held[r, v.name]
                    nodes.append(helper.make_node("Identity", [source], [to]))
            for t in m.graph.initializer:
                t.name = prefix[r] + t.name
                initializers.append(t)
        at = [0] * tp
        while True:
            for r, m in enumerate(files):
                while at[r] < len(m.graph.node) and m.graph.node[at[r]].op_type not in COLLECTIVES:
                    nodes.append(prefixed(m.graph.node[at[r]], prefix[r]))
                    at[r] += 1
            waiting = [m.graph.node[at[r]] if at[r] < len(m.graph.node) else None for r, m in enumerate(files)]
            if not any(waiting):
                break
            if len({(n.op_type, n.domain) if n else None for n in waiting}) != 1:
                raise ValueError(f"the ranks of stage {stage} disagree about a collective")
            axis = next((a.i for a in waiting[0].attribute if a.name == "axis"), 0)
            operands = [prefix[r] + n.input[0] for r, n in enumerate(waiting)]
            for r, n in enumerate(waiting):
                nodes.extend(collective(n.op_type, axis, operands, prefix[r] + n.output[0]))
                at[r] += 1
        for r, m in enumerate(files):
            held.update({(r, v.name): prefix[r] + v.name for v in m.graph.output})
        cut = parts(files[0], "output")
        for v in files[0].graph.output:
            if v.name not in {o.name for o in interface.output}:
                continue
            if v.name in cut:
                _, n, axis = cut[v.name]
                whole = [prefix[i * tp // n] + v.name for i in range(n)]
                nodes.append(helper.make_node("Concat", whole, [v.name], axis=axis))
            else:
                nodes.append(helper.make_node("Identity", [prefix[0] + v.name], [v.name]))
    graph = helper.make_graph(nodes, "joined", list(inputs.values()), list(interface.output), initializers)
    opsets = {}
    for m in ranks:
        for o in m.opset_import:
            opsets[o.domain] = max(o.version, opsets.get(o.domain, 0))
    opsets = [helper.make_opsetid(d, v) for d, v in opsets.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=max(m.ir_version for m in ranks))
