//! `sinter rules test`: run the cases of rule folders.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::super::options::RuleOptions;
use super::super::{Failure, Outcome, counted, print};
use crate::check::case::{Case, CaseError, with_after};
use crate::ir;
use crate::rules::RuleSet;

/// The folder of a rule folder that holds its cases.
pub(super) const CASES: &str = "cases";

/// Options of `sinter rules test`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Rule folders. The bundled rules are read too.
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Write the extracted graph into each case that passes otherwise, below its line `;; after`.
    #[arg(long)]
    update: bool,
}

/// How a case ended that could be read.
enum Ended {
    Passed(&'static str),
    Failed(String),
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let rules = RuleOptions { dirs: o.dirs.clone(), banned: vec![] }.load()?;
    let mut files = vec![];
    for dir in &o.dirs {
        files.extend(cases(&dir.join(CASES))?);
    }
    if files.is_empty() {
        let place = o.dirs[0].join(CASES);
        return Err(format!("there is no case: {} holds no *.txt file", place.display()).into());
    }
    let mut shown: BTreeSet<String> = BTreeSet::new();
    let (mut passed, mut failed, mut unreadable) = (0, 0, 0);
    for path in &files {
        let line = match run_case(path, &rules, o.update, &mut shown) {
            Ok(Ended::Passed(note)) => {
                passed += 1;
                format!("ok      {}{note}", path.display())
            }
            Ok(Ended::Failed(why)) => {
                failed += 1;
                format!("FAILED  {}: {why}", path.display())
            }
            // The message names the file.
            Err(why) => {
                unreadable += 1;
                format!("FAILED  {why}")
            }
        };
        print(&(line.trim_end().to_owned() + "\n"))?;
    }
    let mut out = String::new();
    // The bundled rules come first.
    let own = rules.rules().iter().skip(RuleSet::bundled()?.rules().len());
    for r in own.filter(|r| !shown.contains(&r.name)) {
        let dir = Path::new(&r.file).parent().unwrap_or(Path::new(""));
        let case = dir.join(CASES).join(format!("{}.txt", r.name));
        let _ = writeln!(out, "note: rule `{}` has no case: write {}", r.name, case.display());
    }
    let _ = writeln!(out, "{}: {passed} ok, {} failed", counted(files.len(), "case"), failed + unreadable);
    print(&out)?;
    match (failed, unreadable) {
        (0, 0) => Ok(Outcome::Done),
        (_, 0) => Ok(Outcome::CheckFailed),
        (_, n) => {
            let are = if files.len() == 1 { "it is" } else { "they are" };
            Err(format!("{n} of {} cannot be run as {are} written", counted(files.len(), "case")).into())
        }
    }
}

/// The case files of a folder, by name; none where there is no folder.
fn cases(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let error = |e: std::io::Error| format!("cannot read the folder of cases {}: {e}", dir.display());
    let mut paths = vec![];
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(paths),
        entries => entries.map_err(error)?,
    };
    for entry in entries {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|e| e == "txt") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Runs a case; an error means that it cannot be run as it is written.
fn run_case(path: &Path, rules: &RuleSet, update: bool, shown: &mut BTreeSet<String>) -> Result<Ended, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let case = Case::parse(&path.display().to_string(), &name, &text).map_err(|e| e.to_string())?;
    shown.extend(case.fires().map(str::to_owned));
    let checked = match case.check(rules) {
        Ok(c) => c,
        Err(e @ CaseError::Input { .. }) => return Err(e.to_string()),
        Err(CaseError::Failed(why)) => return Ok(Ended::Failed(why)),
    };
    let found = ir::print(&checked.extracted);
    let stated = case.after.as_ref().map(ir::print);
    if stated.as_ref() == Some(&found) {
        return Ok(Ended::Passed(""));
    }
    if update {
        let new = with_after(&text, &checked.extracted);
        std::fs::write(path, new).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        return Ok(Ended::Passed(" (written)"));
    }
    Ok(match stated {
        None => Ended::Passed(" (no `;; after`: --update writes it)"),
        Some(stated) => {
            let help = "--update accepts the lines with +";
            let why = format!("the extracted graph is not the one below `;; after`; {help}:\n");
            Ended::Failed(why + &changes(&stated, &found))
        }
    })
}

/// Texts of more lines than this, multiplied, are not compared line by line.
const MAX_TABLE: usize = 1 << 22;

/// The lines of two texts in one, with `-` and `+` before those that only one of them has.
fn changes(old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let width = b.len() + 1;
    let mut common = vec![0u32; if a.len() * width < MAX_TABLE { (a.len() + 1) * width } else { 0 }];
    // The longest common run of lines from each pair of places to the end.
    if !common.is_empty() {
        for i in (0..a.len()).rev() {
            for j in (0..b.len()).rev() {
                common[i * width + j] = if a[i] == b[j] {
                    common[(i + 1) * width + j + 1] + 1
                } else {
                    common[(i + 1) * width + j].max(common[i * width + j + 1])
                };
            }
        }
    }
    let longest = |i: usize, j: usize| common.get(i * width + j).copied().unwrap_or(0);
    let (mut i, mut j) = (0, 0);
    let mut out = String::new();
    while i < a.len() || j < b.len() {
        let (sign, line) = if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
            (' ', a[i - 1])
        } else if i < a.len() && (j == b.len() || longest(i + 1, j) >= longest(i, j + 1)) {
            i += 1;
            ('-', a[i - 1])
        } else {
            j += 1;
            ('+', b[j - 1])
        };
        let _ = writeln!(out, "  {sign} {line}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::changes;

    #[test]
    fn changed_lines_are_marked() {
        assert_eq!(changes("a\nb\nc\n", "a\nc\nd\n"), "    a\n  - b\n    c\n  + d\n");
        assert_eq!(changes("", "x\n"), "  + x\n");
        let long = "x\n".repeat(3000);
        assert_eq!(changes(&long, &format!("y\n{long}")).lines().count(), 6001);
    }
}
