//! Cases for rules: graph text in, extracted graph out, and the graph with the rule's own terms where
//! extraction does not take them.
//!
//! Header lines: `;; tp: 2`, `;; pp: 2`, `;; phases: raise shard`, `;; no-rule: NAME`, `;; rule: NAME` (the
//! rule that must fire; the file's name where it is left out), `;; blocked: NAME` (must not fire),
//! `;; not executed: REASON`. Other lines are comments of the graph's text form.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sinter::cost::CostModel;
use sinter::extract;
use sinter::import::{Weight, Weights};
use sinter::ir::{self, Bindings, DType, Dim, Graph, Literal, Node, Op, TensorType};
use sinter::lower;
use sinter::pipeline::CompileConfig;
use sinter::rules::Phase;
use sinter::saturate::{self, StopReason};
use sinter_runtime::compare::{Tolerance, compare};
use sinter_runtime::tensor::Tensor;

use crate::{fixtures, forced, reference};

pub(crate) struct Case {
    name: String,
    pub(crate) tp: usize,
    pp: usize,
    phases: Vec<Phase>,
    banned: Vec<String>,
    fires: Option<String>,
    blocked: Option<String>,
    pub(crate) not_executed: Option<String>,
    pub(crate) graph: Graph,
}

impl Case {
    pub(crate) fn read(path: &Path) -> Result<Case, String> {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let header: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|l| l.strip_prefix(";;")?.split_once(':'))
            .map(|(k, v)| (k.trim(), v.trim()))
            .collect();
        let number = |key: &str| header.get(key).map_or(Ok(1), |v| v.parse().map_err(|e| format!("{key}: {e}")));
        let phase = |p: &str| Phase::parse(p).ok_or_else(|| format!("no phase is called `{p}`"));
        let phases = header.get("phases").ok_or("no `;; phases:`")?.split_whitespace().map(phase);
        let text_of = |key: &str| header.get(key).map(|v| (*v).to_owned());
        let blocked = text_of("blocked");
        let graph = ir::parse(&text).map_err(|e| e.to_string())?;
        ir::verify(&graph).map_err(|e| e.to_string())?;
        Ok(Case {
            tp: number("tp")?,
            pp: number("pp")?,
            phases: phases.collect::<Result<_, _>>()?,
            banned: header.get("no-rule").iter().flat_map(|v| v.split_whitespace()).map(str::to_owned).collect(),
            fires: text_of("rule").or_else(|| blocked.is_none().then(|| name.clone())),
            blocked,
            not_executed: text_of("not executed"),
            graph,
            name,
        })
    }

    /// The configuration under which the case is compiled.
    pub(crate) fn config(&self) -> CompileConfig {
        fixtures::config(self.tp, self.pp)
    }
}

/// Runs the phases of a case, checks what fired and that all forms of the program compute the same, and
/// returns the text of the extracted graph and of that with the rule's terms.
fn check(case: &Case) -> Result<String, String> {
    let mut config = case.config();
    config.rules.ban(&case.banned).map_err(|e| e.to_string())?;
    let cost = CostModel::new(config.device.clone(), config.mapping, config.objective, &case.graph);
    let mut program = saturate::load(&case.graph);
    let mut applied: BTreeMap<String, usize> = BTreeMap::new();
    for &phase in &case.phases {
        let rules = config.rules.phase(phase);
        let s = saturate::saturate(&mut program.eg, &rules, &config.mapping, config.saturate, &mut program.made)
            .map_err(|e| e.to_string())?;
        if s.stop != StopReason::Saturated {
            return Err(format!("stopped by {}", s.stop));
        }
        applied.extend(s.rules.iter().map(|(n, r)| (n.clone(), r.applied)));
    }
    let count = |rule: &String| applied.get(rule).copied().ok_or(format!("no rule of these phases is called `{rule}`"));
    if let Some(rule) = &case.fires
        && count(rule)? == 0
    {
        return Err(format!("`{rule}` did not fire"));
    }
    if let Some(rule) = &case.blocked
        && count(rule)? > 0
    {
        return Err(format!("`{rule}` fired {} times", count(rule)?));
    }
    let found = extract::extract(&program, &case.graph, &cost).map_err(|e| e.to_string())?;
    ir::verify(&found.graph).map_err(|e| format!("extracted: {e}"))?;
    let mut text = ir::print(&found.graph);
    if let Some(reason) = &case.not_executed {
        println!("{}: not executed: {reason}", case.name);
        return Ok(text);
    }
    let expected = execute(case, &case.graph, &cost)?;
    let got = execute(case, &found.graph, &cost)?;
    agree("extracted", &got, &expected)?;
    agree("extracted, evaluated", &reference::evaluate(case, &found.graph)?, &got)?;
    if let Some(rule) = &case.fires {
        let (graph, uses) = forced::forced(&program, &case.graph, rule);
        ir::verify(&graph).map_err(|e| format!("forced: {e}"))?;
        let made = program.made.iter().any(|(_, p)| p.rule.name == *rule);
        if made && !uses {
            return Err(format!("no term of `{rule}` could be taken:\n{}", ir::print(&graph)));
        }
        let got = execute(case, &graph, &cost).map_err(|e| format!("forced: {e}\n{}", ir::print(&graph)))?;
        agree("forced", &got, &expected).map_err(|e| format!("{e}\n{}", ir::print(&graph)))?;
        agree("forced, evaluated", &reference::evaluate(case, &graph)?, &got)?;
        // Larger cases show the whole, and what was extracted anyway is not shown twice.
        if case.name == *rule && operators(&graph) != operators(&found.graph) {
            text += &format!("\n; with the terms of {rule}\n{}", ir::print(&graph));
        }
    }
    Ok(text)
}

/// The operators of a graph, whatever their order.
fn operators(graph: &Graph) -> Vec<String> {
    let mut out: Vec<String> = graph.nodes().map(|(_, n)| n.op.to_string()).collect();
    out.sort_unstable();
    out
}

pub(crate) fn agree(what: &str, got: &[(String, Tensor)], expected: &[(String, Tensor)]) -> Result<(), String> {
    for ((name, a), (_, b)) in got.iter().zip(expected) {
        let c = compare(a, b, Tolerance::of(b.dtype));
        if !c.pass {
            let why = c.reason.unwrap_or_else(|| format!("{:.3e}", c.max_abs));
            return Err(format!("{what}: output `{name}` differs from the case's: {why}"));
        }
        let plain = b.to_f64();
        if !plain.iter().all(|v| v.is_finite()) {
            return Err(format!("output `{name}` is not finite, so that the case shows nothing: {plain:?}"));
        }
    }
    Ok(())
}

/// A small generator with a fixed seed (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    /// Floats in [-1, 1), small indices, truth values.
    fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let mut bytes = vec![];
        for _ in 0..shape.iter().product::<usize>() {
            let r = self.next();
            let x = (r % 2000) as f32 / 1000.0 - 1.0;
            match dtype {
                DType::F32 => bytes.extend(x.to_le_bytes()),
                DType::F16 => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
                DType::BF16 => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
                DType::F64 => bytes.extend(f64::from(x).to_le_bytes()),
                DType::I64 => bytes.extend(((r % 4) as i64).to_le_bytes()),
                DType::I32 => bytes.extend(((r % 4) as i32).to_le_bytes()),
                DType::I8 | DType::U8 => bytes.push((r % 4) as u8),
                DType::Bool => bytes.push((r % 2) as u8),
            }
        }
        Tensor::from_bytes(dtype, shape, &bytes).unwrap()
    }
}

/// What a case is executed on.
pub(crate) struct Data {
    pub(crate) bindings: Bindings,
    pub(crate) inputs: BTreeMap<String, Tensor>,
    pub(crate) weights: Weights,
}

/// Random data for a case. Symbols are bound to 2 and 3 in turn.
pub(crate) fn data(case: &Case) -> Data {
    let mut symbols = BTreeSet::new();
    let dims = case.graph.nodes().flat_map(|(_, n)| n.types.iter().flat_map(|t| t.shape.iter()));
    dims.for_each(|d| d.collect_symbols(&mut symbols));
    let bindings: Bindings = symbols.into_iter().enumerate().map(|(i, s)| (s, 2 + i as i64 % 2)).collect();
    let extents =
        |t: &TensorType| -> Vec<usize> { t.shape.iter().map(|d| d.eval(&bindings).unwrap() as usize).collect() };
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let (mut inputs, mut weights) = (BTreeMap::new(), Weights::default());
    for (_, n) in case.graph.nodes() {
        match &n.op {
            Op::Input { name, .. } => {
                inputs.insert(name.clone(), random.tensor(n.ty().dtype, &extents(n.ty())));
            }
            Op::Weight { name, .. } => {
                let bytes = random.tensor(n.ty().dtype, &extents(n.ty())).bytes().to_vec().into();
                weights.0.insert(name.clone(), Weight { ty: n.ty().clone(), bytes });
            }
            _ => {}
        }
    }
    Data { bindings, inputs, weights }
}

/// Executes a graph on all ranks of the case's mapping.
pub(crate) fn execute(case: &Case, graph: &Graph, cost: &CostModel) -> Result<Vec<(String, Tensor)>, String> {
    let Data { inputs, weights, .. } = data(case);
    let mapping = case.config().mapping;
    let plan = lower::lower(graph, &stub(graph), mapping, cost).map_err(|e| e.to_string())?;
    Ok(fixtures::run(&plan, &weights, &inputs))
}

/// A program with the same inputs and outputs, in place of the reference program that plans carry: a case
/// may cut values, which one rank alone cannot execute.
fn stub(graph: &Graph) -> Graph {
    let mut out = Graph::new(&graph.name);
    graph.nodes().filter(|(_, n)| matches!(n.op, Op::Input { .. })).for_each(|(_, n)| {
        out.push(n.clone());
    });
    for o in graph.outputs() {
        let value = Literal::scalar(DType::F32, 0.0);
        let types = vec![TensorType { dtype: DType::F32, shape: Vec::<Dim>::new() }];
        let op = Op::Const { value };
        let node = Node {
            op,
            inputs: vec![],
            types,
            name: o.name.clone(),
            origin: vec![],
            rules: vec![],
            why: None,
            stage: None,
        };
        let id = out.push(node);
        out.output(&o.name, id);
    }
    out
}

#[test]
fn rules_fire_and_keep_values() {
    let mut problems = vec![];
    insta::glob!("../cases/saturate", "*.txt", |path| {
        match Case::read(path).and_then(|c| check(&c)) {
            Ok(text) => insta::assert_snapshot!(text),
            Err(e) => problems.push(format!("{}: {e}", path.file_name().unwrap().display())),
        }
    });
    assert!(problems.is_empty(), "{} cases fail:\n{}", problems.len(), problems.join("\n"));
}
