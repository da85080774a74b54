//! The reference of the rule language's words, written from the tables of the program.

use std::fmt::Write as _;

use super::lang::{OpClass, Phase};
use super::signature::{self, ValueSort};
use super::vocab::{FUNCTIONS, Function};
use crate::ir::{AttrKind, Class, DType, MeshAxis, OpInfo, op};

const CLASSES: [(Class, &str, &str); 9] = [
    (Class::Unary, "Element-wise, one operand", "`(?f:unary ?x)` matches each of these."),
    (
        Class::Commutative,
        "Element-wise, two operands that may be exchanged",
        "With NumPy broadcasting. Patterns match in both orders. `(?f:binary ?x ?y)` matches each of these.",
    ),
    (
        Class::Binary,
        "Element-wise, two operands in order",
        "With NumPy broadcasting. `(?f:binary ?x ?y)` matches each of these as well.",
    ),
    (Class::Compute, "Other computation", ""),
    (Class::Layout, "Layout", "These move elements and do not compute on them."),
    (Class::Collective, "Ranks and stages", "These communicate, or cut a tensor for a rank."),
    (Class::Fused, "Fused kernels", "One kernel each. Where there are two results, `(get ?f 0)` reads the first."),
    (Class::Leaf, "Leaves", "No operand."),
    (Class::Root, "Results of the program", ""),
];

const PHASES: [(Phase, &str); 3] = [
    (
        Phase::Raise,
        "Before the graph is partitioned, on an e-graph of its own, to saturation. Its result is extracted.",
    ),
    (Phase::Shard, "On the e-graph of the staged graph, to saturation."),
    (Phase::Fuse, "On the same e-graph, after `shard`."),
];

/// The words of rule files: phases, operators, guards and functions, in Markdown.
pub fn reference() -> String {
    let mut out = String::from(
        "# Reference of the rule language\n\n\
         Written by the program from its own tables (`sinter rules reference`); `make bless` brings this file up to\n\
         date. [README.md](README.md) explains how to write rules.\n\n\
         ## Phases\n\n| phase | when it runs |\n|---|---|\n",
    );
    for (phase, doc) in PHASES {
        row(&mut out, &[&code(phase.name()), doc]);
    }
    out.push_str("\n## Literals\n\n| sort | written |\n|---|---|\n");
    let axes = [MeshAxis::Tp, MeshAxis::Pp].map(|a| code(a.name())).join(", ");
    let types = DType::OWN.map(|t| code(t.name())).join(", ");
    row(&mut out, &["number", "`3`, `0.5`, `1e-6`"]);
    row(&mut out, &["list", "`(0 2 1)`"]);
    row(&mut out, &["true or false", "`true`, `false`"]);
    row(&mut out, &["mesh axis", &axes]);
    row(&mut out, &["element type", &types]);
    out.push_str("\n## Operators\n\n");
    out.push_str(
        "Attributes stand in the order in which they may be written without a keyword, with their default values. A value\n\
         is a variable or a literal on the left side of a rule, an expression on the right.\n",
    );
    for (class, title, note) in CLASSES {
        let _ = write!(out, "\n### {title}\n\n");
        if !note.is_empty() {
            let _ = write!(out, "{note}\n\n");
        }
        out.push_str("| operator | operands | results | attributes | meaning |\n|---|---|---|---|---|\n");
        for o in op::table().iter().filter(|o| o.class == class) {
            row(&mut out, &[&code(o.name), &o.arity(), &o.outputs.to_string(), &attributes(o), o.doc]);
        }
    }
    out.push_str(
        "\n## Guards and functions\n\n\
         A guard is a function that gives true or false, in `:if` or `:when`. All of them may stand in `let` and in the\n\
         attributes of the right side. `several tensors` is `?m?` or `?m...`. A function that has no value somewhere\n\
         makes the rule not apply there.\n\n",
    );
    let is_guard = |f: &&Function| signature::result(f.name) == ValueSort::Bool;
    out.push_str("### Guards\n\n| name | parameters | meaning |\n|---|---|---|\n");
    for f in FUNCTIONS.iter().filter(is_guard) {
        row(&mut out, &[&code(f.name), &parameters(f), f.doc]);
    }
    out.push_str("\n### Functions\n\n| name | parameters | gives | meaning |\n|---|---|---|---|\n");
    for f in FUNCTIONS.iter().filter(|f| !is_guard(f)) {
        row(&mut out, &[&code(f.name), &parameters(f), signature::result(f.name).describe(), f.doc]);
    }
    out.push('\n');
    let binary = op::table().iter().filter(|o| OpClass::Binary.contains_class(o.class)).count();
    let unary = op::table().iter().filter(|o| OpClass::Unary.contains_class(o.class)).count();
    let _ = writeln!(
        out,
        "{} operators, of which `?f:unary` matches {unary} and `?f:binary` {binary}; {} guards and functions.",
        op::table().len(),
        FUNCTIONS.len()
    );
    out
}

fn row(out: &mut String, cells: &[&str]) {
    let cells: Vec<String> = cells.iter().map(|c| c.replace('|', "\\|")).collect();
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn code(word: &str) -> String {
    format!("`{word}`")
}

fn attributes(o: &OpInfo) -> String {
    let all = o.attrs.iter().map(|a| {
        let default = a.default.as_ref().map_or(String::new(), |d| format!(" = {d}"));
        format!("`:{}` {}{default}", a.name, kind(a.kind))
    });
    all.collect::<Vec<_>>().join(", ")
}

fn parameters(f: &Function) -> String {
    f.params.iter().map(|k| signature::parameter(*k)).collect::<Vec<_>>().join(", ")
}

fn kind(kind: AttrKind) -> &'static str {
    match kind {
        AttrKind::Int => "integer",
        AttrKind::Ints => "list of integers",
        AttrKind::Real => "number",
        AttrKind::Bool => "bool",
        AttrKind::DType => "element type",
        AttrKind::Dim => "extent",
        AttrKind::Dims => "shape",
        AttrKind::Axis => "mesh axis",
        AttrKind::Safe => "false, true or always",
        AttrKind::Str => "name",
        AttrKind::Lit => "constant",
        AttrKind::Body => "body",
        AttrKind::Call => "call",
    }
}
