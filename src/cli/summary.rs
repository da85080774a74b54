//! The summary of `optimize` for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::report::Report;
use super::{counted, plural};
use crate::explain::WhyNot;
use crate::pipeline::Compiled;

fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut v = n as f64;
    let mut u = 0;
    while v >= 1024.0 && u + 1 < units.len() {
        v /= 1024.0;
        u += 1;
    }
    if u == 0 { format!("{n} B") } else { format!("{v:.1} {}", units[u]) }
}

fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        _ => format!("{:.2} ms", ns as f64 / 1e6),
    }
}

fn counts(m: &BTreeMap<String, usize>) -> String {
    let list: Vec<String> = m.iter().filter(|(_, n)| **n > 0).map(|(k, n)| format!("{n} {k}")).collect();
    if list.is_empty() { "nothing".into() } else { list.join(", ") }
}

pub(super) fn text(r: &Report, c: &Compiled, output: Option<&Path>) -> String {
    let mut t = String::new();
    let m = &r.mapping;
    let _ = writeln!(
        t,
        "{}: {}, opset {}, {} of {}",
        r.model.path,
        counted(r.model.nodes, "node"),
        r.model.opset,
        counted(r.model.weights, "weight"),
        bytes(r.model.weight_bytes)
    );
    if r.model.random_weights > 0 {
        let n = r.model.random_weights;
        let seed = c.plan.random.first().map_or(0, |w| w.seed);
        let _ = writeln!(t, "data of {n} of {} is absent and made up, seed {seed}", counted(r.model.weights, "weight"));
    }
    for n in &r.model.notes {
        let _ = writeln!(t, "note: {n}");
    }
    if !r.model.defaults.is_empty() {
        let n = r.model.defaults.len();
        let _ = writeln!(
            t,
            "{} default value{}: {} (whole on every rank; --freeze-defaults makes constants of them)",
            if n == 1 { "1 input has a".to_owned() } else { format!("{n} inputs have") },
            plural(n),
            list(&r.model.defaults)
        );
    }
    assumptions(&mut t, r);
    let _ = writeln!(t, "tp {} x pp {} = {}", m.tp, m.pp, counted(m.world, "rank"));
    let _ = writeln!(
        t,
        "e-graph: {} after {}, {} in {}",
        r.saturate.stop,
        counted(r.saturate.iterations, "round"),
        counted(r.saturate.e_nodes, "e-node"),
        // The plural is irregular.
        if r.saturate.e_classes == 1 { "1 e-class".to_owned() } else { format!("{} e-classes", r.saturate.e_classes) }
    );
    let own = r.own_rules.names.len();
    if own > 0 {
        let how = if r.own_rules.verified { "verified" } else { "trusted without verification" };
        let _ = writeln!(t, "your rules: {own}, {how}");
    }
    let _ = writeln!(t, "fused: {}", counts(&r.fused));
    for s in &r.stages {
        let _ = writeln!(t, "stage {}", s.index);
        let _ = writeln!(t, "  fused    {}", counts(&s.fused));
        let rest: BTreeMap<_, _> =
            s.ops.iter().filter(|(k, _)| KEY_OPS.contains(&k.as_str())).map(|(k, v)| (k.clone(), *v)).collect();
        let _ = writeln!(t, "  apart    {}", counts(&rest));
        let _ = writeln!(t, "  weights  {} per rank", bytes(s.weight_bytes_per_rank));
        if !s.whole_matrices.is_empty() {
            let _ = writeln!(t, "  whole    {} (not divided over tp)", list(&s.whole_matrices));
        }
        for x in &s.sends {
            let _ = writeln!(t, "  sends    {}: {}[{}] to stage {}", x.name, x.dtype, x.shape.join(", "), x.to);
        }
    }
    unfused(&mut t, &r.unfused);
    let e = &r.extract;
    let _ = writeln!(
        t,
        "estimated time on {}: {} on one device before, {} after",
        c.device,
        time(e.original_time_ns),
        time(e.chosen_time_ns)
    );
    let _ = writeln!(
        t,
        "certificate: {}, {}, matched and free of deadlock",
        counted(r.certificate.groups, "group"),
        counted(r.certificate.collectives, "call")
    );
    let ms = |k: &str| r.time_ms.get(k).copied().unwrap_or(0.0);
    let _ = writeln!(
        t,
        "compiled in {:.0} ms (import {:.0}, raise {:.0}, saturate {:.0}, extract {:.0}, lower {:.0}, write {:.0}), peak memory {}",
        ms("total"),
        ms("import"),
        ms("raise"),
        ms("saturate"),
        ms("extract"),
        ms("lower"),
        ms("write"),
        bytes(r.peak_rss_bytes)
    );
    if let Some(dir) = output {
        let _ = writeln!(t, "plan written to {}", dir.display());
    }
    t
}

/// At most this many relations between extents are listed.
const MAX_ASSUMED: usize = 8;

/// What the program takes for granted about extents.
fn assumptions(t: &mut String, r: &Report) {
    if r.assumptions.is_empty() {
        return;
    }
    let _ = writeln!(t, "extents taken for granted, checked before a run");
    for a in r.assumptions.iter().take(MAX_ASSUMED) {
        let _ = writeln!(t, "  {}: {}", a.relation, a.why);
    }
    if let more @ 1.. = r.assumptions.len().saturating_sub(MAX_ASSUMED) {
        let _ = writeln!(t, "  and {more} more, in the report");
    }
}

/// What stands apart, with the reasons. Sites that differ in names alone are told together.
pub(super) fn unfused(t: &mut String, sites: &[WhyNot]) {
    if sites.is_empty() {
        return;
    }
    let _ = writeln!(t, "not fused");
    let mut groups: Vec<Vec<&WhyNot>> = vec![];
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    for u in sites {
        let key = format!("{} {} {}", u.stage, u.op, without_names(&u.reason));
        let i = *at.entry(key).or_insert(groups.len());
        match groups.get_mut(i) {
            Some(g) => g.push(u),
            None => groups.push(vec![u]),
        }
    }
    for us in groups {
        let names: Vec<String> = us.iter().map(|u| u.node.clone()).collect();
        let first = us[0];
        let likewise = if us.iter().all(|u| u.reason == first.reason) { "" } else { "; the others likewise" };
        let _ = writeln!(t, "  stage {}: {} {}: {}{likewise}", first.stage, first.op, list(&names), first.reason);
    }
}

/// A reason without the names of values.
fn without_names(reason: &str) -> String {
    let mut parts = reason.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, p| text + "%" + p.find([' ', ',', ')', ';', ':']).map_or("", |end| &p[end..]))
}

/// Operators that a fusion could have taken.
const KEY_OPS: &[&str] = &["all_reduce", "all_gather", "rms_norm", "layer_norm", "matmul", "attention"];

/// A few names, and how many more there are.
fn list(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(4).map(|n| format!("`{n}`")).collect();
    let more = names.len().saturating_sub(4);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
