"""Makes the model of a find small: fewer outputs, fewer nodes, inputs in place of what leads to a value."""

import onnx
from onnx import helper

import mutate
import oracle

TRIES = 160


class Shrink:
    def __init__(self, judge, find, case, feeds, mapping, dialect):
        self.judge, self.find, self.mapping, self.dialect = judge, find, mapping, dialect
        self.case, self.feeds, self.left = case, feeds, TRIES
        self.ways = ("run", "plan") if "refused" in find.kind else (find.way.split()[0],)
        if self.ways == ("optimize",):
            self.ways = ("plan",)

    def attempt(self, model, feeds):
        """Takes the model where the find is still there."""
        if self.left <= 0:
            return False
        self.left -= 1
        try:
            feeds = mutate.prune(model, feeds)
            case = mutate.Case(model, feeds[0], self.case.origin)
            case.changes = self.case.changes
            if not model.graph.node:
                return False
            found = self.judge.examine(case, feeds, self.mapping, self.dialect, self.ways)
        except Exception:
            return False
        if not self.find.same(found):
            return False
        self.case, self.feeds, self.find = case, feeds, found
        return True

    def fresh(self):
        model = onnx.ModelProto()
        model.CopyFrom(self.case.model)
        return model

    def run(self):
        self.one_feed()
        self.one_output()
        changed = True
        while changed and self.left > 0:
            before = len(self.case.graph.node)
            self.cut()
            self.bypass()
            changed = len(self.case.graph.node) < before
        self.fix_extents()
        return self.case, self.feeds, self.find

    def one_feed(self):
        for i in range(len(self.feeds)):
            if len(self.feeds) > 1 and self.attempt(self.fresh(), [self.feeds[i]]):
                return

    def one_output(self):
        for o in [o.name for o in self.case.graph.output]:
            if len(self.case.graph.output) == 1:
                return
            model = self.fresh()
            keep = [x for x in model.graph.output if x.name == o]
            keep = [onnx.ValueInfoProto.FromString(x.SerializeToString()) for x in keep]
            del model.graph.output[:]
            model.graph.output.extend(keep)
            self.attempt(model, self.feeds)

    def cut(self):
        """Makes inner values inputs, last ones first; and results of inner nodes the only output."""
        values = [mutate.all_values(self.case.model, f, self.judge.ort) for f in self.feeds]
        if any(v is None for v in values):
            return
        for name in [o for n in reversed(self.case.graph.node) for o in n.output if o]:
            graph = self.case.graph
            if len(graph.node) < 2 or any(o.name == name for o in graph.output) or any(name not in v for v in values):
                continue
            if all(name not in n.output for n in graph.node):
                continue
            for dims in (None, "static"):
                model = self.fresh()
                for n in model.graph.node:
                    for i, o in enumerate(n.output):
                        if o == name:
                            n.output[i] = f"{name}_unused"
                array = values[0][name]
                shape = [f"d{i}" for i in range(array.ndim)] if dims is None else list(array.shape)
                if dims and len(self.feeds) > 1:
                    break
                info = helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)
                model.graph.input.append(info)
                if self.attempt(model, [{**f, name: v[name]} for f, v in zip(self.feeds, values)]):
                    break

    def bypass(self):
        """Leaves nodes out: their readers read what the node read."""
        for index in reversed(range(len(self.case.graph.node))):
            graph = self.case.graph
            if index >= len(graph.node) or len(graph.node) < 2:
                continue
            node = graph.node[index]
            if not node.output or any(o.name in node.output for o in graph.output):
                continue
            for source in [n for n in node.input if n][:2]:
                model = self.fresh()
                for n in model.graph.node:
                    for i, name in enumerate(n.input):
                        if name == node.output[0]:
                            n.input[i] = source
                if self.attempt(model, self.feeds):
                    break

    def fix_extents(self):
        """Numbers in place of symbols, and constants in place of inputs."""
        if len(self.feeds) != 1:
            return
        model = self.fresh()
        for v in model.graph.input:
            if v.name in self.feeds[0] and v.type.HasField("tensor_type"):
                for d, e in zip(v.type.tensor_type.shape.dim, self.feeds[0][v.name].shape):
                    d.dim_value = e
        self.attempt(model, self.feeds)


def save(folder, case, feeds, find, judge, command):
    """The model with inputs and expected outputs, in ONNX's layout, and what was found."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(case.bytes())
    order = [i.name for i in case.graph.input]
    feed = feeds[min(find.feed, len(feeds) - 1)]
    oracle.write_inputs(folder / "inputs", [feed.get(n) for n in order])
    status, got = judge.ort.run(case.bytes(), [feed])
    if status == "ok" and got[0][0] == "ok":
        oracle.write_inputs(folder / "expected", [a for a in got[0][1]])
        for f in (folder / "expected").iterdir():
            f.rename(f.with_name(f.name.replace("input_", "output_")))
    text = [str(find), "", command, "", f"from {case.origin}: {'; '.join(case.changes)}", ""]
    text.append(onnx.printer.to_text(case.model)[:6000])
    for n in order:
        if n in feed:
            text.append(f"{n}: {feed[n].dtype} {list(feed[n].shape)} {feed[n].reshape(-1)[:8].tolist()}")
    (folder / "FIND").write_text("\n".join(text) + "\n")



