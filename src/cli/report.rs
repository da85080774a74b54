//! The report of `optimize`: everything that is printed for people, for machines. Keys are stable.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use sinter_runtime::plan::{Source, Stage, Value};

use crate::explain::WhyNot;
use crate::import::Imported;
use crate::ir::{Op, TensorType};
use crate::lower::step_counts;
use crate::pipeline::Compiled;
use crate::timing::{Timings, peak_rss_bytes};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) schema: u32,
    pub(super) model: Model,
    pub(super) mapping: MappingReport,
    /// What the program takes for granted about the extents of its inputs.
    pub(super) assumptions: Vec<Assumed>,
    pub(super) own_rules: OwnRules,
    pub(super) saturate: Saturate,
    pub(super) extract: Extract,
    pub(super) ops: BTreeMap<String, usize>,
    pub(super) fused: BTreeMap<String, usize>,
    /// The all-reduces, residual sums and norms that no kernel joins.
    pub(super) unfused: Vec<WhyNot>,
    pub(super) stages: Vec<StageReport>,
    pub(super) certificate: CertificateReport,
    pub(super) tolerance: BTreeMap<&'static str, [f64; 2]>,
    pub(super) time_ms: BTreeMap<&'static str, f64>,
    pub(super) peak_rss_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Model {
    pub(super) path: String,
    pub(super) nodes: usize,
    pub(super) weights: usize,
    pub(super) weight_bytes: u64,
    /// Weights whose data is made up.
    pub(super) random_weights: usize,
    pub(super) opset: i64,
    /// Inputs with a default value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) defaults: Vec<String>,
    /// Where the model's declarations are not followed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
}

/// A relation between extents that is checked before a run.
#[derive(Debug, Serialize)]
pub(super) struct Assumed {
    /// Such as `m = n`.
    pub(super) relation: String,
    /// What asks for it.
    pub(super) why: String,
}

/// Rules of `--rules` folders.
#[derive(Debug, Serialize)]
pub(super) struct OwnRules {
    pub(super) names: Vec<String>,
    /// False with `--trust-rules`.
    pub(super) verified: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct MappingReport {
    pub(super) tp: usize,
    pub(super) pp: usize,
    pub(super) cp: usize,
    pub(super) attention_dp: bool,
    pub(super) moe_tp: usize,
    pub(super) moe_ep: usize,
    pub(super) world: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Saturate {
    pub(super) stop: String,
    pub(super) iterations: usize,
    pub(super) e_nodes: usize,
    pub(super) e_classes: usize,
    /// Times that each rule changed the e-graph; rules that never did are left out.
    pub(super) rules: BTreeMap<String, usize>,
}

#[derive(Debug, Serialize)]
pub(super) struct Extract {
    pub(super) original_ns: u64,
    pub(super) greedy_ns: u64,
    pub(super) chosen_ns: u64,
    pub(super) bound_ns: u64,
    pub(super) original_time_ns: u64,
    pub(super) chosen_time_ns: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct StageReport {
    pub(super) index: usize,
    pub(super) ops: BTreeMap<String, usize>,
    pub(super) fused: BTreeMap<String, usize>,
    pub(super) weight_bytes_per_rank: u64,
    /// Of these, bytes of vectors that an earlier stage holds as well, because both compute from them.
    pub(super) shared_weight_bytes: u64,
    pub(super) whole_matrices: Vec<String>,
    pub(super) sends: Vec<Send>,
}

#[derive(Debug, Serialize)]
pub(super) struct Send {
    pub(super) name: String,
    pub(super) to: i64,
    pub(super) dtype: String,
    pub(super) shape: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct CertificateReport {
    pub(super) groups: usize,
    pub(super) collectives: usize,
    pub(super) ok: bool,
}

fn const_bytes(t: &TensorType) -> u64 {
    t.bytes().as_const().map_or(0, i64::unsigned_abs)
}

impl Report {
    pub(super) fn new(path: &Path, model: &Imported, c: &Compiled, own_rules: OwnRules, outer: &Timings) -> Report {
        let m = c.plan.mapping;
        let (ops, fused) = step_counts(&c.plan.stages);
        let e = &c.extract;
        let last = c.saturate.last().map(|(_, s)| s);
        let mut rules = BTreeMap::new();
        for (name, s) in c.saturate.iter().flat_map(|(_, s)| &s.rules) {
            if s.applied > 0 {
                *rules.entry(name.clone()).or_insert(0) += s.applied;
            }
        }
        let mut time_ms: BTreeMap<&'static str, f64> =
            ["import", "raise", "partition", "saturate", "extract", "explain", "lower", "write"]
                .map(|n| (n, 0.0))
                .into();
        for (n, ms) in outer.entries().iter().chain(c.timings.entries()) {
            *time_ms.entry(n).or_insert(0.0) += ms;
        }
        time_ms.insert("total", outer.total() + c.timings.total());
        let weights = || model.weights.0.iter().filter(|(name, _)| !model.defaults.contains(*name)).map(|(_, w)| w);
        let tolerances = [crate::ir::DType::F32, crate::ir::DType::F16, crate::ir::DType::BF16];
        Report {
            schema: 1,
            model: Model {
                path: path.display().to_string(),
                nodes: model.n_nodes,
                weights: weights().count(),
                weight_bytes: weights().map(|w| const_bytes(&w.ty)).sum(),
                random_weights: model.weights.random().count(),
                opset: model.opset,
                defaults: model.defaults.iter().cloned().collect(),
                notes: model.notes.clone(),
            },
            mapping: MappingReport {
                tp: m.tp,
                pp: m.pp,
                cp: 1,
                attention_dp: false,
                moe_tp: m.tp,
                moe_ep: 1,
                world: m.world(),
            },
            assumptions: c
                .plan
                .assumptions
                .iter()
                .map(|a| Assumed { relation: a.to_string(), why: a.why.clone() })
                .collect(),
            own_rules,
            saturate: Saturate {
                stop: c.stop(),
                iterations: c.saturate.iter().map(|(_, s)| s.iterations).sum(),
                e_nodes: last.map_or(0, |s| s.e_nodes),
                e_classes: last.map_or(0, |s| s.e_classes),
                rules,
            },
            extract: Extract {
                original_ns: e.original_ns,
                greedy_ns: e.greedy_ns,
                chosen_ns: e.chosen_ns,
                bound_ns: e.bound_ns,
                original_time_ns: e.original_time_ns,
                chosen_time_ns: e.chosen_time_ns,
            },
            ops,
            fused,
            unfused: c.record.unfused.clone(),
            stages: (0..m.pp).map(|i| stage(i, &c.plan.stages, m.tp)).collect(),
            certificate: CertificateReport {
                groups: c.plan.certificate.groups.len(),
                collectives: c.plan.certificate.groups.iter().map(|g| g.calls.len()).sum(),
                ok: true,
            },
            tolerance: tolerances
                .map(|d| {
                    let t = sinter_runtime::compare::Tolerance::of(d);
                    (d.name(), [t.abs, t.rel])
                })
                .into(),
            time_ms,
            peak_rss_bytes: peak_rss_bytes(),
        }
    }
}

fn stage(index: usize, stages: &[Stage], tp: usize) -> StageReport {
    let s = &stages[index];
    let name = |v: &Value| match &v.source {
        Source::Weight { key, .. } => Some(key.clone()),
        _ => None,
    };
    let earlier: BTreeSet<String> = stages[..index].iter().flat_map(|s| &s.values).filter_map(name).collect();
    let (ops, fused) = step_counts(std::slice::from_ref(s));
    let weights = || s.values.iter().filter(|v| matches!(v.source, Source::Weight { .. }));
    let whole =
        weights().filter(|v| tp > 1 && v.ty.is_matrix() && matches!(v.source, Source::Weight { part: None, .. }));
    let sends = s.steps.iter().filter_map(|step| match step.op {
        Op::Send { stage, .. } => {
            let v = s.value(step.inputs[0]);
            let shape = v.ty.shape.iter().map(ToString::to_string).collect();
            Some(Send { name: v.name.clone(), to: stage, dtype: v.ty.dtype.name().to_owned(), shape })
        }
        _ => None,
    });
    StageReport {
        index,
        ops,
        fused,
        weight_bytes_per_rank: weights().map(|v| const_bytes(&v.ty)).sum(),
        shared_weight_bytes: weights()
            .filter(|v| name(v).is_some_and(|n| earlier.contains(&n)))
            .map(|v| const_bytes(&v.ty))
            .sum(),
        whole_matrices: whole.map(|v| v.name.clone()).collect(),
        sends: sends.collect(),
    }
}
