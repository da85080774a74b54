//! Mistakes of types that hold for every assignment: a tuple where a tensor is wanted, a result that an
//! operator does not have, element types that never fit.

use std::collections::BTreeMap;

use super::RuleParser;
use super::sides::{rest_var, roots};
use crate::diag::Diagnostic;
use crate::ir::norm::{Quant, Sum};
use crate::ir::{AttrKind, DType, Norm, OpInfo, op};
use crate::rules::sexpr::{Datum, Kind, Span};

/// A set of element types, one bit each.
type Types = u16;

const ANY: Types = (1 << DType::OWN.len()) - 1;

fn only(wanted: impl Fn(DType) -> bool) -> Types {
    DType::OWN.iter().enumerate().filter(|(_, t)| wanted(**t)).fold(0, |set, (i, _)| set | 1 << i)
}

fn describe(set: Types) -> String {
    let names: Vec<&str> =
        DType::OWN.iter().enumerate().filter(|(i, _)| set & (1 << i) != 0).map(|(_, t)| t.name()).collect();
    match set {
        s if s == only(DType::is_float) => "floating-point numbers".to_owned(),
        s if s == only(is_number) => "numbers".to_owned(),
        s if s == only(is_computable) => "anything but quantised numbers".to_owned(),
        _ => names.join(" or "),
    }
}

/// What an operator demands of element types: of each operand, and which operands agree; and what it gives.
struct Demand {
    operands: fn(usize) -> Types,
    agree: std::ops::Range<usize>,
    gives: Gives,
}

enum Gives {
    /// The type of an operand.
    Operand(usize),
    Types(Types),
    /// The literal attribute, where it is one.
    Attribute,
}

/// Whether elements may count or address others.
fn is_index(t: DType) -> bool {
    matches!(t, DType::I64 | DType::I32)
}

/// Whether operators compute with elements, and do not only move and convert them.
fn is_computable(t: DType) -> bool {
    !t.is_quantised()
}

fn is_number(t: DType) -> bool {
    is_computable(t) && t != DType::Bool
}

/// The float types that quantisation computes with.
fn is_narrow(t: DType) -> bool {
    t.is_float() && t != DType::F64
}

fn demand(name: &str) -> Demand {
    if let Some(n) = Norm::by_name(name) {
        let operands: fn(usize) -> Types = |_| only(DType::is_float);
        let gives = if n.quant == Quant::None { Gives::Operand(0) } else { Gives::Types(ANY) };
        return Demand { operands, agree: 0..if n.sum == Sum::None { 0 } else { 2 }, gives };
    }
    let any: fn(usize) -> Types = |_| ANY;
    let float: fn(usize) -> Types = |_| only(DType::is_float);
    let narrow: fn(usize) -> Types = |_| only(is_narrow);
    let number: fn(usize) -> Types = |_| only(is_number);
    let computable: fn(usize) -> Types = |_| only(is_computable);
    let bool: fn(usize) -> Types = |_| only(|t| t == DType::Bool);
    let index: fn(usize) -> Types = |i| if i == 1 { only(is_index) } else { ANY };
    let packed: fn(usize) -> Types = |i| match i {
        0 => only(|t| t == DType::U8),
        1 => only(DType::is_float),
        _ => ANY,
    };
    let d = |operands, agree, gives| Demand { operands, agree, gives };
    let all = 0..usize::MAX;
    match name {
        "not" | "and" | "or" => d(bool, 0..0, Gives::Types(bool(0))),
        "is_nan" => d(computable, 0..0, Gives::Types(bool(0))),
        "equal" | "less" | "less_equal" | "greater" | "greater_equal" => d(computable, all, Gives::Types(bool(0))),
        "cast" => d(any, 0..0, Gives::Attribute),
        "neg" | "abs" | "relu" => d(number, 0..0, Gives::Operand(0)),
        "sqrt" | "reciprocal" | "exp" | "log" | "sigmoid" | "tanh" | "erf" | "cos" | "sin" | "floor" | "ceil"
        | "silu" | "gelu" | "softmax" => d(float, 0..0, Gives::Operand(0)),
        "add" | "sub" | "mul" | "div" | "max" | "min" => d(number, all, Gives::Operand(0)),
        "silu_mul" | "gelu_mul" | "matmul" | "rotary" => d(float, all, Gives::Operand(0)),
        "quantize_fp8" | "fp4_scale" => d(narrow, 0..0, Gives::Types(only(|t| t == DType::F8E4M3FN))),
        "fp8_scale" => d(narrow, 0..0, Gives::Types(only(|t| t == DType::F32))),
        "quantize_fp4" => d(
            |i| only(|t| if i == 1 { t == DType::F8E4M3FN } else { is_narrow(t) }),
            0..0,
            Gives::Types(only(|t| t == DType::F4E2M1)),
        ),
        "quantize_nvfp4" => d(narrow, 0..0, Gives::Types(ANY)),
        "unpack_fp4" => d(|_| only(|t| t == DType::U8), 0..0, Gives::Types(only(|t| t == DType::F4E2M1))),
        "unswizzle_scales" => d(|_| only(|t| t == DType::F8E4M3FN), 0..0, Gives::Operand(0)),
        "attention" => d(|i| if i == 3 { ANY } else { only(DType::is_float) }, 0..3, Gives::Operand(0)),
        "dequantize" => d(packed, 0..0, Gives::Operand(1)),
        "append" => d(|i| if i == 2 { only(is_index) } else { ANY }, 0..2, Gives::Operand(0)),
        "largest" => d(float, 0..0, Gives::Types(ANY)),
        "expert_matmul" => d(
            |i| match i {
                0 | 3 => only(DType::is_float),
                2 => only(is_index),
                _ => ANY,
            },
            0..0,
            Gives::Operand(0),
        ),
        "where" => d(|i| if i == 0 { only(|t| t == DType::Bool) } else { ANY }, 1..3, Gives::Operand(1)),
        "concat" => d(any, all, Gives::Operand(0)),
        "gather" | "vocab_gather" | "gather_nd" => d(index, 0..0, Gives::Operand(0)),
        "dims" | "range" => d(any, 0..0, Gives::Types(only(|t| t == DType::I64))),
        "pow" | "reduce_sum" | "reduce_mean" | "reduce_max" | "all_reduce" => d(computable, 0..0, Gives::Operand(0)),
        "reshape" | "transpose" | "expand" | "slice" | "shard" | "all_gather" | "boundary" | "output"
        | "output_sharded" | "get" => d(any, 0..0, Gives::Operand(0)),
        _ => d(any, 0..0, Gives::Types(ANY)),
    }
}

/// How many results a term has.
#[derive(Clone, Copy, PartialEq)]
enum Results {
    Unknown,
    /// Several, read by `get`.
    Several,
    Exactly(usize),
}

impl Results {
    fn is_tensor(self) -> bool {
        self == Results::Exactly(1)
    }

    fn is_tuple(self) -> bool {
        !self.is_tensor() && self != Results::Unknown
    }
}

#[derive(Clone)]
struct Node {
    /// Index into the element types.
    types: usize,
    results: Results,
    /// The operator that makes it, if one does.
    maker: Option<&'static str>,
    span: Span,
}

/// Element types that are equal share one entry.
struct Entry {
    parent: usize,
    types: Types,
    /// Where they were narrowed last, and by what.
    why: (Span, String),
}

/// A mistake was reported; what follows would only repeat it.
struct Stop;

struct Checker<'p, 'a> {
    parser: &'p mut RuleParser<'a>,
    nodes: Vec<Node>,
    entries: Vec<Entry>,
    vars: BTreeMap<String, usize>,
}

/// Reports the first certain mistake of types of a rule that is well-formed otherwise.
pub(super) fn check(parser: &mut RuleParser<'_>, name: &str, left: &Datum, right: &Datum) {
    let mut c = Checker { parser, nodes: vec![], entries: vec![], vars: BTreeMap::new() };
    let _ = c.rule(name, left, right);
}

impl Checker<'_, '_> {
    fn rule(&mut self, name: &str, left: &Datum, right: &Datum) -> Result<(), Stop> {
        let root = match roots(left) {
            None => self.term(left)?,
            Some(pairs) => {
                let mut last = 0;
                for (var, span, term) in pairs {
                    let n = self.term(term)?;
                    match self.vars.get(var).copied() {
                        Some(v) => self.unite(v, n, span, None)?,
                        None => {
                            self.vars.insert(var.to_owned(), n);
                        }
                    }
                    last = n;
                }
                last
            }
        };
        match roots(right) {
            None => {
                let n = self.term(right)?;
                self.unite(root, n, &right.span, Some(name))
            }
            Some(pairs) => {
                for (var, _, term) in pairs {
                    let n = self.term(term)?;
                    match self.vars.get(var).copied() {
                        Some(v) => self.unite(v, n, &term.span, Some(name))?,
                        None => {
                            self.vars.insert(var.to_owned(), n);
                        }
                    }
                }
                Ok(())
            }
        }
    }

    fn error(&mut self, d: Diagnostic) -> Stop {
        self.parser.errors.push(d);
        Stop
    }

    fn new_node(&mut self, types: Types, results: Results, span: &Span) -> usize {
        self.entries.push(Entry { parent: self.entries.len(), types, why: (span.clone(), describe(types)) });
        let node = Node { types: self.entries.len() - 1, results, maker: None, span: span.clone() };
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn find(&self, mut e: usize) -> usize {
        while self.entries[e].parent != e {
            e = self.entries[e].parent;
        }
        e
    }

    /// The tensor of a variable.
    fn variable(&mut self, name: &str, span: &Span) -> usize {
        if name != "_"
            && let Some(&n) = self.vars.get(name)
        {
            return n;
        }
        let n = self.new_node(ANY, Results::Unknown, span);
        self.vars.insert(name.to_owned(), n);
        n
    }

    fn term(&mut self, d: &Datum) -> Result<usize, Stop> {
        let items = match &d.kind {
            Kind::Var(v) => return Ok(self.variable(v, &d.span)),
            Kind::Float(x) if x.fract() != 0.0 => {
                return Ok(self.new_node(only(DType::is_float), Results::Exactly(1), &d.span));
            }
            Kind::List(items) => items,
            _ => return Ok(self.new_node(ANY, Results::Exactly(1), &d.span)),
        };
        let Some((head, rest)) = items.split_first() else { return Err(Stop) };
        let Some(name) = head.sym() else {
            // An operator of a class.
            let out = self.new_node(ANY, Results::Exactly(1), &d.span);
            for a in rest {
                let n = self.term(a)?;
                self.tensor(n, &a.span, "an element-wise operator")?;
            }
            return Ok(out);
        };
        if let ("const", [_, Datum { kind: Kind::Key(_), .. }, Datum { kind: Kind::Var(v), span }]) = (name, rest) {
            let like = self.variable(v, span);
            self.tensor(like, span, "const")?;
            let types = self.nodes[like].types;
            self.nodes.push(Node { types, results: Results::Exactly(1), maker: Some("const"), span: d.span.clone() });
            return Ok(self.nodes.len() - 1);
        }
        if let Some(k) = self.parser.kernels.iter().find(|k| k.name == name) {
            let results = k.results.len();
            for a in rest.iter().take(k.operands.len()) {
                let n = self.term(a)?;
                self.tensor(n, &a.span, "a kernel")?;
            }
            return Ok(self.new_node(ANY, Results::Exactly(results), &d.span));
        }
        let info = op::info(name).ok_or(Stop)?;
        let (args, attrs) = self.parser.split_args(info, rest, &d.span).ok_or(Stop)?;
        let mut operands = vec![];
        for a in args {
            if rest_var(a).is_none() {
                operands.push((self.term(a)?, a.span.clone()));
            }
        }
        if info.name == "get" {
            return self.get(d, &operands, attrs.first().copied().flatten());
        }
        self.operator(info, d, &operands, &attrs)
    }

    fn operator(
        &mut self,
        info: &'static OpInfo,
        d: &Datum,
        operands: &[(usize, Span)],
        attrs: &[Option<&Datum>],
    ) -> Result<usize, Stop> {
        let demand = demand(info.name);
        let mut agreed: Option<usize> = None;
        for (i, (n, span)) in operands.iter().enumerate() {
            self.tensor(*n, span, info.name)?;
            let types = self.nodes[*n].types;
            let takes = (demand.operands)(i);
            self.narrow(types, takes, span, format!("`{}` takes {}", info.name, describe(takes)))?;
            if demand.agree.contains(&i) {
                if let Some(first) = agreed {
                    self.join(first, types, span, Err(info.name))?;
                }
                agreed = Some(types);
            }
        }
        let out = self.new_node(ANY, Results::Exactly(info.outputs), &d.span);
        self.nodes[out].maker = Some(info.name);
        match demand.gives {
            Gives::Operand(i) => {
                if let Some((n, _)) = operands.get(i) {
                    self.nodes[out].types = self.nodes[*n].types;
                }
            }
            Gives::Types(set) => self.gives(out, set, d, info.name)?,
            Gives::Attribute => {
                let at = info.attrs.iter().position(|a| a.kind == AttrKind::DType);
                let word = at.and_then(|i| attrs.get(i).copied().flatten()).and_then(Datum::sym);
                if let Some(t) = word.and_then(DType::parse) {
                    self.gives(out, only(|u| u == t), d, info.name)?;
                }
            }
        }
        Ok(out)
    }

    /// `(get ?f 1)`.
    fn get(&mut self, d: &Datum, operands: &[(usize, Span)], index: Option<&Datum>) -> Result<usize, Stop> {
        let Some((tuple, span)) = operands.first() else { return Err(Stop) };
        let node = self.nodes[*tuple].clone();
        let what = node.maker.map_or_else(|| "this tensor".to_owned(), |m| format!("`{m}`"));
        if node.results.is_tensor() {
            let e = self.parser.diagnostic("`get` of a tensor", span, format!("{what} has one result"));
            return Err(self.error(e.help("`get` reads one of several results; use the tensor itself")));
        }
        if let Some(Datum { kind: Kind::Int(i), span }) = index {
            let n = match node.results {
                Results::Exactly(n) => n,
                _ => usize::MAX,
            };
            if usize::try_from(*i).map_or(true, |i| i >= n) {
                let label = if n == usize::MAX { "not a result".to_owned() } else { format!("{what} has {n}") };
                let e = self.parser.diagnostic(format!("there is no result {i}"), span, label);
                return Err(self.error(e.help("results are numbered from 0")));
            }
        }
        if node.results == Results::Unknown {
            self.nodes[*tuple].results = Results::Several;
        }
        let result = self.new_node(ANY, Results::Exactly(1), &d.span);
        self.nodes[result].maker = Some("get");
        // Results of different types share no entry.
        if !node.maker.is_some_and(|m| matches!(demand(m).gives, Gives::Types(_))) {
            self.nodes[result].types = node.types;
        }
        Ok(result)
    }

    /// Demands one result.
    fn tensor(&mut self, n: usize, span: &Span, user: &str) -> Result<(), Stop> {
        let node = &mut self.nodes[n];
        match node.results {
            Results::Unknown => node.results = Results::Exactly(1),
            Results::Exactly(1) => {}
            _ => {
                let (maker, there) = (node.maker, node.span.clone());
                let label = match node.results {
                    Results::Exactly(0) => "has no result",
                    _ => "a tuple",
                };
                let e = self.parser.diagnostic(format!("an operand of `{user}` is a tuple, not a tensor"), span, label);
                let e = match maker {
                    Some(m) if there != *span => e.at(there, format!("`{m}` has several results")),
                    _ => e,
                };
                return Err(self.error(e.help("read one of its results with `(get ?tuple 0)`")));
            }
        }
        Ok(())
    }

    /// Two terms are one; `sides` names the rule where they are its two sides.
    fn unite(&mut self, a: usize, b: usize, span: &Span, sides: Option<&str>) -> Result<(), Stop> {
        let (x, y) = (self.nodes[a].clone(), self.nodes[b].clone());
        let differ = match (x.results, y.results) {
            (Results::Exactly(m), Results::Exactly(n)) => m != n,
            (p, q) => p.is_tensor() && q.is_tuple() || p.is_tuple() && q.is_tensor(),
        };
        if differ {
            let word = |r: Results| match r {
                Results::Exactly(1) => "a tensor".to_owned(),
                Results::Exactly(n) => format!("a tuple of {n}"),
                _ => "a tuple".to_owned(),
            };
            let e = self.parser.diagnostic("a tensor and a tuple are never equal", span, word(y.results));
            let e = e.at(x.span, word(x.results));
            let help = "name the tuple in :yield, and unite each result with its tensor: (?y (get ?f 0))";
            return Err(self.error(e.help(help)));
        }
        if x.results == Results::Unknown {
            self.nodes[a].results = y.results;
        }
        self.join(x.types, y.types, span, sides.map(|r| (r, x.span)).ok_or("this name"))
    }

    fn gives(&mut self, n: usize, types: Types, d: &Datum, name: &str) -> Result<(), Stop> {
        self.narrow(self.nodes[n].types, types, &d.span, format!("`{name}` gives {}", describe(types)))
    }

    fn narrow(&mut self, e: usize, types: Types, span: &Span, why: String) -> Result<(), Stop> {
        let e = self.find(e);
        let both = self.entries[e].types & types;
        if both == 0 {
            return Err(self.conflict(span, why, e));
        }
        if both != self.entries[e].types {
            self.entries[e].types = both;
            self.entries[e].why = (span.clone(), why);
        }
        Ok(())
    }

    /// Two element types are one: those of the two sides of a rule, or of operands that agree.
    fn join(&mut self, a: usize, b: usize, span: &Span, who: Result<(&str, Span), &str>) -> Result<(), Stop> {
        let (a, b) = (self.find(a), self.find(b));
        if a == b {
            return Ok(());
        }
        let (x, y) = (self.entries[a].types, self.entries[b].types);
        if x & y == 0 {
            return Err(match who {
                Err(who) => self.conflict(span, format!("{}, and `{who}` takes equal types", describe(y)), a),
                Ok((rule, left)) => {
                    let message = format!("the two sides of rule `{rule}` have different element types");
                    let e = self.parser.diagnostic(message, span, format!("gives {}", describe(y)));
                    self.error(e.at(left, format!("gives {}", describe(x))))
                }
            });
        }
        // The narrower set explains a later conflict.
        let narrower = if x.count_ones() <= y.count_ones() { a } else { b };
        let why = self.entries[narrower].why.clone();
        self.entries[b].parent = a;
        self.entries[a].types = x & y;
        self.entries[a].why = why;
        Ok(())
    }

    fn conflict(&mut self, span: &Span, why: String, known: usize) -> Stop {
        let (there, was) = self.entries[known].why.clone();
        let e = self.parser.diagnostic("these element types never fit", span, why);
        let e = if there == *span { e.note(format!("{was} here")) } else { e.at(there, was) };
        self.error(e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Dim, MeshAxis, Op, TensorType, infer};

    /// Operators with attributes that fit the shapes below.
    fn instance(op: Op) -> Op {
        match op {
            Op::ReduceSum { .. } => Op::ReduceSum { axes: vec![0], keepdims: true },
            Op::Reshape { .. } => Op::Reshape { shape: vec![Dim::from(2); 2] },
            Op::Expand { .. } => Op::Expand { shape: vec![Dim::from(2); 2] },
            Op::Transpose { .. } => Op::Transpose { perm: vec![1, 0] },
            Op::Slice { .. } => Op::Slice { axis: 0, start: Dim::from(0), end: Dim::from(2), step: 1 },
            Op::Shard { .. } => Op::Shard { dim: 0, axis: MeshAxis::Tp, parts: 1 },
            Op::Dequantize { .. } => Op::Dequantize { bits: 4 },
            Op::UnswizzleScales { .. } => Op::UnswizzleScales { shape: vec![Dim::from(2); 2] },
            op => op,
        }
    }

    /// Shapes that an operator accepts.
    fn shape(op: &Op, operand: usize) -> Vec<Dim> {
        let of = |dims: &[i64]| dims.iter().map(|&d| Dim::from(d)).collect();
        match (op, operand) {
            (Op::Attention { .. }, _) => of(&[1, 1, 2, 2]),
            (Op::Append { .. }, 0 | 1) => of(&[2, 1, 2, 2]),
            (Op::Append { .. }, _) => of(&[2]),
            (Op::ExpertMatmul { .. }, 0 | 1) => of(&[2, 2, 2]),
            (Op::Rotary { .. }, 1..) => of(&[2, 1]),
            (Op::QuantizeFp4 {}, 0) | (Op::Fp4Scale {} | Op::QuantizeNvfp4 {}, 0) => of(&[2, 16]),
            (Op::QuantizeFp4 {}, 1) => of(&[2, 1]),
            (Op::QuantizeFp4 {} | Op::Fp4Scale {} | Op::QuantizeNvfp4 {}, _) => of(&[]),
            (Op::UnswizzleScales { .. }, _) => of(&[512]),
            (op, i) => match op.norm() {
                Some(n) if n.scale() == Some(i) => of(&[]),
                Some(n) if i >= n.summands() => of(&[16]),
                Some(_) => of(&[2, 16]),
                None => of(&[2, 2]),
            },
        }
    }

    #[test]
    fn demands_are_those_of_type_inference() {
        let bit = |t: DType| only(|u| u == t);
        for op in op::instances().into_iter().map(instance) {
            let info = op.info();
            let n = match op {
                Op::Attention { .. } => 4,
                Op::ExpertMatmul { .. } => 3,
                _ if info.max_inputs == usize::MAX => 2,
                _ => info.max_inputs,
            };
            if n == 0 || matches!(op, Op::Get { .. } | Op::Send { .. } | Op::Kernel { .. } | Op::Standard { .. }) {
                continue;
            }
            let demand = demand(info.name);
            let mut accepted = 0;
            for code in 0..DType::OWN.len().pow(n as u32) {
                let types: Vec<DType> =
                    (0..n).map(|i| DType::OWN[code / DType::OWN.len().pow(i as u32) % DType::OWN.len()]).collect();
                let operands: Vec<[TensorType; 1]> =
                    (0..n).map(|i| [TensorType { dtype: types[i], shape: shape(&op, i) }]).collect();
                let operands: Vec<&[TensorType]> = operands.iter().map(|t| &t[..]).collect();
                let Ok(results) = infer(&op, &operands) else { continue };
                accepted += 1;
                let name = info.name;
                for (i, t) in types.iter().enumerate() {
                    assert!((demand.operands)(i) & bit(*t) != 0, "{name}: operand {i} may be {t}");
                }
                let agree: Vec<&DType> =
                    types.iter().enumerate().filter(|(i, _)| demand.agree.contains(i)).map(|t| t.1).collect();
                assert!(agree.windows(2).all(|w| w[0] == w[1]), "{name} accepts {types:?}");
                let gives = match demand.gives {
                    Gives::Operand(i) => bit(types[i]),
                    Gives::Types(set) => set,
                    Gives::Attribute => ANY,
                };
                assert!(results.iter().all(|r| gives & bit(r.dtype) != 0), "{name} of {types:?} gives {results:?}");
            }
            assert!(accepted > 0, "no operands were found for {}", info.name);
        }
    }
}
