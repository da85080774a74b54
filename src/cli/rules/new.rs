//! `sinter rules new`: a first rule with its cases, as a starting point.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::super::options::RuleOptions;
use super::super::{Failure, Outcome, print};
use super::test::CASES;
use crate::check::case::{Case, with_after};
use crate::rules::{BUNDLED, Phase, RuleSet, is_kebab_case};

/// Options of `sinter rules new`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Name of the rule: lower-case words with `-` between them.
    name: String,
    /// Folder for the rule, `rules` where not given; it is made where there is none.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// When the rule runs: raise, shard or fuse.
    #[arg(long, default_value = "fuse", value_parser = phase)]
    phase: Phase,
}

fn phase(text: &str) -> Result<Phase, String> {
    Phase::parse(text).ok_or_else(|| "phases are raise, shard and fuse".to_owned())
}

/// A rule with a guard, a graph on which it fires and one that the guard excludes. `NAME` stands for the name.
struct Example {
    rule: &'static str,
    case: &'static str,
    /// What the guard excludes, for the name of the case.
    excluded: &'static str,
    blocked: &'static str,
}

const RAISE: Example = Example {
    rule: "\
; Rules of this phase bring an exported graph to the operators that later phases know.
(phase raise)

; This is an example: replace the comment, the two sides and the guard.
; The constant may have more axes than x. Then the difference has another shape, so that a guard is needed.

;; x - 0 == x
(rule NAME
  (sub ?x ?zero) => ?x
  :if ((constant ?zero) (= (value ?zero) 0.0) (covers-shape ?x ?zero)))
",
    case: "\
;; phases: raise
graph \"case\" {
  input %x: f32[batch, 4]
  %e: f32[batch, 4] = exp(%x)
  %zero: f32[] = const() {value = f32(0)}
  %d: f32[batch, 4] = sub(%e, %zero)
  %y: f32[batch, 4] = neg(%d)
  output \"y\" = %y
}
",
    excluded: "shape",
    blocked: "\
;; phases: raise
;; blocked: NAME
; the difference has one axis more than x
graph \"case\" {
  input %x: f32[4]
  %zero: f32[1, 4] = const() {value = f32[1, 4](0, 0, 0, 0)}
  %y: f32[1, 4] = sub(%x, %zero)
  output \"y\" = %y
}
",
};

const SHARD: Example = Example {
    rule: "\
; Rules of this phase cut tensors over the ranks. Both sides must be equal on every rank.
(phase shard)

; This is an example: replace the comment, the two sides and the guard.
; Each rank has a part of x along ?d. It can compute its part of the result unless the sum of the softmax runs
; along ?d itself.

;; softmax(gather(x)) == gather(softmax(x)) along another axis than the cut
(rule NAME
  (softmax (all_gather ?x ?d tp ?p) :axis ?a :safe ?z)
  => (all_gather (softmax ?x :axis ?a :safe ?z) ?d tp ?p)
  :if ((!= ?a ?d)))
",
    case: "\
;; phases: shard
;; tp: 2
graph \"case\" {
  input %x: f32[batch, 16]
  weight %w: f32[16, 32]
  %m: f32[batch, 32] = matmul(%x, %w)
  %y: f32[batch, 32] = softmax(%m) {axis = 0}
  output \"y\" = %y
}
",
    excluded: "axis",
    blocked: "\
;; phases: shard
;; tp: 2
;; blocked: NAME
; each rank has half of every row, and the sum runs along the row
graph \"case\" {
  input %x: f32[batch, 16]
  weight %w: f32[16, 32]
  %m: f32[batch, 32] = matmul(%x, %w)
  %y: f32[batch, 32] = softmax(%m) {axis = 1}
  output \"y\" = %y
}
",
};

const FUSE: Example = Example {
    rule: "\
; Rules of this phase replace several operators by one kernel.
(phase fuse)

; This is an example: replace the comment, the two sides and the guard.
; The kernel does not broadcast, so that a guard is needed.

;; x * sigmoid(x) * up
(rule NAME
  (mul (mul ?x (sigmoid ?x)) ?up) => (silu_mul ?x ?up)
  :if ((same-shape ?x ?up)))
",
    case: "\
;; phases: fuse
graph \"case\" {
  input %x: f32[batch, 8]
  input %up: f32[batch, 8]
  %g: f32[batch, 8] = sigmoid(%x)
  %s: f32[batch, 8] = mul(%x, %g)
  %y: f32[batch, 8] = mul(%s, %up)
  output \"y\" = %y
}
",
    excluded: "broadcast",
    blocked: "\
;; phases: fuse
;; blocked: NAME
; the kernel does not broadcast
graph \"case\" {
  input %x: f32[batch, 8]
  input %up: f32[8]
  %g: f32[batch, 8] = sigmoid(%x)
  %s: f32[batch, 8] = mul(%x, %g)
  %y: f32[batch, 8] = mul(%s, %up)
  output \"y\" = %y
}
",
};

/// A file to write.
struct NewFile {
    path: PathBuf,
    text: String,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let name = &o.name;
    if !is_kebab_case(name) {
        return Err(format!("`{name}` is no name for a rule: write lower-case words with `-` between them").into());
    }
    let example = match o.phase {
        Phase::Raise => &RAISE,
        Phase::Shard => &SHARD,
        Phase::Fuse => &FUSE,
    };
    let dir = o.dir.as_deref().unwrap_or(Path::new("rules"));
    let bundled = is_bundled(dir);
    if bundled && o.dir.is_none() {
        return Err(format!(
            "the folder {} holds sinter's bundled rules; nothing was written\n  help: name a folder of your own with --dir, or \
             this one to add a bundled rule",
            dir.display()
        )
        .into());
    }
    let known = if bundled { RuleSet::bundled()? } else { existing(dir)? };
    if let Some(r) = known.rules().iter().find(|r| r.name == *name) {
        return Err(format!("the name `{name}` is taken: {}, line {}", r.file, r.line).into());
    }
    let file = |path: PathBuf, text: &str| NewFile { path, text: text.replace("NAME", name) };
    let rule = file(dir.join(format!("{name}.rules")), example.rule);
    let cases = dir.join(CASES);
    let blocked = format!("blocked-{name}-{}.txt", example.excluded);
    let mut files = [file(cases.join(format!("{name}.txt")), example.case), file(cases.join(blocked), example.blocked)];
    for f in files.iter().chain([&rule]) {
        if f.path.symlink_metadata().is_ok() {
            return Err(format!("{} exists; nothing was written", f.path.display()).into());
        }
    }
    // What is written passes `rules test`, with all rules of the folder.
    let rules = known.with(&rule.path.display().to_string(), &rule.text)?;
    for f in &mut files {
        let stem = f.path.file_stem().unwrap_or_default().to_string_lossy();
        let case = Case::parse(&f.path.display().to_string(), &stem, &f.text);
        let checked = case.and_then(|c| c.check(&rules)).map_err(|e| {
            let help = "help: another rule of the folder gets in the way; leave it out, or write the rule by hand";
            format!("the example of phase {} does not pass: {e}\n  {help}", o.phase.name())
        })?;
        f.text = with_after(&f.text, &checked.extracted);
    }
    let [case, blocked] = files;
    let files = [rule, case, blocked];
    write(&cases, &files)?;
    let mut out = String::new();
    for f in &files {
        out += &format!("wrote {}\n", f.path.display());
    }
    print(&(out + &format!("next: replace the example, and run `sinter rules test {} --update`\n", dir.display())))?;
    Ok(Outcome::Done)
}

/// Whether a folder is that of the bundled rules.
fn is_bundled(dir: &Path) -> bool {
    BUNDLED.iter().all(|(file, _)| dir.join(Path::new(file).file_name().unwrap_or_default()).is_file())
}

/// The bundled rules and those of a folder, which need not exist.
fn existing(dir: &Path) -> Result<RuleSet, Failure> {
    let has_rules = match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().any(|e| e.path().extension().is_some_and(|e| e == "rules")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(format!("cannot read the rules folder {}: {e}", dir.display()).into()),
    };
    if has_rules {
        return RuleOptions { dirs: vec![dir.to_owned()], banned: vec![] }.load();
    }
    Ok(RuleSet::bundled()?)
}

/// Writes all files, or none.
fn write(cases: &Path, files: &[NewFile]) -> Result<(), Failure> {
    std::fs::create_dir_all(cases).map_err(|e| format!("cannot create {}: {e}", cases.display()))?;
    for (i, f) in files.iter().enumerate() {
        let written = std::fs::File::create_new(&f.path).and_then(|mut file| file.write_all(f.text.as_bytes()));
        if let Err(e) = written {
            // An error is under way already.
            files[..i].iter().for_each(|f| drop(std::fs::remove_file(&f.path)));
            return Err(format!("cannot write {}: {e}", f.path.display()).into());
        }
    }
    Ok(())
}
