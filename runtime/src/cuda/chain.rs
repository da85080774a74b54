//! Chains of elementwise operators, checked and typed, and the device code that computes one.

use std::fmt::Write as _;

use super::launch::{Check, LaunchError};
use crate::dim::Dim;
use crate::dtype::{DType, Literal};
use crate::op::{Class, Op};
use crate::plan::{Stage, Step, ValueId};

/// Operands that a chain reads; `elementwise.cuh` has the same number.
pub(super) const MAX_OPERANDS: usize = 8;

/// Results that a chain stores; `elementwise.cuh` has the same number.
pub(super) const MAX_RESULTS: usize = 4;

pub(super) const CHECK: Check = Check("elementwise");

/// What a step of a chain reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A tensor from outside the chain, by number.
    Input(usize),
    /// The result of an earlier step, by number.
    Step(usize),
}

/// A step with the type of its result.
#[derive(Clone, Debug, PartialEq)]
struct Typed {
    op: Op,
    inputs: Vec<Operand>,
    dtype: DType,
    /// The number that every element is, where the program says so.
    constant: Option<Literal>,
}

/// A chain of elementwise operators that one kernel computes.
///
/// Each operator rounds to its own element type, so that a chain gives what its steps give one by one.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    operands: Vec<DType>,
    steps: Vec<Typed>,
    results: Vec<usize>,
    body: String,
    digest: String,
}

/// A chain made from steps of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedChain {
    /// The chain.
    pub chain: Chain,
    /// The values that it reads, in the order of its operands.
    pub operands: Vec<ValueId>,
    /// The values that it stores, in the order of its results.
    pub results: Vec<ValueId>,
}

impl Chain {
    /// Checks and types a chain. `operands` are the element types of the tensors from outside, `results` the steps whose values are
    /// stored; all results have one shape when it is launched.
    pub fn new(steps: &[(Op, Vec<Operand>)], operands: &[DType], results: &[usize]) -> Result<Chain, LaunchError> {
        let (n, r) = (operands.len(), results.len());
        CHECK.that(n <= MAX_OPERANDS, || format!("{n} operands; at most {MAX_OPERANDS} are supported"))?;
        CHECK.that((1..=MAX_RESULTS).contains(&r), || format!("{r} results; 1 to {MAX_RESULTS} are supported"))?;
        if let Some(d) = operands.iter().find(|d| c_type(**d).is_none()) {
            return CHECK.fail(format!("an operand has elements of type {d}, which kernels do not read"));
        }
        if let Some(i) = results.iter().find(|i| **i >= steps.len()) {
            return CHECK.fail(format!("result {i} is none of {} steps", steps.len()));
        }
        let mut chain = Chain {
            operands: operands.to_vec(),
            steps: vec![],
            results: results.to_vec(),
            body: String::new(),
            digest: String::new(),
        };
        let mut lines = String::new();
        for (i, (op, inputs)) in steps.iter().enumerate() {
            let line = chain
                .push(op, inputs)
                .map_err(|e| LaunchError { kernel: CHECK.0, what: format!("step {i}, `{}`: {e}", op.name()) })?;
            lines += &line;
        }
        chain.body = chain.write_body(&lines);
        chain.digest = blake3::hash(chain.body.as_bytes()).to_hex()[..16].to_owned();
        Ok(chain)
    }

    /// A chain of steps of a plan's stage, in their order. `results` are those of its values that others read.
    pub fn of_steps(stage: &Stage, steps: &[&Step], results: &[ValueId]) -> Result<PlannedChain, LaunchError> {
        let value = |id: ValueId| match stage.values.get(id.0) {
            Some(v) => Ok(v),
            None => CHECK.fail(format!("the stage has no value {}", id.0)),
        };
        let (mut made, mut operands, mut program): (Vec<ValueId>, Vec<ValueId>, Vec<_>) = (vec![], vec![], vec![]);
        for step in steps {
            let [Some(result)] = step.outputs[..] else {
                return CHECK.fail(format!("`{}` has not one result", step.op.name()));
            };
            let mut inputs = vec![];
            for &id in &step.inputs {
                let v = value(id)?;
                if let Some(i) = made.iter().position(|m| *m == id) {
                    inputs.push(Operand::Step(i));
                    continue;
                }
                let storage = stage.storage(id);
                CHECK.that(!made.contains(&storage), || {
                    format!("`{}` is another shape of a value that the chain makes", v.name)
                })?;
                let known = operands.iter().position(|o| *o == id);
                inputs.push(Operand::Input(known.unwrap_or(operands.len())));
                if known.is_none() {
                    operands.push(id);
                }
            }
            made.push(result);
            program.push((step.op.clone(), inputs));
        }
        let types = operands.iter().map(|&id| Ok(value(id)?.ty.dtype)).collect::<Result<Vec<_>, LaunchError>>()?;
        let stored = results
            .iter()
            .map(|&id| match made.iter().position(|m| *m == id) {
                Some(i) => Ok(i),
                None => CHECK.fail(format!("`{}` is not made by the chain", value(id)?.name)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let chain = Chain::new(&program, &types, &stored)?;
        for (&id, typed) in made.iter().zip(&chain.steps) {
            let v = value(id)?;
            CHECK.that(v.ty.dtype == typed.dtype, || {
                format!("`{}` is {} in the plan, `{}` gives {}", v.name, v.ty.dtype, typed.op.name(), typed.dtype)
            })?;
        }
        Ok(PlannedChain { chain, operands, results: results.to_vec() })
    }

    /// Whether an operator may be a step of a chain, for some element types.
    pub fn takes(op: &Op) -> bool {
        matches!(op.info().class, Class::Unary | Class::Binary | Class::Commutative)
            || matches!(op, Op::Const { .. } | Op::Where {} | Op::SiluMul {} | Op::GeluMul { .. } | Op::Expand { .. })
    }

    /// Element types of the operands.
    pub fn operands(&self) -> &[DType] {
        &self.operands
    }

    /// Element types of the results.
    pub fn results(&self) -> impl Iterator<Item = DType> {
        self.results.iter().map(|&i| self.steps[i].dtype)
    }

    /// The name of the only operator, or that of chains, and what tells kernels of this name apart.
    pub(super) fn title(&self) -> String {
        let name = match &self.steps[..] {
            [one] => one.op.name(),
            _ => "chain",
        };
        format!("{name}_{}", self.digest)
    }

    /// The structure that loads, computes and stores, under a name.
    pub(super) fn source(&self, name: &str) -> String {
        format!("struct {name} {{\n{}}};\n", self.body)
    }

    fn dtype(&self, o: Operand) -> DType {
        match o {
            Operand::Input(i) => self.operands[i],
            Operand::Step(i) => self.steps[i].dtype,
        }
    }

    fn constant(&self, o: Operand) -> Option<&Literal> {
        match o {
            Operand::Input(_) => None,
            Operand::Step(i) => self.steps[i].constant.as_ref(),
        }
    }

    /// Adds a step and returns its line of code.
    fn push(&mut self, op: &Op, inputs: &[Operand]) -> Result<String, String> {
        if !Chain::takes(op) {
            return Err("the operator is not elementwise".to_owned());
        }
        let info = op.info();
        if inputs.len() < info.min_inputs || inputs.len() > info.max_inputs {
            return Err(format!("{} operands, expected {}", inputs.len(), info.arity()));
        }
        let known = |o: &Operand| match *o {
            Operand::Input(i) => i < self.operands.len(),
            Operand::Step(i) => i < self.steps.len(),
        };
        if !inputs.iter().all(known) {
            return Err("reads what neither is an operand nor comes before it".to_owned());
        }
        let types: Vec<DType> = inputs.iter().map(|&o| self.dtype(o)).collect();
        let dtype = result_type(op, &types)?;
        let ty = c_type(dtype).ok_or_else(|| format!("kernels do not compute with {dtype}"))?;
        let constant = match op {
            Op::Const { value } => {
                let first = value.data.get(..dtype.size()).filter(|_| value.splat().is_some());
                let data =
                    first.ok_or("only a constant of equal elements can be part of a chain; pass it as an operand")?;
                Some(Literal { dtype, shape: vec![], data: data.to_vec() })
            }
            Op::Expand { .. } => self.constant(inputs[0]).cloned(),
            _ => None,
        };
        let names: Vec<String> = inputs
            .iter()
            .map(|o| match o {
                Operand::Input(i) => format!("x{i}"),
                Operand::Step(i) => format!("v{i}"),
            })
            .collect();
        let constants: Vec<Option<&Literal>> = inputs.iter().map(|&o| self.constant(o)).collect();
        let text = match &constant {
            Some(c) => literal(c),
            None => expression(op, &names, &types, &constants, ty)?,
        };
        let line = format!("      const {ty} v{} = {text};\n", self.steps.len());
        self.steps.push(Typed { op: op.clone(), inputs: inputs.to_vec(), dtype, constant });
        Ok(line)
    }

    fn write_body(&self, lines: &str) -> String {
        let mut out = String::new();
        let name = |d: DType| c_type(d).unwrap_or_default();
        let member = "static __device__ __forceinline__ void";
        _ = writeln!(out, "  static constexpr int OPERANDS = {};", self.operands.len());
        let fields: String = (0..).zip(&self.operands).map(|(i, &d)| format!("Items<{}, V> x{i}; ", name(d))).collect();
        _ = writeln!(out, "  template <int V> struct Loaded {{ {fields}}};");
        let head = "const ElementwiseArguments& a";
        _ = writeln!(out, "  template <int V> {member} load({head}, const i64* at, Loaded<V>& x) {{");
        for i in 0..self.operands.len() {
            _ = writeln!(out, "    x.x{i}.load(a.operand[{i}], at[{i}], a.spread >> {i} & 1u);");
        }
        _ = writeln!(out, "  }}\n  template <int V> {member} store({head}, i64 at, const Loaded<V>& x) {{");
        for (r, dtype) in self.results().enumerate() {
            _ = writeln!(out, "    Items<{}, V> y{r};", name(dtype));
        }
        _ = writeln!(out, "#pragma unroll\n    for (int j = 0; j < V; j++) {{");
        for (i, &d) in self.operands.iter().enumerate() {
            _ = writeln!(out, "      const {} x{i} = x.x{i}.get(j);", name(d));
        }
        out += lines;
        for (r, i) in self.results.iter().enumerate() {
            _ = writeln!(out, "      y{r}.set(j, v{i});");
        }
        out += "    }\n";
        for r in 0..self.results.len() {
            _ = writeln!(out, "    y{r}.store(a.result[{r}], at);");
        }
        out += "  }\n";
        out
    }

    /// The steps: operators, what they read, and the types of their results.
    pub(super) fn program(&self) -> impl Iterator<Item = (&Op, &[Operand], DType)> {
        self.steps.iter().map(|s| (&s.op, &s.inputs[..], s.dtype))
    }

    /// The steps whose values are the results.
    pub(super) fn stored(&self) -> &[usize] {
        &self.results
    }

    /// The shape of each step where the results have the shape `whole`. An extent of `expand` that is not known is that of `whole`.
    pub(super) fn shapes(&self, operands: &[&[usize]], whole: &[usize]) -> Result<Vec<Vec<usize>>, String> {
        let mut out: Vec<Vec<usize>> = vec![];
        for (i, step) in self.steps.iter().enumerate() {
            let mut shape: Vec<usize> = match &step.op {
                Op::Const { value } => value.shape.clone(),
                Op::Expand { shape } => expanded(shape, whole),
                _ => vec![],
            };
            for o in &step.inputs {
                let of = match *o {
                    Operand::Input(k) => operands[k],
                    Operand::Step(k) => &out[k],
                };
                shape = broadcast(&shape, of).ok_or_else(|| {
                    format!("step {i}, `{}`: {of:?} does not broadcast with {shape:?}", step.op.name())
                })?;
            }
            out.push(shape);
        }
        Ok(out)
    }
}

fn expanded(shape: &[Dim], whole: &[usize]) -> Vec<usize> {
    let extent = |i: usize| (i + whole.len()).checked_sub(shape.len()).map_or(1, |j| whole[j]);
    shape.iter().enumerate().map(|(i, d)| d.as_const().and_then(|v| v.try_into().ok()).unwrap_or(extent(i))).collect()
}

/// The shape that two operands have together by NumPy's rules.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let n = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(n).map_or(1, |j| s[j]);
    (0..n)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// The storage type of an element type in `elementwise.cuh`.
fn c_type(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F64 => "double",
        DType::F32 => "float",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        DType::I64 => "i64",
        DType::I32 => "i32",
        DType::I8 => "i8",
        DType::U8 => "u8",
        DType::Bool => "boolean",
        DType::F8E4M3FN => "e4m3",
        _ => return None,
    })
}

/// A number as the storage type, bit by bit.
fn literal(c: &Literal) -> String {
    let bits = c.data.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    match c.dtype {
        DType::F32 | DType::I32 => format!("from_bits({bits:#x}u, {}())", c_type(c.dtype).unwrap_or_default()),
        DType::F64 | DType::I64 => format!("from_bits(u64({bits:#x}ull), {}())", c_type(c.dtype).unwrap_or_default()),
        d => format!("from_bits({bits:#x}u, {}())", c_type(d).unwrap_or_default()),
    }
}

fn is_half_or_f32(d: DType) -> bool {
    matches!(d, DType::F32 | DType::F16 | DType::BF16)
}

fn is_integer(d: DType) -> bool {
    matches!(d, DType::I64 | DType::I32 | DType::I8 | DType::U8)
}

/// The type of a result, as the CPU back end defines it.
fn result_type(op: &Op, x: &[DType]) -> Result<DType, String> {
    let unsupported = |d: DType| Err(format!("no kernel for elements of type {d}"));
    let same = |a: DType, b: DType| if a == b { Ok(()) } else { Err(format!("operands of types {a} and {b}")) };
    match op {
        Op::Const { value } => Ok(value.dtype),
        Op::Expand { .. } => Ok(x[0]),
        Op::Cast { to } => match (x[0], *to) {
            (a, b) if a == b => Ok(b),
            (DType::F8E4M3FN, b) if is_half_or_f32(b) => Ok(b),
            (a, DType::F8E4M3FN) if is_half_or_f32(a) => Ok(DType::F8E4M3FN),
            (DType::F8E4M3FN, d) | (d, DType::F8E4M3FN) => Err(format!("f8e4m3fn and {d} do not convert")),
            (_, b) if b.is_core() => Ok(b),
            (_, b) => unsupported(b),
        },
        Op::Where {} => {
            same(x[0], DType::Bool)?;
            same(x[1], x[2])?;
            Ok(x[1])
        }
        Op::Not {} => same(x[0], DType::Bool).map(|()| DType::Bool),
        Op::IsNan {} if x[0].is_float() => Ok(DType::Bool),
        Op::Neg {} | Op::Abs {} | Op::Relu {} | Op::Floor {} | Op::Ceil {} if is_integer(x[0]) => Ok(x[0]),
        Op::And {} | Op::Or {} => {
            same(x[0], DType::Bool)?;
            same(x[1], DType::Bool)?;
            Ok(DType::Bool)
        }
        Op::SiluMul {} | Op::GeluMul { .. } => {
            same(x[0], x[1])?;
            if is_half_or_f32(x[0]) { Ok(x[0]) } else { unsupported(x[0]) }
        }
        Op::QuantizeFp8 {} if is_half_or_f32(x[0]) && is_half_or_f32(x[1]) => Ok(DType::F8E4M3FN),
        Op::Pow {}
            if x[0].is_core() && x[1].is_core() && x[0] != DType::Bool && (x[0] == x[1] || x[1] != DType::Bool) =>
        {
            Ok(x[0])
        }
        Op::Equal {} | Op::Less {} | Op::LessEqual {} | Op::Greater {} | Op::GreaterEqual {} => {
            same(x[0], x[1])?;
            if x[0].is_core() { Ok(DType::Bool) } else { unsupported(x[0]) }
        }
        Op::Max {} | Op::Min {} => {
            same(x[0], x[1])?;
            if x[0].is_core() { Ok(x[0]) } else { unsupported(x[0]) }
        }
        Op::Add {} | Op::Sub {} | Op::Mul {} | Op::Div {} => {
            same(x[0], x[1])?;
            if x[0].is_core() && x[0] != DType::Bool { Ok(x[0]) } else { unsupported(x[0]) }
        }
        _ if x.len() == 1 && x[0].is_float() => Ok(x[0]),
        _ => unsupported(x[0]),
    }
}

/// The code of one operator on the named values.
fn expression(
    op: &Op,
    names: &[String],
    types: &[DType],
    constants: &[Option<&Literal>],
    ty: &str,
) -> Result<String, String> {
    let v: Vec<String> = names.iter().map(|n| format!("value({n})")).collect();
    let call = |f: &str| format!("as<{ty}>(op::{f}({}))", v.join(", "));
    let compare = |f: &str| format!("truth({} {f} {})", v[0], v[1]);
    Ok(match op {
        Op::Expand { .. } => names[0].clone(),
        Op::Cast { to } if *to == types[0] => names[0].clone(),
        Op::Cast { .. } => format!("as<{ty}>({})", v[0]),
        Op::Where {} => format!("{} ? {} : {}", v[0], names[1], names[2]),
        Op::Not {} => format!("truth({} == 0)", v[0]),
        Op::IsNan {} => format!("truth(op::is_nan({}))", v[0]),
        Op::And {} => compare("&&"),
        Op::Or {} => compare("||"),
        Op::Equal {} => compare("=="),
        Op::Less {} => compare("<"),
        Op::LessEqual {} => compare("<="),
        Op::Greater {} => compare(">"),
        Op::GreaterEqual {} => compare(">="),
        Op::Gelu { tanh: true } => call("gelu_tanh"),
        Op::Gelu { tanh: false } => call("gelu_erf"),
        Op::SiluMul {} => format!("as<{ty}>(op::mul(op::silu({}), {}))", v[0], v[1]),
        Op::GeluMul { tanh: true } => format!("as<{ty}>(op::mul(op::gelu_tanh({}), {}))", v[0], v[1]),
        Op::GeluMul { tanh: false } => format!("as<{ty}>(op::mul(op::gelu_erf({}), {}))", v[0], v[1]),
        // The quotient is rounded to the type of the scale.
        Op::QuantizeFp8 {} => {
            let scale = c_type(types[1]).ok_or_else(|| format!("a scale of type {}", types[1]))?;
            format!("as<{ty}>(value(as<{scale}>(op::div({}, {}))))", v[0], v[1])
        }
        // A square is one multiplication, which rounds the exact product once.
        Op::Pow {} if types[0].is_float() && constants[1].and_then(Literal::splat) == Some(2.0) => {
            format!("as<{ty}>(op::mul({0}, {0}))", v[0])
        }
        Op::Pow {} if types[0] != types[1] => format!("as<{ty}>(op::pow_wide({}, double({})))", v[0], v[1]),
        // A division by zero could not be reported.
        Op::Div {} if is_integer(types[0]) => {
            let divisor = constants[1].and_then(Literal::to_i64).and_then(|d| d.first().copied());
            if divisor.is_none_or(|d| d == 0) {
                return Err("integers are divided on the device only by a constant that is not zero".to_owned());
            }
            call("div")
        }
        op => call(op.name()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::TensorType;
    use crate::plan::{Source, Value};

    fn error(steps: &[(Op, Vec<Operand>)], operands: &[DType], results: &[usize]) -> String {
        Chain::new(steps, operands, results).unwrap_err().what
    }

    #[test]
    fn wrong_chains_are_refused() {
        use Operand::{Input, Step};
        let f = [DType::F32; 2];
        let add = |a, b| (Op::Add {}, vec![a, b]);
        assert!(Chain::new(&[add(Input(0), Input(1))], &f, &[0]).is_ok());
        assert!(error(&[add(Input(0), Step(0))], &f, &[0]).contains("nor comes before it"));
        assert!(error(&[add(Input(0), Input(2))], &f, &[0]).contains("nor comes before it"));
        assert!(error(&[(Op::Add {}, vec![Input(0)])], &f, &[0]).contains("1 operands, expected 2"));
        assert!(error(&[add(Input(0), Input(1))], &f, &[1]).contains("result 1 is none of 1 steps"));
        assert!(error(&[add(Input(0), Input(1))], &f, &[]).contains("0 results"));
        assert!(error(&[add(Input(0), Input(1))], &[DType::F32; 9], &[0]).contains("9 operands"));
        assert!(
            error(&[(Op::Softmax { axis: 0, safe: crate::attr::Safe::No }, vec![Input(0)])], &f, &[0])
                .contains("not elementwise")
        );
        assert!(error(&[add(Input(0), Input(1))], &[DType::U16; 2], &[0]).contains("u16, which kernels do not read"));
        assert!(error(&[add(Input(0), Input(1))], &[DType::F8E4M3FN; 2], &[0]).contains("type f8e4m3fn"));
        assert!(error(&[add(Input(0), Input(1))], &[DType::Bool; 2], &[0]).contains("type bool"));
        assert!(error(&[(Op::Exp {}, vec![Input(0)])], &[DType::I64], &[0]).contains("type i64"));
        assert!(error(&[(Op::SiluMul {}, vec![Input(0); 2])], &[DType::F64], &[0]).contains("type f64"));
        let cast = |to| (Op::Cast { to }, vec![Input(0)]);
        assert!(error(&[cast(DType::F8E4M3FN)], &[DType::I64], &[0]).contains("do not convert"));
        assert!(error(&[cast(DType::U16)], &f, &[0]).contains("u16"));
        let rows = Literal { dtype: DType::F32, shape: vec![2], data: [0, 0, 128, 63, 0, 0, 0, 64].to_vec() };
        assert!(error(&[(Op::Const { value: rows }, vec![])], &[], &[0]).contains("equal elements"));
    }

    #[test]
    fn integers_are_divided_by_known_numbers_only() {
        use Operand::{Input, Step};
        let by = |n: f64| {
            let c = Op::Const { value: Literal::scalar(DType::I64, n) };
            let spread = Op::Expand { shape: vec![Dim::sym("n")] };
            let steps = [(c, vec![]), (spread, vec![Step(0)]), (Op::Div {}, vec![Input(0), Step(1)])];
            Chain::new(&steps, &[DType::I64], &[2])
        };
        assert!(by(3.0).is_ok());
        assert!(by(0.0).unwrap_err().what.contains("not zero"));
        assert!(error(&[(Op::Div {}, vec![Input(0), Input(1)])], &[DType::I64; 2], &[0]).contains("not zero"));
        assert!(Chain::new(&[(Op::Div {}, vec![Input(0), Input(1)])], &[DType::F16; 2], &[0]).is_ok());
    }

    #[test]
    fn equal_chains_have_equal_code() {
        let scaled = |v: f64| {
            let c = Op::Const { value: Literal::scalar(DType::BF16, v) };
            let steps = [(c, vec![]), (Op::Mul {}, vec![Operand::Input(0), Operand::Step(0)])];
            Chain::new(&steps, &[DType::BF16], &[1]).unwrap()
        };
        assert_eq!(scaled(0.5), scaled(0.5));
        assert_ne!(scaled(0.5).title(), scaled(0.25).title());
        let source = scaled(0.5).source("s");
        assert!(source.contains("const bf16 v0 = from_bits(0x3f00u, bf16());"), "{source}");
        assert!(source.contains("const bf16 v1 = as<bf16>(op::mul(value(x0), value(v0)));"), "{source}");
    }

    #[test]
    fn every_elementwise_operator_has_code() {
        for op in crate::op::instances().into_iter().filter(Chain::takes) {
            let types: Vec<DType> = match &op {
                Op::Not {} | Op::And {} | Op::Or {} => vec![DType::Bool; op.info().min_inputs],
                Op::Where {} => vec![DType::Bool, DType::F32, DType::F32],
                op => vec![DType::F32; op.info().min_inputs],
            };
            // The placeholder of a constant or of a cast may be of any type.
            if matches!(op, Op::Const { .. } | Op::Cast { .. }) {
                continue;
            }
            let inputs = (0..types.len()).map(Operand::Input).collect();
            assert!(Chain::new(&[(op.clone(), inputs)], &types, &[0]).is_ok(), "{op}");
        }
    }

    #[test]
    fn steps_of_a_plan_become_a_chain() {
        let value = |name: &str, dtype, source| Value {
            name: name.to_owned(),
            ty: TensorType::new(dtype, vec![Dim::sym("n")]),
            source,
        };
        let step = |op, inputs: &[usize], output| Step {
            op,
            inputs: inputs.iter().map(|&i| ValueId(i)).collect(),
            outputs: vec![Some(ValueId(output))],
            origin: vec![],
            rules: vec![],
            why: None,
        };
        let f = DType::F32;
        let stage = Stage {
            values: vec![
                value("x", f, Source::Input { index: 0, part: None }),
                value("y", f, Source::Buffer(0)),
                value("z", f, Source::Buffer(1)),
                value("row", f, Source::Alias(ValueId(1))),
                value("wrong", DType::F16, Source::Buffer(2)),
            ],
            steps: vec![],
            buffers: vec![],
        };
        let (a, b) = (step(Op::Exp {}, &[0], 1), step(Op::Mul {}, &[1, 0], 2));
        let chain = Chain::of_steps(&stage, &[&a, &b], &[ValueId(2), ValueId(1)]).unwrap();
        assert_eq!((chain.operands, chain.chain.stored()), (vec![ValueId(0)], &[1, 0][..]));
        let error = |steps: &[&Step], results: &[usize]| {
            let results: Vec<ValueId> = results.iter().map(|&i| ValueId(i)).collect();
            Chain::of_steps(&stage, steps, &results).unwrap_err().what
        };
        let alias = step(Op::Mul {}, &[1, 3], 2);
        assert!(error(&[&a, &alias], &[2]).contains("`row` is another shape"));
        assert!(error(&[&a], &[2]).contains("`z` is not made by the chain"));
        assert!(error(&[&step(Op::Exp {}, &[9], 1)], &[1]).contains("no value 9"));
        assert!(error(&[&step(Op::Exp {}, &[0], 4)], &[4]).contains("`wrong` is f16 in the plan"));
        assert!(error(&[&Step { outputs: vec![], ..a.clone() }], &[1]).contains("not one result"));
    }
}
