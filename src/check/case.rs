//! A case of a rule: a graph on which it must fire, or must not, and what becomes of the graph.
//!
//! ```text
//! ;; phases: shard fuse
//! ;; tp: 2
//! graph "case" {
//!   ..
//! }
//! ;; after
//! graph "case" {
//!   ..
//! }
//! ```
//! Header lines start with `;;` and stand above the graph. `phases` is required. `tp` and `pp` are 1 where left out.
//! `rule: NAME` must fire (the name of the file where it is left out), `blocked: NAME` must not, and
//! `no-rule: NAME..` leaves rules out. `;; after` and the extracted graph may follow. Other comments
//! start with a single `;`.

use std::collections::{BTreeMap, BTreeSet};

use sinter_runtime::compare::{Tolerance, compare};
use sinter_runtime::executor::{self, RunConfig};
use sinter_runtime::tensor::Tensor;

use super::choice::{Preference, choose};
use super::outputs::outputs;
use super::random::Random;
use crate::cost::CostModel;
use crate::extract;
use crate::import::{Weight, Weights};
use crate::ir::{self, Bindings, DType, Dim, Graph, Literal, Mapping, Node, Op, TensorType, VerifyError};
use crate::lower;
use crate::pipeline::CompileConfig;
use crate::rules::{Phase, RuleSet};
use crate::saturate::{self, RuleStats, StopReason};

/// Keys of the header.
const KEYS: &[&str] = &["phases", "tp", "pp", "rule", "blocked", "no-rule"];

/// The line that the extracted graph follows.
const AFTER: &str = ";; after";

/// Most ranks of a case; each is a thread.
const MAX_RANKS: usize = 64;

/// Most elements of an input or weight of a case.
const MAX_ELEMENTS: usize = 1 << 24;

/// What keeps a case from passing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CaseError {
    /// The case itself is wrong.
    #[error("{file}:{line}: {message}")]
    Input {
        /// The file.
        file: String,
        /// From 1.
        line: usize,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The rules do not do what the case says.
    #[error("{0}")]
    Failed(String),
}

/// A value of the header with its line; line 0 is the name of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    text: String,
    line: usize,
}

/// A case, read and verified.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file that it comes from, for messages.
    pub file: String,
    /// Sizes of the mesh axes.
    pub mapping: Mapping,
    /// What runs, in this order and on one e-graph.
    pub phases: Vec<Phase>,
    /// The graph before.
    pub graph: Graph,
    /// The extracted graph, where the case states it.
    pub after: Option<Graph>,
    fires: Option<Entry>,
    blocked: Option<Entry>,
    banned: Vec<Entry>,
}

/// A case that passes.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The cheapest program.
    pub extracted: Graph,
    /// The program with the terms of the rule that must fire.
    pub forced: Option<Graph>,
}

impl Case {
    /// Reads a case. `name` is that of the file without its extension.
    pub fn parse(file: &str, name: &str, text: &str) -> Result<Case, CaseError> {
        let error = |line: usize, message: String| CaseError::Input { file: file.to_owned(), line, message };
        let mut header: BTreeMap<&str, Entry> = BTreeMap::new();
        let mut start = None;
        let mut after = None;
        for (i, l) in text.lines().enumerate() {
            let line = i + 1;
            if l.trim_end() == AFTER {
                after = Some(i);
                break;
            }
            let Some(rest) = l.strip_prefix(";;") else {
                let code = l.trim_start();
                if start.is_none() && !code.is_empty() && !code.starts_with(';') {
                    start = Some(line);
                }
                continue;
            };
            if start.is_some() {
                return Err(error(line, "the header stands above the graph; a comment starts with one `;`".into()));
            }
            let (key, value) = rest.split_once(':').map_or((rest.trim(), ""), |(k, v)| (k.trim(), v.trim()));
            if !KEYS.contains(&key) {
                let help = format!("keys are {}; a comment starts with one `;`", KEYS.join(", "));
                return Err(error(line, format!("unknown key `{key}`: {help}")));
            }
            if value.is_empty() {
                return Err(error(line, format!("`;; {key}:` has no value")));
            }
            if header.insert(key, Entry { text: value.to_owned(), line }).is_some() {
                return Err(error(line, format!("`;; {key}:` is given twice")));
            }
        }
        let Some(start) = start else {
            return Err(error(1, "the case has no graph: `graph \"case\" {` must follow the header".into()));
        };
        let size = |key: &str| match header.get(key) {
            None => Ok(1),
            Some(e) => match e.text.parse::<usize>() {
                Ok(n) if (1..=MAX_RANKS).contains(&n) => Ok(n),
                _ => Err(error(e.line, format!("`{}` is no size from 1 to {MAX_RANKS}", e.text))),
            },
        };
        let mapping = Mapping { tp: size("tp")?, pp: size("pp")? };
        if mapping.world() > MAX_RANKS {
            let line = header.get("pp").map_or(1, |e| e.line);
            return Err(error(line, format!("tp x pp is {}; at most {MAX_RANKS} ranks", mapping.world())));
        }
        let phases = header.get("phases").ok_or_else(|| {
            error(1, "no `;; phases:` line says what to run; phases are raise, shard and fuse".into())
        })?;
        let phase = |p: &str| {
            let unknown = || error(phases.line, format!("unknown phase `{p}`; phases are raise, shard and fuse"));
            Phase::parse(p).ok_or_else(unknown)
        };
        let blocked = header.get("blocked").cloned();
        let named = || blocked.is_none().then(|| Entry { text: name.to_owned(), line: 0 });
        let words = |e: &Entry| {
            let entry = |w: &str| Entry { text: w.to_owned(), line: e.line };
            e.text.split_whitespace().map(entry).collect::<Vec<_>>()
        };
        let read = |from: usize, to: usize| graph(file, text, from, to);
        let end = text.lines().count();
        let graph = read(start - 1, after.unwrap_or(end))?;
        let stage = |n: &Node| match n.op {
            Op::Boundary { stage } => usize::try_from(stage).unwrap_or(usize::MAX),
            _ => n.stage.unwrap_or(0),
        };
        if let Some((_, n)) = graph.nodes().find(|(_, n)| stage(n) >= mapping.pp) {
            let text = format!("`{}` is of a stage that `;; pp: {}` does not have", n.name, mapping.pp);
            return Err(error(start, text));
        }
        // The e-graph takes no term that mixes stages.
        saturate::analysis::facts(&graph).map_err(|e| error(start, e))?;
        Ok(Case {
            file: file.to_owned(),
            mapping,
            phases: phases.text.split_whitespace().map(phase).collect::<Result<_, _>>()?,
            graph,
            after: after.map(|i| read(i + 1, end)).transpose()?,
            fires: header.get("rule").cloned().or_else(named),
            blocked,
            banned: header.get("no-rule").map(words).unwrap_or_default(),
        })
    }

    /// The rule that must fire.
    pub fn fires(&self) -> Option<&str> {
        self.fires.as_ref().map(|e| &*e.text)
    }

    /// The rule that must not fire.
    pub fn blocked(&self) -> Option<&str> {
        self.blocked.as_ref().map(|e| &*e.text)
    }

    /// Runs the phases, checks what fired, and executes the graph, the extracted program, and the program
    /// with the rule's own terms on all ranks: all of them must compute the same.
    pub fn check(&self, rules: &RuleSet) -> Result<Checked, CaseError> {
        let failed = |what: &str, e: &dyn std::fmt::Display| CaseError::Failed(format!("{what}{e}"));
        let mut rules = rules.clone();
        for e in &self.banned {
            rules.ban(std::slice::from_ref(&e.text)).map_err(|why| self.error(e.line, why.to_string()))?;
        }
        for e in self.fires.iter().chain(&self.blocked) {
            self.known(&rules, e)?;
        }
        let config = CompileConfig::standard(self.mapping, rules).map_err(|e| failed("", &e))?;
        let cost = CostModel::new(config.device.clone(), self.mapping, config.objective, &self.graph);
        let mut program = saturate::load(&self.graph);
        let mut stats: BTreeMap<String, RuleStats> = BTreeMap::new();
        for &phase in &self.phases {
            let rules = config.rules.phase(phase);
            let made = &mut program.made;
            let s = saturate::saturate(&mut program.eg, &rules, &self.mapping, config.saturate, made)
                .map_err(|e| failed("", &e))?;
            if s.stop != StopReason::Saturated {
                return Err(failed("the rules do not come to an end: ", &s.stop));
            }
            stats.extend(s.rules);
        }
        let count = |e: &Entry| stats.get(&e.text).copied().unwrap_or_default();
        if let Some(e) = &self.fires
            && count(e).applied == 0
        {
            let why = match count(e).matches {
                0 => "did not fire",
                _ => "matched, but changed nothing: its right side has no type here, or another rule says the same",
            };
            return Err(CaseError::Failed(format!("`{}` {why}", e.text)));
        }
        if let Some(e) = &self.blocked
            && count(e).applied > 0
        {
            return Err(CaseError::Failed(format!("`{}` fired and must not: no guard excludes this graph", e.text)));
        }
        let extracted = extract::extract(&program, &self.graph, &cost).map_err(|e| failed("", &e))?.graph;
        let execute = |what: &str, graph: &Graph| {
            ir::verify(graph).map_err(|e| failed(what, &e))?;
            self.execute(graph, &cost).map_err(|e| failed(what, &e))
        };
        let expected = execute("", &self.graph)?;
        finite(&expected)?;
        agree("the extracted graph", &extracted, &execute("the extracted graph: ", &extracted)?, &expected)?;
        let mut checked = Checked { extracted, forced: None };
        if let Some(rule) = self.fires() {
            let what = format!("the graph with the terms of `{rule}`");
            let chosen = choose(&program, &self.graph, &cost, Preference::MadeBy(rule)).map_err(|e| failed("", &e))?;
            if chosen.preferred == 0 && !program.made_by(rule).is_empty() {
                return Err(CaseError::Failed(format!("no term of `{rule}` can be part of this program")));
            }
            agree(&what, &chosen.graph, &execute(&format!("{what}: "), &chosen.graph)?, &expected)?;
            checked.forced = Some(chosen.graph);
        }
        Ok(checked)
    }

    fn error(&self, line: usize, message: String) -> CaseError {
        CaseError::Input { file: self.file.clone(), line, message }
    }

    /// Whether a rule exists and runs.
    fn known(&self, rules: &RuleSet, e: &Entry) -> Result<(), CaseError> {
        match rules.rules().iter().find(|r| r.name == e.text) {
            Some(r) if self.phases.contains(&r.phase) => Ok(()),
            Some(r) => {
                let phase = r.phase.name();
                Err(self.error(e.line.max(1), format!("`{}` is of phase {phase}, which the case does not run", e.text)))
            }
            None if e.line == 0 => {
                let help = "name the file after its rule, or write `;; rule: NAME`";
                Err(self.error(1, format!("no rule is called `{}`: {help}", e.text)))
            }
            None => Err(self.error(e.line, format!("no rule is called `{}`; `sinter rules list` shows all", e.text))),
        }
    }

    /// Executes a graph on all ranks, and compares with what the evaluator makes of it.
    fn execute(&self, graph: &Graph, cost: &CostModel) -> Result<Vec<(String, Tensor)>, String> {
        let Data { bindings, inputs, weights } = self.data()?;
        let plan = lower::lower(graph, &stub(graph), self.mapping, cost).map_err(|e| e.to_string())?;
        let held = lower::rank_weights(&plan, &weights).map_err(|e| e.to_string())?;
        let result = executor::run(&plan, &held, &inputs, &RunConfig::default()).map_err(|e| e.to_string())?;
        let evaluated = outputs(graph, self.mapping.tp, &bindings, &inputs, &weights)?;
        let what = "the evaluator, compared with the kernels,";
        agree(what, graph, &evaluated, &result.outputs).map_err(|e| e.to_string())?;
        Ok(result.outputs)
    }

    /// Random inputs and weights. Symbols are bound to 2 and 3 in turn.
    fn data(&self) -> Result<Data, String> {
        let mut symbols = BTreeSet::new();
        let dims = self.graph.nodes().flat_map(|(_, n)| n.types.iter().flat_map(|t| t.shape.iter()));
        dims.for_each(|d| d.collect_symbols(&mut symbols));
        let bindings: Bindings = symbols.into_iter().enumerate().map(|(i, s)| (s, 2 + i as i64 % 2)).collect();
        let mut random = Random::new(1);
        let (mut inputs, mut weights) = (BTreeMap::new(), Weights::default());
        for (_, n) in self.graph.nodes() {
            match &n.op {
                Op::Input { name, .. } => {
                    let shape = extents(name, n.ty(), &bindings)?;
                    inputs.insert(name.clone(), tensor(&mut random, n.ty().dtype, &shape)?);
                }
                Op::Weight { name, .. } => {
                    if n.ty().shape.iter().any(|d| d.as_const().is_none()) {
                        return Err(format!("weight `{name}` is {}: the extents of weights are numbers", n.ty()));
                    }
                    let shape = extents(name, n.ty(), &bindings)?;
                    let bytes = tensor(&mut random, n.ty().dtype, &shape)?.bytes().to_vec().into();
                    weights.0.insert(name.clone(), Weight { ty: n.ty().clone(), bytes, random: None });
                }
                _ => {}
            }
        }
        Ok(Data { bindings, inputs, weights })
    }
}

/// What a case is executed on.
struct Data {
    bindings: Bindings,
    inputs: BTreeMap<String, Tensor>,
    weights: Weights,
}

/// The text of a case with another graph below `;; after`.
pub fn with_after(text: &str, after: &Graph) -> String {
    let before: Vec<&str> = text.lines().take_while(|l| l.trim_end() != AFTER).collect();
    format!("{}\n{AFTER}\n{}", before.join("\n").trim_end(), ir::print(after))
}

/// Reads the graph between two lines, counted from 0.
fn graph(file: &str, text: &str, from: usize, to: usize) -> Result<Graph, CaseError> {
    let lines: Vec<&str> = text.lines().skip(from).take(to - from).collect();
    let error = |line: usize, message: String| CaseError::Input { file: file.to_owned(), line: from + line, message };
    let graph = ir::parse(&lines.join("\n")).map_err(|e| error(e.line, e.message))?;
    ir::verify(&graph).map_err(|e| error(line_of(&lines, &e), e.to_string()))?;
    Ok(graph)
}

/// The line that defines what the verifier names, from 1.
fn line_of(lines: &[&str], e: &VerifyError) -> usize {
    let quoted = ir::Attr::Str(e.node.clone()).to_string();
    let output = e.node.strip_prefix("output ").map(|n| format!("output {} =", ir::Attr::Str(n.to_owned())));
    let starts = [Some(format!("%{}:", e.node)), Some(format!("%{quoted}:")), output];
    let defines = |l: &&str| {
        let l = l.trim_start();
        let l = l.strip_prefix("input ").or_else(|| l.strip_prefix("weight ")).unwrap_or(l).trim_start();
        starts.iter().flatten().any(|s| l.starts_with(s.as_str()))
    };
    // Of two definitions of one name the second is wrong.
    lines.iter().rposition(defines).unwrap_or(0) + 1
}

fn agree(what: &str, graph: &Graph, got: &[(String, Tensor)], expected: &[(String, Tensor)]) -> Result<(), CaseError> {
    for ((name, a), (_, b)) in got.iter().zip(expected) {
        let c = compare(a, b, Tolerance::of(b.dtype));
        if !c.pass {
            let why = c.reason.unwrap_or_else(|| format!("by {:.3e}", c.max_abs));
            let text = ir::print(graph);
            return Err(CaseError::Failed(format!("{what} computes another `{name}`, which differs {why}:\n{text}")));
        }
    }
    Ok(())
}

/// A comparison of values that are no numbers shows nothing.
fn finite(outputs: &[(String, Tensor)]) -> Result<(), CaseError> {
    match outputs.iter().find(|(_, t)| t.to_f64().iter().any(|v| !v.is_finite())) {
        None => Ok(()),
        Some((name, _)) => Err(CaseError::Failed(format!(
            "output `{name}` is not finite for inputs in [-1, 1), so that the case shows nothing"
        ))),
    }
}

fn extents(name: &str, ty: &TensorType, bindings: &Bindings) -> Result<Vec<usize>, String> {
    let extent = |d: &Dim| usize::try_from(d.eval(bindings)?).map_err(|_| format!("the extent {d} is negative"));
    let shape: Vec<usize> =
        ty.shape.iter().map(extent).collect::<Result<_, _>>().map_err(|e| format!("`{name}`: {e}"))?;
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    match elements {
        Some(n) if n <= MAX_ELEMENTS => Ok(shape),
        _ => Err(format!("`{name}` is {ty}: that is too large for a case, small extents show the same")),
    }
}

/// Floats in [-1, 1), small indices, truth values.
fn tensor(random: &mut Random, dtype: DType, shape: &[usize]) -> Result<Tensor, String> {
    let mut bytes = vec![];
    for _ in 0..shape.iter().product::<usize>() {
        let r = random.number();
        let x = (r % 2000) as f32 / 1000.0 - 1.0;
        match dtype {
            DType::F32 => bytes.extend(x.to_le_bytes()),
            DType::F16 => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
            DType::BF16 => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
            DType::F64 => bytes.extend(f64::from(x).to_le_bytes()),
            DType::I64 => bytes.extend(((r % 4) as i64).to_le_bytes()),
            DType::I32 => bytes.extend(((r % 4) as i32).to_le_bytes()),
            DType::I8 | DType::U8 => bytes.push((r % 4) as u8),
            d if d.is_quantised() => bytes.push(sinter_runtime::minifloat::encode(d, f64::from(x), true)),
            _ => bytes.push((r % 2) as u8),
        }
    }
    Tensor::from_bytes(dtype, shape, &bytes).map_err(|e| e.to_string())
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
