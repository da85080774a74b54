"""What the scripts of this folder share: sinter's commands with limits, ONNX Runtime in a process of its own, comparison.

ONNX Runtime runs in a child process, because a damaged model may end it; so may sinter, which is what the scripts look for.
Needs numpy, onnx and onnxruntime.
"""

import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np

# |a - b| <= absolute * max(1, largest |b|) + relative * |b|.
TOLERANCE = {"float64": (1e-4, 1e-4), "float32": (1e-4, 1e-4), "float16": (2e-2, 2e-2), "bfloat16": (5e-2, 5e-2)}
SINTER_MEMORY = 6 << 30
ORT_MEMORY = 12 << 30


class Outcome:
    """What a command of sinter did: `ok`, `refused` (exit code 2 and a message), or `crash`."""

    def __init__(self, kind, text):
        self.kind, self.text = kind, text


def limit_memory(size=SINTER_MEMORY):
    """For this process and those that it starts; a limit set in the child alone would make each start slower."""
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def scratch():
    """Where many small files are best written: in memory, where that is offered."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Sinter:
    def __init__(self, program, timeout=60):
        self.program, self.timeout = str(Path(program).resolve()), timeout

    def call(self, *args):
        command = [self.program, *[str(a) for a in args]]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=self.timeout)
        except subprocess.TimeoutExpired:
            return Outcome("crash", f"no end within {self.timeout} s")
        text = done.stderr.strip()
        if done.returncode not in (0, 1, 2) or "panicked at" in text:
            return Outcome("crash", f"exit code {done.returncode}: {text[:2000]}")
        if done.returncode == 0:
            return Outcome("ok", text)
        return Outcome("refused" if done.returncode == 2 else "no", text)

    def run(self, model, inputs, outputs, names):
        """Executes a model or plan; the outputs are a list of arrays, where all of them are tensors of numbers."""
        outputs = Path(outputs)
        if outputs.exists():
            shutil.rmtree(outputs)
        done = self.call("run", model, "--inputs", inputs, "--outputs", outputs)
        if done.kind != "ok":
            return done, None
        arrays = [output_file(outputs, n, i) for i, n in enumerate(names)]
        return done, [read_array(a) if a else None for a in arrays]


def stems(name, prefix, index):
    """Under what a value's file may be found: awkward characters are written %XX, and a name that reads as another position is too."""
    code = lambda c: "".join(f"%{b:02X}" for b in c.encode())
    plain = "".join(code(c) if c in '/\\%"<>|?*' or ord(c) < 32 or i == 0 and c in ".-" else c for i, c in enumerate(name))
    position = re.fullmatch(r"(input|output)_(0|[1-9]\d*)", plain)
    if position and position.groups() != (prefix, str(index)):
        return [code(name[0]) + plain[1:], f"{prefix}_{index}"]
    return list(dict.fromkeys([plain, name.replace("/", "_"), f"{prefix}_{index}"]))


def output_file(folder, name, index):
    """The file of an output, which holds a tensor or another value."""
    forms = stems(name, "output", index)
    return next((folder / f"{f}.{end}" for f in forms for end in ("npy", "pb") if (folder / f"{f}.{end}").is_file()), None)


def read_array(path):
    """An array, or None where a .pb file holds no tensor of numbers."""
    if path.suffix == ".npy":
        return np.load(path)
    from onnx import TensorProto, numpy_helper

    t = TensorProto()
    try:
        t.ParseFromString(path.read_bytes())
        return numpy_helper.to_array(t)
    except Exception:
        return None


def write_inputs(folder, arrays):
    """input_<i>.npy; NumPy has no bfloat16, and sinter reads f32 in its place."""
    folder = Path(folder)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for i, a in enumerate(arrays):
        if a is not None:
            np.save(folder / f"input_{i}.npy", a)


def numbered(folder, prefix, names):
    """The arrays of a folder, by name or number; None where one is absent."""
    out = []
    for i, name in enumerate(names):
        file = next((folder / f"{f}.npy" for f in stems(name, prefix, i) if (folder / f"{f}.npy").is_file()), None)
        out.append(np.load(file) if file else None)
    return out


# ---- ONNX Runtime -----------------------------------------------------------------------------------------------------------


def serve(pipe):
    """The child: runs models as they are asked for."""
    import onnxruntime as ort

    limit_memory(ORT_MEMORY)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    ort.set_default_logger_severity(4)
    while True:
        try:
            model, feeds, wanted = pipe.recv()
        except EOFError:
            return
        try:
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 4
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as e:
            pipe.send(("load", str(e)))
            continue
        results = []
        for feed in feeds:
            try:
                known = {i.name for i in session.get_inputs()}
                # Initialisers that are inputs are listed apart.
                known |= {i.name for i in session.get_overridable_initializers()}
                got = session.run(wanted, {k: v for k, v in feed.items() if k in known})
                results.append(("ok", got))
            except Exception as e:
                results.append(("run", str(e)))
        pipe.send(("ok", results))


class Ort:
    """ONNX Runtime without optimisation, in a child that is started again when it dies."""

    def __init__(self, timeout=60):
        self.timeout, self.child, self.pipe = timeout, None, None

    def start(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.child = context.Process(target=serve, args=(other,), daemon=True)
        self.child.start()
        other.close()

    def stop(self):
        if self.child:
            self.child.kill()
            self.child.join()
            self.pipe.close()
        self.child = None

    def run(self, model, feeds, wanted=None):
        """(`ok`, [(`ok`, arrays) or (`run`, message) for each feed]), or (`load` or `crash`, message)."""
        if self.child is None or not self.child.is_alive():
            self.stop()
            self.start()
        try:
            self.pipe.send((model if isinstance(model, bytes) else str(model), feeds, wanted))
            if not self.pipe.poll(self.timeout):
                self.stop()
                return "crash", f"ONNX Runtime did not end within {self.timeout} s"
            return self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.stop()
            return "crash", "ONNX Runtime ended"


def reference(path, feeds):
    """As Ort.run, by ONNX's reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(str(path))
    except Exception as e:
        return "load", f"{type(e).__name__}: {e}"
    results = []
    for feed in feeds:
        try:
            results.append(("ok", evaluator.run(None, feed)))
        except Exception as e:
            results.append(("run", f"{type(e).__name__}: {e}"))
    return "ok", results


def invalid(path, dialect):
    """What onnx.checker finds wrong with an emitted file, or None. The dialect `ort` has operators of ONNX Runtime in ONNX's domain."""
    import onnx

    if dialect != "standard":
        return None
    try:
        onnx.checker.check_model(str(path))
    except Exception as e:
        return first_line(str(e))
    return None


def small_float(info):
    """The NumPy type of an output of 8-bit floats, else None."""
    import ml_dtypes

    names = {17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz"}
    name = names.get(info.type.tensor_type.elem_type)
    return name and getattr(ml_dtypes, name)


# ---- comparison -------------------------------------------------------------------------------------------------------------


def is_number(a):
    return isinstance(a, np.ndarray) and a.dtype.kind in "fiubV" or getattr(getattr(a, "dtype", None), "name", "") == "bfloat16"


def compare(actual, expected, noise=None, loose=None, element=None):
    """None where the arrays agree, else what differs. `noise` is an array of what rounding of the inputs changes in `expected`."""
    if actual is None:
        return "is missing"
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)} instead of {list(expected.shape)}"
    if actual.dtype.kind == "V" and actual.dtype.itemsize == 2:
        # NumPy files hold the bits of bfloat16.
        actual = (actual.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    wide = {"bfloat16": "float32"}
    a_type, e_type = str(actual.dtype), str(expected.dtype)
    if wide.get(a_type, a_type) != wide.get(e_type, e_type):
        return f"has type {a_type} instead of {e_type}"
    if actual.size == 0:
        return None
    if element and actual.dtype == np.uint8:
        # NumPy files hold the bits of 8-bit floats, of which several are NaN.
        actual, expected = actual.view(element).astype(np.float32), expected.view(element).astype(np.float32)
    if expected.dtype.kind in "iub":
        # 64-bit integers do not fit f64.
        bad = actual != expected
        if bad.any() and noise is not None:
            bad &= ~(noise > 0)
        if not bad.any():
            return None
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        return f"differs at {list(at)} and {int(bad.sum()) - 1} more places: {actual[at]} instead of {expected[at]}"
    with np.errstate(all="ignore"):
        a, e = actual.astype(np.float64), expected.astype(np.float64)
        same = (a == e) | (np.isnan(a) & np.isnan(e))
        finite = np.abs(e[np.isfinite(e)])
        scale = max(1.0, float(finite.max()) if finite.size else 1.0)
        absolute, relative = loose or TOLERANCE.get(e_type, (1e-4, 1e-4))
        allowed = absolute * scale + relative * np.abs(np.where(np.isfinite(e), e, 0))
        if noise is not None:
            allowed = allowed + 50 * noise
        bad = ~(same | (np.abs(a - e) <= allowed))
    if not bad.any():
        return None
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"differs at {list(at)} and {int(bad.sum()) - 1} more places: {a[at]:.9g} instead of {e[at]:.9g}"


def perturbed(arrays, rng, absolute=False):
    """The inputs with other last digits, of each element or of the largest."""
    out = []
    for a in arrays:
        if a is not None and a.dtype.kind == "f":
            size = {"float16": 1e-3, "float64": 1e-6}.get(str(a.dtype), 1e-6)
            with np.errstate(all="ignore"):
                by = size * rng.choice([-1, 1], size=a.shape)
                finite = np.abs(a[np.isfinite(a)])
                b = (a + by * float(finite.max(initial=0)) if absolute else a * (1 + by)).astype(a.dtype)
            a = np.where(np.isfinite(a), b, a).astype(a.dtype)
        out.append(a)
    return out


def noise_of(outputs, others):
    """How much each element changes, by an array for each output; None where the shapes differ."""
    noise = []
    for a, b in zip(outputs, others):
        if not is_number(a) or not is_number(b) or a.shape != b.shape:
            noise.append(None)
            continue
        with np.errstate(all="ignore"):
            d = np.abs(a.astype(np.float64) - b.astype(np.float64))
        d = np.where(np.isnan(a.astype(np.float64)) == np.isnan(b.astype(np.float64)), np.nan_to_num(d, nan=0.0, posinf=np.inf), np.inf)
        # Rounding reaches neighbours that this perturbation happens to spare; integers flip one by one.
        noise.append(np.broadcast_to(d.max() if d.size else 0.0, d.shape) if a.dtype.kind not in "iub" else d)
    return noise


def first_line(text):
    """The first line of an error without what belongs to one case."""
    lines = [l for l in text.splitlines() if l.strip()] or [""]
    line = lines[0]
    if line.rstrip().endswith(":") and len(lines) > 1:
        line += " " + lines[1].strip()
    return line


def template(text):
    """A message with numbers, names and paths taken out, to count by reason."""
    line = first_line(text)
    # ONNX Runtime says first where the model lay.
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : .*, Error ", r"ONNX Runtime: \1: ", line)
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : (Load model from \S+ failed:)?", r"ONNX Runtime: \1: ", line)
    line = re.sub(r"(for input:|Name:|name|Node) ?\(?['\"]?[\w./:]+['\"]?\)?", r"\1 ..", line)
    line = re.sub(r"(/[\w.+-]+)+/?", "PATH", line)
    line = re.sub(r"node \d+ ", "node N ", line)
    line = re.sub(r"`[^`]*`", "`..`", line)
    line = re.sub(r"%[\w./]+", "%..", line)
    line = re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?", "N", line)
    return line[:160]


def read_report(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)
