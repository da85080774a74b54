//! Rules on source files that the compiler does not enforce; ARCHITECTURE.md states them for people.

use std::path::{Path, PathBuf};

use sinter::rules::RuleSet;

use crate::fixtures::root;

/// Longest source file, in lines.
const MAX_LINES: usize = 800;

/// A file with its path from the root, `/` between its parts.
struct Source {
    path: String,
    text: String,
}

/// Every file with an extension below the given folders.
fn sources(folders: &[&str], extension: &str) -> Vec<Source> {
    fn collect(dir: &Path, extension: &str, out: &mut Vec<PathBuf>) {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                collect(&path, extension, out);
            } else if path.extension().is_some_and(|e| e == extension) {
                out.push(path);
            }
        }
    }
    let mut paths = vec![];
    for f in folders.iter().map(|f| root().join(f)).filter(|f| f.is_dir()) {
        collect(&f, extension, &mut paths);
    }
    paths.sort();
    let read = |p: PathBuf| Source {
        path: p.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/"),
        text: std::fs::read_to_string(&p).unwrap(),
    };
    let out: Vec<Source> = paths.into_iter().map(read).collect();
    assert!(!out.is_empty(), "no *.{extension} in {folders:?}");
    out
}

/// The lines with their numbers, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, l)| !l.trim_start().starts_with("//")).map(|(i, l)| (i + 1, l))
}

/// Whether a word occurs that is not part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(i, _)| {
        !line[..i].chars().next_back().is_some_and(part) && !line[i + word.len()..].chars().next().is_some_and(part)
    })
}

/// Fails with every problem found.
fn check(problems: Vec<String>) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// (crate, files that may name it)
const LIBRARIES: &[(&str, &[&str])] = &[
    ("egg", &["src/saturate/", "src/extract/"]),
    ("prost", &["src/import/proto.rs", "src/import/mod.rs", "src/emit/mod.rs", "src/cli/data.rs"]),
    ("petgraph", &["src/ir/graph.rs", "src/import/"]),
    ("clap", &["src/cli/"]),
    ("indicatif", &["src/cli/"]),
    ("annotate_snippets", &["src/diag.rs"]),
    ("cudarc", &["runtime/src/cuda/"]),
    ("libloading", &["runtime/src/cuda/library.rs"]),
];

#[test]
fn libraries_stay_where_they_belong() {
    let mut problems = vec![];
    for s in sources(&["src", "runtime/src"], "rs") {
        for (library, places) in LIBRARIES {
            for (n, line) in code(&s.text).filter(|(_, l)| l.contains(&format!("{library}::"))) {
                if has_word(line, library) && !places.iter().any(|p| s.path.starts_with(p)) {
                    problems.push(format!("{}:{n}: {library} belongs in {places:?}", s.path));
                }
            }
        }
    }
    check(problems);
}

/// (module, modules that it may use). `lib.rs` and `main.rs` may use all.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "check", "cost", "diag", "diff", "emit", "explain", "import", "ir", "lower", "pipeline", "rules",
            "saturate", "timing",
        ],
    ),
    ("pipeline", &["cost", "explain", "extract", "import", "ir", "lower", "partition", "rules", "saturate", "timing"]),
    ("check", &["cost", "diag", "extract", "import", "ir", "lower", "pipeline", "rules", "saturate"]),
    ("import", &["ir"]),
    ("saturate", &["explain", "ir", "rules"]),
    ("explain", &[]),
    // Extraction reads an e-graph.
    ("extract", &["cost", "ir", "saturate"]),
    // The facts of the analysis tell what each stage may compute for itself.
    ("partition", &["cost", "ir", "saturate"]),
    ("lower", &["cost", "import", "ir"]),
    ("emit", &["import", "ir", "lower"]),
    ("rules", &["diag", "ir"]),
    ("cost", &["ir"]),
    ("diff", &["ir"]),
    ("ir", &[]),
    ("diag", &[]),
    ("timing", &[]),
];

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut problems = vec![];
    for s in sources(&["src"], "rs") {
        let rest = s.path.strip_prefix("src/").unwrap();
        let module = rest.split(['/', '.']).next().unwrap();
        if matches!(module, "lib" | "main") {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(m, _)| *m == module) else {
            problems.push(format!("{}: the module `{module}` has no row in ARROWS", s.path));
            continue;
        };
        for (n, line) in code(&s.text) {
            for (i, _) in line.match_indices("crate::") {
                let used =
                    line[i + "crate::".len()..].split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                if !used.is_empty() && used != module && !allowed.contains(&used) {
                    problems.push(format!("{}:{n}: `{module}` must not use `{used}`", s.path));
                }
            }
            // Partition may use what is known about values, not the e-graph.
            if module == "partition" && line.contains("crate::saturate") && !line.contains("saturate::analysis::facts")
            {
                problems.push(format!("{}:{n}: only the facts of `saturate` are for `partition`", s.path));
            }
            let runtime =
                ["body", "dim", "dtype", "attr", "norm", "op", "plan"].map(|m| format!("sinter_runtime::{m}"));
            if module == "ir" && line.contains("sinter_runtime::") && !runtime.iter().any(|m| line.contains(m.as_str()))
            {
                problems.push(format!("{}:{n}: `ir` uses only the vocabulary of the runtime crate", s.path));
            }
        }
    }
    check(problems);
}

#[test]
fn unsafe_code_is_rare_and_explained() {
    let places = [
        "runtime/src/map.rs",
        "runtime/src/cpu/matmul.rs",
        "runtime/src/plan/read.rs",
        "runtime/src/cuda/library.rs",
        "runtime/src/cuda/nvrtc.rs",
        "runtime/src/cuda/device.rs",
        "runtime/src/cuda/check/harness.rs",
    ];
    let mut problems = vec![];
    for s in sources(&["src", "runtime/src"], "rs") {
        for (n, line) in code(&s.text).filter(|(_, l)| has_word(l, "unsafe")) {
            if !places.contains(&s.path.as_str()) {
                problems.push(format!("{}:{n}: unsafe code belongs in {places:?}", s.path));
            }
            let above = s.text.lines().take(n - 1).collect::<Vec<_>>();
            let mut explained = above.iter().rev().take_while(|l| l.trim_start().starts_with("//"));
            // A function that is unsafe to call says in its documentation what callers owe.
            if !explained.any(|l| l.contains("SAFETY:") || l.contains("# Safety")) && !line.contains("SAFETY:") {
                problems.push(format!("{}:{n}: no SAFETY comment", s.path));
            }
        }
    }
    check(problems);
}

#[test]
fn files_are_short_documented_and_finished() {
    // Written in parts, so that this file does not find itself.
    let unfinished =
        [concat!("todo", "!"), concat!("unimplemented", "!"), concat!("#[", "ignore"), concat!("dbg", "!(")];
    let machine = [concat!("/tm", "p/"), concat!("/roo", "t/"), concat!("/wor", "k/"), concat!("/hom", "e/")];
    let mut problems = vec![];
    for s in sources(&["src", "runtime", "tests", "benches"], "rs") {
        let lines = s.text.lines().count();
        if lines > MAX_LINES {
            problems.push(format!("{}: {lines} lines; look for a seam", s.path));
        }
        if !s.text.starts_with("//!") {
            problems.push(format!("{}: no `//!` line says what it is", s.path));
        }
        for (n, line) in s.text.lines().enumerate() {
            for word in unfinished.iter().chain(&machine).filter(|w| line.contains(**w)) {
                problems.push(format!("{}:{}: `{word}`", s.path, n + 1));
            }
        }
    }
    for s in sources(&["rules", "tests/cases", "fixtures/devices"], "rules")
        .into_iter()
        .chain(sources(&["fixtures"], "json"))
    {
        for word in machine.iter().filter(|w| s.text.contains(**w)) {
            problems.push(format!("{}: `{word}`", s.path));
        }
    }
    check(problems);
}

#[test]
fn every_rule_is_explained_and_shown() {
    let rules = RuleSet::bundled().unwrap();
    let cases = root().join("tests/cases/saturate");
    let mut problems = vec![];
    for r in rules.rules() {
        if r.doc.is_empty() {
            problems.push(format!("{}:{}: rule `{}` has no comment", r.file, r.line, r.name));
        }
        if !cases.join(format!("{}.txt", r.name)).is_file() {
            problems.push(format!("rule `{}` has no case tests/cases/saturate/{0}.txt", r.name));
        }
    }
    // A case that is named after a rule must not outlive it.
    for s in sources(&["tests/cases/saturate"], "txt") {
        let name = s.path.rsplit('/').next().unwrap().trim_end_matches(".txt").to_owned();
        let header = |key: &str| s.text.lines().find_map(|l| Some(l.strip_prefix(key)?.trim().to_owned()));
        let rule = header(";; rule:").or_else(|| header(";; blocked:")).unwrap_or(name);
        if !rules.rules().iter().any(|r| r.name == rule) {
            problems.push(format!("{}: no rule is called `{rule}`", s.path));
        }
    }
    // Every rule file of the folder is part of the program.
    for s in sources(&["rules"], "rules") {
        if !sinter::rules::BUNDLED.iter().any(|(n, _)| *n == s.path) {
            problems.push(format!("{} is not bundled", s.path));
        }
    }
    check(problems);
}
