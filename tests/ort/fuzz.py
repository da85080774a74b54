#!/usr/bin/env python3
"""Compares sinter with ONNX Runtime on random models: changed ones of a corpus, parts of them, and generated ones.

    fuzz.py --sinter target/release/sinter [--seconds 60] [--seed 1] [--case N] [--out target/fuzz-ort] [--jobs 1] ROOT...

Each case is executed by `run MODEL`, as a plan for one or more ranks, and as an emitted file, at several extents of its symbols. Where
ONNX Runtime refuses a model, or ONNX leaves its result open, it is skipped; where sinter refuses, the reason is counted. A different result,
a crash, an emitted file that does not load or run, and a model that only one of the ways accepts are finds: they are made small and saved.
Case N of a seed is always the same for one corpus; --case runs it alone.

Exit code 1: there are finds that KNOWN does not name. Needs numpy, onnx and onnxruntime.
"""

import argparse
import collections
import hashlib
import multiprocessing
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import blocks
import generate
import mutate
import oracle
from judge import Find, Judge
from oracle import Ort, Sinter
from shrink import Shrink, save

# Finds that are no faults of sinter, or that are accepted: a pattern in the text of the find and its model, and the reason.
KNOWN = [
    ("DynamicQuantizeLSTM", "ONNX Runtime quantises the state of all samples together or of each alone, by its number of threads"),
    (r'auto_pad: string = "SAME.*dilations: ints = \[[2-9]', "ONNX Runtime pads dilated windows of SAME otherwise than the definition says"),
    ("MeanVarianceNormalization", "ONNX Runtime takes the variance as a difference of two sums of squares in f32"),
    (r"(?i)nan instead of 0\b.*moe", "ONNX Runtime chooses no expert where the router gives NaN, sinter gives NaN"),
    (r"Updating cos_cache.*\[0, ", "the contributed RotaryEmbedding of ONNX Runtime refuses tables without rows"),
    ("sliding_window_cache", "changed lengths contradict the window, and ONNX Runtime reads beyond the cache"),
]
# Outputs with longer names go to files with other names.
LONGEST_NAME = 100

MAPPINGS = [(1, 1), (1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]
# Finds of one signature that are made small, before they are only counted.
PER_SIGNATURE = 3


class Worker:
    def __init__(self, o, counts):
        self.o, self.counts = o, counts
        self.ort = Ort(timeout=30)
        self.paths = mutate.corpus(o.roots)
        self.sources = collections.OrderedDict()

    def source(self, path):
        if path not in self.sources:
            case = mutate.load(path)
            self.sources[path] = mutate.Source(case, self.ort) if case else None
            if len(self.sources) > 100:
                self.sources.popitem(last=False)
        return self.sources[path]

    def case(self, rng):
        """A model with inputs, or None."""
        if not self.paths or rng.random() < self.o.generated:
            grown = (blocks if rng.random() < self.o.blocks else generate).grow(rng, self.ort)
            if grown is None:
                return None
            case = mutate.Case(*grown, "generated")
            if rng.random() < 0.3:
                case = mutate.mutate(case, rng)
            return case
        source = self.source(rng.choice(self.paths))
        part = source and source.part(rng)
        return mutate.mutate(part, rng) if part and len(part.graph.node) <= 400 else None

    def run(self, index, work):
        """None, or the find with its model."""
        rng = mutate.seed_of(self.o.seed, index)
        try:
            case = self.case(rng)
        except Exception as e:
            # A change that the onnx package cannot express.
            self.counts[f"skipped: not built: {type(e).__name__}"] += 1
            return None
        if case is None:
            self.counts["skipped: nothing to change"] += 1
            return None
        if any(len(o.name) > LONGEST_NAME for o in case.graph.output):
            self.counts["skipped: a long name of an output"] += 1
            return None
        feeds = [case.feeds]
        for _ in range(2):
            other = mutate.other_extents(case, rng)
            if other is not None:
                feeds.append(other)
        mapping, dialect = rng.choice(MAPPINGS), rng.choice(["standard", "ort"])
        judge = Judge(Sinter(self.o.sinter, timeout=30), self.ort, work, self.counts)
        # A plan is executed faster than the rest.
        ways = [w for w, share in (("run", 0.4), ("plan", 1), ("emit", 0.6)) if rng.random() < share]
        find = judge.examine(case, feeds, mapping, dialect, ways)
        return (find, case, feeds, mapping, dialect, judge) if find else None


def signature(find, case):
    """Finds of one signature most likely have one cause."""
    ops = ""
    if find.kind == "differs":
        made = {o: n.op_type for n in case.graph.node for o in n.output}
        ops = made.get(find.output, "")
        if len(case.graph.node) <= 4:
            ops = " ".join(sorted({n.op_type for n in case.graph.node}))
        return f"differs {find.way.split()[0]} {ops}"
    return f"{find.kind} {find.way.split()[0]} {oracle.template(find.text)}"


def known(text):
    return next((reason for pattern, reason in KNOWN if re.search(pattern, text, re.DOTALL)), None)


def work_on(number, o, queue):
    """One process: cases number, number + jobs, .. until the time is over."""
    counts, seen = collections.Counter(), collections.Counter()
    oracle.limit_memory()
    end = time.monotonic() + o.seconds
    worker = Worker(o, counts)
    index = number if o.case is None else o.case
    with tempfile.TemporaryDirectory(dir=oracle.scratch()) as work:
        work = Path(work)
        while time.monotonic() < end and (o.most is None or index < o.most):
            counts["cases"] += 1
            at, index = index, index + o.jobs
            before = counts.copy()
            if counts["cases"] % 500 == 0:
                queue.put(("progress", f"{counts['cases']} cases of process {number}: {counts['judged']} judged"))
            try:
                found = worker.run(at, work)
            except Exception as e:
                queue.put(("error", f"case {at}: {type(e).__name__}: {e}"))
                found = None
            if found:
                find, case, feeds, mapping, dialect, judge = found
                first = signature(find, case)
                seen[first] += 1
                ignored = any(p in f"{find} {first}" for p in o.ignore)
                if not ignored and seen[first] <= PER_SIGNATURE and sum(seen.values()) < 500:
                    small, small_feeds, small_find = Shrink(judge, find, case, feeds, mapping, dialect).run()
                    # What shrinking examined is not counted.
                    counts.clear()
                    counts.update(before)
                    last = signature(small_find, small)
                    if any(p in f"{small_find} {last}" for p in o.ignore):
                        continue
                    seen[f"small {last}"] += 1
                    digest = hashlib.sha256(f"{o.seed}/{at}".encode()).hexdigest()[:6]
                    name = "".join(c if c.isalnum() else "-" for c in last)[:70].strip("-") + f"-{digest}"
                    command = f"fuzz.py --seed {o.seed} --case {at}"
                    save(o.out / name, small, small_feeds, small_find, judge, command)
                    reason = known((o.out / name / "FIND").read_text())
                    queue.put(("known" if reason else "find", f"{small_find}\n    {len(small.graph.node)} nodes: {o.out / name}\n    {command}"))
                counts[f"find: {first}"] += 1
            if o.case is not None:
                break
    worker.ort.stop()
    queue.put(("done", counts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sinter", required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="run this case of the seed alone")
    parser.add_argument("--most", type=int, help="run the first cases of the seed only, fewer where the time is over")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--generated", type=float, default=0.4, help="share of generated models")
    parser.add_argument("--blocks", type=float, default=0.5, help="share of parts of transformers in these")
    parser.add_argument("--ignore", action="append", default=[], metavar="TEXT", help="finds with this text are counted only")
    parser.add_argument("--out", type=Path, default=Path("target/fuzz-ort"), help="where finds are saved")
    parser.add_argument("roots", nargs="*", type=Path, metavar="ROOT", help="folders that hold model.onnx at any depth")
    o = parser.parse_args()
    o.jobs = 1 if o.case is not None else o.jobs
    print(f"seed {o.seed}, {len(mutate.corpus(o.roots))} models to start from", flush=True)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=work_on, args=(i, o, queue)) for i in range(o.jobs)]
    for w in workers:
        w.start()
    total, finds, errors, left = collections.Counter(), 0, 0, len(workers)
    while left:
        kind, what = queue.get()
        if kind == "done":
            total.update(what)
            left -= 1
            continue
        finds += kind == "find"
        errors += kind == "error"
        print(f"{kind.upper()} {what}", flush=True)
    for w in workers:
        w.join()
    for name, n in sorted(total.items(), key=lambda x: (-x[1], x[0])):
        print(f"{n:7} {name}")
    print(f"seed {o.seed}: {total['cases']} cases, {total['judged']} judged, {finds} finds")
    return 1 if finds or errors else 0


if __name__ == "__main__":
    sys.exit(main())
