//! The tutorial is executed: its files are written, its commands run, and their output is what it shows.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Component, Path};
use std::process::{Command, Stdio};

use crate::fixtures;

/// A part of a document that does something.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A fenced block with a path behind its language.
    Write { path: String, text: String },
    /// A command of a `console` block with the output that it shows.
    Run { line: usize, command: String, code: i32, shown: Vec<String> },
}

/// Reads the fenced blocks of a document. Commands outside of `console` blocks are an error: nobody would run them.
fn steps(document: &str) -> Result<Vec<Step>, String> {
    let mut out = vec![];
    let mut lines = document.lines().enumerate().map(|(i, l)| (i + 1, l));
    while let Some((line, text)) = lines.next() {
        let Some(info) = text.strip_prefix("```") else {
            match text.trim_start().starts_with("$ ") {
                true => return Err(format!("line {line}: a command outside of a `console` block: {text}")),
                false => continue,
            }
        };
        let mut block: Vec<(usize, &str)> = vec![];
        loop {
            match lines.next() {
                None => return Err(format!("line {line}: the block is not closed")),
                Some((_, "```")) => break,
                Some(l) => block.push(l),
            }
        }
        match info.split_once(' ') {
            _ if info == "console" => out.extend(commands(&block)?),
            _ if block.iter().any(|(_, l)| l.starts_with("$ ")) => {
                return Err(format!("line {line}: a command outside of a `console` block"));
            }
            Some((_, path)) => {
                let text = block.iter().map(|(_, l)| format!("{l}\n")).collect();
                out.push(Step::Write { path: path.to_owned(), text });
            }
            None => {}
        }
    }
    Ok(out)
}

/// The commands of a `console` block: `$ COMMAND`, with `\` at the end of lines that go on, and `# exit code N` behind it.
fn commands(block: &[(usize, &str)]) -> Result<Vec<Step>, String> {
    let mut out = vec![];
    let mut lines = block.iter();
    while let Some(&(line, text)) = lines.next() {
        let Some(first) = text.strip_prefix("$ ") else {
            match out.last_mut() {
                Some(Step::Run { shown, .. }) => shown.push(text.to_owned()),
                _ => return Err(format!("line {line}: output without a command: {text}")),
            }
            continue;
        };
        let mut command = first.to_owned();
        while let Some(begun) = command.strip_suffix('\\') {
            let (_, more) = lines.next().ok_or_else(|| format!("line {line}: the command is not ended"))?;
            command = format!("{} {}", begun.trim_end(), more.trim_start());
        }
        let code = match command.split_once(" # ") {
            None => 0,
            Some((_, note)) => note
                .strip_prefix("exit code ")
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| format!("line {line}: `# {note}` is no exit code"))?,
        };
        let command = command.split(" # ").next().unwrap_or_default().trim_end().to_owned();
        out.push(Step::Run { line, command, code, shown: vec![] });
    }
    Ok(out)
}

/// Whether items match a pattern in which some elements stand for any number of items.
fn matches<P, T>(pattern: &[P], items: &[T], any: &dyn Fn(&P) -> bool, equal: &dyn Fn(&P, &T) -> bool) -> bool {
    // The last wildcard, and where it was last supposed to end.
    let (mut p, mut i, mut back) = (0, 0, None);
    while i < items.len() {
        if p < pattern.len() && any(&pattern[p]) {
            back = Some((p, i));
            p += 1;
        } else if p < pattern.len() && equal(&pattern[p], &items[i]) {
            (p, i) = (p + 1, i + 1);
        } else if let Some((wildcard, end)) = back {
            back = Some((wildcard, end + 1));
            (p, i) = (wildcard + 1, end + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(any)
}

/// Whether a line is what is shown; `...` stands for any text.
fn line_matches(shown: &str, real: &str) -> bool {
    let mut pattern: Vec<Option<char>> = vec![];
    for (i, part) in shown.trim_end().split("...").enumerate() {
        pattern.extend((i > 0).then_some(None));
        pattern.extend(part.chars().map(Some));
    }
    let real: Vec<char> = real.trim_end().chars().collect();
    matches(&pattern, &real, &|p| p.is_none(), &|p, c| *p == Some(*c))
}

/// Whether an output is what is shown; a line of `...` alone stands for any number of lines.
fn output_matches(shown: &[String], real: &str) -> bool {
    let real: Vec<&str> = real.lines().collect();
    matches(shown, &real, &|s| s.trim() == "...", &|s, r| line_matches(s, r))
}

/// Runs a program in a folder. Both of its outputs go to one file, in the order in which a person sees them.
fn execute(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut file: File = tempfile::tempfile().unwrap();
    let to = || Stdio::from(file.try_clone().unwrap());
    let status = Command::new(env!("CARGO_BIN_EXE_sinter"))
        .current_dir(dir)
        .args(args)
        .env_remove("CI")
        .stdout(to())
        .stderr(to())
        .status()
        .unwrap();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    (status.code(), text)
}

/// A path of a document, which stays inside of the folder.
fn inside(path: &str) -> &Path {
    let p = Path::new(path);
    assert!(p.components().all(|c| matches!(c, Component::Normal(_))), "{path} leaves the folder");
    p
}

/// Does what a document says in a folder, and collects where it differs from what the document shows.
fn perform(steps: &[Step], dir: &Path) -> Vec<String> {
    let mut problems = vec![];
    for step in steps {
        match step {
            Step::Write { path, text } => {
                let path = dir.join(inside(path));
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Step::Run { line, command, code, shown } => {
                if let Some(special) = command.find(['\'', '"', '$', '|', '>', '<', '*', ';', '&']) {
                    problems.push(format!("line {line}: `{}` needs a shell: {command}", &command[special..]));
                    continue;
                }
                let words: Vec<&str> = command.split_whitespace().collect();
                let (ended, real) = match words[..] {
                    ["sinter", ref args @ ..] => execute(dir, args),
                    ["rm", path] => match std::fs::remove_file(dir.join(inside(path))) {
                        Ok(()) => (Some(0), String::new()),
                        Err(e) => (Some(1), format!("{e}\n")),
                    },
                    _ => {
                        problems.push(format!("line {line}: nobody runs this command: {command}"));
                        continue;
                    }
                };
                if ended != Some(*code) {
                    problems.push(format!("line {line}: $ {command}\nends with {ended:?}, not {code}:\n{real}"));
                } else if !output_matches(shown, &real) {
                    problems.push(format!("line {line}: $ {command}\nprints\n{real}--- not\n{}", shown.join("\n")));
                }
            }
        }
    }
    problems
}

/// A folder in which `fixtures` is that of the repository.
fn workplace() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let models = fixtures::root().join("fixtures/models");
    for model in std::fs::read_dir(models).unwrap().map(Result::unwrap) {
        fixtures::copy(&model.path(), &temp.path().join("fixtures/models").join(model.file_name()));
    }
    temp
}

#[test]
fn the_tutorial_is_what_people_see() {
    let text = std::fs::read_to_string(fixtures::root().join("docs/tutorial.md")).unwrap();
    let steps = steps(&text).unwrap();
    let runs = steps.iter().filter(|s| matches!(s, Step::Run { .. })).count();
    assert!(runs >= 12, "only {runs} commands are found");
    let temp = workplace();
    let problems = perform(&steps, temp.path());
    assert!(problems.is_empty(), "docs/tutorial.md\n{}", problems.join("\n\n"));
}

#[test]
fn documents_are_read_as_they_are_meant() {
    let text = "\
a
```lisp my/a.rules
;; x
```
```console
$ sinter a \\
    b # exit code 1
one
$ rm c
```
```text
nothing
```
";
    let write = Step::Write { path: "my/a.rules".to_owned(), text: ";; x\n".to_owned() };
    let run = |line, command: &str, code, shown: &[&str]| Step::Run {
        line,
        command: command.to_owned(),
        code,
        shown: shown.iter().map(|s| (*s).to_owned()).collect(),
    };
    assert_eq!(steps(text), Ok(vec![write, run(6, "sinter a b", 1, &["one"]), run(9, "rm c", 0, &[])]));
    for (wrong, message) in [
        ("$ sinter", "line 1: a command outside"),
        ("    $ sinter", "line 1: a command outside"),
        ("```text\n$ sinter\n```", "line 1: a command outside"),
        ("```console\n$ sinter", "line 1: the block is not closed"),
        ("```console\nout\n```", "line 2: output without a command"),
        ("```console\n$ sinter # twice\n```", "line 2: `# twice` is no exit code"),
        ("```console\n$ sinter \\\n```", "line 2: the command is not ended"),
    ] {
        assert!(steps(wrong).is_err_and(|e| e.starts_with(message)), "{wrong}");
    }
}

#[test]
fn shown_output_is_compared() {
    let shown = |text: &str, real: &str| output_matches(&text.lines().map(str::to_owned).collect::<Vec<_>>(), real);
    assert!(shown("a\n...\nd", "a\nb\nc\nd\n"));
    assert!(shown("a\n...", "a\n"));
    assert!(shown("took ... ms, ... KiB", "took 3.1 ms, 2 KiB\n"));
    assert!(shown("...\nb\nc\n...", "b\nb\nc\nd\n"));
    assert!(!shown("a\nc", "a\nb\nc\n"));
    assert!(!shown("a", "a\nb\n"));
    assert!(!shown("", "a\n"));
    assert!(!shown("...\nb\na", "a\nb\n"));
    assert!(!shown("took ... ms", "took 3.1 us\n"));
}

#[test]
fn commands_that_nobody_runs_are_problems() {
    let temp = tempfile::tempdir().unwrap();
    let problems = |text: &str| perform(&steps(&format!("```console\n{text}\n```")).unwrap(), temp.path());
    assert!(problems("$ sinter --version\nsinter ...").is_empty());
    assert!(problems("$ cargo build")[0].contains("nobody runs"));
    assert!(problems("$ sinter show | head")[0].contains("needs a shell"));
    assert!(problems("$ rm absent")[0].contains("ends with Some(1)"));
    assert!(problems("$ sinter --version # exit code 2\nsinter ...")[0].contains("not 2"));
}
