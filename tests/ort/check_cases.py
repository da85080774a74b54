#!/usr/bin/env python3
"""Runs folders of models in every way that sinter offers, and compares each result with the expected outputs.

    check_cases.py --sinter target/release/sinter [--report docs/cases.md] [--only PATTERN] [--attacks DIR] DIR...

A folder of DIR, or of a folder in it, that holds model.onnx is a model. Its inputs lie in `inputs/`, in `in/` or beside it, its expected
outputs in `expected/` or beside it; where there are none, ONNX Runtime makes them. Ways are `run MODEL`, a plan for each of four
mappings, and the emitted ONNX file in both dialects, which onnx.checker must accept and ONNX Runtime load and run.
A folder of --attacks with a `REPRO` file is also executed: its commands must end in time, without a panic, and with what DEMANDS says.

Exit code 1: a result differs, something crashes or does not load, or a refusal is not in REFUSALS. Needs numpy, onnx and onnxruntime.
"""

import argparse
import collections
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx

import oracle
from oracle import Ort, Sinter

MAPPINGS = [(1, 1), (2, 1), (1, 2), (2, 2)]
DIALECTS = ("standard", "ort")

# What may be refused: patterns on the model's name and on the way, a pattern in the message, and the reason.
REFUSALS = [
    ("*", "plan *x2", r"--pp|stages|layers", "fewer layers than pipeline stages"),
    ("*", "plan 2x*", r"--tp|heads", "heads that tp does not divide"),
]

# Where expected outputs are less precise than the tolerance of their element type.
LOOSE = {
    "testbed/llama-genai-int4-cpu": ((5e-2, 5e-2), "ONNX Runtime rounds activations to 8 bits (accuracy_level 4)"),
}


def folders(roots):
    """Every model below the roots, by name."""
    found = {}
    for root in roots:
        for path in sorted(root.rglob("model.onnx")):
            folder = path.parent
            name = "/".join([root.name, *folder.relative_to(root).parts])
            found[name] = folder
    return found


def data_folders(folder):
    """Where inputs and expected outputs lie."""
    inputs = next((f for f in (folder / "inputs", folder / "in", folder.parent / "in", folder) if holds(f)), None)
    expected = next((f for f in (folder / "expected", folder) if holds(f, "output_*.npy")), None)
    return inputs, expected


def holds(folder, pattern="*.npy"):
    return folder.is_dir() and any(folder.glob(pattern))


def describe(path):
    """Names of inputs that must be given, of those that may be, and of outputs."""
    graph = onnx.load(str(path), load_external_data=False).graph
    # What is an initialiser besides has a default value.
    given = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    names = [i.name for i in graph.input]
    return [n for n in names if n not in given], [n for n in names if n in given], [o.name for o in graph.output]


def feeds_of(folder, model, session_names=None):
    required, optional, _ = describe(model)
    known = {}
    # Files are numbered in the order of the inputs, those with defaults included.
    every = [i.name for i in onnx.load(str(model), load_external_data=False).graph.input]
    for order in (every, required):
        for name, array in zip(order, oracle.numbered(folder, "input", order)):
            if array is not None:
                known.setdefault(name, array)
    return {n: a for n, a in known.items() if n in required or n in optional}


class Check:
    """One model in all ways."""

    def __init__(self, name, folder, sinter, ort, work):
        self.name, self.folder, self.sinter, self.ort, self.work = name, folder, sinter, ort, Path(work)
        self.model = folder / "model.onnx"
        self.rows = []
        self.loose = LOOSE.get(name, (None, ""))[0]

    def add(self, way, outcome, text=""):
        self.rows.append((self.name, way, outcome, text))

    def judge(self, way, actual):
        for name, a, e, n in zip(self.outputs, actual, self.expected, self.noise()):
            if e is None:
                continue
            loose = self.loose
            if a is not None and e.dtype == np.float32 and self.narrow:
                loose = loose or oracle.TOLERANCE[self.narrow]
            problem = oracle.compare(a, e, n, loose)
            if problem:
                return self.add(way, "differs", f"`{name}` {problem}")
        self.add(way, "agrees")

    def noise(self):
        return [None] * len(self.outputs)

    def run(self):
        try:
            _, _, self.outputs = describe(self.model)
        except Exception as e:
            return self.add("load", "skipped", f"no ONNX file: {e}")
        self.narrow = narrow_type(self.model)
        self.inputs, expected = data_folders(self.folder)
        if self.inputs is None:
            (self.work / "none").mkdir()
            self.inputs = self.work / "none"
        self.original, text = None, ""
        self.feeds = feeds_of(self.inputs, self.model)
        status, got = self.ort.run(self.model, [self.feeds])
        if status == "ok" and got[0][0] == "ok":
            self.original = got[0][1]
        else:
            text = got[0][1] if status == "ok" else got
        if expected:
            self.expected = oracle.numbered(expected, "output", self.outputs)
        elif self.original is not None:
            self.expected = [a if oracle.is_number(a) else None for a in self.original]
        else:
            self.expected = None
            self.add("expected", "skipped", f"ONNX Runtime does not run it: {oracle.first_line(text)}")
        self.run_model()
        # What is meant to exhaust time or memory is not repeated under every mapping.
        attack = self.name.startswith("attacks/")
        for tp, pp in MAPPINGS[:1] if attack else MAPPINGS:
            self.plan(tp, pp)
        for dialect in DIALECTS[:1] if attack else DIALECTS:
            self.emit(dialect)

    def outcome(self, way, done):
        """Notes a command that did not end well; true where it did."""
        if done.kind != "ok":
            self.add(way, "crash" if done.kind == "crash" else "refused", done.text)
        return done.kind == "ok"

    def execute(self, way, path):
        done, actual = self.sinter.run(path, self.inputs, self.work / "outputs", self.outputs)
        if self.outcome(way, done):
            self.judge(way, actual) if self.expected else self.add(way, "ran")

    def run_model(self):
        self.execute("run", self.model)

    def plan(self, tp, pp):
        way, plan = f"plan {tp}x{pp}", self.work / "plan"
        if self.outcome(way, self.sinter.call("optimize", self.model, "--tp", tp, "--pp", pp, "-o", plan)):
            self.execute(way, plan)
        shutil.rmtree(plan, ignore_errors=True)

    def emit(self, dialect):
        way, file = f"emit {dialect}", self.work / "emitted.onnx"
        done = self.sinter.call("optimize", self.model, "--emit", "onnx", "--dialect", dialect, "-o", file)
        if not self.outcome(way, done):
            return
        problem = oracle.invalid(file, dialect)
        if problem:
            return self.add(way, "invalid", problem)
        status, got = self.ort.run(file, [self.feeds])
        if status != "ok":
            # Some element types have no kernels in ONNX Runtime; then the original does not load either.
            known = self.original is None
            return self.add(way, "skipped" if known else "unloadable", oracle.first_line(got))
        kind, value = got[0]
        if kind != "ok":
            return self.add(way, "skipped" if self.original is None else "fails", oracle.first_line(value))
        self.judge(way, value) if self.expected else self.add(way, "ran")


def narrow_type(path):
    """The 16-bit type that a model computes in, where it does: its f32 outputs are no more precise."""
    model = onnx.load(str(path), load_external_data=False)
    types = {t.data_type for t in model.graph.initializer}
    for code, name in ((onnx.TensorProto.BFLOAT16, "bfloat16"), (onnx.TensorProto.FLOAT16, "float16")):
        if code in types:
            return name
    return None


# ---- attacks ----------------------------------------------------------------------------------------------------------------

# What must hold after the commands of a REPRO file, besides an end in time and no panic: a test in shell, and what it says.
DEMANDS = {
    "data-loss-plan-json": ("test -s proj/thesis.tex", "a file of the user's is gone"),
    "external-cwd": ('! grep -qa SECRET REPRO.out && ! test -e o/y.npy', "the file outside of the model's folder was read"),
    "name-collision": ('! test -d o || test "$(ls o | wc -l)" -ge 2', "one output replaced the other"),
    "crash-window": ("test -e plan", "the old plan is gone and no new one is there"),
}
# Commands that end by design with another program's limits or tools.
NEEDS = {"crash-window": "strace", "pid-reuse": "unshare", "thread-spawn-panic": "setpriv", "two-writers": "bash"}
ATTACK_SECONDS = 150


def attack(name, folder, sinter, root, work):
    """(outcome, text) of a REPRO file in a copy of its folder."""
    if name in NEEDS and not shutil.which(NEEDS[name]):
        return "skipped", f"{NEEDS[name]} is not installed"
    # REPRO files name ../../testbed.
    place = work / "attacks" / name
    shutil.copytree(folder, place)
    if not (work / "testbed").exists():
        (work / "testbed").symlink_to((root.parent / "testbed").resolve())
    bin_folder = work / "bin"
    bin_folder.mkdir(exist_ok=True)
    for target, source in (("sinter", Path(sinter).resolve()), ("python3", Path(sys.executable))):
        if not (bin_folder / target).exists():
            # A link to a venv's Python loses the venv.
            (bin_folder / target).write_text(f'#!/bin/sh\nexec "{source}" "$@"\n')
            (bin_folder / target).chmod(0o755)
    text = (folder / "REPRO").read_text()
    if re.search(r"\b[AB]\.onnx", text):
        for letter, layers in (("A", 2), ("B", 3)):
            make = Path(__file__).parent / "make_decoder.py"
            made = work / f"decoder-{letter}"
            if not made.exists():
                subprocess.run([sys.executable, make, made, "--layers", str(layers)], check=True, capture_output=True)
            for file in made.iterdir():
                to = place / (f"{letter}.onnx" if file.name == "model.onnx" else file.name)
                if not to.exists():
                    to.symlink_to(file)
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    with open(place / "REPRO.out", "wb") as out:
        process = subprocess.Popen(["bash", "REPRO"], cwd=place, env=env, stdout=out, stderr=out, start_new_session=True)
        try:
            code = process.wait(ATTACK_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return "crash", f"no end within {ATTACK_SECONDS} s"
    said = (place / "REPRO.out").read_text(errors="replace")
    if "panicked at" in said or code >= 128 or "core dumped" in said or "memory allocation of" in said:
        return "crash", f"exit code {code}: {oracle.first_line(said)}"
    if name.startswith("shape-"):
        # The last line prints both.
        both = re.search(r"sinter (.*) ORT (.*)", said)
        if both:
            numbers = [re.findall(r"-?[\d.]+", re.sub(r"dtype=\w+", "", part)) for part in both.groups()]
            if numbers[0] != numbers[1]:
                return "differs", both.group(0)
    if name in DEMANDS:
        test, what = DEMANDS[name]
        if subprocess.run(["bash", "-c", test], cwd=place, env=env).returncode != 0:
            return "differs", what
    return "agrees", ""


# ---- all --------------------------------------------------------------------------------------------------------------------


def allowed(name, way, text):
    for model, ways, pattern, reason in REFUSALS:
        if fnmatch.fnmatch(name, model) and fnmatch.fnmatch(way, ways) and re.search(pattern, text):
            return reason
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sinter", required=True)
    parser.add_argument("--report", type=Path, help="write the table into this file")
    parser.add_argument("--only", default="*", help="a pattern on the names of models")
    parser.add_argument("--attacks", type=Path, help="a folder of inputs with REPRO files")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("roots", nargs="*", type=Path, metavar="DIR")
    o = parser.parse_args()
    roots = [r for r in o.roots if r.is_dir()]
    chosen = {n: f for n, f in folders(roots + ([o.attacks] if o.attacks else [])).items() if fnmatch.fnmatch(n, o.only)}
    repros = []
    if o.attacks:
        repros = [d for d in sorted(o.attacks.iterdir()) if (d / "REPRO").is_file() and fnmatch.fnmatch(f"attacks/{d.name}", o.only)]
    if not chosen and not repros:
        sys.exit(f"no model is called {o.only} in {', '.join(map(str, roots)) or 'no folder'}")
    oracle.limit_memory()
    sessions = collections.deque(Ort() for _ in range(o.jobs))

    def one(item):
        name, folder = item
        ort = sessions.popleft()
        with tempfile.TemporaryDirectory(dir=oracle.scratch()) as work:
            check = Check(name, folder, Sinter(o.sinter, timeout=60), ort, work)
            check.run()
        sessions.append(ort)
        return check.rows

    with ThreadPoolExecutor(o.jobs) as pool:
        rows = [row for found in pool.map(one, chosen.items()) for row in found]
    for ort in sessions:
        ort.stop()
    if repros:
        with tempfile.TemporaryDirectory(dir=oracle.scratch()) as work:
            for d in repros:
                rows.append((f"attacks/{d.name}", "REPRO", *attack(d.name, d, o.sinter, o.attacks, Path(work))))
    bad, refused = [], []
    for name, way, outcome, text in rows:
        if outcome == "refused":
            reason = allowed(name, way, text)
            refused.append((name, way, reason, text))
            if reason is None:
                bad.append((name, way, outcome, text))
        elif outcome not in ("agrees", "ran", "skipped"):
            bad.append((name, way, outcome, text))
    # One paragraph for all ways that say the same.
    said = collections.defaultdict(list)
    for name, way, outcome, text in bad:
        said[(name, outcome, oracle.template(text))].append((way, text))
    for (name, outcome, _), ways in said.items():
        print(f"{name}: {', '.join(w for w, _ in ways)}: {outcome}: " + "\n    ".join(ways[0][1][:600].splitlines()))
    counts = collections.Counter(outcome for _, _, outcome, _ in rows)
    summary = ", ".join(f"{n} {k}" for k, n in counts.most_common())
    total = f"{len(chosen)} models in {len(rows)} ways: {summary}; {len(bad)} are faults"
    print(total)
    if o.report:
        write(o.report, total, chosen, rows, refused)
    return 1 if bad else 0


def write(path, total, chosen, rows, refused):
    ways = ["run", *[f"plan {tp}x{pp}" for tp, pp in MAPPINGS], *[f"emit {d}" for d in DIALECTS]]
    of = {(name, way): outcome for name, way, outcome, _ in rows}
    text = [
        "# Models in every way",
        "",
        "Generated by `make cases`: `run MODEL`, plans for tp x pp, and emitted ONNX files in ONNX Runtime, compared with the expected",
        "outputs. A dot agrees; `skipped` means that ONNX Runtime has no kernel for the model's types.",
        "",
        f"**{total}.**",
        "",
        "| model | " + " | ".join(ways) + " |",
        "|---|" + "---|" * len(ways),
    ]
    for name in chosen:
        cells = ["." if of.get((name, w)) == "agrees" else of.get((name, w), "") for w in ways]
        text.append(f"| {name} | {' | '.join(cells)} |")
    repros = [(n, outcome, t) for n, way, outcome, t in rows if way == "REPRO"]
    if repros:
        text += ["", "## Commands of the attacks", "", "| attack | outcome |", "|---|---|"]
        text += [f"| {n} | {'holds' if outcome == 'agrees' else outcome} {t} |".replace(" |", " |") for n, outcome, t in repros]
    groups = collections.defaultdict(list)
    for name, way, reason, message in refused:
        groups[(reason or "**not allowed**", oracle.template(message))].append(f"{name} ({way})")
    if groups:
        text += ["", "## Refused", "", "| reason | message | models |", "|---|---|---|"]
        for (reason, message), names in sorted(groups.items()):
            text.append(f"| {reason} | {message.replace('|', '/')} | {', '.join(names)} |")
    path.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    sys.exit(main())
